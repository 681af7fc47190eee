"""What the records of study ``steps-vs-ar`` say: who reaches the autoregressive quality, and what a token costs."""

from collections.abc import Mapping, Sequence
from typing import Any

from redraft.evaluation.intervals import ratio
from redraft.studies.findings import (
    Conclusion,
    Estimate,
    Finding,
    Plot,
    Table,
    Verdict,
    estimate,
    lower,
    mean_over,
    nothing,
    pooled,
)
from redraft.studies.lineage_claims import COLLAPSE
from redraft.studies.runner import Record, rows_by

REACHES = "writing in parallel reaches the autoregressive model's quality in fewer calls than there are tokens"
COMPUTE = "at that quality it takes fewer FLOPs a token than one token at a time with a cache"
ALONE = "at that quality one text alone takes less time"
BATCHED = "at that quality a batch of texts takes less time"
LESS = "blocks with an exact cache reach that quality with fewer FLOPs than full attention"
CLAIMS = (REACHES, COMPUTE, ALONE, BATCHED, LESS)

AR, MASKED, LONGER, BLOCKS = "autoregressive", "masked", "masked, longer", "blocks"
MARGIN = 0.1
"""Bits per character by which texts may be worse and still count as of one quality."""
COSTS = {COMPUTE: "flops", ALONE: "seconds_alone", BATCHED: "seconds_batch"}
_WORDS = {"flops": "FLOPs a token", "seconds_alone": "time a token, alone", "seconds_batch": "time a token, in a batch"}

Row = Mapping[str, Any]
Ways = dict[tuple[str, int], list[Row]]
"""By sampler and steps, in rising order of the calls: the rows of all seeds."""


def conclude(records: Sequence[Record]) -> Conclusion:
    """Tables, a plot and findings, from the records alone."""
    got: dict[str, Ways] = rows_by(records, "sampler", "steps")
    human: list[Row] = [record.measured["human"] for record in records if record.measured is not None]
    if AR not in got:
        return Conclusion(findings=nothing(CLAIMS, f"no record of {AR}."))
    for name, ways in got.items():
        got[name] = dict(sorted(ways.items(), key=lambda way: (way[0][0], mean_over(way[1], "nfe"))))
    base, least = next(iter(got[AR].values())), COLLAPSE * mean_over(human, "unigram_entropy")
    findings = [found for name in got if name != AR for found in _model(name, got[name], base, least)]
    if any(name != AR for name in got):
        findings.append(_less(got, base, least))
    return Conclusion([_table(got, base, human)], [_plot(got, base, human)], findings, _answer(got, base))


def judged(rows: Sequence[Row]) -> Estimate:
    """Bits per character under the judge."""
    return pooled([estimate(row, "bits_per_char") for row in rows])


def cost(rows: Sequence[Row], of: str) -> Estimate:
    """What a token costs: FLOPs, which are counted, or seconds over repeats, so few that Student's t is needed."""
    if of == "flops":
        return Estimate(mean_over(rows, "flops"), 0.0)
    return pooled([ratio(row[of], [1.0] * len(row[of])) for row in rows])


def reached(rows: Sequence[Row], base: Sequence[Row], least: float) -> Verdict:
    """Is this of the baseline's quality: at most ``MARGIN`` worse, and of ``least`` nats of unigram entropy or more?"""
    gap = judged(rows) - judged(base)
    if mean_over(rows, "unigram_entropy") < least or gap.mean - gap.error > MARGIN:
        return "fails"
    return "holds" if gap.mean + gap.error <= MARGIN else "not separated"


def cheapest(ways: Ways, base: Sequence[Row], least: float, of: str = "flops") -> Sequence[Row] | None:
    """The texts of least cost that are of the baseline's quality; None if none are."""
    good = [rows for rows in ways.values() if reached(rows, base, least) == "holds"]
    return min(good, key=lambda rows: cost(rows, of).mean, default=None)


# ---------------------------------------------------------------------------------------------------------- findings


def _model(name: str, ways: Ways, base: Sequence[Row], least: float) -> list[Finding]:
    tokens = mean_over(base, "nfe")
    fewer = {way: rows for way, rows in ways.items() if mean_over(rows, "nfe") < tokens}
    said = [reached(rows, base, least) for rows in fewer.values()]
    verdict: Verdict = "holds" if "holds" in said else "not separated" if "not separated" in said else "fails"
    good = cheapest(fewer, base, least)
    nearest = good or min((rows for rows in fewer.values() if mean_over(rows, "unigram_entropy") >= least),
                          key=lambda rows: judged(rows).mean, default=None)  # fmt: skip
    if nearest is None:
        sentence = f"{name}: every text repeats itself too much (unigram entropy below {least:.3f} nats)."
    else:
        gap = judged(nearest) - judged(base)
        sentence = (
            f"{_way(name, nearest)}: {judged(nearest).text()} bits/char under the judge where {AR} writes "
            f"{judged(base).text()} in {tokens:.0f} calls; difference {gap.mean:+.3f} ± {gap.error:.3f}, of which "
            f"{MARGIN} is allowed."
        )
        sentence += "" if good else " Nothing as varied that was written in fewer calls came nearer."
    return [Finding(REACHES, verdict, sentence), *(_cost(claim, name, ways, base, least) for claim in COSTS)]


def _way(name: str, rows: Sequence[Row]) -> str:
    return f"{name}, {rows[0]['sampler']} in {mean_over(rows, 'nfe'):.0f} calls"


