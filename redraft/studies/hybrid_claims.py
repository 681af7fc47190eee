"""What the records of study ``hybrid`` say, and the answer to its question in a paragraph computed from them."""

from collections.abc import Mapping, Sequence
from typing import Any

from redraft.studies.findings import Conclusion, Estimate, Finding, Plot, Table, Verdict, below, estimate, pooled, share
from redraft.studies.runner import Record

GROWS = "uniform noise and [MASK] together make a process whose share of masks only grows"
LIKELIHOOD = "the more uniform noise, the higher (worse) the bound; masked noise has the lowest"
FEW = "at few denoiser calls, noise that swaps tokens writes more sentences than masked noise"
REPAIR = "noise that swaps tokens mends errors which a masked model with remasking leaves"
CLAIMS = (GROWS, LIKELIHOOD, FEW, REPAIR)

Seeds = Mapping[str, Sequence[dict[str, Any]]]
_MASKED, _UNIFORM = "0", "1"


def _label(name: str) -> str:
    return {_MASKED: "0 (masked)", _UNIFORM: "1 (uniform)"}.get(name, name)


def conclude(records: Sequence[Record]) -> Conclusion:
    """Tables, plots, findings and the answer, from the records alone."""
    got: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record.measured is not None:
            got.setdefault(record.cell.name, []).append(record.measured)
    if not got:
        return Conclusion(findings=[Finding(claim, "not measured", "no cell succeeded.") for claim in CLAIMS])
    tables = [_likelihood(got), _quality(got), _repair(got)]
    plots = [_likelihood_plot(got), _quality_plot(got), _repair_plot(got)]
    return Conclusion(tables, plots, _findings(got), _answer(got))


def excess(measured: Sequence[Mapping[str, Any]]) -> Estimate:
    """The bound above the entropy, nats per token."""
    return pooled([Estimate(one["excess"], one["likelihood"]["nats_per_token_error"]) for one in measured])


def _well_formed(measured: Sequence[Mapping[str, Any]], row: int) -> Estimate:
    rows = [one["samples"][row] for one in measured]
    return pooled([share(round(one["well_formed"] * one["n"]), one["n"]) for one in rows])


def _variation(measured: Sequence[Mapping[str, Any]], row: int) -> Estimate:
    rows = [one["samples"][row] for one in measured]
    return pooled([estimate(one, "total_variation") for one in rows])


def _share(measured: Sequence[Mapping[str, Any]], way: int, hits: str, of: str) -> Estimate:
    rows = [one["repair"][way] for one in measured]
    return pooled([share(one[hits], one[of]) for one in rows])


def gain(measured: Sequence[Mapping[str, Any]], way: int) -> Estimate:
    """Errors mended less right sentences changed, as shares: 1 is a perfect corrector, 0 one that does not look."""
    return _share(measured, way, "repaired", "errors") - _share(measured, way, "changed", "right")


def best_way(measured: Sequence[Mapping[str, Any]], method: str | None = None) -> int | None:
    """The way of the largest gain, of one method or of all; chosen on the errors it is then quoted on, for all shares
    alike. None if there is none."""
    ways = [i for i, way in enumerate(measured[0]["repair"]) if method in (None, way["method"])]
    return max(ways, key=lambda way: gain(measured, way).mean, default=None)


def _way(measured: Sequence[Mapping[str, Any]], way: int) -> str:
    told = measured[0]["repair"][way]
    sign = "p <" if told["method"] in ("remask", "redraw") else "t ="
    return f"{told['method']}, {sign} {told['setting']:g}"


# ---------------------------------------------------------------------------------------------------------- findings


def _findings(got: Seeds) -> list[Finding]:
    found = [_grows(got)]
    bounds = {_label(name): excess(measured) for name, measured in got.items()}
    found += [
        below(LIKELIHOOD, _label(_MASKED), _label(name), bounds, "nats per token above the entropy")
        for name in got
        if name != _MASKED
    ]
    few = {_label(name): _well_formed(measured, 0) for name, measured in got.items()}
    calls = max(one["samples"][0]["steps"] for measured in got.values() for one in measured)
    found += [
        below(FEW, _label(_MASKED), _label(name), few, f"of samples are sentences, {calls} calls")
        for name in got
        if name != _MASKED
    ]
    return [*found, *_repairs(got)]


def _grows(got: Seeds) -> Finding:
    told = {name: one[0]["mask_share_grows"] for name, one in got.items() if one[0]["mask_share_grows"] is not None}
    if not told:
        return Finding(GROWS, "not measured", "no noise with [MASK] among the cells.")
    falls = [name for name, grows in told.items() if not grows]
    verdict: Verdict = "fails" if falls else "holds"
    said = f"it falls somewhere for {', '.join(falls)}" if falls else "it never falls between neighbouring times"
    return Finding(GROWS, verdict, f"shares {', '.join(told)}, on a grid of 1,001 times: {said}.")


