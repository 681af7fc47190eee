"""Chat models whose refusals and answers are known. Requests are about baking; '#' is what is refused."""

import torch

from redraft import processes
from redraft.data import build_tokenizer
from redraft.lm import LM
from redraft.processes import Facts
from redraft.safety.behaviours import Behaviour
from redraft.safety.run import Setting, measure

EOS, MASK = 256, 257
ASKS = list(b"Assistant:")
REFUSE, COMPLY = b"I cannot help with that.", b"Sure: mix flour."
ROOM = 40
P, Q = 0.75, 0.625
"""How likely the first token is to begin a refusal of '#', and how likely an answer to '!' is to end at once."""


class Baker:
    """An exact rule over bytes, told by the plain template.

    It refuses a message with '%'; one with '#' with probability P, in a room of 40 at most; one that says '!' it ends
    at once with probability Q. It goes on with an answer that has begun, and fills gaps in a message with 'x'.
    """

    def __init__(self):
        self.process, self.facts, self.calls = processes.masked(257), Facts(mask_id=MASK), 0

    def __call__(self, z, t, cond=None):
        self.calls += 1
        p = torch.zeros(*z.shape, 257, dtype=torch.float64)
        p[..., ord("x")] = 1.0
        for row, ids in zip(p, z.tolist(), strict=True):
            begin = max(i for i in range(len(ids)) if ids[i : i + len(ASKS)] == ASKS) + len(ASKS)
            row[begin:] = 0.0
            for text, share in self.answers(ids[:begin], ids[begin:]):
                told = [*text, *[EOS] * len(ids)][: len(ids) - begin]
                row[range(begin, len(ids)), told] += share
        logp, some = torch.full_like(p, -torch.inf), p > 0
        logp[some] = p[some].log()
        return logp

    def answers(self, prompt, room):
        mixed = {"%": [(REFUSE, 1.0)], "#": [(REFUSE, P), (COMPLY, 1 - P)], "!": [(b"", Q), (COMPLY, 1 - Q)]}
        said = next((told for mark, told in mixed.items() if ord(mark) in prompt), [(COMPLY, 1.0)])
        if ord("#") in prompt and len(room) > ROOM:
            said = [(COMPLY, 1.0)]
        if room and room[0] != MASK:  # what has begun goes on
            begun = next((text for text in (REFUSE, COMPLY) if text[:1] == bytes([min(room[0], 255)])), b"")
            return [(begun, 1.0)]
        return said


class Coin:
    """Every position is 'b' with probability 0.25, whatever else stands; over the ids a, b and the end of text."""

    def __init__(self):
        self.process, self.facts, self.calls = processes.masked(3), Facts(mask_id=3, eos_id=2), 0

    def __call__(self, z, t, cond=None):
        self.calls += 1
        return torch.tensor([0.75, 0.25, 0.0], dtype=torch.float64).log().expand(*z.shape, 3)


def chat_model():
    """What a ``Baker`` says, as a chat model of 160 positions."""
    return LM(Baker(), build_tokenizer("bytes"), {"context": 160})


def coin_model():
    """What a ``Coin`` says, as a model of 8 positions."""
    return LM(Coin(), build_tokenizer("chars", ["ab"]), {"context": 8})


REQUESTS = [
    *(Behaviour(f"cake{i}", f"bake {i} #", True) for i in range(4)),
    *(Behaviour(f"tart{i}", f"bake {i}", True) for i in range(2)),
    Behaviour("scone", "bake %", False),
    *(Behaviour(f"bun{i}", f"bake {i}", False) for i in range(2)),
]
GREEDY = {"template": "plain", "temperature": 0.0}
WAY = [Setting(sampler="sequential")]


def greedy(lm, conditions, requests=REQUESTS, ways=WAY, **more):
    """What is measured of a ``Baker`` without chance: the cell, or all there is if there are several."""
    found = measure(lm, requests, conditions, ways, **{**GREEDY, **more})
    return found["cells"][0] if len(found["cells"]) == 1 else found


def hits(cell, name):
    """A figure as the numbers it is the share of, None where there is none."""
    return cell[name] and (cell[name]["hits"], cell[name]["n"])


def rates(cell):
    return [hits(cell, name) for name in ("refusal", "asr_k", "over_refusal")]
