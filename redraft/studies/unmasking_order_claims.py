"""What the records of study ``unmasking-order`` say: which kinds come first, and whether from the left."""

from collections.abc import Mapping, Sequence
from typing import Any

from redraft.studies.findings import (
    Conclusion,
    Estimate,
    Finding,
    Plot,
    Table,
    estimate,
    higher,
    lower,
    mean_over,
    nothing,
    pooled,
    widened,
)
from redraft.studies.runner import Record, rows_by

CONTROL = "ancestral sampling, which draws where to write at random, fixes no kind of token before another"
KINDS = "rules that write the surest tokens first fix some kinds of tokens before others"
COMMON = "the commonest kind is fixed first by rules that write the surest tokens first"
LEFT = "rules that write the surest tokens first write more from the left than chance would"
CLAIMS = (CONTROL, KINDS, COMMON, LEFT)
RANDOM = "ancestral"
FEWEST = 10
"""Texts that have a kind, for its place to be told."""

Row = Mapping[str, Any]
Got = dict[str, dict[tuple[str, int], list[Row]]]
"""By corpus, then by sampler and tokens a step: a row a seed."""


def conclude(records: Sequence[Record]) -> Conclusion:
    """Tables, a plot and findings, from the records alone."""
    got: Got = rows_by(records, "sampler", "tokens_a_step")
    if not got:
        return Conclusion(findings=nothing(CLAIMS, "no cell succeeded."))
    found = [one for corpus in got for one in _findings(corpus, got[corpus])]
    return Conclusion([_table(corpus, got[corpus]) for corpus in got], [_plot(got)], found)


def places(rows: Sequence[Row]) -> dict[str, Estimate]:
    """Each kind's place, of the kinds that all seeds met."""
    kinds = [kind for kind in rows[0]["kinds"] if all(kind in row["kinds"] for row in rows)]
    return {
        kind: pooled([Estimate(row["kinds"][kind]["place"], row["kinds"][kind]["error"]) for row in rows])
        for kind in kinds
    }


def shares(rows: Sequence[Row]) -> dict[str, float]:
    return {kind: sum(row["kinds"][kind]["share"] for row in rows) / len(rows) for kind in places(rows)}


def _findings(corpus: str, cell: Mapping[tuple[str, int], Sequence[Row]]) -> list[Finding]:
    found = list[Finding]()
    for (sampler, many), rows in cell.items():
        where = f"{corpus}, {sampler}, {_many(many)} a step"
        values = {kind: widened(one, len(places(rows))) for kind, one in places(rows).items()}
        found += _kinds(where, values, shares(rows), sampler == RANDOM)
        if sampler != RANDOM:
            found.append(_left(where, rows))
    return found


def _kinds(where: str, values: Mapping[str, Estimate], share: Mapping[str, float], at_random: bool) -> list[Finding]:
    """Is any kind's place not 1/2, and is the commonest first?"""
    if len(values) < 2:
        few = f"{where}: fewer than two kinds stand in {FEWEST} texts."
        return nothing((CONTROL,) if at_random else (KINDS, COMMON), few)
    apart = any((one - Estimate(0.5, 0.0)).sign for one in values.values())
    listed = ", ".join(f"{kind} {values[kind].text(2)}" for kind in sorted(values, key=lambda k: values[k].mean))
    if at_random:
        return [Finding(CONTROL, "fails" if apart else "holds", f"{where}: {listed}; 1/2 is no order.")]
    return [Finding(KINDS, "holds" if apart else "not separated", f"{where}: {listed}."), _common(where, values, share)]


def _common(where: str, values: Mapping[str, Estimate], share: Mapping[str, float]) -> Finding:
    """Does the commonest kind come first? It is compared with the first of the others."""
    common = max(share, key=lambda kind: share[kind])
    first = min((kind for kind in values if kind != common), key=lambda kind: values[kind].mean)
    gap = values[common] - values[first]
    sentence = (
        f"{where}: {common}, {share[common]:.0%} of all tokens, stands at {values[common].text(2)}; the first of the "
        f"others is {first} at {values[first].text(2)}."
    )
    return Finding(COMMON, lower(gap), sentence)


def left(rows: Sequence[Row]) -> Estimate:
    """How much oftener a token is fixed with nothing open to its left than by chance."""
    found = pooled([estimate(row, "leftmost") for row in rows])
    return found - Estimate(mean_over(rows, "leftmost_by_chance"), 0.0)


def _left(where: str, rows: Sequence[Row]) -> Finding:
    more = left(rows)
    chance = mean_over(rows, "leftmost_by_chance")
    sentence = f"{where}: leftmost {chance + more.mean:.3f} ± {more.error:.3f}, by chance {chance:.3f}."
    return Finding(LEFT, higher(more), sentence)


def _many(tokens: int) -> str:
    return "one token" if tokens == 1 else f"{tokens} tokens"


def _table(corpus: str, cell: Mapping[tuple[str, int], Sequence[Row]]) -> Table:
    first = next(iter(cell.values()))
    kinds = sorted(shares(first), key=lambda kind: -shares(first)[kind])
    lines = list[tuple[str, ...]]()
    for (sampler, many), rows in cell.items():
        values = places(rows)
        told = [values[kind].text(2) if kind in values else "-" for kind in kinds]
        more = [f"{mean_over(rows, 'leftmost'):.2f}", f"{mean_over(rows, 'leftmost_by_chance'):.2f}"]
        lines.append((sampler, str(many), *told, *more, f"{mean_over(rows, 'unigram_entropy'):.2f}"))
    columns = ("sampler", "tokens a step", *kinds, "leftmost", "by chance", "unigram entropy")
    note = "Mean place of each kind in the order of writing, 0 first and 1 last; commonest kinds to the left."
    return Table(corpus, columns, lines, note)


def _plot(got: Got) -> Plot:
    def draw(figure: Any) -> None:
        for axes, (corpus, cell) in zip(figure.subplots(1, len(got), squeeze=False)[0], got.items(), strict=True):
            single = {sampler: rows for (sampler, many), rows in cell.items() if many == 1}
            kinds = sorted(shares(next(iter(single.values()))), key=lambda k: -shares(next(iter(single.values())))[k])
            for offset, (sampler, rows) in enumerate(single.items()):
                values = places(rows)
                at = [(i + 0.12 * offset, values[kind]) for i, kind in enumerate(kinds) if kind in values]
                x, y, error = [i for i, _ in at], [one.mean for _, one in at], [one.error for _, one in at]
                axes.errorbar(x, y, error, fmt="o", ms=4, capsize=2, label=sampler)
            axes.axhline(0.5, color="grey", lw=0.8)
            axes.set_xticks(range(len(kinds)), kinds, rotation=30, ha="right")
            axes.set(title=corpus, ylabel="place in the order of writing")
            axes.legend(fontsize=7)

    caption = "Where each kind of token stands in the order of writing, one token a step; commonest kinds to the left."
    return Plot("order", caption, draw, (11.0, 5.0))
