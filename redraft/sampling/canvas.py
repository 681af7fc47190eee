"""The canvas of ``sample``: what is given, how that stands amid noise, where a draft begins, what may be written on it.

Section by section: ``layout`` reads the caller's prompt or canvas, ``Canvas`` knows the given tokens at any time,
``checked`` looks over what a callback wrote.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.models.told import unnoised
from redraft.processes import Facts, Gaussian, PerToken, Process, absorbing
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


def layout(
    process: Process,
    length: int,
    num: int,
    prompt: Tensor | Sequence[int] | None,
    canvas: Tensor | None,
    frozen: Tensor | None,
    strength: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The ids and the frozen mask, both (B, L). Free positions hold any token, or the text that is to be redrafted."""
    if num < 1:
        raise ValueError(f"num={num}: draw at least one row")
    if canvas is not None:
        canvas = torch.as_tensor(canvas)
        if canvas.is_floating_point() or canvas.dtype is torch.bool:
            raise ValueError(f"a canvas of {canvas.dtype}: pass ids, integers")
        canvas = canvas.long()
    if strength is not None:
        if not 0 <= strength <= 1:
            raise ValueError(f"strength={strength}: pass 0, which changes nothing, to 1, which keeps nothing")
        if canvas is None:
            raise ValueError(f"strength={strength} without a text: pass the ids to redraft as canvas")
        frozen = torch.zeros_like(canvas, dtype=torch.bool) if frozen is None else frozen
    if (canvas is None) != (frozen is None):
        raise ValueError("canvas and frozen go together: the ids, and which of them must not change")
    if canvas is None or frozen is None:
        if length < 1:
            raise ValueError(f"length={length}: ask for at least one token")
        start = torch.as_tensor([] if prompt is None else prompt, dtype=torch.long).cpu()
        if start.ndim != 1:
            raise ValueError(f"prompt of shape {tuple(start.shape)}: pass one sequence of ids, or canvas and frozen")
        canvas = torch.cat([start, torch.zeros(length, dtype=torch.long)])
        frozen = torch.arange(len(canvas)) < len(start)
    elif prompt is not None:
        raise ValueError("prompt and canvas are two ways to say the same: pass one")
    if canvas.shape != frozen.shape or canvas.ndim not in (1, 2) or frozen.dtype is not torch.bool:
        raise ValueError(
            f"canvas {tuple(canvas.shape)} and frozen {tuple(frozen.shape)} of {frozen.dtype}: "
            "pass ids and a bool of one shape, (L,) or (B, L)"
        )
    if canvas.ndim == 1:
        canvas, frozen = canvas.expand(num, -1), frozen.expand(num, -1)
    elif num not in (1, len(canvas)):
        raise ValueError(f"num={num} with a canvas of {len(canvas)} rows: leave num out, or pass one row")
    _check_known(process, canvas[frozen], "frozen")
    if strength is not None:
        _check_known(process, canvas, "canvas")
        return canvas, frozen
    return torch.where(frozen, canvas, 1 if process.mask_id == 0 else 0), frozen


def _check_known(process: Process, known: Tensor, name: str) -> None:
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < process.K:
        raise ValueError(
            f"{name} ids run from {int(known.min())} to {int(known.max())}, tokens from 0 to {process.K - 1}"
        )
    if process.mask_id is not None and bool((known == process.mask_id).any()):
        fix = "leave positions to be written unfrozen" if name == "frozen" else "a text to redraft holds tokens only"
        raise ValueError(f"a {name} position holds the mask id {process.mask_id}: {fix}")


def convention(process: Process, facts: Facts, given: str | None, resample: int, frozen: Tensor) -> str:
    """How given tokens are to stand: one of ``GIVEN``, the usual one of the process unless chosen.

    Errors: ``ValueError`` for another name, for a choice where there is none, for ``told`` with a denoiser of tokens
    that is not told the time, and for ``resample`` where nothing is noised afresh.
    """
    if given is not None and given not in GIVEN:
        raise unknown("way for given tokens to stand", given, GIVEN)
    asked = f"given={given!r}" if given is not None else f"resample={resample}"
    if resample < 0:
        raise ValueError(f"resample={resample}: pass the number of jumps back in each step, from 0")
    if (given is not None or resample) and (absorbing(process) or isinstance(process, PerToken)):
        raise ValueError(
            f"{asked} with a {process.name} process: what is no mask is clean there, given tokens are exact as they "
            "are; leave it out"
        )
    if (given is not None or resample) and not bool(frozen.any()):
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
