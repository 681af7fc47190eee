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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.guidance.hiding import Doubting, answer
from redraft.guidance.weights import Weight, check_finite, weight_at
from redraft.models.vectors import ask
from redraft.processes import Denoiser, Facts, Gaussian, Process, absorbing
from redraft.processes.base import OF_POSITIONS, as_condition, forwards_at, log_prob_of
from redraft.randomness import categorical
from redraft.sampling.samplers import Draw, Query, Sampler, Tokens, over_tokens

Space = Literal["tokens", "vectors"]
"""What is mixed: log p of tokens, or clean vectors."""


def mix(conditional: Tensor, unconditional: Tensor, weight: float | Tensor, without: int | None = None) -> Tensor:
    """weight log p_c + (1 - weight) log p_u, normalised over the last axis; both (..., K) log-probabilities.

    ``weight``: a number, or a tensor (..., 1). What either rules out stays out, and so does the id ``without``:
    infinities meet no arithmetic. Where that leaves nothing, the conditional speaks alone.

    >>> mix(torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.9, 0.0, 0.1]).log(), 2.0).exp()
    tensor([1., 0., 0.])
    """
    out = torch.isneginf(conditional) | torch.isneginf(unconditional)
    if without is not None:
        out[..., without] = True
    mixed = weight * conditional.masked_fill(out, 0.0) + (1 - weight) * unconditional.masked_fill(out, 0.0)
    mixed = torch.log_softmax(mixed.masked_fill(out, -torch.inf), -1)
    return torch.where(out.all(-1, keepdim=True), conditional, mixed)


_OF_CANVAS = (*OF_POSITIONS, "given", "guess")
"""What a condition says of the canvas, and so is told to both sides; the rest is what is wanted of the text."""


