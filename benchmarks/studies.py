"""Every study at its small budget, one after the other, in twenty minutes on two cores: ``make studies``.

A smoke run with honest verdicts: much that a fuller run separates is *not separated* here. Reports lie under ``--out``.
"""

import argparse
import time
import traceback
from pathlib import Path

from redraft import studies
from redraft.studies.findings import summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/studies-quick"))
    parser.add_argument("--workers", type=int, default=2, help="cells at a time, a thread each")
    parser.add_argument(
        "--only", nargs="*", default=studies.STUDIES, choices=studies.STUDIES, help="these studies only"
    )
    options = parser.parse_args()
    rows, failed = list[tuple[str, float, float]](), list[str]()
    for name in options.only:
        started, spent = time.monotonic(), 0.0
        try:
            done = studies.run(name, quick=True, out=options.out / name, workers=options.workers)
        except Exception:  # of what the records say: the other studies go on
            traceback.print_exc()
            failed.append(name)
        else:
            spent = sum(record.cpu_seconds or 0 for record in done.records)
            failed += [f"{name}: {record.cell.name}" for record in done.failed]
            print(f"\n{name}: {summary(studies.get(name).claims, done.conclusion.findings)}\n", flush=True)
        rows.append((name, time.monotonic() - started, spent))
    for name, wall, cpu in (*rows, ("total", sum(row[1] for row in rows), sum(row[2] for row in rows))):
        print(f"{name:<20} {wall / 60:5.1f} min, {cpu / 60:5.1f} CPU-minutes in cells")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; see the reports and the logs")


if __name__ == "__main__":
    main()