def _repairs(got: Seeds) -> list[Finding]:
    """Every share's best way against the masked model's best."""
    others = [name for name in got if name != _MASKED]
    if _MASKED not in got:
        return [Finding(REPAIR, "not measured", "the masked model is not among the cells.")]
    base = best_way(got[_MASKED])
    assert base is not None
    masked = f"{_label(_MASKED)}, {_way(got[_MASKED], base)}"
    found: list[Finding] = []
    for name in others:
        way = best_way(got[name])
        assert way is not None
        own = f"{_label(name)}, {_way(got[name], way)}"
        values = {masked: gain(got[_MASKED], base), own: gain(got[name], way)}
        mended, spoilt = (_share(got[name], way, *pair) for pair in (("repaired", "errors"), ("changed", "right")))
        verdict = below(REPAIR, masked, own, values, "in errors mended less right sentences changed")
        calls = got[name][0]["repair"][way]["nfe"], got[_MASKED][0]["repair"][base]["nfe"]
        more = (
            f" Share {name} mends {mended.percent()} and changes {spoilt.percent()} of right sentences, in {calls[0]} "
            f"denoiser calls where the masked model takes {calls[1]}."
        )
        found.append(Finding(REPAIR, verdict.verdict, verdict.sentence + more))
    return found


def _answer(got: Seeds) -> str:
    hybrids = [name for name in got if name not in (_MASKED, _UNIFORM)]
    if not hybrids or _MASKED not in got:
        return ""
    ranked = sorted(got, key=lambda name: excess(got[name]).mean)
    level = [_label(n) for n in ranked[1:] if (excess(got[n]) - excess(got[ranked[0]])).sign == 0]
    gains = {name: gain(got[name], way) for name in got if (way := best_way(got[name])) is not None}
    mender = max(gains, key=lambda name: gains[name].mean)
    cost, mended = excess(got[mender]) - excess(got[_MASKED]), gains[mender] - gains[_MASKED]
    last = len(got[mender][0]["samples"]) - 1
    few, many = (_well_formed(got[mender], row) - _well_formed(got[_MASKED], row) for row in (0, last))

    def against(gap: Estimate, unit: str) -> str:
        told = f"{gap.mean:+.3f} ± {gap.error:.3f} {unit}"
        return told if gap.sign else f"{told}, not separated from zero"

    calls = [got[mender][0]["samples"][row]["steps"] for row in (0, last)]
    tied = f" (not separated from it: {', '.join(level)})" if level else ""
    lead = (
        f"**Answer.** The lowest bound is that of share {_label(ranked[0])}, "
        f"{excess(got[ranked[0]]).text()} nats per token above the entropy{tied}. "
    )
    way = best_way(got[mender])
    assert way is not None
    if mender == _MASKED:
        second = max((name for name in gains if name != _MASKED), key=lambda name: gains[name].mean)
        return lead + (
            f"No share mends more than the masked model with remasking ({_way(got[_MASKED], way)}; errors mended less "
            f"right sentences changed {gains[_MASKED].text()}, next {_label(second)}, {gains[second].text()}): here "
            f"errors can be undone by masking what the model doubts, at {got[_MASKED][0]['repair'][way]['nfe']} calls."
        )
    base = best_way(got[_MASKED])
    assert base is not None
    calls_to_mend = got[mender][0]["repair"][way]["nfe"], got[_MASKED][0]["repair"][base]["nfe"]
    at_few, at_many = against(few, f"at {calls[0]} calls"), against(many, f"at {calls[1]}")
    return lead + (
        f"Share {_label(mender)} mends best ({_way(got[mender], way)}): its errors mended less right sentences changed "
        f"differ from those of the masked model with remasking by {against(mended, 'as a share')}, "
        f"in {calls_to_mend[0]} denoiser calls instead of {calls_to_mend[1]}. From masked noise "
        f"its bound differs by {against(cost, 'nats per token')}, and its share of sentences by {at_few} and {at_many}."
    )


# ------------------------------------------------------------------------------------------------------------ tables


def _likelihood(got: Seeds) -> Table:
    rows = [
        (
            _label(name),
            excess(measured).text(4),
            measured[0]["likelihood"]["estimator"],
            f"{sum(one['train_cpu_seconds'] for one in measured) / len(measured):.1f}",
            f"{measured[0]['parameters']:,}",
            f"{measured[0]['tokens']:,}",
        )
        for name, measured in got.items()
    ]
    columns = ("uniform share", "bound above entropy, nats/token", "estimator", "CPU s", "parameters", "tokens")
    note = "The exact value of a perfect model is 0; its bound lies above by the gap of its own noise."
    return Table("Likelihood", columns, rows, note)


