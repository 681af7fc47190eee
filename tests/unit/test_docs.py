"""The documentation is true: its Python runs, its links and trees exist, and its fields are fields.

Every ``python`` block of a page runs, in order and in one namespace, in an empty folder, with runs cut to two steps;
a block fenced ``python notest`` does not. A block fenced ``output`` right after one is what that one prints, exactly;
results that depend on training are fenced ``text``.
"""

import contextlib
import io
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from redraft import objectives, recipes, runs, studies
from redraft.dglm.config import DGLMConfig
from redraft.evaluation.answers import ESTIMATORS
from redraft.handover.export import FORMATS
from redraft.handover.serving import ENGINES
from redraft.models.families import FAMILIES
from redraft.presets import PRESETS
from redraft.recipes.finetune import Finetune
from redraft.sampling.samplers import REVISIONS, SAMPLERS, proposes

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s#]+)[^)]*\)")
FIELD = re.compile(r"--((?:process|model|loss|data|train|eval|encoder|proposer|verbaliser|classifier|sample)\.[\w.]+)")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pages
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configure = runs.configure
    monkeypatch.setattr(runs, "configure", lambda *args, **options: cut(configure(*args, **options)))
    namespace = {"__name__": "page"}
    found = BLOCK.findall(page.read_text("utf-8"))
    for (fence, code), (following, output) in pairwise([*found, ("", "")]):
        if fence != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page.name, "exec"), namespace)
        if following == "output":
            assert printed.getvalue() == output


def cut(config):
    """The same run, over in a moment."""
    return replace(
        config,
        model=replace(config.model, depth=1),
        train=replace(config.train, steps=2, batch=4),
        eval=replace(config.eval, draws=1),
    )


@pages
def test_links_exist(page):
    for target in LINK.findall(BLOCK.sub("", page.read_text("utf-8"))):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pages
def test_fields_exist(page):
    known = recipes.field_names(DGLMConfig if page.name == "dglm.md" else recipes.Config)
    known += recipes.field_names(Finetune) if page.name == "checkpoints.md" else []
    assert set(FIELD.findall(page.read_text("utf-8"))) <= set(known)


def tuned():
    """The fields of fine-tuning, but those of the training loop."""
    return [name for name in recipes.field_names(Finetune) if name.partition(".")[0] not in ("recipe", "train", "eval")]


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("recipes.md", recipes.RECIPES),
        ("objectives.md", objectives.OBJECTIVES),
        ("decoding.md", [name for name in SAMPLERS if proposes(SAMPLERS[name])] + [*REVISIONS]),
        ("sampling.md", [name for name, sampler in SAMPLERS.items() if not proposes(sampler)]),
        ("studies.md", studies.STUDIES),
        ("checkpoints.md", [*FAMILIES, *PRESETS, *ESTIMATORS, *FORMATS, *ENGINES, *tuned()]),
    ],
    ids=["recipes", "objectives", "decoding", "sampling", "studies", "checkpoints"],
)
def test_every_name_has_its_line(page, names):
    text = (ROOT / "docs" / page).read_text("utf-8")
    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_tree_is_the_tree():
    """Every path of the README's tree exists, and every module of the package is in it."""
    listed = set(tree((ROOT / "README.md").read_text("utf-8")))
    for path in listed:
        assert (ROOT / path).exists(), f"README lists {path}"
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "redraft").rglob("*.py")}
    assert not {m for m in modules if not m.endswith("/__init__.py")} - listed


def tree(text):
    """The paths of the block fenced ``tree``: one a line, indented by two blanks a level, then what it is."""
    blocks = [code for fence, code in BLOCK.findall(text) if fence == "tree"]
    assert blocks, "no tree"
    parents: list[str] = []
    for line in blocks[0].splitlines():
        level, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        parents[level:] = [name.rstrip("/")]
        yield "/".join(parents)


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    assert all(f"({page.name})" in index for page in PAGES if page.parent.name == "docs" and page.name != "index.md")
