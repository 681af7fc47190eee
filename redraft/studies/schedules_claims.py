"""What the records of study ``schedules`` say: what each schedule costs, the errors counted, and if they agree."""

from collections.abc import Mapping, Sequence
from typing import Any

from redraft.studies.conflicts import SCHEDULES
from redraft.studies.findings import (
    Conclusion,
    Estimate,
    Finding,
    Plot,
    Table,
    Verdict,
    below,
    estimate,
    mean_over,
    pooled,
    share,
)
from redraft.studies.runner import Record

CHEAPER = "slow-first unmasking (cosine) loses fewer nats to tokens written apart than even steps (uniform)"
WHY = "even steps lose most of theirs on the tokens they write first, where what is known changes most"
FEWER = "slow-first unmasking makes fewer errors than even steps at equal calls"
AGREES = "the cost that is computed orders the schedules as the errors that are counted do"
NEAR = "cosine is near the best schedule: of what even steps lose beside that it loses a tenth at most"
CLAIMS = (CHEAPER, WHY, FEWER, AGREES, NEAR)

Row = Mapping[str, Any]
Got = dict[tuple[str, int, str], list[Row]]
"""Rows of all seeds by (cell, steps, schedule)."""


def conclude(records: Sequence[Record]) -> Conclusion:
    """Tables, a plot and findings, from the records alone."""
    got: Got = {}
    surprise: dict[str, Sequence[float]] = {}
    for record in records:
        if record.measured is None:
            continue
        surprise[record.cell.name] = record.measured["exact_surprise"] or record.measured["surprise"]
        for at in record.measured["written"]:
            for row in at["rows"]:
                got.setdefault((record.cell.name, at["steps"], row["schedule"]), []).append(row)
    if not got:
        return Conclusion(findings=[Finding(claim, "not measured", "no cell succeeded.") for claim in CLAIMS])
    places = list(dict.fromkeys((cell, steps) for cell, steps, _ in got))
    tables = [_table(cell, [steps for one, steps in places if one == cell], got) for cell in surprise]
    return Conclusion(tables, [_plot(surprise, places, got)], _findings(places, got))


def errors(rows: Sequence[Row]) -> Estimate:
    """The share of ill-formed sentences, or bits per character under the judge."""
    if "well_formed" in rows[0]:
        return pooled([share(row["n"] - round(row["well_formed"] * row["n"]), row["n"]) for row in rows])
    return pooled([estimate(row, "bits_per_char") for row in rows])


def _findings(places: Sequence[tuple[str, int]], got: Got) -> list[Finding]:
    found = list[Finding]()
    for cell, steps in places:
        at = {name: got[cell, steps, name] for name in (*SCHEDULES, "best") if (cell, steps, name) in got}
        where = f"{cell}, {steps} calls"
        cost = {name: mean_over(rows, "cost") for name, rows in at.items()}
        verdict: Verdict = "holds" if cost["cosine"] < cost["uniform"] else "fails"
        sentence = f"{where}: cosine {cost['cosine']:.3f}, uniform {cost['uniform']:.3f} nats a text."
        found.append(Finding(CHEAPER, verdict, sentence))
        found.append(_why(where, at["uniform"][0]))
        counted = {name: errors(rows) for name, rows in at.items()}
        unit = "of sentences ill-formed" if cell == "toy" else "bits per character under the judge"
        found.append(below(FEWER, "cosine", "uniform", counted, f"{unit} ({where})"))
        found.append(_agrees(where, cost, counted))
        gap, most = cost["cosine"] - cost["best"], cost["uniform"] - cost["best"]
        verdict = "holds" if gap <= 0.1 * most else "fails"
        sentence = (
            f"{where}: best {at['best'][0]['counts']} costs {cost['best']:.3f} nats, cosine {cost['cosine']:.3f}, "
            f"uniform {cost['uniform']:.3f}: {gap / max(most, 1e-12):.0%} of what even steps lose beside the best."
        )
        found.append(Finding(NEAR, verdict, sentence))
    return found


def _why(where: str, row: Row) -> Finding:
    """How much of the cost of even steps falls on the first half of them, beside the tokens that those write."""
    half = (len(row["counts"]) + 1) // 2
    early, written = sum(row["costs"][:half]), sum(row["counts"][:half]) / sum(row["counts"])
    part = early / row["cost"] if row["cost"] else 0.0
    sentence = f"{where}: {part:.0%} of {row['cost']:.3f} nats fall on the first {written:.0%} of the tokens."
    return Finding(WHY, "holds" if part > written else "fails", sentence)


def _agrees(where: str, cost: Mapping[str, float], counted: Mapping[str, Estimate]) -> Finding:
    """Pairs of schedules whose errors are separated: are they ordered as their costs?"""
    names = list(cost)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if (counted[a] - counted[b]).sign]
    wrong = [f"{a} and {b}" for a, b in pairs if (cost[a] - cost[b]) * (counted[a] - counted[b]).sign < 0]
    if not pairs:
        return Finding(AGREES, "not separated", f"{where}: no two schedules are separated by their errors.")
    told = f"; not so {', '.join(wrong)}" if wrong else ""
    right = len(pairs) - len(wrong)
    return Finding(AGREES, "fails" if wrong else "holds", f"{where}: {right} of {len(pairs)} separated pairs{told}.")


def _table(cell: str, steps: Sequence[int], got: Got) -> Table:
    rows = list[tuple[str, ...]]()
    for number in steps:
        for name in (*SCHEDULES, "best"):
            at = got[cell, number, name]
            plan = at[0]["counts"]
            shown = " ".join(map(str, plan)) if len(plan) <= 8 else f"{plan[0]} {plan[1]} .. {plan[-2]} {plan[-1]}"
            counted = errors(at)
            made = counted.percent() if cell == "toy" else counted.text()
            varied = f"{mean_over(at, 'unigram_entropy'):.3f}"
            rows.append((str(number), name, shown, f"{mean_over(at, 'cost'):.3f}", made, varied))
    made = "ill-formed" if cell == "toy" else "bits/char (5-gram)"
    columns = ("calls", "schedule", "tokens a step", "cost, nats/text", made, "unigram entropy")
    return Table(cell, columns, rows, "Errors with their 95% interval over samples; one training a seed.")


def _plot(surprise: Mapping[str, Sequence[float]], places: Sequence[tuple[str, int]], got: Got) -> Plot:
    def draw(figure: Any) -> None:
        axes = figure.subplots(2, len(surprise), squeeze=False)
        for column, (cell, curve) in enumerate(surprise.items()):
            axes[0][column].plot(range(len(curve)), curve, color="black")
            axes[0][column].set(title=cell, xlabel="tokens known, j", ylabel="$h_j$, nats")
            for name in (*SCHEDULES, "best"):
                points = [got[cell, steps, name] for one, steps in places if one == cell]
                x, y = [mean_over(rows, "cost") for rows in points], [errors(rows) for rows in points]
                bars = [one.error for one in y]
                axes[1][column].errorbar(x, [one.mean for one in y], bars, marker="o", ls="", label=name)
            made = "ill-formed" if cell == "toy" else "bits/char (5-gram)"
            axes[1][column].set(xlabel="cost computed, nats/text", ylabel=made)
        axes[1][0].legend()

    return Plot("conflicts", "Above: what a token surprises when j are known. Below: cost and errors.", draw, (10, 8))
