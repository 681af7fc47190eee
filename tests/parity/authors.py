"""How the authors of LLaDA, Dream and LLaDA2 write at temperature 0, as described: one row at a time, no cache.

Nothing here is shared with the package. ``logits``: ids (L,) -> (L, V) of the text as it stands, mask included.
"""

import torch

OUT = float("-inf")


def even(number, steps):
    """So many in so many steps, the first with one more where it does not divide."""
    return [number // steps + (step < number % steps) for step in range(steps)]


def surest(score, count):
    """The positions of the ``count`` highest scores; the first of equals."""
    return score.argsort(descending=True, stable=True)[:count]


def llada(logits, prompt, length, steps, block, mask, cfg=0.0, never=(), late=()):
    """Blocks from left to right; an even share of a block's masks each step, by the probability of the likeliest."""
    x = torch.tensor([*prompt, *[mask] * length])
    given = x != mask
    for number in range(length // block):
        start, stop = len(prompt) + number * block, len(prompt) + (number + 1) * block
        for count in even(block, steps * block // length):
            said = logits(x)
            if cfg:
                hidden = logits(torch.where(given, mask, x))
                said = hidden + (cfg + 1) * (said - hidden)
            said[:, [mask, *never]] = OUT
            p, token = said.double().softmax(-1).max(-1)
            for one in late:
                p[token == one] = 0.0
            inside = torch.arange(len(x))
            p[(x != mask) | (inside < start) | (inside >= stop)] = OUT
            chosen = surest(p, count)
            x[chosen] = token[chosen]
    return x[len(prompt) :].tolist()


def dream(logits, prompt, length, steps, rule, mask, eps=1e-3):
    """Masks falling on a grid of time from 1 to eps; scores of the law at each. Also: masks left after each step."""
    x, left = torch.tensor([*prompt, *[mask] * length]), []
    grid = torch.linspace(1, eps, steps + 1, dtype=torch.float64).tolist()
    for step in range(steps):
        open_ = (x == mask).nonzero().flatten()
        said = logits(x)
        said[:, mask] = OUT
        p = said[open_].double().softmax(-1)
        best = p.topk(2, -1).values
        score = {
            "maskgit_plus": best[:, 0],
            "topk_margin": best[:, 0] - best[:, 1],
            "entropy": (p * (p + 1e-10).log()).sum(-1),
        }[rule]
        share = 1 - grid[step + 1] / grid[step]
        chosen = surest(score, len(open_) if step == steps - 1 else int(len(open_) * share))
        x[open_[chosen]] = p.argmax(-1)[chosen]
        left.append(int((x == mask).sum()))
    return x[len(prompt) :].tolist(), left


def ended(x, prompt, length, eos):
    """What comes out: up to the first end of text, and no more than was asked for."""
    text = x[len(prompt) : len(prompt) + length].tolist()
    return text[: text.index(eos) + 1] if eos in text else text


def llada2(logits, prompt, length, steps, block, threshold, mask, eos):
    """Whole blocks counted from the start of the prompt: what is likelier than the threshold, or a share of a block."""
    total = -(-(len(prompt) + length) // block) * block
    x = torch.full((total,), mask)
    x[: len(prompt)] = torch.tensor(prompt)
    for start in range(len(prompt) // block * block, total, block):
        for least in even(block, min(steps, length)):
            open_ = (x[start : start + block] == mask).nonzero().flatten() + start
            if not len(open_):
                break
            said = logits(x[: start + block])
            said[:, mask] = OUT
            p, token = said.double().softmax(-1).max(-1)
            sure = open_[p[open_] > threshold]
            chosen = sure if len(sure) >= least else open_[surest(p[open_], least)]
            x[chosen] = token[chosen]
        if eos in x[len(prompt) : start + block]:
            break
    return ended(x, prompt, length, eos)


def llada21(logits, prompt, length, block, threshold, editing, mask, eos, after=16, least=1):
    """As ``llada2``, and what is written already is overwritten by what is likelier than ``editing``; None: never.

    Also: the calls for each block with its number of masks.
    """
    total = -(-(len(prompt) + length) // block) * block
    x, calls = torch.full((total,), mask), []
    x[: len(prompt)] = torch.tensor(prompt)
    for start in range(len(prompt) // block * block, total, block):
        own = torch.arange(max(start, len(prompt)), start + block)
        masks, used, idle = int((x[own] == mask).sum()), 0, 0
        while True:
            open_ = own[x[own] == mask]
            written = own[x[own] != mask]
            idle += not len(open_)
            if idle > after or (editing is None and not len(open_)):
                break
            said = logits(x[: start + block])
            used += 1
            said[:, mask] = OUT
            p, token = said.double().softmax(-1).max(-1)
            sure = open_[p[open_] > threshold]
            chosen = sure if len(sure) >= least else open_[surest(p[open_], least)]
            edits = written[:0] if editing is None else written[(token[written] != x[written]) & (p[written] > editing)]
            x[chosen], x[edits] = token[chosen], token[edits]
            if not len(open_) and not len(edits):
                break
        calls.append((masks, used))
        if eos in x[len(prompt) : start + block]:
            break
    return ended(x, prompt, length, eos), calls
