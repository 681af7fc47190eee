"""What the records of study ``lineage`` say: tables, plots, and each claim of the field against them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from redraft.studies.findings import Conclusion, Estimate, Finding, Plot, Table, alike, below, estimate, pooled
from redraft.studies.runner import Record

ONE_BOUND = "SEDD (absorb), MDLM, MD4 and RADD train one bound, and reach the same value"
MASKED = "masked is below uniform in perplexity"
UNIFORM = "uniform is below Gaussian in perplexity"
AR = "the autoregressive baseline is below every diffusion bound"
BLOCKS = "block diffusion is below full masked diffusion (BD3-LM)"
LEARNED = "learned and token-dependent masking is below plain masking (GenMD4, DiffusionBERT)"
CURRICULUM = "Duo's curriculum is below UDLM's plain bound"
CORRECTION = "hybrid and uniform noise correct themselves: at few denoiser calls they write better text than masked"
MENDED = "GIDD's self-correction of hybrid and uniform samples is better than spending its calls on sampling"
STEPS = "more denoiser calls write better text"
CLAIMS = (ONE_BOUND, MASKED, UNIFORM, AR, BLOCKS, LEARNED, CURRICULUM, CORRECTION, MENDED, STEPS)

_SAME = ("sedd_absorb", "mdlm", "md4", "radd")
_PAIRS = {
    MASKED: (("mdlm", "udlm"), ("d3pm_absorbing", "d3pm_uniform"), ("sedd_absorb", "sedd_uniform"), ("mdlm", "gidd")),
    UNIFORM: (("udlm", "gaussian"), ("duo", "gaussian"), ("d3pm_uniform", "d3pm_gaussian")),
    BLOCKS: (("bd3lm", "mdlm"),),
    LEARNED: (("genmd4", "md4"), ("diffusionbert", "mdlm")),
    CURRICULUM: (("duo", "udlm"),),
}
"""Which should be below which."""
_AR = "autoregressive"
Rows = Sequence[Mapping[str, Any]]
"""The same samples' figures, a row a seed."""
COLLAPSE = 0.9
"""Share of human text's unigram entropy below which samples repeat themselves too much to be called better."""
_DISTINCT = ("distinct-2", "distinct-3")
_FAMILIES = {
    "autoregressive": "#222222",
    "masked": "#1f77b4",
    "hybrid": "#9467bd",
    "uniform": "#d95f02",
    "structured": "#8c6d31",
    "Gaussian": "#2ca02c",
}


def conclude(records: Sequence[Record]) -> Conclusion:
    """All of it, from the records alone; presets whose cells all failed appear in the tables as failed."""
    seeds: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        seeds.setdefault(record.cell.name, [])
        if record.measured is not None:
            seeds[record.cell.name].append(record.measured)
    got = {name: measured for name, measured in seeds.items() if measured}
    bounds = {name: _bound(measured) for name, measured in got.items()}
    memory = {r.cell.name: max(o.peak_memory_mb or 0 for o in records if o.cell.name == r.cell.name) for r in records}
    tables = [_bounds(seeds, bounds), _quality(got), _cost(got, memory)] if got else []
    plots = [_bound_plot(got, bounds), _quality_plot(got), _cost_plot(got, bounds)] if got else []
    return Conclusion(tables, plots, _findings(got, bounds), _answer(bounds))


def _bound(measured: Sequence[Mapping[str, Any]]) -> Estimate:
    found = [one["likelihood"] for one in measured]
    return pooled([estimate(one, "bits_per_char") for one in found])


def _judged(measured: Sequence[Mapping[str, Any]], row: int) -> Estimate:
    rows = [one["samples"][row] for one in measured]
    return pooled([estimate(one, "bits_per_char") for one in rows])


def _mean(measured: Sequence[Mapping[str, Any]], *path: str | int) -> float:
    values: list[float] = []
    for one in measured:
        value: Any = one
        for key in path:
            value = value[key]
        values.append(value)
    return sum(values) / len(values)