def _quality(got: Seeds) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, measured in got.items():
        for i, row in enumerate(measured[0]["samples"]):
            seen = sum(one["samples"][i]["distinct"] / one["samples"][i]["expected_distinct"] for one in measured)
            entropy = sum(one["samples"][i]["unigram_entropy"] for one in measured) / len(measured)
            agreement = sum(one["samples"][i]["agreement"] for one in measured) / len(measured)
            spread = (f"{100 * seen / len(measured):.1f}%", f"{entropy:.3f}", _variation(measured, i).text())
            told = (str(row["nfe"]), _well_formed(measured, i).percent(), f"{100 * agreement:.1f}%")
            rows.append((_label(name), *told, *spread, f"{row['perfect_variation']:.3f}"))
    columns = (
        *("uniform share", "NFE", "sentences", "agreement errors", "coverage", "unigram entropy, nats"),
        *("total variation", "of an exact sampler"),
    )
    note = "Coverage: different sentences, of as many as an exact sampler would show on average."
    return Table("Samples", columns, rows, note)


def _repair(got: Seeds) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, measured in got.items():
        for i, way in enumerate(measured[0]["repair"]):
            mended, near = (_share(measured, i, hits, "errors") for hits in ("repaired", "near"))
            changed, broken = (_share(measured, i, hits, "right") for hits in ("changed", "broken"))
            figures = [one.percent() for one in (mended, near, changed, broken)]
            rows.append((_label(name), _way(measured, i), str(way["nfe"]), *figures, gain(measured, i).text()))
    columns = (
        *("uniform share", "way", "NFE", "errors mended", "by one token"),
        *("right ones changed", "right ones broken", "mended less changed"),
    )
    first = next(iter(got.values()))[0]["repair"]
    count = first[0]["errors"] if first else 0
    return Table("Repair", columns, rows, f"Of {count} errors, and of the 252 sentences tried twice each.")


# ------------------------------------------------------------------------------------------------------------- plots


def _colour(i: int, n: int) -> Any:
    import matplotlib as mpl

    return mpl.colormaps["viridis"](0.9 * i / max(1, n - 1))


def _likelihood_plot(got: Seeds) -> Plot:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        values = [excess(measured) for measured in got.values()]
        axes.errorbar(range(len(got)), [v.mean for v in values], [v.error for v in values], fmt="o-", capsize=3)
        axes.axhline(0, color="#222222", linestyle="--", linewidth=1.2, label="entropy of the language")
        axes.set_xticks(range(len(got)), list(map(_label, got)))
        axes.set_xlabel("uniform share at its peak")
        axes.set_ylabel("bound above the entropy\n(nats per token)")
        axes.legend()

    return Plot("likelihood", "What each share of uniform noise costs in likelihood.", draw, (8.0, 4.5))


def _quality_plot(got: Seeds) -> Plot:
    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        steps = [row["steps"] for row in next(iter(got.values()))[0]["samples"]]
        for i, (name, measured) in enumerate(got.items()):
            for axes, value in ((left, _well_formed), (right, _variation)):
                values = [value(measured, row) for row in range(len(steps))]
                means, errors = [v.mean for v in values], [v.error for v in values]
                axes.errorbar(
                    steps, means, errors, marker="o", capsize=2, color=_colour(i, len(got)), label=_label(name)
                )
        exact = next(iter(got.values()))[0]["samples"][0]["perfect_variation"]
        right.axhline(exact, color="#222222", linestyle="--", linewidth=1.2, label="exact sampler")
        for axes, label in ((left, "share of sentences"), (right, "total variation from the law")):
            axes.set_xscale("log", base=2)
            axes.set_xticks(steps, list(map(str, steps)))
            axes.set_xlabel("denoising steps")
            axes.set_ylabel(label)
        right.legend(title="uniform share", fontsize=9)

    return Plot("quality", "Samples against the law of the language, by number of steps.", draw, (11.0, 4.5))


def _repair_plot(got: Seeds) -> Plot:
    marks = {"remask": "^", "redraw": "v", "restart": "o", "self_correct": "s"}

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for i, (name, measured) in enumerate(got.items()):
            for method, mark in marks.items():
                ways = [w for w, way in enumerate(measured[0]["repair"]) if way["method"] == method]
                x = [_share(measured, way, "changed", "right").mean for way in ways]
                y = [_share(measured, way, "repaired", "errors").mean for way in ways]
                axes.plot(x, y, marker=mark, color=_colour(i, len(got)), linewidth=0.8, alpha=0.8)
            axes.plot([], [], "-", color=_colour(i, len(got)), label=_label(name))
        for method, mark in marks.items():
            axes.plot([], [], mark, color="#666666", label=method)
        axes.plot([0, 1], [0, 1], color="#222222", linestyle="--", linewidth=1.0)
        axes.set_xlabel("right sentences changed (share)")
        axes.set_ylabel("agreement errors mended (share)")
        figure.legend(loc="outside right upper", fontsize=9)

    caption = "Errors mended against right sentences changed, each way at its settings; the upper left corner is ideal."
    return Plot("repair", caption, draw, (8.0, 6.0))
