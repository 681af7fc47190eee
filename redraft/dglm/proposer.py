"""The proposer: a denoiser of one sentence vector, told the vector of what stands before, and how it is sampled."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redraft.dglm.config import ProposerConfig
from redraft.dglm.guidance import level_features
from redraft.models.layers import TIME_FEATURES
from redraft.models.vectors import ask
from redraft.processes import Channel, Denoiser, Facts, Process
from redraft.randomness import Generators, rand, randn
from redraft.sampling import samplers
from redraft.sampling.contract import Draw
from redraft.schedules.gamma import GammaSchedule, check_ends


@dataclass(frozen=True)
class Cosine(GammaSchedule):
    """gamma = 2 log tan(theta) - 2 log(scale), theta rising evenly in t (STAR-LDM's code).

    t ~ U(0, 1) draws gamma + 2 log(scale) from the cosine density, sech(. / 2) / 2 pi, cut at the ends.
    """

    name: str = "cosine_angle"
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_ends(self.gamma_min, self.gamma_max)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(gamma, d gamma / dt) in float64, of t's shape."""
        shift = 2 * math.log(self.scale)
        first, last = (math.atan(math.exp((end + shift) / 2)) for end in (self.gamma_min, self.gamma_max))
        theta = first + (last - first) * t.double()
        return 2 * torch.log(torch.tan(theta)) - shift, 4 * (last - first) / torch.sin(2 * theta)


class Vectors(Channel):
    """Noise on vectors that stand for no token, with what samplers ask of a process beside it."""

    name = "vectors"
    vectors = True
    mask_id = None


def noise(config: ProposerConfig, scale: float = 1.0) -> Vectors:
    """VP, under which standardised vectors have variance 1 at every t; ``scale`` moves gamma by -2 log(scale).

    A scale above 1 gives the same t more signal.
    """
    shift = 2 * math.log(scale)
    return Vectors("vp", Cosine(gamma_min=config.gamma_min - shift, gamma_max=config.gamma_max - shift, scale=scale))


class Residual(nn.Module):
    """h + W_2 gelu(W_1 (norm(h) + W_c code)), the identity at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.shift = nn.LayerNorm(width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        return h + self.down(F.gelu(self.up(self.norm(h) + self.shift(code))))


class Proposer(nn.Module):
    """x_hat(z, gamma, c): the clean vector given a noisy one and the vector c of the prefix.

    Vectors are standardised, (B, D); ``null`` (D,) is learned and stands for no prefix.
    """

    def __init__(self, dim: int, config: ProposerConfig) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.process = noise(config)
        width = config.width
        self.null = nn.Parameter(torch.zeros(dim))
        self.read, self.known, self.level = (
            nn.Linear(dim, width),
            nn.Linear(dim, width),
            nn.Linear(TIME_FEATURES, width),
        )
        self.blocks = nn.ModuleList(Residual(width) for _ in range(config.depth))
        self.norm, self.say = nn.LayerNorm(width), nn.Linear(width, dim)
        nn.init.zeros_(self.say.weight)
        nn.init.zeros_(self.say.bias)

    def forward(self, z: Tensor, gamma: Tensor, prefix: Tensor) -> Tensor:
        """What ``config.predicts`` of the clean vector; z and prefix (B, D), gamma (B,)."""
        z, prefix = z.to(self.null), prefix.to(self.null)
        code = F.silu(self.level(level_features(gamma).to(z)) + self.known(prefix))
        h = self.read(z)
        for block in self.blocks:
            h = block(h, code)
        return self.say(self.norm(h))

    def denoise(self, z: Tensor, gamma: Tensor, prefix: Tensor) -> Tensor:
        """x_hat (B, 1, D) of z (B, 1, D) at gamma (B, 1), in z's dtype."""
        said = self(z[:, 0], gamma[:, 0], prefix)[:, None].to(z)
        return self.process.denoised(said, self.config.predicts, z, gamma)

    def loss(self, x: Tensor, prefix: Tensor, t: Tensor, generator: Generators) -> Tensor:
        """weight(gamma) mean_d (x - x_hat)^2, (B,); x and prefix (B, D), t (B,) uniform.

        ``flat``: the squared error of what is predicted. ``sigmoid``: sigmoid(gamma) times that of epsilon, times
        gamma'(t), so that its mean is an integral over gamma, the same whatever the schedule between the same ends
        (Kingma & Gao 2023, with bias 0). Either way |x - x_hat|^2 is what is weighed. Each row's prefix is hidden with
        probability ``config.drop``.
        """
        gamma, slope = self.process.gamma(t)
        x = x.double()[:, None]  # at the ends of gamma the error is far below what float32 keeps of x
        z = self.process.noised(x, gamma, generator)
        hidden = rand((len(x), 1), generator, x.device) < self.config.drop
        x_hat = self.denoise(z, gamma, torch.where(hidden, self.null, prefix.to(self.null)))
        error = ((x - x_hat) ** 2).mean(-1)
        return (self.weight(gamma, slope) * error)[:, 0]

    def weight(self, gamma: Tensor, slope: Tensor) -> Tensor:
        """What |x - x_hat|^2 weighs at gamma, where t passes ``slope`` = d gamma / dt; gamma's shape."""
        if self.config.weighting == "flat":
            return self.process.error_weight(self.config.predicts, gamma)
        return torch.sigmoid(gamma) * self.process.error_weight("epsilon", gamma) * slope


class Prompted:
    """The proposer as a denoiser of z (B, 1, D), told the vectors of what stands before, (B, D); it counts its calls.

    ``process`` may visit other noise levels than training did.
    """

    facts = Facts(time_conditioned=True, vectors=True)

    def __init__(self, proposer: Proposer, process: Vectors, prefix: Tensor) -> None:
        self.proposer, self.process, self.prefix, self.calls = proposer, process, prefix, 0

    def __call__(self, z: Tensor, t: Tensor, cond: Any = None, vectors: bool = True) -> Tensor:
        """x_hat (B, 1, D): there are no tokens to answer with."""
        self.calls += 1
        return self.proposer.denoise(z, self.process.gamma(t)[0], self.prefix)


def propose(
    process: Vectors,
    denoiser: Denoiser,
    shape: tuple[int, int],
    generators: Generators,
    steps: int,
    sampler: str = "ancestral",
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw vectors of ``shape`` (B, D): from the prior in ``steps`` equal steps of t, then x_hat at t = 0.

    ``denoiser`` says vectors, and is asked with z (B, 1, D) in ``dtype``. With a generator a row, row r draws from its
    own only.

    Errors: ``ValueError`` for a sampler that is unknown or not defined for vectors.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: take at least one")
    step, (rows, dim) = samplers.get(sampler), shape
    z = (process.ends()[2].to(device) * randn((rows, 1, dim), generators, device)).to(dtype)
    draw = Draw(torch.zeros(rows, 1, dtype=torch.bool, device=device), generators)

    def query(z: Tensor, t: Tensor, where: Tensor | None = None, /) -> Tensor:
        return ask(denoiser, None, z, t, None).x

    for t, s in pairwise(torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()):
        at, to = (torch.full((rows,), time, dtype=torch.float64, device=device) for time in (t, s))
        z = step(cast(Process, process), query, z, at, to, draw)
    return query(z, torch.zeros(rows, dtype=torch.float64, device=device))[:, 0]