def family(measured: Mapping[str, Any]) -> str:
    """The kind of noise, which decides a preset's colour."""
    if measured["attention"] == "causal":
        return "autoregressive"
    kind = measured["process"].removeprefix("d3pm ")
    if (kind == "gaussian" and measured["process"] != kind) or kind in ("neighbour", "band"):
        return "structured"
    return {"uniform": "uniform", "hybrid": "hybrid", "gaussian": "Gaussian"}.get(kind, "masked")


# ---------------------------------------------------------------------------------------------------------- findings


def _findings(got: Mapping[str, Sequence[dict[str, Any]]], bounds: Mapping[str, Estimate]) -> list[Finding]:
    unit = "bits/char"
    found = [alike(ONE_BOUND, _SAME, bounds, unit)]
    for claim, pairs in _PAIRS.items():
        found += [below(claim, left, right, bounds, unit) for left, right in pairs]
    others = {name: value for name, value in bounds.items() if name != _AR}
    nearest = min(others, key=lambda name: others[name].mean, default="any diffusion")
    found.append(below(AR, _AR, nearest, bounds, f"{unit}, the least of all bounds"))
    found += _correction(got)
    found += [found for name, one in got.items() if (found := _mended(name, one)) is not None]
    found += [_steps(name, got[name]) for name in ("mdlm", "udlm", "gidd") if name in got]
    return found


def _better(claim: str, left: tuple[str, Rows], right: tuple[str, Rows], human: float) -> Finding:
    """Are the samples of ``left`` better than those of ``right``, under the judge and without having collapsed?

    Repetition is judged well: samples below ``COLLAPSE`` of the unigram entropy of human text are better at nothing.
    """
    values = {name: pooled([estimate(row, "bits_per_char") for row in rows]) for name, rows in (left, right)}
    found = below(claim, left[0], right[0], values, "bits/char under the judge")
    entropy = [sum(row["unigram_entropy"] for row in rows) / len(rows) for _, rows in (left, right)]
    said = f"{found.sentence} Unigram entropy {entropy[0]:.3f} against {entropy[1]:.3f} nats"
    if found.verdict == "holds" and entropy[0] < COLLAPSE * human:
        return Finding(claim, "fails", f"{said}, {human:.3f} in human text: the lower figure is bought by repetition.")
    return Finding(claim, found.verdict, f"{said}.")


def _samples(measured: Sequence[dict[str, Any]], row: int) -> Rows:
    return [one["samples"][row] for one in measured]


def _correction(got: Mapping[str, Sequence[dict[str, Any]]]) -> list[Finding]:
    """Swapping noise against masked noise at the fewest calls."""
    listed: list[Finding] = []
    for name in ("udlm", "gidd", "duo"):
        missing = [one for one in (name, "mdlm") if one not in got]
        if missing:
            said = f"{name} against mdlm: no record of {' and '.join(missing)}."
            listed.append(Finding(CORRECTION, "not measured", said))
            continue
        pair = [(_called(one, got[one], 0), _samples(got[one], 0)) for one in (name, "mdlm")]
        listed.append(_better(CORRECTION, pair[0], pair[1], _human(got[name])))
    return listed


def _called(name: str, measured: Sequence[dict[str, Any]], row: int) -> str:
    return f"{name} at {_mean(measured, 'samples', row, 'nfe'):.0f} calls"


def _human(measured: Sequence[dict[str, Any]]) -> float:
    return _mean(measured, "human", "unigram_entropy")


def _mended(name: str, measured: Sequence[dict[str, Any]]) -> Finding | None:
    """Samples of the fewest calls, corrected, against as many calls or more spent on sampling; None if never done."""
    rows = _samples(measured, 0)
    if any("corrected" not in row for row in rows):
        return None
    mended = [row["corrected"] for row in rows]
    calls = sum(row["nfe"] for row in mended) / len(mended)
    # what costs no less: correcting is many calls, and those could have been spent on sampling
    last = len(measured[0]["samples"]) - 1
    against = next((i for i in range(last) if _mean(measured, "samples", i, "nfe") >= calls), last)
    left = f"{_called(name, measured, 0)}, corrected to {calls:.0f}", mended
    return _better(MENDED, left, (_called(name, measured, against), _samples(measured, against)), _human(measured))


