"""What the records of study ``gaussian`` say: each objective against the unigrams, masked and uniform noise."""

from collections.abc import Mapping, Sequence
from typing import Any

from redraft.studies.findings import Conclusion, Estimate, Finding, Plot, Table, below, estimate, lower, pooled, share
from redraft.studies.runner import Record

LEARNS = "every objective trains to a bound below the unigram entropy"
FEWER = "at equal calls and compute Gaussian noise writes fewer ill-formed sentences than masked noise"
HEUN = "at equal calls Heun's method writes fewer ill-formed sentences than Euler's (ddim)"
SELF = "self-conditioning lowers the share of ill-formed sentences"
ADAPTS = "a learned schedule lowers the bound"
CLAIMS = (LEARNS, FEWER, HEUN, SELF, ADAPTS)

_METHODS = ("cdcd", "langflow", "plaid", "diffusion_lm", "analog_bits")
TOY = ("toy_masked", "toy_uniform", "toy_gaussian", *(f"toy_{name}" for name in _METHODS))
TEXT = ("mdlm", "udlm", *_METHODS)
ABLATIONS: dict[str, dict[str, Any]] = {
    "toy_cdcd alone": {"model.self_conditioned": False},
    "toy_cdcd linear_gamma": {"process.schedule": "linear_gamma"},
    "toy_plaid linear_gamma": {"process.schedule": "linear_gamma"},
}
"""A recipe with one thing changed, by what the name says after it."""
Seeds = Mapping[str, Sequence[dict[str, Any]]]


def conclude(records: Sequence[Record]) -> Conclusion:
    """Tables, a plot, findings and the answer, from the records alone."""
    got: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record.measured is not None:
            got.setdefault(record.cell.name, []).append(record.measured)
    if not got:
        return Conclusion(findings=[Finding(claim, "not measured", "no cell succeeded.") for claim in CLAIMS])
    bounds = {name: bound(measured) for name, measured in got.items()}
    return Conclusion([_bounds(got, bounds), _written(got)], [_plot(got)], _findings(got, bounds), _answer(got, bounds))


def bound(measured: Sequence[Mapping[str, Any]]) -> Estimate:
    """The bound, nats per token."""
    found = [one["likelihood"] for one in measured]
    return pooled([estimate(one, "nats_per_token") for one in found])


def ill_formed(measured: Sequence[Mapping[str, Any]], calls: int, sampler: str = "ancestral") -> Estimate:
    """The share of ill-formed sentences at so many calls; broken agreement is counted with them."""
    rows = [row for one in measured for row in one["samples"] if (row["calls"], row["sampler"]) == (calls, sampler)]
    return pooled([share(row["n"] - round(row["well_formed"] * row["n"]), row["n"]) for row in rows])


def _calls(got: Seeds) -> list[int]:
    return sorted({row["calls"] for measured in got.values() for one in measured for row in one["samples"]})


def _written_by(got: Seeds) -> dict[str, list[str]]:
    """The samplers of every cell that wrote sentences."""
    return {
        name: list(dict.fromkeys(row["sampler"] for row in measured[0]["samples"]))
        for name, measured in got.items()
        if measured[0]["samples"]
    }


# ---------------------------------------------------------------------------------------------------------- findings


def _findings(got: Seeds, bounds: Mapping[str, Estimate]) -> list[Finding]:
    found = [_learns(name, got[name], bounds[name]) for name in got]
    calls, writers = _calls(got), _written_by(got)
    for number in (calls[0], calls[-1]) if calls else ():
        rates = {name: ill_formed(got[name], number) for name in writers}
        unit = f"of {number}-call samples ill-formed (ancestral)"
        found += [below(FEWER, name, "toy_masked", rates, unit) for name in TOY[2:]]
        found.append(below(SELF, "toy_cdcd", "toy_cdcd alone", rates, unit))
        for name, samplers in writers.items():
            if "heun" in samplers:
                two = {sampler: ill_formed(got[name], number, sampler) for sampler in ("heun", "ddim")}
                found.append(below(HEUN, "heun", "ddim", two, f"of {number}-call samples of {name} ill-formed"))
    for name in ("toy_cdcd", "toy_plaid"):
        found.append(below(ADAPTS, name, f"{name} linear_gamma", bounds, "nats per token"))
    return found


