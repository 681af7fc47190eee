"""Classifier-free guidance: p_c^weight p_u^(1 - weight), of what two denoisers say or of their reverse kernels.

    log p = weight log p_c + (1 - weight) log p_u + const          position by position

``cfg`` mixes what is said of the clean tokens. Under masks that is D-CFG (Schiff et al. 2024, arXiv 2412.10193) as its
authors run it: how soon a token is written stays as it was. For one position it draws the tilted law itself whatever
the noise, because q(z | x) is the same in both posteriors. ``cfg_posteriors`` mixes the reverse kernels, which is what
those authors do under uniform noise. For several positions neither draws the tilted law, in any number of steps.

Among vectors there is a third, which draws it for no position: ``cfg(..., space="vectors")`` mixes what is said of the
clean vectors, weight x_c + (1 - weight) x_u, as those who predict vectors do (Ho & Salimans 2022). That is the same as
mixing epsilon, v or the score; x may then leave the convex hull of the codebook, which mixed tokens never do.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.models.vectors import ask
from redraft.processes import Denoiser, Facts, Gaussian, Process, absorbing
from redraft.processes.base import as_condition
from redraft.randomness import categorical
from redraft.sampling.samplers import Draw, Query, Sampler, Tokens, over_tokens

Space = Literal["tokens", "vectors"]
"""What is mixed: log p of tokens, or clean vectors."""


def from_w(w: float) -> float:
    """The weight here of those who write (1 + w) conditional - w unconditional: 1 + w (Ho & Salimans; Muse; LLaDA).

    No conversion is needed of scales of which 1 is the conditional model: those of GLIDE, Imagen, diffusers and ELF,
    gamma of D-CFG and Duo, the g of classifier guidance, PLAID's lambda. Diffusion-LM's lambda weighs fluency, the
    opposite, and has no counterpart.
    """
    return 1 + w


def from_temperature(temperature: float) -> float:
    """The weight here of a guidance temperature (Nisonoff et al. 2024): 1 / T, 0 for an infinite one.

    Errors: ``ValueError`` unless T is above 0.
    """
    if not temperature > 0:
        raise ValueError(
            f"temperature={temperature}: a guidance temperature is above 0, and 1 is the conditional model"
        )
    return 1 / temperature


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

    def __init__(
        self,
        conditional: Denoiser,
        unconditional: Denoiser,
        weight: float,
        null: Any,
        space: Space = "tokens",
        process: Gaussian | None = None,
    ) -> None:
        super().__init__()
        self.conditional, self.unconditional, self.weight, self.null = conditional, unconditional, weight, null
        self.space, self.process = space, process

    @property
    def facts(self) -> Facts:
        one, other = self.conditional.facts, self.unconditional.facts
        asked = [facts for facts, idle in ((one, 0), (other, 1)) if self.weight != idle]
        return replace(
            one,
            time_conditioned=any(facts.time_conditioned for facts in asked),
            forwards=sum(facts.forwards for facts in asked),
            vectors=asked[0].vectors if len(asked) == 1 else self.space == "vectors",
            self_conditioned=any(facts.self_conditioned for facts in asked),
            selective=False,
            scores=False,
            caches=False,
        )

    def forward(self, z: Tensor, t: Tensor, cond: Any = None, vectors: bool = False) -> Tensor:
        """log p (B, L, K), or clean vectors (B, L, D). Errors: ``ValueError`` where both would be asked the same."""
        own, guess = _apart(cond)
        if self.weight not in (0, 1) and self.conditional is self.unconditional and own is self.null:
            raise ValueError(
                f"cfg asks one denoiser twice with cond {own!r}, so there is nothing to mix: "
                "pass cond to sample, or an unconditional denoiser to cfg"
            )
        said: list[Tensor] = []
        for side, told, idle in ((self.conditional, own, 0), (self.unconditional, self.null, 1)):
            if self.weight == idle:
                continue
            told = {**as_condition(told), **guess} if guess and side.facts.self_conditioned else told
            said.append(clean_vectors(side, self.process, z, t, told) if vectors else side(z, t, told))
        if len(said) == 1:
            return said[0]
        return self.weight * said[0] + (1 - self.weight) * said[1] if vectors else mix(said[0], said[1], self.weight)


def _apart(cond: Any) -> tuple[Any, dict[str, Tensor]]:
    """A condition without the guess that self-conditioning adds to it, None if that leaves nothing, and the guess."""
    if not isinstance(cond, dict) or "guess" not in cond:
        return cond, {}
    rest: dict[str, Any] = {key: value for key, value in cond.items() if key != "guess"}
    return rest or None, {"guess": cond["guess"]}


def clean_vectors(denoiser: Denoiser, process: Gaussian | None, z: Tensor, t: Tensor, cond: Any) -> Tensor:
    """The clean vectors that ``denoiser`` says, (B, L, D): its own, or the mean of its tokens' in ``process``."""
    return ask(denoiser, process, z, t, cond).x