def _steps(name: str, measured: Sequence[dict[str, Any]]) -> Finding:
    few, many = ((_called(name, measured, i), _samples(measured, i)) for i in (0, len(measured[0]["samples"]) - 1))
    return _better(STEPS, many, few, _human(measured))


def _answer(bounds: Mapping[str, Estimate]) -> str:
    ranked = sorted((name for name in bounds if name != _AR), key=lambda name: bounds[name].mean)
    if not ranked:
        return ""
    best, worst = ranked[0], ranked[-1]
    level = [name for name in ranked[1:] if (bounds[name] - bounds[best]).sign == 0]
    tied = f"; not separated from it: {', '.join(level)}" if level else "; every other bound is separated from it"
    baseline = f" The autoregressive baseline has {bounds[_AR].text()}." if _AR in bounds else ""
    return (
        f"Of {len(ranked)} diffusion bounds the lowest is that of {best} ({bounds[best].text()} bits/char){tied}. "
        f"The highest is that of {worst} ({bounds[worst].text()}).{baseline}"
    )


# ------------------------------------------------------------------------------------------------------------ tables


def _bounds(seeds: Mapping[str, Sequence[dict[str, Any]]], bounds: Mapping[str, Estimate]) -> Table:
    rows: list[tuple[str, ...]] = []
    for name in sorted(seeds, key=lambda name: bounds[name].mean if name in bounds else float("inf")):
        if name not in bounds:
            rows.append((name, "failed", "", "", "", ""))
            continue
        one = seeds[name][0]
        value = one["likelihood"]
        kind = "bound" if value["is_bound"] else "exact"
        rows.append((name, one["process"], one["objective"], bounds[name].text(), kind, value["estimator"]))
    columns = ("preset", "process", "objective", "bits/char of held-out text", "is", "estimator")
    return Table("Likelihood", columns, rows, "Bounds lie above the truth, each by its own gap.")


def _quality(got: Mapping[str, Sequence[dict[str, Any]]]) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, measured in got.items():
        for i, row in enumerate(measured[0]["samples"]):
            rows.append((name, str(row["steps"]), *_written([one["samples"][i] for one in measured])))
            if "corrected" in row:
                mended = [one["samples"][i]["corrected"] for one in measured]
                rows.append((name, f"{row['steps']}, corrected", *_written(mended)))
    first = next(iter(got.values()))[0]
    own = first["human"]
    nameless = _written([{**own, "nfe": 0}])[1:]
    rows.append(("*held-out text*", "", "", *nameless))
    columns = ("preset", "steps", "NFE", "bits/char under the judge", "unigram entropy, nats", *_DISTINCT)
    note = (
        f"Judge: {first['judge']}; it gives the held-out text as a whole {first['judge_held_out']:.3f} bits/char, and "
        "windows as short as the samples more, for their first characters have little history."
    )
    return Table("Samples", columns, rows, note)


