"""Weights in 8 or 4 bits, by torchao (extra ``quantise``): what is kept of a matrix in place of its numbers.

Those of the blocks' linear layers and experts; embedding, head, norms and routers stay as they are. Numbers are made of
the bits again wherever the matrix is multiplied with, in the precision it had. What torchao has of integers of 4 bits
runs on some devices only: of its formats of 4 bits, QLoRA's runs on all of them.
"""

import ctypes
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from redraft.errors import unknown
from redraft.models.experts import Experts

_FOREIGN = {"torchao": "Failed to load ", "torch.utils._pytree": "Enum subclass and is now natively supported"}
"""What is logged where torchao is imported, by ``transformers`` and ``peft`` too: its libraries of other devices cannot
be loaded, and an enum of its is registered with torch in the old way. It is no concern of who asks for a model."""


def _unheard(record: logging.LogRecord) -> bool:
    return _FOREIGN[record.name] not in record.getMessage()


for _name in _FOREIGN:
    logging.getLogger(_name).addFilter(_unheard)

_ROUTERS = {"gate", "router"}
"""What the linear layer that scores experts is called in networks of ``transformers``."""


@dataclass(frozen=True)
class Kind:
    """A format. ``make`` turns a matrix into it; ``size(shape, itemsize)`` is what that takes, in bytes.

    ``takes``: the shapes it can hold; matrices of others stay as they are.
    """

    make: Callable[[Tensor], Tensor]
    size: Callable[[tuple[int, ...], int], int]
    takes: Callable[[tuple[int, ...]], bool]


def _int8(weight: Tensor) -> Tensor:
    """Integers of 8 bits; a scale for each row, its largest number over 127.5."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    quantize_(layer, Int8WeightOnlyConfig(version=2, set_inductor_config=False))
    return layer.weight


def _nf4(weight: Tensor) -> Tensor:
    """The 16 quantiles of a normal law, scaled by each 64 numbers' largest; scales in 8 bits (QLoRA, 2305.14314)."""
    from torchao.quantization import to_nf4

    return to_nf4(weight, _BLOCK, _scales(weight.numel()))


_BLOCK = 64
"""Numbers that share a scale."""
_LARGE = 1 << 18
"""Numbers of a matrix for which it is worth while to tidy up."""


def _scales(numbers: int) -> int:
    """How many scales share one of their own, 256 at most."""
    return math.gcd(numbers // _BLOCK, 256)


def _nf4_size(shape: tuple[int, ...], itemsize: int) -> int:
    numbers = math.prod(shape)
    scales = numbers // _BLOCK
    return numbers // 2 + scales + itemsize * (scales // _scales(numbers) + 16 + 1)


KINDS = {
    "int8": Kind(_int8, lambda shape, itemsize: math.prod(shape) + 5 * shape[0], lambda shape: True),
    "nf4": Kind(_nf4, _nf4_size, lambda shape: math.prod(shape) % _BLOCK == 0),
}


def made(kind: Kind, weight: Tensor) -> Tensor:
    """A matrix in that format. What was needed only to make it is given back to the system at once.

    The C library would keep it, in holes between what stays: more, in the end, than the model was before.
    """
    found = kind.make(weight)
    if weight.device.type == "cpu" and weight.numel() >= _LARGE:
        with suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
    return found


def kind_of(name: str) -> Kind:
    """The format of this name. Errors: ``ValueError`` for another name, or no torchao."""
    if name not in KINDS:
        raise unknown("quantize", name, KINDS)
    if find_spec("torchao") is None:
        raise ValueError(f"quantize={name!r} needs torchao: pip install 'redraft[quantise]'")
    return KINDS[name]


def matrices(model: nn.Module, kind: Kind) -> dict[str, int]:
    """The names of the weights in blocks that can be of this format, and how many matrices are stacked in each."""
    found = dict[str, int]()
    for prefix, block in blocks(model):
        for name, module in block.named_modules(prefix=prefix):
            if isinstance(module, Experts):
                weights = dict(module.named_parameters())
            elif isinstance(module, nn.Linear) and name.rpartition(".")[2] not in _ROUTERS:
                weights = {"weight": module.weight}
            else:
                continue
            for leaf, weight in weights.items():
                if kind.takes(tuple(weight.shape[-2:])):
                    found[f"{name}.{leaf}"] = len(weight) if weight.ndim > 2 else 1
    return found


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks a network repeats: the entries of the lists that are in no other."""
    found = list[tuple[str, nn.Module]]()
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(outer + ".") for outer, _ in found):
            found += [(f"{name}.{entry}", block) for entry, block in module.named_children()]
    return found


def bits(model: nn.Module) -> bool:
    """Whether any weight of ``model`` is quantised."""
    return any(type(one.data) is not Tensor for one in model.parameters())