def _learns(name: str, measured: Sequence[Mapping[str, Any]], found: Estimate) -> Finding:
    unigrams = sum(one["unigrams"] for one in measured) / len(measured)
    said = f"{name}: bound {found.text()}, unigrams {unigrams:.3f} nats per token."
    return Finding(LEARNS, lower(found - Estimate(unigrams, 0.0)), said)


def _answer(got: Seeds, bounds: Mapping[str, Estimate]) -> str:
    found = [_learns(name, got[name], bounds[name]).verdict for name in got]
    sentences = [f"{found.count('holds')} of {len(found)} models have a bound below the unigram entropy."]
    calls, writers = _calls(got), _written_by(got)
    for number in calls:
        best = {
            name: min((ill_formed(got[name], number, sampler).mean, sampler) for sampler in samplers)
            for name, samplers in writers.items()
        }
        listed = ", ".join(f"{name} {100 * rate:.1f}% ({sampler})" for name, (rate, sampler) in best.items())
        sentences.append(f"Ill-formed at {number} calls, by each one's best sampler on these samples: {listed}.")
    return " ".join(sentences)


# ------------------------------------------------------------------------------------------------- tables and a plot


def _bounds(got: Seeds, bounds: Mapping[str, Estimate]) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, measured in got.items():
        first = measured[0]
        chars = first["likelihood"]["bits_per_char"]
        rows.append(
            (
                name,
                first["objective"],
                bounds[name].text(),
                f"{first['unigrams']:.3f}",
                "" if chars is None else f"{chars:.3f}",
                str(first["steps"]),
                f"{sum(one['train_cpu_seconds'] for one in measured) / len(measured):.0f}",
                f"{first['parameters'] / 1e6:.1f}M",
            )
        )
    columns = ("model", "objective", "bound, nats/token", "unigrams", "bits/char", "steps", "CPU s", "weights")
    note = "Bounds of the held-out rows, 95% over rows. Nats per token compare within one tokenizer only."
    return Table("Likelihood", columns, rows, note)


def _written(got: Seeds) -> Table:
    calls = _calls(got)
    rows: list[tuple[str, ...]] = []
    for name, samplers in _written_by(got).items():
        for sampler in samplers:
            rates = [ill_formed(got[name], number, sampler).percent() for number in calls]
            last = [one["samples"][-1] for one in got[name]]
            distinct = sum(one["distinct"] / one["expected_distinct"] for one in last) / len(last)
            rows.append((name, sampler, *rates, f"{distinct:.2f}"))
    columns = ("model", "sampler", *(f"ill-formed, {number} calls" for number in calls), "coverage at the most calls")
    note = (
        "Samples that are none of the 252 sentences, broken agreement included, with 95% intervals of a share. "
        "Coverage: different sentences written, over what an exact sampler writes in as many draws, at the most calls "
        "by the last sampler."
    )
    return Table("Sentences", columns, rows, note)


def _plot(got: Seeds) -> Plot:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        calls = _calls(got)
        for name in _written_by(got):
            rates = [ill_formed(got[name], number) for number in calls]
            style = "--" if name in ABLATIONS else "-"
            axes.errorbar(
                calls,
                [max(100 * r.mean, 0.01) for r in rates],
                [100 * r.error for r in rates],
                label=name,
                ls=style,
                marker="o",
            )
        axes.set(xscale="log", yscale="log", xlabel="denoiser calls", ylabel="ill-formed samples, %")
        axes.legend(fontsize=8)

    return Plot("ill_formed", "Ill-formed samples of the toy language, ancestral sampler.", draw)