class Guided(torch.nn.Module):
    """Two denoisers as one; made by ``cfg``. The conditional one is told ``cond``, the other ``null``.

    Both are told of the canvas; of a cache each has a part of its own.
    """

    def __init__(
        self,
        conditional: Denoiser,
        unconditional: Denoiser,
        weight: Weight,
        null: Any,
        space: Space = "tokens",
        process: Gaussian | None = None,
    ) -> None:
        super().__init__()
        self.conditional, self.unconditional, self.weight, self.null = conditional, unconditional, weight, null
        self.space, self.process = space, process

    @property
    def facts(self) -> Facts:
        asked = [side.facts for _, side in self._sides(None)]
        return replace(
            self.conditional.facts,
            time_conditioned=callable(self.weight) or any(facts.time_conditioned for facts in asked),
            forwards=sum(facts.forwards for facts in asked),
            vectors=asked[0].vectors if len(asked) == 1 else self.space == "vectors",
            self_conditioned=any(facts.self_conditioned for facts in asked),
            given=any(facts.given for facts in asked),
            shifted=any(facts.shifted for facts in asked),
            selective=all(facts.selective for facts in asked),
            caches=all(facts.caches for facts in asked),
            scores=False,
        )

    def forwards_at(self, t: Tensor) -> int:
        """Network forwards that a call at t costs: those of the sides that some row needs."""
        return sum(forwards_at(side, t) for _, side in self._sides(weight_at(self.weight, t)))

    def _sides(self, weight: Tensor | None) -> list[tuple[str, Denoiser]]:
        """The denoisers that rows of these weights (B,) need, the conditional first; None: rows of any weight."""
        if not callable(self.weight):
            one, other = self.weight != 0, self.weight != 1
        elif weight is None:
            one = other = True
        else:
            one, other = bool((weight != 0).any()), bool((weight != 1).any())
        one = one or isinstance(self.unconditional, Doubting)  # the conditional says of what to doubt
        both = ("conditional", self.conditional, one), ("unconditional", self.unconditional, other)
        return [(name, side) for name, side, needed in both if needed]

    def forward(
        self, z: Tensor, t: Tensor, cond: Any = None, where: Tensor | None = None, vectors: bool = False
    ) -> Tensor:
        """log p (B, L, K), or (n, K) of the positions ``where``, or clean vectors (B, L, D).

        Errors: ``ValueError`` where both would be asked the same, and for weights that are no numbers.
        """
        wanted, canvas = _apart(cond)
        weight = weight_at(self.weight, t)
        # what is stored now is read at other times
        sides = self._sides(None if canvas.get("store", False) else weight)
        if len(sides) == 2 and self.conditional is self.unconditional and wanted is self.null:
            raise ValueError(
                f"cfg asks one denoiser twice with cond {wanted!r}, so there is nothing to mix: "
                "pass cond to sample, or an unconditional denoiser to cfg"
            )
        asked = [(side, self._told(name, side, wanted, canvas)) for name, side in sides]
        if vectors:
            said = [clean_vectors(side, self.process, z, t, told) for side, told in asked]
        elif len(asked) == 2 and isinstance(self.unconditional, Doubting):
            said = self._doubted(self.unconditional, z, t, [told for _, told in asked], where)
        else:
            said = [answer(side, z, t, told, where) for side, told in asked]
        if len(said) == 1:
            return said[0]
        own = weight if where is None else weight[where.nonzero()[:, 0]]
        return joined(said, own, (lambda x_c, x_u, w: w * x_c + (1 - w) * x_u) if vectors else self._mixed)

    def _told(self, name: str, side: Denoiser, wanted: Any, canvas: dict[str, Any]) -> Any:
        """What a side is told: what is wanted of the text, or not, and of the canvas what it reads."""
        own = wanted if name == "conditional" else self.null
        idle = {"guess": not side.facts.self_conditioned, "given": not side.facts.given}
        read = {key: value for key, value in canvas.items() if not idle.get(key, False)}
        if "cache" in read:
            read["cache"] = read["cache"].part(name)
        return {**as_condition(own), **read} if read else own

    def _mixed(self, conditional: Tensor, unconditional: Tensor, weight: Tensor) -> Tensor:
        """Mixed log p, in which [MASK] has no part, should a denoiser leave mass on it."""
        mask_id = self.conditional.facts.mask_id
        named = mask_id is not None and mask_id < conditional.shape[-1]
        return mix(conditional, unconditional, weight, mask_id if named else None)

    def _doubted(self, doubting: Doubting, z: Tensor, t: Tensor, told: list[Any], where: Tensor | None) -> list[Tensor]:
        """What both sides say, the second of a canvas that hides what the first is least sure of."""
        written = doubting.written(z, told[1])
        wide = None if where is None else where | written
        said = answer(self.conditional, z, t, told[0], wide)
        at = said[written] if wide is None else said[written[wide]]
        sure = at.new_zeros(z.shape)
        sure[written] = log_prob_of(z[written], at)
        if where is not None and wide is not None:
            said = said[where[wide]]
        return [said, doubting(z, t, told[1], where, sure)]


def _apart(cond: Any) -> tuple[Any, dict[str, Any]]:
    """What is wanted of the text, None if that is nothing, and what is said of the canvas."""
    if not isinstance(cond, Mapping):
        return cond, {}
    said: dict[str, Any] = dict(cond)
    canvas = {key: said.pop(key) for key in _OF_CANVAS if key in said}
    return said or None, canvas


def clean_vectors(denoiser: Denoiser, process: Gaussian | None, z: Tensor, t: Tensor, cond: Any) -> Tensor:
    """The clean vectors that ``denoiser`` says, (B, L, D): its own, or the mean of its tokens' in ``process``."""
    return ask(denoiser, process, z, t, cond).x


