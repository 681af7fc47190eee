"""What the records of study ``self-correction`` say: errors against calls, and against variety."""

from collections.abc import Mapping, Sequence
from typing import Any

from redraft.studies.findings import (
    Conclusion,
    Estimate,
    Finding,
    Plot,
    Table,
    Verdict,
    below,
    mean_over,
    pooled,
    share,
)
from redraft.studies.runner import Record

MENDS = "in as many steps a sampler that revises makes fewer errors than writing each token once (ancestral)"
PAYS = "where a sampler makes fewer errors than ancestral sampling, its texts are less varied"
UNTAUGHT = "a model that was never taught to doubt a token it sees cannot edit its own (masked, edit)"
SURE = "writing the surest tokens first, once, makes fewer errors than revising what was written in any order"
CLAIMS = (MENDS, PAYS, UNTAUGHT, SURE)

REVISING = ("remdm", "forward_backward", "remask", "edit", "wino", "gibbs", "psi", "informed", "renoise")
SURE_FIRST = ("low_confidence", "threshold:tau=0.9", "entropy_bounded", "maskgit")
ONCE = "ancestral"

Row = Mapping[str, Any]
Got = dict[str, dict[str, list[list[Row]]]]
"""By cell and sampler: a list for every number of calls, in rising order, of the rows of all seeds."""


def conclude(records: Sequence[Record]) -> Conclusion:
    """Tables, a plot for each corpus and findings, from the records alone."""
    got: Got = {}
    human: dict[str, Estimate] = {}
    for record in records:
        if record.measured is None:
            continue
        cell = got.setdefault(record.cell.name, {})
        for row in record.measured["rows"]:
            budgets = cell.setdefault(row["sampler"], [])
            place = next((rows for rows in budgets if rows[0]["calls"] == row["calls"]), None)
            if place is None:
                budgets.append([row])
            else:
                place.append(row)
        if "human" in record.measured:
            of = record.measured["human"]
            human[record.cell.name] = share(of["n"] - of["right"], of["n"])
    if not got:
        return Conclusion(findings=[Finding(claim, "not measured", "no cell succeeded.") for claim in CLAIMS])
    tables = [_table(cell, samplers, human.get(cell)) for cell, samplers in got.items()]
    return Conclusion(tables, [_plot(got)], [found for cell in got for found in _findings(cell, got[cell])])


def errors(rows: Sequence[Row]) -> Estimate | None:
    """The share of texts, or of lines, that are wrong; None where no line was complete in some training."""
    return pooled([share(row["n"] - row["right"], row["n"]) for row in rows]) if all(row["n"] for row in rows) else None


def revises(sampler: str) -> bool:
    return any(name in sampler for name in REVISING)


def _findings(cell: str, samplers: Mapping[str, Sequence[Sequence[Row]]]) -> list[Finding]:
    found = list[Finding]()
    for place in (0, -1):
        where = f"of {cell} wrong, {samplers[ONCE][place][0]['calls']} calls allowed"
        values = dict[str, Estimate]()
        for name, budgets in samplers.items():
            if (wrong := errors(budgets[place])) is None:
                found.append(_silent(name, budgets[place], samplers[ONCE][place], where))
            else:
                values[name] = wrong
        if ONCE not in values:
            continue
        for name in values:
            if revises(name) and "edit" not in name:
                found.append(_mends(name, samplers, place, values, where))
            if name != ONCE and (values[name] - values[ONCE]).sign < 0:
                found.append(_pays(name, samplers[name][place], samplers[ONCE][place], where))
            if "edit" in name and (rule := name.partition("+")[0]) in values:
                better = below(UNTAUGHT, name, rule, values, where)
                turned: dict[Verdict, Verdict] = {"holds": "fails", "fails": "holds"}
                found.append(Finding(UNTAUGHT, turned.get(better.verdict, better.verdict), better.sentence))
        revising = [name for name in values if revises(name) and "edit" not in name]
        first = [name for name in SURE_FIRST if name in values]
        if revising and first:
            best = [min(names, key=lambda name: values[name].mean) for names in (first, revising)]
            found.append(below(SURE, best[0], best[1], values, f"{where}, the best of each kind"))
    return found


