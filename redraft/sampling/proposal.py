"""What a model would write at every mask, of which a rule chooses: propose, choose, write, revise.

Every sampler marked ``proposing`` is these four steps, and differs in what it chooses.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from redraft.processes import Categorical, Process, absorbing
from redraft.processes.base import log_prob_of
from redraft.sampling.contract import Draw, Query, misfit, tempered

Of = str
"""Of which law a score is taken: ``model`` (p as the request shaped it) or ``drawn`` (after temperature and cuts)."""


def masks(name: str, process: Process, z: Tensor, draw: Draw) -> Tensor:
    """The positions a rule may write, (B, L) bool. Errors: ``ValueError`` for a process without fixed masks."""
    if not absorbing(process):
        raise misfit(name, process, "a process that has fixed masks")
    return (z == process.mask_id) & ~draw.frozen


@dataclass
class Proposal:
    """``tokens`` (B, L): z, with a token in place of every position asked about; ``asked`` (B, L) says which.

    ``logp`` (n, K) is the model's law of those, row-major, and ``given`` the same given the constraint if there is one.
    Scores are (B, L) float, -inf where nothing was asked; a proposal that is to wait (``Draw.late``) is the least sure.
    """

    process: Categorical
    z: Tensor
    t: Tensor
    s: Tensor
    draw: Draw
    asked: Tensor
    logp: Tensor
    tokens: Tensor
    given: Tensor
    _scores: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def law(self, of: Of = "model") -> Tensor:
        """log p (n, K): ``model``, or ``drawn``, as temperature, top_k and top_p leave it (at 0: the cuts alone)."""
        if of == "model":
            return self.given
        draw = self.draw
        if (draw.temperature in (0, 1)) and draw.top_p == 1 and draw.top_k == 0:
            return self.given
        return tempered(self.given, draw.temperature or 1.0, draw.top_p, draw.top_k).log()

    def spread(self, values: Tensor) -> Tensor:
        """Values (n,) of the positions asked about, at their places, (B, L)."""
        out = values.new_full(self.z.shape, -torch.inf)
        out[self.asked] = values
        return out

    def _scored(self, values: Tensor, least: float = 0.0) -> Tensor:
        """Scores (n,) at their places, ``least`` for proposals that are to wait."""
        if self.draw.late:
            late = torch.tensor(self.draw.late, device=values.device)
            values = values.masked_fill(torch.isin(self.tokens[self.asked], late), least)
        return self.spread(values)

    def confidence(self, of: Of = "model") -> Tensor:
        """p of the token proposed."""
        return self._scored(self.sure if of == "model" else log_prob_of(self.tokens[self.asked], self.law(of)).exp())

    @cached_property
    def sure(self) -> Tensor:
        """p of the token proposed under the model, (n,)."""
        return log_prob_of(self.tokens[self.asked], self.given).exp()

    def margin(self, of: Of = "model") -> Tensor:
        """p of the likeliest token less that of the second."""
        best = self.law(of).topk(2, dim=-1).values.exp()
        return self._scored(best[:, 0] - best[:, 1])

    def entropy(self, of: Of = "model") -> Tensor:
        """-sum p log p in nats."""
        values = torch.special.entr(self.law(of).exp()).sum(-1)
        return self._scored(values, torch.finfo(values.dtype).max)

    def write(self, chosen: Tensor) -> Tensor:
        """The canvas with the tokens ``chosen`` (B, L) written, and then revised."""
        z = torch.where(chosen, self.tokens, self.z)
        self.draw.note(chosen, self.sure.double().log()[chosen[self.asked]])
        return z if self.draw.revision is None else self.draw.revision(self, z, chosen)


def propose(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw, where: Tensor) -> Proposal:
    """Ask about the positions ``where`` (B, L), and those the revision reads; draw a token for each.

    Tokens are drawn independently from their laws, or, under a constraint, together.
    """
    assert absorbing(process)
    assert process.mask_id is not None
    open_ = where
    if draw.revision is not None:
        where = where | draw.revision.reads(z, draw, process.mask_id)
    logp = denoiser(z, t, where)
    given = logp
    if draw.constraint is not None:  # it speaks of masks; what a revision reads stands as it is
        found, given, masked = z[where], logp.clone(), open_[where]
        found[masked], given[masked] = draw.constraint.propose(z, open_, logp[masked], draw)
    elif draw.temperature == 0:
        found = logp.argmax(-1)
    else:
        found = draw.tokens_at(draw.probs(logp), where)
    tokens = z.clone()
    tokens[where] = found
    return Proposal(process, z, t, s, draw, where, logp, tokens, given)


def top(score: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """The ``count`` (B,) positions of highest score in each row ``among`` those marked; (B, L) bool.

    Equal scores go to the lowest index first.
    """
    order = score.masked_fill(~among, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    first = torch.arange(score.shape[1], device=score.device) < count[:, None]
    return torch.zeros_like(among).scatter(1, order, first) & among


def bounded(entropy: Tensor, among: Tensor, gamma: float) -> Tensor:
    """Of the positions ``among`` (B, L), by rising entropy, the most whose entropies but the last sum to <= gamma.

    The entropy bound of EB-Sampler (Ben-Hamu et al. 2025, arXiv 2505.24857); ties go to the lowest index.
    """
    ranked, order = entropy.masked_fill(~among, torch.inf).sort(dim=1, stable=True)
    before = pad(ranked.double().cumsum(1)[:, :-1], (1, 0))
    return torch.zeros_like(among).scatter(1, order, before <= gamma) & among


def floored(number: Tensor) -> Tensor:
    """floor, but of what rounding has put just below an integer that integer; long."""
    return (number + 1e-9).floor().long()


def even(left: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """How many of ``left`` (B,) to write in the step from t to s so that the rest of an even grid takes as many each.

    ceil(left / steps left): 10 in 4 steps are 3, 3, 2, 2 (LLaDA's schedule).
    """
    steps = (t / (t - s)).round().long().clamp_min(1)
    return (left + steps - 1) // steps
