"""Classifier-free guidance: p_c^weight p_u^(1 - weight), of what two denoisers say or of their reverse kernels.

    log p = weight log p_c + (1 - weight) log p_u + const          position by position

``cfg`` mixes what is said of the clean tokens. Under masks that is D-CFG (Schiff et al. 2024, arXiv 2412.10193) as its
authors run it: how soon a token is written stays as it was. For one position it draws the tilted law itself whatever
the noise, because q(z | x) is the same in both posteriors. ``cfg_posteriors`` mixes the reverse kernels, which is what
those authors do under uniform noise. For several positions neither draws the tilted law, in any number of steps.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from redraft.processes import Denoiser, Facts, Process, absorbing
from redraft.randomness import categorical
from redraft.sampling.samplers import Draw, Query, Sampler, Tokens, over_tokens


def mix(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """weight log p_c + (1 - weight) log p_u, normalised over the last axis; both (..., K) log-probabilities.

    What either rules out stays out: infinities meet no arithmetic. Where they rule out everything between them, the
    conditional speaks alone.

    >>> mix(torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.9, 0.0, 0.1]).log(), 2.0).exp()
    tensor([1., 0., 0.])
    """
    out = torch.isneginf(conditional) | torch.isneginf(unconditional)
    mixed = weight * conditional.masked_fill(out, 0.0) + (1 - weight) * unconditional.masked_fill(out, 0.0)
    mixed = torch.log_softmax(mixed.masked_fill(out, -torch.inf), -1)
    return torch.where(out.all(-1, keepdim=True), conditional, mixed)


class Guided(torch.nn.Module):
    """Two denoisers as one; made by ``cfg``. The conditional one is told ``cond``, the other ``null``."""

    def __init__(self, conditional: Denoiser, unconditional: Denoiser, weight: float, null: Any) -> None:
        super().__init__()
        self.conditional, self.unconditional, self.weight, self.null = conditional, unconditional, weight, null

    @property
    def facts(self) -> Facts:
        one, other = self.conditional.facts, self.unconditional.facts
        asked = [facts for facts, idle in ((one, 0), (other, 1)) if self.weight != idle]
        return replace(
            one,
            time_conditioned=any(facts.time_conditioned for facts in asked),
            forwards=sum(facts.forwards for facts in asked),
            selective=False,
            scores=False,
            caches=False,
        )

    def forward(self, z: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """log p of shape (B, L, K). Errors: ``ValueError`` where both would be asked the very same."""
        if self.weight == 1:
            return self.conditional(z, t, cond)
        if self.weight == 0:
            return self.unconditional(z, t, self.null)
        if self.conditional is self.unconditional and cond is self.null:
            raise ValueError(
                f"cfg asks one denoiser twice with cond {cond!r}, so there is nothing to mix: "
                "pass cond to sample, or an unconditional denoiser to cfg"
            )
        return mix(self.conditional(z, t, cond), self.unconditional(z, t, self.null), self.weight)


def cfg(conditional: Denoiser, unconditional: Denoiser | None = None, *, weight: float, null: Any = None) -> Guided:
    """Classifier-free guidance as a denoiser: p_c^weight p_u^(1 - weight) over clean tokens, renormalised.

    ``conditional`` is told the ``cond`` of the call, ``unconditional`` (the same network unless given) ``null``, which
    must hold for any row. Weight 1 is the conditional and 0 the unconditional model, at one forward a call; any other
    costs two. Works with every process. Under masks it is D-CFG (Schiff et al. 2024) with tokens
    renormalised, so the probability of unmasking is untouched (Rojas et al. 2025, arXiv 2507.08965, say why it should
    be), and, with ``hiding``, unsupervised guidance (Nie et al. 2024, arXiv 2410.18514, whose w is weight - 1).

    Errors: ``ValueError`` for denoisers of different kinds, or, when called, one asked the same twice.
    """
    unconditional = conditional if unconditional is None else unconditional
    one, other = conditional.facts, unconditional.facts
    for name in ("posterior", "mask_id", "attention", "block"):
        if getattr(one, name) != getattr(other, name):
            raise ValueError(
                f"cfg mixes two denoisers alike, and {name} is {getattr(one, name)!r} of the conditional, "
                f"{getattr(other, name)!r} of the unconditional"
            )
    return Guided(conditional, unconditional, weight, null)


class Hiding(torch.nn.Module):
    """A denoiser that sees [MASK] at some positions, whatever stands there; made by ``hiding``."""

    def __init__(self, denoiser: Denoiser, where: Tensor, mask_id: int) -> None:
        super().__init__()
        self.denoiser, self.where, self.mask_id = denoiser, where, mask_id

    @property
    def facts(self) -> Facts:
        return replace(self.denoiser.facts, selective=False, scores=False, caches=False)

    def forward(self, z: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        length = z.shape[1]
        if length > len(self.where):
            raise ValueError(f"hiding {len(self.where)} positions in texts of {length}: pass a bool for each")
        # a block model's text grows from the left, so that it may be shorter
        return self.denoiser(torch.where(self.where[:length].to(z.device), self.mask_id, z), t, cond)


def hiding(denoiser: Denoiser, where: Tensor) -> Hiding:
    """The same denoiser with the positions ``where``, (L,) bool, shown as [MASK]: the model without its prompt.

    As the unconditional side of ``cfg`` it guides towards a prompt with no label ever trained (SMDM, arXiv 2410.18514;
    LLaDA, arXiv 2502.09992). Errors: ``ValueError`` for a denoiser without a mask, or another shape.
    """
    mask_id = denoiser.facts.mask_id
    if mask_id is None:
        raise ValueError("hiding needs a denoiser that knows [MASK]; one of uniform or Gaussian noise has none")
    if where.ndim != 1 or where.dtype is not torch.bool:
        raise ValueError(f"where is {where.dtype} of shape {tuple(where.shape)}: pass a bool (L,), one for all rows")
    return Hiding(denoiser, where, mask_id)


@runtime_checkable
class Beside(Protocol):
    """What ``sample`` gives a sampler for a denoiser: it can ask another one too, and counts its calls."""

    def __call__(self, z: Tensor, t: Tensor, /) -> Tensor: ...

    def beside(self, denoiser: Denoiser, cond: Any, /) -> Callable[[Tensor, Tensor], Tensor]: ...


def cfg_posteriors(unconditional: Denoiser, weight: float, null: Any = None) -> Sampler:
    """A sampler that mixes reverse kernels: p_c(z_s | z_t)^weight p_u(z_s | z_t)^(1 - weight), renormalised.

    D-CFG for uniform noise (Schiff et al. 2024; Duo). ``sample`` is given the conditional denoiser; ``unconditional``
    is told ``null``. Weights 0 and 1 ask one denoiser, others both.

    Errors: ``ValueError``, at its first step, for masks, whose tokens it would write too soon (for weights above 1;
    ``cfg`` does not), and for a process of vectors, which has no kernel over states.
    """

    def guided(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
        kernel = reverse_kernel(process, "cfg_posteriors")
        if absorbing(process):
            raise ValueError("cfg_posteriors under masks changes how soon a token is written, not only which: use cfg")
        if not isinstance(denoiser, Beside):
            raise ValueError(
                "cfg_posteriors is a sampler for redraft.sample: called by hand it can ask one denoiser only"
            )
        sides = [ask for ask, idle in ((denoiser, 0), (denoiser.beside(unconditional, null), 1)) if weight != idle]
        probs = [kernel.posterior(draw.probs(ask(z, t)), z, t, s) for ask in sides]
        mixed = probs[0] if len(probs) == 1 else mix(probs[0].log(), probs[1].log(), weight).exp()
        return categorical(mixed, draw.generator)

    return guided


def reverse_kernel(process: Process, method: str) -> Tokens:
    """The process as something with a reverse kernel over states. Errors: ``ValueError`` for one of vectors."""
    if not over_tokens(process):
        raise ValueError(
            f"{method} acts on a kernel over tokens, and {process.name} noise moves vectors: use cfg there"
        )
    return process