def _mends(
    name: str, samplers: Mapping[str, Sequence[Sequence[Row]]], place: int, values: Mapping[str, Estimate], where: str
) -> Finding:
    """The errors, with the calls that each really took: who writes once is done early."""
    found = below(MENDS, name, ONCE, values, where)
    mine, theirs = (mean_over(samplers[one][place], "nfe") for one in (name, ONCE))
    return Finding(MENDS, found.verdict, f"{found.sentence} Calls taken: {mine:.1f} against {theirs:.1f}.")


def _silent(name: str, rows: Sequence[Row], once: Sequence[Row], where: str) -> Finding:
    """A sampler of whose texts none has a line that could be right or wrong."""
    mine, theirs = mean_over(rows, "unigram_entropy"), mean_over(once, "unigram_entropy")
    sentence = (
        f"{name} wrote no complete line ({where}), so there is nothing to parse: unigram entropy {mine:.3f} nats "
        f"against {theirs:.3f} of ancestral."
    )
    return Finding(MENDS if revises(name) else SURE, "not measured", sentence)


def _pays(name: str, rows: Sequence[Row], once: Sequence[Row], where: str) -> Finding:
    """Variety beside that of ancestral sampling. Few texts of one training: the two figures, without an interval."""
    mine, theirs = mean_over(rows, "unigram_entropy"), mean_over(once, "unigram_entropy")
    sentence = f"{name}: unigram entropy {mine:.3f} against {theirs:.3f} ({where})"
    if "distinct" in rows[0]:
        mine, theirs = mean_over(rows, "distinct"), mean_over(once, "distinct")
        sentence += f", {mine:.0f} different sentences against {theirs:.0f}"
    return Finding(PAYS, "holds" if mine < theirs else "fails", f"{sentence}.")


def _table(cell: str, samplers: Mapping[str, Sequence[Sequence[Row]]], human: Estimate | None) -> Table:
    rows = list[tuple[str, ...]]()
    on_toy = "distinct" in samplers[ONCE][0][0]
    for name, budgets in samplers.items():
        for at in budgets:
            wrong = errors(at)
            told = (name, str(at[0]["calls"]), f"{mean_over(at, 'nfe'):.1f}", "-" if wrong is None else wrong.percent())
            kinds = f"{mean_over(at, 'agreement') / at[0]['n']:.1%}" if on_toy else f"{mean_over(at, 'distinct_2'):.3f}"
            seen = (
                f"{mean_over(at, 'distinct'):.0f} of {at[0]['expected']:.0f}" if on_toy else f"{mean_over(at, 'n'):.0f}"
            )
            rows.append((*told, kinds, seen, f"{mean_over(at, 'unigram_entropy'):.3f}"))
    last = ("broken agreement", "different sentences") if on_toy else ("different bigrams", "lines")
    columns = ("sampler", "calls allowed", "calls a row", "wrong", *last, "unigram entropy")
    note = "" if human is None else f"Of the text trained on {human.percent()} of lines do not parse by themselves."
    return Table(cell, columns, rows, note)


def _plot(got: Got) -> Plot:
    def draw(figure: Any) -> None:
        axes = figure.subplots(2, len(got), squeeze=False)
        for column, (cell, samplers) in enumerate(got.items()):
            for name, budgets in samplers.items():
                style = {"ls": "-" if revises(name) else "--", "marker": "o" if revises(name) else "s", "ms": 4}
                told = [(rows, wrong.mean) for rows in budgets if (wrong := errors(rows)) is not None]
                y = [wrong for _, wrong in told]
                axes[0][column].plot([mean_over(rows, "nfe") for rows, _ in told], y, label=name, **style)
                axes[1][column].plot([mean_over(rows, "unigram_entropy") for rows, _ in told], y, label=name, **style)
            axes[0][column].set(title=cell, xlabel="calls a row", ylabel="wrong", xscale="log")
            axes[1][column].set(xlabel="unigram entropy, nats", ylabel="wrong")
            axes[0][column].legend(fontsize=6)

    caption = "Errors against calls (above) and against variety (below); solid lines revise, dashed write once."
    return Plot("self-correction", caption, draw, (5 * len(got), 8))
