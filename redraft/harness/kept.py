"""Results kept in a file, so that what was asked once is not asked again; nothing in it is code.

A key is the digest of all that a result depends on: the model, what was asked, and how. Several runs may share a file.
"""

import hashlib
import json
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from redraft import __version__
from redraft.lm import LM

WAIT = 60.0
"""Seconds to wait while another run writes into the file."""
AT_ONCE = 1 << 26
"""Numbers of a weight that are read at a time."""


class Kept:
    """A file of results by key. Errors: ``ValueError`` for a file that is something else."""

    def __init__(self, path: str | Path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path = str(path)
        with self._readable():
            self.base = sqlite3.connect(path, timeout=WAIT)
            with self.base:
                self.base.execute("create table if not exists kept (key text primary key, value text)")
        self.get([""])

    @contextmanager
    def _readable(self) -> Generator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path}: not a file of results, or damaged ({error}); pass another name") from None

    def get(self, keys: Sequence[str]) -> list[Any]:
        """The results of keys, None where there is none, or none that can be read."""
        with self._readable():
            asked = (self.base.execute("select value from kept where key = ?", (key,)) for key in keys)
            return [None if (row := one.fetchone()) is None else _parsed(row[0]) for one in asked]

    def put(self, results: Mapping[str, Any]) -> None:
        with self._readable(), self.base:
            rows = [(key, json.dumps(value)) for key, value in results.items()]
            self.base.executemany("insert or replace into kept values (?, ?)", rows)


def _parsed(stored: str) -> Any:
    try:
        return json.loads(stored)
    except ValueError:
        return None


def digest(*parts: Any) -> str:
    """The same for the same parts, in any process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def fingerprint(lm: LM) -> str:
    """What a model is: every number of its weights, what its network does with them, its words, and our version.

    Networks with equal weights may differ in what they see of a text, or in the scale of their adapters: their facts,
    and what each of their parts is made by, are counted in.
    """
    found = hashlib.sha256(f"{__version__} {torch.__version__} {lm.context} {lm.process.to_dict()}".encode())
    found.update(f"{lm.denoiser.facts}".encode())
    parts: Any = lm.denoiser.named_modules()
    for name, part in parts:
        about = getattr(part, "config", ""), getattr(part, "scaling", "")
        found.update(f"{name} {type(part).__qualname__} {about}".encode())
    state: dict[str, Any] = lm.denoiser.state_dict()
    for name, tensor in sorted(state.items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        plain: Any = tensor if type(tensor) is torch.Tensor else _plain(tensor)
        found.update(f"{name} {tuple(plain.shape)} {plain.dtype}".encode())
        for some in plain.detach().flatten().split(AT_ONCE):
            found.update(some.cpu().contiguous().view(torch.uint8).numpy())
    found.update(lm.tokenizer.backend.to_str().encode())
    return found.hexdigest()


def _plain(tensor: Any) -> Any:
    """The numbers that a quantised weight stands for."""
    return tensor.dequantize() if hasattr(tensor, "dequantize") else tensor