def _written(rows: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    """Calls, quality and variety of the same samples of several seeds."""
    n = len(rows)
    spread = [sum(row[key] for row in rows) / n for key in ("unigram_entropy", "distinct_2", "distinct_3")]
    bits = pooled([estimate(row, "bits_per_char") for row in rows])
    return f"{sum(row['nfe'] for row in rows) / n:.0f}", bits.text(), *(f"{value:.3f}" for value in spread)


def _cost(got: Mapping[str, Sequence[dict[str, Any]]], memory: Mapping[str, float]) -> Table:
    rows = [
        (
            name,
            f"{_mean(measured, 'train_cpu_seconds'):.1f}",
            f"{memory[name]:.0f}",
            f"{measured[0]['parameters']:,}",
            f"{measured[0]['tokens']:,}",
        )
        for name, measured in got.items()
    ]
    columns = ("preset", "training, CPU seconds", "peak memory, MB", "parameters", "tokens trained on")
    return Table("Cost", columns, rows)


# ------------------------------------------------------------------------------------------------------------- plots


def _bound_plot(got: Mapping[str, Sequence[dict[str, Any]]], bounds: Mapping[str, Estimate]) -> Plot:
    names = sorted((name for name in bounds if name != _AR), key=lambda name: -bounds[name].mean)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        shown: set[str] = set()
        for place, name in enumerate(names):
            kind = family(got[name][0])
            axes.errorbar(
                bounds[name].mean,
                place,
                xerr=bounds[name].error,
                fmt="o",
                capsize=3,
                color=_FAMILIES[kind],
                label=None if kind in shown else kind,
            )
            shown.add(kind)
        axes.set_yticks(range(len(names)), names)
        _line(axes.axvline, bounds.get(_AR))
        axes.set_xlabel("upper bound on held-out text (bits per character)")
        figure.legend(loc="outside right upper")

    caption = "Bound of every preset with its 95% interval; the line is the autoregressive baseline's exact value."
    return Plot("bounds", caption, draw, (9.0, 1.5 + 0.32 * len(names)))


def _line(draw: Callable[..., object], value: Estimate | None, label: str = "autoregressive") -> None:
    if value is not None:
        draw(value.mean, color=_FAMILIES["autoregressive"], linestyle="--", linewidth=1.2, label=label)


def _quality_plot(got: Mapping[str, Sequence[dict[str, Any]]]) -> Plot:
    kinds = [kind for kind in _FAMILIES if any(family(one[0]) == kind for n, one in got.items() if n != _AR)]
    first = next(iter(got.values()))[0]
    human = estimate(first["human"], "bits_per_char")
    baseline = _judged(got[_AR], 0) if _AR in got else None
    ticks = sorted({row["steps"] for one in got.values() for row in one[0]["samples"]})

    def draw(figure: Any) -> None:
        columns = min(3, max(1, len(kinds)))
        grid = figure.subplots(-(-max(1, len(kinds)) // columns), columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(kinds) :]:
            axes.set_visible(False)
        for axes, kind in zip(grid.flat, kinds, strict=False):
            for name, measured in got.items():
                if family(measured[0]) == kind and name != _AR:
                    values = [_judged(measured, i) for i in range(len(measured[0]["samples"]))]
                    mark = "osv^D*"[len(axes.containers) // 10]  # colours repeat after ten
                    nfe = [_mean(measured, "samples", i, "nfe") for i in range(len(values))]
                    axes.errorbar(
                        nfe, [v.mean for v in values], [v.error for v in values], marker=mark, capsize=2, label=name
                    )
            _line(axes.axhline, baseline)
            axes.axhline(human.mean, color="#888888", linestyle=":", label="held-out text")
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, list(map(str, ticks)))
            axes.set_title(kind)
            axes.set_xlabel("denoiser calls (NFE)")
            axes.set_ylabel("bits per character\nunder the judge")
            axes.tick_params(labelbottom=True)
            axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    caption = (
        "Sample quality at equal numbers of denoiser calls, lower is more plausible; read with the diversity table."
    )
    return Plot("quality", caption, draw, (15.0, 3.8 * -(-max(1, len(kinds)) // 3)))


def _cost_plot(got: Mapping[str, Sequence[dict[str, Any]]], bounds: Mapping[str, Estimate]) -> Plot:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        shown: set[str] = set()
        for name, measured in got.items():
            kind = family(measured[0])
            label = None if kind in shown else kind
            seconds = _mean(measured, "train_cpu_seconds")
            axes.plot(seconds, bounds[name].mean, "o", color=_FAMILIES[kind], label=label)
            axes.annotate(name, (seconds, bounds[name].mean), xytext=(4, 4), textcoords="offset points", fontsize=8)
            shown.add(kind)
        _line(axes.axhline, bounds.get(_AR), label="autoregressive, its value")
        axes.set_xlabel("training time at equal tokens (CPU seconds, one thread)")
        axes.set_ylabel("held-out text (bits per character)")
        axes.legend()

    return Plot("cost", "Bound against training time; every preset saw the same number of tokens.", draw, (9.0, 6.0))
