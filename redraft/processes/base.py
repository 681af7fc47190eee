"""The contract every process keeps, and the facts a denoiser declares."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from redraft.randomness import Device, Generators


@dataclass(frozen=True)
class Facts:
    """What a denoiser's output means, and which ids it knows.

    ``posterior``: ``cavity`` is p(x0_i | z without z_i), what the NELBO teaches and the reverse kernel wants; ``full``
    is p(x0_i | z), what cross-entropy teaches. They agree on masks and differ for every other noise.
    ``attention="causal"`` marks a left-to-right model: position i's output depends on z before i only.
    ``selective`` denoisers take ``where``, a (B, L) bool, and answer for those positions only, (n, K).
    """

    posterior: Literal["cavity", "full"] = "cavity"
    time_conditioned: bool = False
    attention: Literal["full", "causal"] = "full"
    mask_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    selective: bool = False


@runtime_checkable
class Denoiser(Protocol):
    """``denoiser(z, t, cond=None) -> log p`` of shape (B, L, K), over clean tokens, normalised over K.

    z: (B, L) ids, or (B, L, D) vectors for Gaussian processes; t: (B,); cond: whatever the denoiser documents.
    """

    @property
    def facts(self) -> Facts: ...

    def __call__(self, z: Tensor, t: Tensor, cond: Any = None) -> Tensor: ...


class Process(Protocol):
    """A forward corruption q and all that follows from it; no network, no loop.

    Shapes: x0 (B, L) ids below K; z what ``corrupt`` returns; t and s (B,) or (B, L) with s < t; p0 (B, L, K).
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

    def ancestral(self, p0: Tensor, z: Tensor, t: Tensor, s: Tensor, generator: Generators = None) -> Tensor:
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
