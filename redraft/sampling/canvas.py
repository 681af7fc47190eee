"""The canvas of ``sample``: what is given, how that stands amid noise, where a draft begins, what may be written on it.

Section by section: ``layout`` reads the caller's prompt or canvas, ``Canvas`` knows the given tokens at any time,
``checked`` looks over what a callback wrote.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.models.told import unnoised
from redraft.processes import Facts, Gaussian, Process, only_masks
from redraft.randomness import Generators, randn

GIVEN = ("noised", "clean", "told")
"""How given tokens may stand on a canvas whose noise is not masks alone; what is drawn beside them depends on it.

- ``noised``: noised to the time of the canvas, afresh after each step (RePaint, Lugmayr et al. 2022); usual among
  vectors. Biased, whatever the steps: what is free has been denoised beside other noise. ``resample`` jumps back from s
  to t and repeats the step so many times, at as many more calls, which lowers the bias.
- ``clean``: without noise, alpha_s x (Diffusion-LM) or the token itself, which is usual among tokens. The denoiser
  takes them for as noisy as the rest, and so for less than they say.
- ``told``: without noise and said to be so, by a time of their own (``models.told``). Exact where the denoiser knows
  what that means: one trained with ``loss.given``, or exact itself.

Guidance by the given tokens' own likelihood (PLAID's token guidance) is a fourth way, and a denoiser of its own.
"""


LENGTH = 64
"""Positions to write after a prompt, unless told."""

Rows = tuple[list[Tensor], list[Tensor]]
"""The ids of each row and which of them are given, both (L,)."""


def layout(
    process: Process,
    length: int | Sequence[int] | None,
    num: int,
    prompt: Tensor | Sequence[int] | Sequence[Sequence[int]] | None,
    canvas: Tensor | Sequence[Tensor] | None,
    frozen: Tensor | Sequence[Tensor] | None,
    strength: float | None = None,
) -> Rows:
    """The rows of a canvas. Free positions hold any token, or the text that is to be redrafted."""
    if num < 1:
        raise ValueError(f"num={num}: draw at least one row")
    if strength is not None and not 0 <= strength <= 1:
        raise ValueError(f"strength={strength}: pass 0, which changes nothing, to 1, which keeps nothing")
    if _is_list(canvas) or _is_list(frozen):
        found = _several(num, canvas, frozen)
    elif canvas is None and frozen is None and strength is None:
        found = _continued(LENGTH if length is None else length, num, prompt)
    else:
        found = _whole(num, canvas, frozen, strength)
    if prompt is not None and canvas is not None:
        raise ValueError("prompt and canvas are two ways to say the same: pass one")
    if length is not None and canvas is not None:
        raise ValueError(f"length={length} with a canvas, which is as long as it is: leave length out")
    ids, known = list(found[0]), list(found[1])
    _check_known(process, torch.cat([row[given] for row, given in zip(ids, known, strict=True)]), "frozen")
    if strength is not None:
        _check_known(process, torch.cat(ids), "canvas")
        return ids, known
    free = 1 if process.mask_id == 0 else 0
    return [torch.where(given, row, free) for row, given in zip(ids, known, strict=True)], known


def to_whole_blocks(facts: Facts, ids: list[Tensor], known: list[Tensor], block: int | None, constrained: bool) -> Rows:
    """Rows that end where a block does, which the model writes to its end: what is added to a row is free.

    Errors: ``ValueError`` where no blocks are written, and for a constraint, which is of the text asked for alone.
    """
    width = facts.block if facts.attention == "block" else block
    if width is None or width < 1:
        raise ValueError(f"whole_blocks with block={block}: pass block, the positions to write at a time")
    if constrained:
        raise ValueError("whole_blocks with a constraint, which would hold for what is left out too: leave one out")
    wide, open_ = list[Tensor](), list[Tensor]()
    for row, given in zip(ids, known, strict=True):
        free = (~given).nonzero().flatten()
        begin = 0 if facts.attention == "block" else int(free[0]) if len(free) else 0
        more = (begin - len(row)) % width if len(free) else 0
        wide.append(torch.cat([row, row.new_zeros(more)]))
        open_.append(torch.cat([given, given.new_zeros(more)]))
    return wide, open_


def _is_list(rows: Any) -> bool:
    """Whether rows are given one by one."""
    return isinstance(rows, Sequence) and any(isinstance(one, Sequence | Tensor) for one in rows)


def _continued(
    length: int | Sequence[int], num: int, prompt: Tensor | Sequence[int] | Sequence[Sequence[int]] | None
) -> Rows:
    """Rows that begin with a prompt, the same or one for each, and go on for ``length``, the same or one for each."""
    prompts: list[Any] = list(prompt) if prompt is not None and _is_list(prompt) else [prompt]
    lengths = [length] if isinstance(length, int) else list(length)
    rows = max(len(prompts), len(lengths))
    for name, given in (("prompts", prompts), ("lengths", lengths)):
        if len(given) not in (1, rows):
            raise ValueError(f"{len(given)} {name} for {rows} rows: pass one for all, or one for each")
    if rows > 1 and num not in (1, rows):
        raise ValueError(f"num={num} with {rows} rows of their own: leave num out, or pass one row")
    rows = max(rows, num)
    ids, known = list[Tensor](), list[Tensor]()
    for row in range(rows):
        one, more = prompts[row % len(prompts)], lengths[row % len(lengths)]
        if more < 1:
            raise ValueError(f"length={more}: ask for at least one token")
        start = torch.as_tensor([] if one is None else one, dtype=torch.long).cpu()
        if start.ndim != 1:
            raise ValueError(f"prompt of shape {tuple(start.shape)}: pass one sequence of ids, or canvas and frozen")
        ids.append(torch.cat([start, torch.zeros(more, dtype=torch.long)]))
        known.append(torch.arange(len(ids[-1])) < len(start))
    return ids, known


def _several(num: int, canvas: Any, frozen: Any) -> Rows:
    """Rows given one by one."""
    if canvas is None or frozen is None or len(canvas) != len(frozen) or not len(canvas):
        raise ValueError("canvas and frozen go together: the ids of each row, and which of them must not change")
    if num not in (1, len(canvas)):
        raise ValueError(f"{num} rows or seeds with {len(canvas)} canvases: pass one canvas for each, or leave num out")
    ids = [_ids(row) for row in canvas]
    known = [torch.as_tensor(row) for row in frozen]
    for row, given in zip(ids, known, strict=True):
        _check_pair(row, given)
        if row.ndim != 1:
            raise ValueError(f"a row of shape {tuple(row.shape)} in a list of canvases: pass rows (L,)")
    return ids, known


def _whole(num: int, canvas: Any, frozen: Any, strength: float | None) -> Rows:
    """Rows of one length, (B, L), or one row so many times."""
    if canvas is not None:
        canvas = _ids(canvas)
    if strength is not None:
        if canvas is None:
            raise ValueError(f"strength={strength} without a text: pass the ids to redraft as canvas")
        frozen = torch.zeros_like(canvas, dtype=torch.bool) if frozen is None else frozen
    if canvas is None or frozen is None:
        raise ValueError("canvas and frozen go together: the ids, and which of them must not change")
    _check_pair(canvas, frozen)
    if canvas.ndim == 1:
        canvas, frozen = canvas.expand(num, -1), frozen.expand(num, -1)
    elif num not in (1, len(canvas)):
        raise ValueError(f"num={num} with a canvas of {len(canvas)} rows: leave num out, or pass one row")
    return list(canvas), list(frozen)


def _ids(canvas: Any) -> Tensor:
    canvas = torch.as_tensor(canvas)
    if canvas.is_floating_point() or canvas.dtype is torch.bool:
        raise ValueError(f"a canvas of {canvas.dtype}: pass ids, integers")
    return canvas.long()


def _check_pair(canvas: Tensor, frozen: Tensor) -> None:
    if canvas.shape != frozen.shape or canvas.ndim not in (1, 2) or frozen.dtype is not torch.bool:
        raise ValueError(
            f"canvas {tuple(canvas.shape)} and frozen {tuple(frozen.shape)} of {frozen.dtype}: "
            "pass ids and a bool of one shape, (L,) or (B, L)"
        )


def _check_known(process: Process, known: Tensor, name: str) -> None:
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < process.K:
        raise ValueError(
            f"{name} ids run from {int(known.min())} to {int(known.max())}, tokens from 0 to {process.K - 1}"
        )
    if process.mask_id is not None and bool((known == process.mask_id).any()):
        fix = "leave positions to be written unfrozen" if name == "frozen" else "a text to redraft holds tokens only"
        raise ValueError(f"a {name} position holds the mask id {process.mask_id}: {fix}")


def convention(process: Process, facts: Facts, given: str | None, resample: int, frozen: Sequence[Tensor]) -> str:
    """How given tokens are to stand: one of ``GIVEN``, the usual one of the process unless chosen.

    Errors: ``ValueError`` for another name, for a choice where there is none, for ``told`` with a denoiser of tokens
    that is not told the time, and for ``resample`` where nothing is noised afresh.
    """
    if given is not None and given not in GIVEN:
        raise unknown("way for given tokens to stand", given, GIVEN)
    asked = f"given={given!r}" if given is not None else f"resample={resample}"
    if resample < 0:
        raise ValueError(f"resample={resample}: pass the number of jumps back in each step, from 0")
    if (given is not None or resample) and only_masks(process):
        raise ValueError(
            f"{asked} with a {process.name} process: what is no mask is clean there, given tokens are exact as they "
            "are; leave it out"
        )
    if (given is not None or resample) and not any(bool(row.any()) for row in frozen):
        raise ValueError(f"{asked}, and no token is given: leave it out")
    if given == "told" and not (process.vectors or facts.time_conditioned):
        raise ValueError("given='told' with a denoiser that is not told the time: it cannot hear of it; leave it out")
    given = given or ("noised" if process.vectors else "clean")
    if resample and not (given == "noised" and isinstance(process, Gaussian)):
        raise ValueError(
            f"resample={resample} with given={given!r} and a {process.name} process: "
            "jumps back mend what is freshly noised among vectors; leave it out"
        )
    return given


@dataclass(frozen=True)
class Canvas:
    """``ids`` (B, L), of which ``frozen`` (B, L) must not change and stand as ``given`` says; a generator for each row.

    ``strength``: the time t* from which ``ids`` are to be redrafted, None where there is no text to begin with.
    """

    process: Process
    ids: Tensor
    frozen: Tensor
    given: str
    generators: Generators
    strength: float | None = None

    def begin(self) -> Tensor:
        """z at the first time: noise alone, or the text noised to t*; given tokens are not put back yet."""
        shape, start = (self.ids.shape[0], self.ids.shape[1]), self.strength
        if start is None or start == 1:  # a channel may leave a trace of the text at t = 1, which is not wanted here
            return self.process.prior(shape, self.generators, self.ids.device)
        z = self.process.corrupt(self.ids, self._at(start), self.generators)
        return z.double() if self.process.vectors else z

    def put_back(self, z: Tensor, s: float) -> Tensor:
        """Restore the given tokens in z at s."""
        if self.given == "noised":
            # drawn for rows without given tokens too: a row's draws must not depend on the rows beside it
            stand = self.process.corrupt(self.ids, self._at(s), self.generators)
            return torch.where(self.frozen[..., None] if self.process.vectors else self.frozen, stand.to(z), z)
        return self.clean(z, self._at(s)) if self.process.vectors else torch.where(self.frozen, self.ids, z)

    def clean(self, z: Tensor, t: Tensor) -> Tensor:
        """Vectors z with the given ones in place without noise, alpha_t x; one that is told sees its own (``Told``)."""
        assert isinstance(self.process, Gaussian)
        return torch.where(self.frozen[..., None], unnoised(self.process, self.ids, t).to(z), z)

    def shared(self, rows: Tensor) -> bool:
        """Whether row rows[r] is given what row r is, for every r."""
        same = (self.frozen[rows] == self.frozen) & ((self.ids[rows] == self.ids) | ~self.frozen)
        return bool(same.all())

    def renoised(self, z: Tensor, s: float, t: float) -> Tensor:
        """Draw z at t > s from z at s by the forward process, q(z_t | z_s) of vectors (RePaint's jump back).

        z_t ~ N(r z_s, sigma_t^2 - r^2 sigma_s^2),  r = alpha_t / alpha_s
        """
        assert isinstance(self.process, Gaussian)
        (early, quiet), (late, loud) = (self.process.scales(self.process.gamma(self._at(one))[0]) for one in (s, t))
        ratio = (late / early)[..., None]
        spread = (loud[..., None] ** 2 - ratio**2 * quiet[..., None] ** 2).clamp_min(0.0).sqrt()
        return ratio.to(z) * z + (spread * randn(z.shape, self.generators, z.device)).to(z)

    def shown(self, tokens: Tensor) -> Tensor:
        """``tokens`` (B, L) with the given ones in place."""
        return torch.where(self.frozen, self.ids, tokens)

    def _at(self, time: float) -> Tensor:
        return torch.full((len(self.ids),), time, dtype=torch.float64, device=self.ids.device)


def checked(process: Process, rewritten: Tensor, z: Tensor) -> Tensor:
    """What a callback wrote in place of z. Errors: ``ValueError`` for another shape, or ids that are no states."""
    if rewritten.shape != z.shape:
        raise ValueError(f"the callback returned shape {tuple(rewritten.shape)} for a canvas of {tuple(z.shape)}")
    states = max(process.K, 0 if process.mask_id is None else process.mask_id + 1)
    if not process.vectors and not 0 <= int(rewritten.min()) <= int(rewritten.max()) < states:
        raise ValueError(f"the callback wrote an id outside the states, 0 to {states - 1}: {rewritten.tolist()}")
    return rewritten.to(z)
