"""The parts that come from ``transformers``: read from a folder or the Hub, safetensors only, no remote code."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


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


def config(name: str, what: str) -> Any:
    """The configuration of a model. Errors: ``ValueError`` for one that cannot be had."""
    from transformers import AutoConfig

    with refusing(name, what):
        return AutoConfig.from_pretrained(name, trust_remote_code=False)


def model(auto: Any, name: str, what: str, spare: str = "") -> Any:
    """A model by the Auto class ``auto``, in float32 and evaluation mode.

    Weights whose name begins with ``spare`` (if given) may be missing, since they are not used. Errors: ``ValueError``
    for a model that cannot be had, has no safetensors, or lacks weights, which would be random ones.
    """
    with refusing(name, what), quiet():
        made, info = auto.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    lacking = sorted(key for key in info["missing_keys"] if not (spare and key.startswith(spare)))
    if lacking:
        raise ValueError(f"the {what} {name!r} has no weights for {', '.join(lacking[:3])}; pass a complete model")
    return made.eval()


def tokenizer(name: str, what: str) -> Any:
    """The fast tokenizer beside a model; what spells a special token is text to it."""
    from transformers import AutoTokenizer

    with refusing(name, what):
        made: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if not getattr(made, "is_fast", False):
        raise ValueError(f"the {what} {name!r} has no tokenizer.json; convert its tokenizer to a fast one first")
    return made


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
