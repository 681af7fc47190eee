"""What is fetched of a Hub repository: data and nothing else, no code and no pickle. How ``transformers`` is asked."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redraft.models.weights import PICKLED

DATA = ("*.json", "*.safetensors", "*.jinja", "merges.txt")
"""What is fetched of a repository, of the files that are in no folder of it."""
_CONVERT = "https://huggingface.co/spaces/safetensors/convert"


def parted(name: str) -> tuple[str, str | None]:
    """``owner/name@revision`` as the repository and its branch, tag, commit or pull request (refs/pr/1), if any.

    Errors: ``ValueError`` for what can be no repository's name.
    """
    repository, at, revision = name.partition("@")
    parts = repository.split("/")
    if len(parts) != 2 or not all(one.strip(".") for one in parts) or name.startswith((".", "~")):
        raise ValueError(f"{name}: no such folder; pass the folder of a run, or a Hugging Face id like owner/name")
    if at and not revision:
        raise ValueError(f"{name}: no revision after the @; pass owner/name, or owner/name@REVISION")
    return repository, revision or None


def fetched(name: str, patterns: Sequence[str] = DATA) -> str:
    """The folder into which a Hub repository's data files were fetched, those of some ``patterns``; see ``parted``.

    Errors: ``ValueError`` for none of that name, or, where weights are asked for, one that has none but pickles.
    """
    repository, revision = parted(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    asked: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        # only data is asked for: no code of a repository is ever fetched, still less run
        folder = snapshot_download(repository, allow_patterns=list(patterns), ignore_patterns=["*/*"], **asked)
        if "*.safetensors" in patterns and not any(Path(folder).glob("*.safetensors")):
            raise ValueError(_without(name, repository, asked))
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name}: no such folder, and not to be had from the Hugging Face Hub ({reason})") from None


@contextmanager
def quiet() -> Generator[None]:
    """Inside, ``transformers`` shows no progress bars and no remarks: what is wrong with a model, we say ourselves."""
    from transformers.utils import logging

    shown: bool = logging.is_progress_bar_enabled()  # pyright: ignore[reportAttributeAccessIssue]
    verbosity: int = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


@contextmanager
def refusing(name: str, what: str) -> Generator[None]:
    """Whatever goes wrong inside, from no network to a damaged file, is one ``ValueError`` of one line."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        pickled = sorted(path.name for path in Path(name).glob("*.bin")) if Path(name).is_dir() else []
        fix = f"{pickled[0]} is a pickle, which is never read: convert it" if pickled else "pass its folder or Hub id"
        raise ValueError(f"cannot load the {what} {name!r} ({reason}); {fix}, with model.safetensors") from None


def causal(folder: Path, dtype: Any = None) -> Any:
    """The causal language model in a folder as ``transformers`` has it: safetensors, no remote code, all its weights.

    ``dtype``: as stored unless given. Errors: ``ValueError`` for what is none, or weights that do not fit its config.
    """
    from transformers import AutoModelForCausalLM

    network, info = _loaded(folder, AutoModelForCausalLM, "causal model", dtype)
    _refuse_unfit(folder, info, ("missing", "unexpected", "mismatched"))
    return network


def body(folder: Path, dtype: Any = None) -> Any:
    """The network in a folder without its head, for its hidden states; else as ``causal``."""
    from transformers import AutoModel

    network, info = _loaded(folder, AutoModel, "model", dtype)
    # heads are left over, and a pooler that was never trained is not asked
    info["missing_keys"] = [one for one in info["missing_keys"] if "pooler" not in one]
    _refuse_unfit(folder, info, ("missing", "mismatched"))
    return network


def _loaded(folder: Path, auto: Any, what: str, dtype: Any) -> tuple[Any, dict[str, Any]]:
    how: dict[str, Any] = {"dtype": dtype or "auto", "use_safetensors": True, "trust_remote_code": False}
    with refusing(str(folder), what), quiet():
        found: Any = auto.from_pretrained(folder, local_files_only=True, output_loading_info=True, **how)
    return found


def _refuse_unfit(folder: Path, info: dict[str, Any], kinds: Sequence[str]) -> None:
    for kind in kinds:
        if wrong := sorted(map(str, info[f"{kind}_keys"])):
            raise ValueError(f"{folder}: its weights do not fit its config; {kind} {', '.join(wrong[:3])}")


def _without(name: str, repository: str, asked: dict[str, Any]) -> str:
    """Why a repository has no weights for us."""
    from huggingface_hub import list_repo_files

    pickled = sorted(one for one in list_repo_files(repository, **asked) if one.endswith(PICKLED))
    if not pickled:
        return f"{name}: no safetensors file in it, and weights are read from nowhere else; pass another repository"
    return (
        f"{name}: its weights are a pickle ({pickled[0]}), which can run code when it is read, so it is not fetched; "
        f"have it converted to safetensors ({_CONVERT}) and pass {repository}@refs/pr/NUMBER, the pull request of that"
    )
