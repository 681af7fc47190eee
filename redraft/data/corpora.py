"""Corpora that every Python installation already has, so that a first run needs no download."""

import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from redraft.data import toy

_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_SHORT_PARAGRAPH = 40  # headings and the like are no leak


def python_docs() -> Iterator[str]:
    """The topics of Python's built-in help, about 80 documents and 0.4 MB of English, sorted by title.

    The help prints whole sections again under several titles, a sixth of it. A paragraph is kept where it stands
    first: without that, a quarter of any held-out text would also be training text.
    """
    from pydoc_data.topics import topics  # half a megabyte of source: only when asked for

    seen: set[str] = set()
    for title in sorted(topics):
        fresh = [p for p in topics[title].split("\n\n") if len(p) < _SHORT_PARAGRAPH or p not in seen]
        seen.update(fresh)
        if any(fresh):
            yield "\n\n".join(fresh)


def python_source() -> Iterator[str]:
    """The standard library's own modules, without its tests, sorted by relative path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path.relative_to(root) for path in root.rglob("*.py")]
    for path in sorted(files, key=lambda path: path.as_posix()):
        if _SKIPPED_FOLDERS.isdisjoint(path.parts):
            try:
                source = (root / path).read_text("utf-8")
            except UnicodeDecodeError:  # a few modules keep an older encoding on purpose
                continue
            if source.strip():
                yield source


def toy_sentences() -> Iterator[str]:
    """The 252 sentences of the toy language (``redraft.data.toy``)."""
    return map(toy.text, toy.sentences())


CORPORA: dict[str, Callable[[], Iterable[str]]] = {
    "python-docs": python_docs,
    "python-source": python_source,
    "toy": toy_sentences,
}