def cfg(
    conditional: Denoiser,
    unconditional: Denoiser | None = None,
    *,
    weight: float,
    null: Any = None,
    space: Space | None = None,
    process: Process | None = None,
) -> Guided:
    """Classifier-free guidance as a denoiser: p_c^weight p_u^(1 - weight) over clean tokens, renormalised.

    ``conditional`` is told the ``cond`` of the call, ``unconditional`` (the same network unless given) ``null``, which
    must hold for any row. Weight 1 is the conditional and 0 the unconditional model, at one forward a call; any other
    costs two. Works with every process. Under masks it is D-CFG (Schiff et al. 2024) with tokens
    renormalised, so the probability of unmasking is untouched (Rojas et al. 2025, arXiv 2507.08965, say why it should
    be), and, with ``hiding``, unsupervised guidance (Nie et al. 2024, arXiv 2410.18514, whose w is weight - 1).

    ``space``: under Gaussian noise, ``tokens`` mixes so too, ``vectors`` mixes the clean vectors linearly, weight x_c +
    (1 - weight) x_u, for which ``process`` holds the codebook of denoisers that name tokens. Unless given, it is
    vectors where one predicts them. Denoisers that condition on themselves are told what was mixed before.

    Errors: ``ValueError`` for a weight that is no number, denoisers of different kinds, an unknown space, a codebook
    that is missing, tokens of denoisers that predict vectors; or, when called, one asked the same twice.
    """
    if not math.isfinite(weight):
        raise ValueError(f"cfg weight={weight}: pass a number; 1 is the conditional model, 0 the unconditional one")
    unconditional = conditional if unconditional is None else unconditional
    one, other = conditional.facts, unconditional.facts
    for name in ("posterior", "mask_id", "attention", "block"):
        if getattr(one, name) != getattr(other, name):
            raise ValueError(
                f"cfg mixes two denoisers alike, and {name} is {getattr(one, name)!r} of the conditional, "
                f"{getattr(other, name)!r} of the unconditional"
            )
    codes = None if process is None else of_vectors(process, "cfg with a process")
    found = _space(space, (one.vectors, other.vectors), codes)
    return Guided(conditional, unconditional, weight, null, found, codes)


def _space(space: str | None, predicted: tuple[bool, bool], process: Gaussian | None) -> Space:
    """Where to mix, given which denoisers predict vectors. Errors: ``ValueError`` as ``cfg`` says."""
    if space not in (None, *get_args(Space)):
        raise unknown("space", space, get_args(Space))
    if any(predicted) and space == "tokens":
        raise ValueError(
            "space='tokens' of a denoiser that predicts vectors, and names tokens by rounding: use vectors"
        )
    if not any(predicted) and space != "vectors":
        return "tokens"
    if not all(predicted) and process is None:
        raise ValueError("cfg of vectors from a denoiser that names tokens needs their codebook: pass process=")
    return "vectors"


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


def of_vectors(process: Process, method: str) -> Gaussian:
    """The process as one of vectors of tokens. Errors: ``ValueError`` for one of tokens."""
    if not isinstance(process, Gaussian):
        raise ValueError(
            f"{method} moves vectors, and {process.name} noise changes tokens: use classifier_guided there"
        )
    return process


def reverse_kernel(process: Process, method: str) -> Tokens:
    """The process as something with a reverse kernel over states. Errors: ``ValueError`` for one of vectors."""
    if not over_tokens(process):
        raise ValueError(
            f"{method} acts on a kernel over tokens, and {process.name} noise moves vectors: use cfg there"
        )
    return process