def cfg(
    conditional: Denoiser,
    unconditional: Denoiser | None = None,
    *,
    weight: Weight,
    null: Any = None,
    space: Space | None = None,
    process: Process | None = None,
) -> Guided:
    """Classifier-free guidance as a denoiser: p_c^weight p_u^(1 - weight) over clean tokens, renormalised.

    ``conditional`` is told the ``cond`` of the call, ``unconditional`` (the same network unless given) ``null``, which
    must hold for any row. ``weight``: a number, or a function of t, ``interval`` and ``linear`` say. Rows of weight 1
    are exactly the conditional and of 0 the unconditional model; while all rows need one side only, a call costs that
    one's forward, else both. Works with every process, and in blocks and with caches if both denoisers do. Under masks
    it is D-CFG (Schiff et al. 2024) with tokens renormalised, so the probability of unmasking is untouched (Rojas et
    al. 2025, arXiv 2507.08965, say why it should be).

    What the unconditional side may be: a network trained without the condition; with ``unprompted``, the same one
    without the prompt; with ``doubting``, without what is least sure; or a worse model of the same condition, smaller
    or trained less, told the same by ``null``: autoguidance, away from its errors (Karras et al. 2024, arXiv
    2406.02507). Where its log p errs as the better one's does, but twice as much, weight 2 is the truth.

    ``space``: under Gaussian noise, ``tokens`` mixes so too, ``vectors`` mixes the clean vectors linearly, weight x_c +
    (1 - weight) x_u, for which ``process`` holds the codebook of denoisers that name tokens. Unless given, it is
    vectors where one predicts them. Denoisers that condition on themselves are told what was mixed before.

    Errors: ``ValueError`` for a weight that is no number, denoisers of different kinds, an unknown space, a codebook
    that is missing, tokens of denoisers that predict vectors; or, when called, one asked the same twice.
    """
    check_finite(weight)
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


@runtime_checkable
class Beside(Protocol):
    """What ``sample`` gives a sampler for a denoiser: it can ask another one too, and counts its calls."""

    def __call__(self, z: Tensor, t: Tensor, /) -> Tensor: ...

    def beside(self, denoiser: Denoiser, cond: Any, /) -> Callable[..., Tensor]: ...


def cfg_posteriors(unconditional: Denoiser, weight: Weight, null: Any = None, masks: bool = False) -> Sampler:
    """A sampler that mixes reverse kernels: p_c(z_s | z_t)^weight p_u(z_s | z_t)^(1 - weight), renormalised.

    D-CFG for uniform noise (Schiff et al. 2024; Duo). ``sample`` is given the conditional denoiser; ``unconditional``
    is told ``null``. Rows of weight 0 and 1 are those of one denoiser, and others ask both.

    Under masks a token that would stay hidden with probability m then does with m / (m + (1 - m) Z), Z = sum p_c^weight
    p_u^(1 - weight), which is above 1 for weights above 1: it is written too soon (Rojas et al. 2025, arXiv
    2507.08965). ``cfg`` keeps m; to have it so all the same, pass ``masks=True``.

    Errors: ``ValueError`` for a weight that is no number; at its first step, for masks unless told, a process of
    vectors, which has no kernel over states, and a text written in blocks.
    """
    check_finite(weight)

    def guided(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
        kernel = reverse_kernel(process, "cfg_posteriors")
        if absorbing(process) and not masks:
            raise ValueError(
                "cfg_posteriors under masks changes how soon a token is written, not only which: use cfg, "
                "or pass masks=True"
            )
        own = weight_at(weight, t)
        said = both(denoiser, unconditional, null, own, z, t, "cfg_posteriors")
        probs = [None if logp is None else kernel.posterior(draw.probs(logp), z, t, s) for logp in said]
        return categorical(joined(probs, own, lambda c, u, w: mix(c.log(), u.log(), w).exp()), draw.generator)

    return guided


def both(
    denoiser: Query, unconditional: Denoiser, null: Any, weight: Tensor, z: Tensor, t: Tensor, method: str
) -> list[Tensor | None]:
    """log p of the run's denoiser and of another, None for one that no row of these weights (B,) needs.

    Errors: ``ValueError`` where only one can be asked.
    """
    if not isinstance(denoiser, Beside):
        raise ValueError(f"{method} is a sampler for redraft.sample: called by hand it can ask one denoiser only")
    needed = bool((weight != 0).any()), bool((weight != 1).any())
    asks = denoiser, denoiser.beside(unconditional, null)
    return [ask(z, t) if wanted else None for ask, wanted in zip(asks, needed, strict=True)]


def joined(said: Sequence[Tensor | None], weight: Tensor, mixed: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """``mixed(conditional, unconditional, weight)``, and bit for bit one of them in rows of weight 1 and 0.

    ``weight`` (n,) of what is said (n, ..); one side may be None where no row needs it.
    """
    one, other = said
    if one is None or other is None:
        (only,) = (side for side in said if side is not None)
        return only
    own = weight.to(one).reshape(-1, *[1] * (one.ndim - 1))
    return torch.where(own == 1, one, torch.where(own == 0, other, mixed(one, other, own)))


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