def _cost(claim: str, name: str, ways: Ways, base: Sequence[Row], least: float) -> Finding:
    of = COSTS[claim]
    good, limit = cheapest(ways, base, least, of), _pays(ways, base, of)
    below = (
        f"It is cheaper up to {limit:.0f} calls." if limit else "It is cheaper at no number of calls that was tried."
    )
    if good is None:
        return Finding(claim, "not measured", f"{name} reaches that quality at no number of calls. {below}")
    gap = cost(good, of) - cost(base, of)
    times = cost(good, of).mean / cost(base, of).mean
    return Finding(claim, lower(gap), f"{_way(name, good)}: {times:.2f} times the {_WORDS[of]}. {below}")


def _pays(ways: Ways, base: Sequence[Row], of: str) -> float:
    """The most calls at which a token costs less than the baseline's, whatever is written; 0 if it never does."""
    cheaper = [rows for rows in ways.values() if (cost(rows, of) - cost(base, of)).sign < 0]
    return max((mean_over(rows, "nfe") for rows in cheaper), default=0.0)


def _less(got: Mapping[str, Ways], base: Sequence[Row], least: float) -> Finding:
    found = {name: cheapest(got.get(name, {}), base, least) for name in (BLOCKS, MASKED)}
    blocks, masked = found[BLOCKS], found[MASKED]
    if blocks is None or masked is None:
        missing = " and ".join(name for name, rows in found.items() if rows is None)
        return Finding(LESS, "not measured", f"that quality is not reached by {missing}.")
    gap, times = cost(blocks, "flops") - cost(masked, "flops"), mean_over(blocks, "flops") / mean_over(masked, "flops")
    sentence = f"{_way(BLOCKS, blocks)}: {times:.2f} times the FLOPs of {_way(MASKED, masked)}."
    return Finding(LESS, lower(gap), sentence)


def _answer(got: Mapping[str, Ways], base: Sequence[Row]) -> str:
    """Whatever the quality: up to how many calls parallel writing is cheaper."""
    told = list[str]()
    for of, words in _WORDS.items():
        limits = [(name, _pays(ways, base, of)) for name, ways in got.items() if name != AR]
        listed = ", ".join(f"{name} up to {limit:.0f} calls" if limit else f"{name} never" for name, limit in limits)
        told.append(f"{words}: {listed}")
    return f"Cheaper than {AR} with a cache, whatever is written, by {'; by '.join(told)}." if len(got) > 1 else ""


# ------------------------------------------------------------------------------------------------- a table and a plot


def _table(got: Mapping[str, Ways], base: Sequence[Row], human: Sequence[Row]) -> Table:
    rows = list[tuple[str, ...]]()
    for name, ways in got.items():
        for (sampler, steps), told in ways.items():
            ratios = [f"{cost(told, of).mean / cost(base, of).mean:.2f}" for of in _WORDS]
            varied = f"{mean_over(told, 'unigram_entropy'):.3f}", f"{mean_over(told, 'distinct_2'):.3f}"
            calls = f"{mean_over(told, 'nfe'):.0f}"
            flops = f"{mean_over(told, 'flops') / 1e6:.2f}"
            rows.append((name, sampler, str(steps), calls, judged(told).text(), *varied, flops, *ratios))
    own = f"{mean_over(human, 'unigram_entropy'):.3f}", f"{mean_over(human, 'distinct_2'):.3f}"
    rows.append(("*held-out text*", "", "", "", judged(human).text(), *own, "", "", "", ""))
    columns = (
        *(
            "model",
            "sampler",
            "steps",
            "calls",
            "bits/char (5-gram)",
            "unigram entropy",
            "distinct-2",
            "MFLOPs a token",
        ),
        *("FLOPs, of AR's", "time alone, of AR's", "time in a batch, of AR's"),
    )
    note = (
        "Of AR's: times what a token of the autoregressive model with a cache costs. Steps of blocks are of each block."
    )
    return Table("Quality and cost", columns, rows, note)


def _plot(got: Mapping[str, Ways], base: Sequence[Row], human: Sequence[Row]) -> Plot:
    def draw(figure: Any) -> None:
        for axes, (of, words) in zip(figure.subplots(1, len(_WORDS), sharey=True), _WORDS.items(), strict=True):
            for name, ways in got.items():
                for sampler in dict.fromkeys(sampler for sampler, _ in ways):
                    told = [rows for (one, _), rows in ways.items() if one == sampler]
                    x = [cost(rows, of).mean / cost(base, of).mean for rows in told]
                    y = [judged(rows) for rows in told]
                    bars = [one.error for one in y]
                    axes.errorbar(x, [one.mean for one in y], bars, marker="o", ms=4, label=f"{name}, {sampler}")
            axes.axhline(judged(base).mean, color="black", ls="--", lw=1)
            axes.axhline(judged(human).mean, color="#888888", ls=":", label="held-out text")
            axes.set(xscale="log", xlabel=f"{words}, of AR's")
        figure.axes[0].set_ylabel("bits/char under the judge")
        figure.axes[-1].legend(fontsize=7)

    caption = (
        "Quality against what a token costs, each in units of the autoregressive model with a cache (dashed). Read the "
        "judge with the entropy in the table: text that repeats itself is judged well."
    )
    return Plot("cost", caption, draw, (14, 5))
