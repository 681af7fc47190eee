"""Texts longer than a model's context: a window that slides over the text (semi-autoregressive sampling)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor

from redraft.processes import Denoiser, Process
from redraft.processes.base import device_of
from redraft.randomness import Device, derive, row_seeds
from redraft.sampling.canvas import convention
from redraft.sampling.cost import Cost
from redraft.sampling.loop import sample
from redraft.sampling.request import Writing
from redraft.sampling.steps import Callback, Samples


def semi_autoregressive(
    process: Process,
    denoiser: Denoiser,
    *,
    window: int,
    stride: int | None = None,
    length: int = 64,
    num: int = 1,
    prompt: Tensor | Sequence[int] | None = None,
    given: str | None = None,
    resample: int = 0,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    cond: Any = None,
    device: Device = None,
    **options: Unpack[Writing],
) -> Samples:
    """Continue ``prompt`` by ``length`` tokens, ``window`` positions at a time (MDLM's SAR, arXiv 2406.07524).

    The first window is written whole; each next one starts ``stride`` (half a window unless given) further right,
    takes what it shares with the text so far as given, and writes the rest. The last ends with the text. A new token
    is thus conditioned on the last window - stride tokens at least: the result has the model's law where that much
    context says all (a Markov chain of that order), and approximates it elsewhere.

    ``steps`` are those of each window. Window k of row r draws from derive(seeds[r], k), the first from seeds[r]: a
    text that fits into one window is ``sample``'s. ``callback`` sees each window for itself, ``Step.offset``
    says where it begins. The other options are those of ``sample``.

    Errors: ``ValueError`` for a stride below 1 or not below ``window``, and those of ``sample``.
    """
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride < window:
        raise ValueError(f"stride={stride}, window={window}: pass 1 <= stride < window, so that windows overlap")
    if length < 1 or num < 1:
        raise ValueError(f"length={length}, num={num}: ask for at least one token of one row")
    convention(process, denoiser.facts, given, resample, [torch.ones(1, dtype=torch.bool)])
    seeds = row_seeds(seed, seeds, num if seeds is None else len(seeds))
    device = device_of(denoiser) if device is None else device
    start = torch.as_tensor([] if prompt is None else prompt, dtype=torch.long, device=device)
    if start.ndim != 1:
        raise ValueError(f"prompt of shape {tuple(start.shape)}: pass one sequence of ids")
    text = torch.cat([start, start.new_zeros(length)]).repeat(len(seeds), 1)
    done, number, cost = len(start), 0, Cost(of_rows=[0] * len(seeds))
    callback = options.get("callback")
    logp = torch.full(text.shape, torch.nan, dtype=torch.float64, device=device)
    while done < text.shape[1]:
        stop = min(text.shape[1], max(window, done + stride))
        first = max(0, stop - window)
        if callback is not None:
            options["callback"] = _placed(callback, first, cost.nfe)
        found = sample(
            process,
            denoiser,
            canvas=text[:, first:stop],
            frozen=(torch.arange(first, stop, device=device) < done).expand(len(seeds), -1),
            seeds=[derive(one, number) if number else one for one in seeds],
            # the first of several windows may have no prompt, and then nothing is given
            given=given if done or len(text[0]) <= window else None,
            resample=resample if done or len(text[0]) <= window else 0,
            cond=cond,
            device=device,
            **options,
        )
        text[:, done:stop] = found.tokens[:, done - first :]
        logp[:, done:stop] = found.logp[:, done - first :]
        cost.add(found.cost)
        done, number = stop, number + 1
    return Samples(text, list(seeds), cost, [text.shape[1]] * len(text), logp, options.get("cache") is not None)


def _placed(callback: Callback, offset: int, nfe: int) -> Callback:
    """``callback`` for the window that begins at ``offset``, after so many calls."""
    return lambda step: callback(replace(step, offset=offset, nfe=nfe + step.nfe))
