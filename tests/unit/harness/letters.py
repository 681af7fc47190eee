"""A toy of six letters for the harness: a denoiser whose answers are known, networks, and requests."""

import pytest
import torch

from redraft import LM, processes
from redraft.models import Transformer, TransformerConfig
from redraft.processes import Facts

REMARKS = [  # what lm_eval and the libraries it imports remark on import and in use
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(lm_eval|datasets|evaluate|multiprocess|dill|sqlitedict).*"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
LETTERS = "abcdef"
CONTEXT = 10
QUESTIONS = [("ab", ["c", "d", "a"], 1), ("cf", ["ab", "de", "fa"], 0), ("be", ["acd", "bcd", "f"], 2)]
TEXTS = ["abcdefabcdefabcdef", "fedcba", "a"]


class Exact(torch.nn.Module):
    """The conditionals of a Markov chain over the tokens, of whatever is hidden: log p of any text is known."""

    def __init__(self, size, seed=0):
        super().__init__()
        drawn = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        drawn[:, -1] = -torch.inf  # no end of text but where one is given
        self.step = (1.5 * drawn).log_softmax(-1)
        self.size, self.process, self.asked = size, processes.masked(size), 0
        self.facts = Facts(mask_id=size, eos_id=size - 1)

    def forward(self, z, t, cond=None):
        self.asked += len(z)
        named = torch.nn.functional.one_hot(z.clamp_max(self.size - 1), self.size).double().log()
        said = named.masked_fill((z == self.size)[..., None], 0.0)
        before, after = [said[:, 0]], [torch.zeros_like(said[:, 0])]
        for at in range(1, z.shape[1]):
            before.append(torch.logsumexp(before[-1][:, :, None] + self.step, 1) + said[:, at])
            after.append(torch.logsumexp(self.step + (said[:, -at] + after[-1])[:, None, :], 2))
        return (torch.stack(before, 1) + torch.stack(after[::-1], 1)).log_softmax(-1)

    def nats(self, ids):
        """log p of all but the first, given it."""
        return self.step[ids[:-1], ids[1:]].sum().item()


def network(words, context=24, seed=0, **options):
    torch.manual_seed(seed)
    config = TransformerConfig(processes.masked(words.K).to_dict(), depth=1, eos_id=words.eos_id, **options)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return LM(model.eval().requires_grad_(False), words, {"context": context})


def request(backend, *args, task="choice"):
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, args, 0, (task, 0, 1))
