"""``sample``: the only door to sampling. Prompt, infilling and editing are one ``frozen`` mask on one canvas."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from redraft.processes import Denoiser, Process
from redraft.processes.base import as_condition, device_of, of_rows
from redraft.randomness import Device, row_seeds
from redraft.sampling.blocks import by_blocks
from redraft.sampling.canvas import convention, layout, to_whole_blocks
from redraft.sampling.law import checked_ids, law
from redraft.sampling.request import Request, alike, step_function, width_of_blocks
from redraft.sampling.samplers import Sampler
from redraft.sampling.steps import Callback, Samples, cut, joined
from redraft.sampling.writing import write


@torch.no_grad()
def sample(
    process: Process,
    denoiser: Denoiser,
    *,
    length: int | Sequence[int] | None = None,
    num: int = 1,
    steps: int | None = None,
    prompt: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None,
    canvas: Tensor | Sequence[Tensor] | None = None,
    frozen: Tensor | Sequence[Tensor] | None = None,
    strength: float | None = None,
    given: str | None = None,
    resample: int = 0,
    sampler: str | Sampler | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition: float = 1.0,
    banned: Sequence[int] = (),
    bias: Mapping[int, float] | None = None,
    late: Sequence[int] = (),
    stop: int | None = None,
    min_length: int = 0,
    block: int | None = None,
    whole_blocks: bool = False,
    cache: str | None = None,
    refresh: int | None = None,
    constraint: Any = None,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    cond: Any = None,
    callback: Callback | None = None,
    device: Device = None,
) -> Samples:
    """Draw texts by refining a whole canvas from t = 1 to t = 0 in ``steps`` equal steps of t.

    The canvas is ``prompt`` followed by ``length`` free positions (64), or is given: ``canvas`` (L,) or (B, L) ids with
    ``frozen``, a bool of its shape, marking the tokens that must not change. ``num`` rows are drawn of a canvas of one
    row, on the device of the denoiser's weights. Rows may differ in prompt and length: pass a list of either, or of
    canvases (L,); rows of one shape are drawn together, and no position is padded. ``steps`` is 128 unless given; of a
    sampler that proposes, as many as there are masks to write, and an autoregressive denoiser takes one for each.
    ``sampler``: a name or function of ``redraft.sampling.samplers`` (``ancestral`` unless given), or a name with
    options, ``"remdm:eta=0.02"``, or a rule with a revision, ``"threshold:tau=0.5+edit"``.

    ``strength`` t* redrafts a text (SDEdit, Meng et al. 2021): ``canvas`` is noised to t*, and the steps are spent from
    there to 0. All of it, unless ``frozen`` is given too. 0 returns the text without a call, 1 writes as from nothing;
    if the reverse process is exact, texts of the model's law stay texts of that law at any t*.

    Frozen tokens never change. Among masks a denoiser conditions on them exactly. Under other noise ``given`` says how
    they stand on the canvas, ``noised``, ``clean`` or ``told``, and what is drawn beside them depends on it:
    ``canvas.GIVEN`` has what each means, and ``resample``.

    ``temperature``, ``top_k``, ``top_p``: see ``Draw``. ``repetition``, ``banned``, ``bias``, ``min_length``: see
    ``law.Law``; every sampler of ids obeys them. ``late``: ids whose proposals count as the least sure, and so are
    written last by rules that ask how sure a proposal is (LLaDA keeps an end of text from coming too soon by it).
    ``stop``: a row's text ends with its first ``stop`` token; what is free behind it is filled with ``stop``, and not
    written once nothing is left before it. ``constraint``: one of ``redraft.constraints``, for samplers that propose.

    ``block``: write so many positions at a time, from left to right, ``steps`` each; a block model does so by itself.
    ``cache`` and ``refresh``: see ``window``. Blocks of a full-attention model begin at a row's first free position.
    ``whole_blocks`` writes the last block to its end, as block models are trained, and leaves out what is past the
    length asked for.

    Row r draws from its own generator, seeded by ``seeds[r]``, or by (seed, r): no row depends on those beside it.
    A masked canvas without masks left ends the loop early, so ``nfe`` may be below ``steps``.

    Errors: ``ValueError`` for options that clash, ids that are no tokens, a denoiser of another mask id, a text to be
    redrafted by a model that writes in one order only, a constraint that no text satisfies.
    """
    device = device_of(denoiser) if device is None else device
    ids, known = layout(process, length, num if seeds is None else len(seeds), prompt, canvas, frozen, strength)
    seeds, widths = row_seeds(seed, seeds, len(ids)), [len(row) for row in ids]
    if whole_blocks:
        ids, known = to_whole_blocks(denoiser.facts, ids, known, block, constraint is not None)
    options: dict[str, Any] = {"banned": banned, "bias": bias, "repetition": repetition}
    options |= {"min_length": min_length, "stop": stop}
    request = Request(
        process=process,
        denoiser=denoiser,
        sampler=step_function(denoiser, sampler),
        steps=steps,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        strength=strength,
        given=convention(process, denoiser.facts, given, resample, known),
        resample=resample,
        stop=stop,
        cond=cond,
        callback=callback,
        late=checked_ids(process, "late", late),
    )
    request.check(constraint is not None)
    parts, groups = list[Samples](), alike(request, known, block)
    if len(groups) > 1 and cond is not None and not isinstance(cond, Mapping):
        raise ValueError(f"cond={cond!r} with rows of several shapes: tell of rows by name, or draw them apart")
    for rows in groups:
        one = torch.stack([ids[row] for row in rows]).to(device), torch.stack([known[row] for row in rows]).to(device)
        own = [seeds[row] for row in rows]
        ruled = law(process, one[1], **options)
        bound = None if constraint is None else constraint.bind(process, *one, stop, ruled)
        told = of_rows(as_condition(cond), torch.tensor(rows)) if len(groups) > 1 and cond is not None else cond
        mine = replace(request, cond=told, rows=rows, law=ruled, constraint=bound)
        width = width_of_blocks(process, denoiser.facts, one[1], cond, block, cache, refresh)
        if width is not None and strength is not None:
            raise ValueError(
                f"strength={strength} with block={width}: a text is redrafted whole, for what stands behind a block is "
                "not seen while it is written; leave the block out"
            )
        if width is None:
            parts.append(write(mine, *one, own))
        else:
            parts.append(by_blocks(mine, *one, own, width, cache, refresh))
    fill = 0 if stop is None else stop
    return cut(joined(parts, groups, fill), widths, fill)
