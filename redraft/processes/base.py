"""The contract every process keeps, and the facts a denoiser declares."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypedDict, runtime_checkable

import torch
from torch import Tensor

from redraft.randomness import Device, Generators

Attention = Literal["full", "causal", "block", "permuted"]


@dataclass(frozen=True)
class Facts:
    """What a denoiser's output means, and which ids it knows.

    ``posterior``: ``cavity`` is p(x0_i | z without z_i), what the NELBO teaches and the reverse kernel wants; ``full``
    is p(x0_i | z), what cross-entropy teaches. They agree on masks and differ for every other noise.
    ``attention``: what position i's output depends on: all of z (``full``), z before i (``causal``), z up to the end of
    i's block of ``block`` positions (``block``), or, ``permuted``, whatever order it is told (``models.contexts``).
    ``selective`` denoisers take ``where``, a (B, L) bool, and answer for those positions only, (n, K).
    ``shifted``: what is said of position i is read off what the network made of i - 1, token i not among it.
    ``caches``: takes ``cache`` and ``store`` of ``Condition``, so that what stands before is computed once.
    ``states`` denoisers take ``states=True`` and answer with log p over all that they name, [MASK] too if it is one of
    those: what released models are trained by, and their own decoders read.
    ``scores`` denoisers take ``scores=True`` and answer with log-scores over the V states (``models.heads.score``).
    ``vectors`` denoisers take ``vectors=True`` and answer with clean vectors (B, L, D), which need not be a mean of
    token vectors; of others it is the mean of what they say (``Gaussian.mean``).
    ``self_conditioned`` denoisers want ``guess`` of ``Condition``: what they said before.
    ``given`` denoisers want ``given`` of ``Condition``: which tokens of the canvas are not theirs to write.
    ``forwards``: network forwards that one call costs; more than one for denoisers made of denoisers. Where it depends
    on t it is the most, and a method ``forwards_at(t)`` says how many.
    """

    posterior: Literal["cavity", "full"] = "cavity"
    time_conditioned: bool = False
    attention: Attention = "full"
    block: int | None = None
    scores: bool = False
    vectors: bool = False
    self_conditioned: bool = False
    given: bool = False
    mask_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    shifted: bool = False
    selective: bool = False
    caches: bool = False
    states: bool = False
    forwards: int = 1


class Condition(TypedDict, total=False):
    """What a transformer may be told beside z and t; every key may be left out.

    ``segments`` (B, L): attention stays within equal segments. ``positions`` (L,) or (B, L): where each input stands,
    if not at 0, 1, .. ``attend`` (L, M) or (B, L, M) bool: which keys each query sees, in place of the model's own
    pattern (``models.contexts`` makes them). ``mixture``: ids (B, L, n) and weights (B, L, n), the weighted mean of
    whose embeddings is read in place of z's own. ``cache``: keys and values of positions before these
    (``models.layers.Cache``), all of which are read; with ``store`` those of these positions are put after them.
    ``labels`` (B,) or (B, L) long: the class that a model trained with classes is told. ``given`` (B, L) bool: which
    tokens stand there from the start. ``guess``: what was said before, zeros for nothing: of vectors the clean ones
    (B, L, D), of tokens their probabilities (B, L, K). Among vectors, ``gamma`` (B, 1 or L): the noise level itself in
    place of the one at t, for an objective that moves the schedule by its gradient; ``detached`` (B,) bool: rows from
    which no gradient is to reach the codebook.
    """

    segments: Tensor
    positions: Tensor
    attend: Tensor
    mixture: tuple[Tensor, Tensor]
    cache: Any
    store: bool
    labels: Tensor
    given: Tensor
    guess: Tensor
    gamma: Tensor
    detached: Tensor


OF_POSITIONS = ("segments", "positions", "attend", "mixture", "cache", "store")
"""Those keys of ``Condition`` that speak of the positions themselves and of how they are read."""


def as_condition(cond: Any) -> Condition:
    """``cond`` as what more can be told beside: itself, or empty for None. Errors: ``ValueError`` for no mapping."""
    if cond is None:
        return {}
    if not isinstance(cond, Mapping):
        raise ValueError(
            f"cond is a {type(cond).__name__}: this denoiser is told things by name, pass a mapping "
            "({'segments': ...} say, redraft.processes.base.Condition)"
        )
    return cond  # type: ignore[return-value]


def of_rows(cond: Condition, rows: Tensor) -> Condition:
    """What is told of the rows of these numbers, (n,) long; what holds for every row stays as it is."""
    shared = {"positions": 1, "attend": 2}  # these many axes where they speak of all rows at once
    cut: dict[str, Any] = dict(cond)
    for name, value in cond.items():
        if isinstance(value, Tensor) and value.ndim != shared.get(name):
            cut[name] = value[rows]
        elif name == "mixture":
            cut[name] = tuple(part[rows] for part in cond["mixture"])  # pyright: ignore[reportTypedDictNotRequiredAccess]
    return cut  # type: ignore[return-value]


def differentiating() -> torch.enable_grad:
    """``with differentiating():`` gradients are kept, also under no_grad. Errors: ``ValueError`` in inference mode."""
    if torch.is_inference_mode_enabled():
        raise ValueError("a gradient is taken here, and torch.inference_mode allows none: use torch.no_grad() instead")
    return torch.enable_grad()


@runtime_checkable
class Denoiser(Protocol):
    """``denoiser(z, t, cond=None) -> log p`` of shape (B, L, K), over clean tokens, normalised over K.

    z: (B, L) ids, or (B, L, D) vectors for Gaussian processes; t: (B,); cond: ``Condition`` or whatever it documents.
    """

    @property
    def facts(self) -> Facts: ...

    def __call__(self, z: Tensor, t: Tensor, cond: Any = None) -> Tensor: ...


class Process(Protocol):
    """A forward corruption q and all that follows from it; no network, no loop.

    Shapes: x0 (B, L) ids below K; z what ``corrupt`` returns; t and s (B,) or (B, L) with s < t; p0 (B, L, K), and in
    its place the clean vectors (B, L, D) where z are vectors.
    """

    @property
    def name(self) -> str: ...

    @property
    def K(self) -> int: ...  # noqa: N802

    @property
    def mask_id(self) -> int | None: ...

    @property
    def vectors(self) -> bool:
        """Whether z holds vectors, not ids. They are noisy at t = 0 too: the bound then needs -log p(x0 | z) there."""
        ...

    def prior(self, shape: tuple[int, int], generator: Generators = None, device: Device = None) -> Tensor:
        """Draw z at t = 1 for (B, L) positions."""
        ...

    def times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Turn u ~ U(0, 1), (B,), into times t and weights: the weighted mean over u is the bound's integral over t.

        How u is spent is each process's own; a process of vectors spends a share at t = 0, on the term there.
        """
        ...

    def corrupt(self, x0: Tensor, t: Tensor, generator: Generators = None) -> Tensor:
        """Draw z ~ q_t(. | x0)."""
        ...

    def nelbo(self, logp: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Continuous-time integrand of the NELBO, nats per token, (B, L).

        ``logp`` is what the reverse kernel takes: the cavity posterior among tokens, the full one among vectors.
        """
        ...

    def prior_kl(self, x0: Tensor) -> Tensor:
        """KL(q_1(. | x0) || prior), nats per token, (B, L)."""
        ...

    def ancestral(self, p0: Tensor, /, z: Tensor, t: Tensor, s: Tensor, generator: Generators = None) -> Tensor:
        """Draw z at s from the plug-in reverse kernel p(z_s | z_t, p0), positions independently."""
        ...

    def to_full(self, logp: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """From what the NELBO teaches to the posterior given all of z, (B, L, K); the identity where they agree."""
        ...

    def to_cavity(self, logp: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The inverse of ``to_full``."""
        ...

    def to(self, device: Device) -> Self:
        """The same process with its tensors, if it has any, on ``device``."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Name and parameters, as stored in a model's configuration."""
        ...


class Kernel(Protocol):
    """A process among ids, for what needs its reverse kernel only; p0 (B, L, K or V) probabilities."""

    @property
    def K(self) -> int: ...  # noqa: N802

    def posterior(self, p0: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The plug-in reverse kernel p(z_s | z_t = z, p0), (B, L, V)."""
        ...


def grid_times(u: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """u ~ U(0, 1) as a step of a chain of T: t = (1 + floor(u T)) / T, weight 1; float64."""
    step = 1 + (u.double() * steps).floor().clamp(0, steps - 1)
    return step / steps, torch.ones_like(step)


def grid_before(t: Tensor, steps: int) -> Tensor:
    """s = t - 1 / T, the step before t; exactly 0 before the first, in whose place a float32 t would leave a rest."""
    s = t.double() - 1 / steps
    return torch.where(s * steps < 1e-6, 0.0, s)


def step_kl(process: Kernel, logp: Tensor, x0: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """KL(posterior(x0; z, t, s) || posterior(p; z, t, s)), one step's term of the bound, nats per token, (B, L).

    With s = 0 it is -log p(x0 | z) (D3PM, Austin et al. 2021, eq. 1, both its terms). ``logp`` has K columns, or V for
    a model that leaves mass on [MASK].
    """
    truth = torch.nn.functional.one_hot(x0, process.K).to(logp)
    p, q = process.posterior(truth, z, t, s), process.posterior(logp.exp(), z, t, s)
    # both sum to one, so q - p may be added: every term is then a square near p = q, and float32 keeps the small KL
    # of a short step, where the difference of two logarithms would be rounding
    possible = p > 0
    excess = (q - p) / torch.where(possible, p, 1.0)
    far = possible & (excess < -0.5)  # there it is the quotient that is rounded
    log_ratio = torch.log1p(torch.where(far, 0.0, excess))
    log_ratio = torch.where(far, torch.log(torch.where(far, q, 1.0)) - torch.log(torch.where(far, p, 1.0)), log_ratio)
    return torch.where(possible, p * (excess - log_ratio), q).sum(-1)


def forwards_at(denoiser: Denoiser, t: Tensor) -> int:
    """Network forwards that a call at t costs: ``Facts.forwards``, or what a denoiser of that method says of t."""
    own: Callable[[Tensor], int] | None = getattr(denoiser, "forwards_at", None)
    return denoiser.facts.forwards if own is None else own(t)


def device_of(denoiser: Denoiser) -> torch.device:
    """Where a denoiser computes: the device of its weights, the CPU for one that has none."""
    weights = denoiser.parameters() if isinstance(denoiser, torch.nn.Module) else iter(())
    return next((weight.device for weight in weights), torch.device("cpu"))


def to_convention(denoiser: Denoiser, process: Process, logp: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """What ``denoiser`` said of z at t in the convention of ``nelbo`` and the reverse kernel, whichever it declares."""
    return process.to_cavity(logp, z, t) if denoiser.facts.posterior == "full" else logp


def log_prob_of(ids: Tensor, logp: Tensor) -> Tensor:
    """log p of the given ids: (..., K) at ids (...)."""
    return logp.gather(-1, ids[..., None]).squeeze(-1)


def per_position(value: Tensor) -> Tensor:
    """Give a (B,) tensor a position axis, (B, 1), and leave (B, L) as it is."""
    return value if value.ndim == 2 else value[:, None]
