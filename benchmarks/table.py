"""The README's table of what federation costs, made from the kept reports: ``python -m benchmarks.table``.

``benchmarks/results/`` keeps a report of each benchmark; to renew one: ``python -m benchmarks.mednist --out
benchmarks/results/mednist.json``.
"""

import json
import re
import sys
from pathlib import Path

from src.paths import write_text

RESULTS = Path(__file__).with_name("results")
README = Path(__file__).resolve().parent.parent / "README.md"
MARKS = "<!-- made by python -m benchmarks.table -->", "<!-- end of the table -->"
ROWS = {
    "wall time of the federated run": lambda r: f"{r['wall_seconds']:.0f} s",
    "of it start-up and tear-down": lambda r: f"{r['seconds']['start_up'] + r['seconds']['tear_down']:.0f} s",
    "of it transfer and aggregation": lambda r: f"{r['seconds']['transfer_and_aggregation']:.0f} s",
    "a plain loop for the same work, data prepared": lambda r: f"{_limit(r):.0f} s",
    "wall time ÷ plain loop": lambda r: f"{r['bars']['wall time / limit']['measured']:.2f}",
    "weights sent in a round": lambda r: f"{r['bytes_per_round']['weights'] / 1e6:.0f} MB",
    "peak memory of a site": lambda r: f"{r['bars']['peak memory of a site (GB)']['measured']:.2f} GB",
    "second ÷ first run, time to first training step (bar 0.33)": lambda r: _first_step(r["bars"]),
    "best global model, test part": lambda r: _score(r["bars"]),
}


def _limit(result: dict) -> float:
    limit = result["limit_seconds"]
    return sum(limit.values()) if isinstance(limit, dict) else limit


def _first_step(bars: dict) -> str:
    bar = bars.get("second / first run, time to first step")
    return "–" if bar is None else f"{bar['measured']:.3f}, {'met' if bar['met'] else 'missed'}"


def _score(bars: dict) -> str:
    names = {"test accuracy of the best global model": "accuracy", "mean test Dice of the best global model": "Dice"}
    return next(f"{short} {bars[name]['measured']:.3f}" for name, short in names.items() if name in bars)


def table(results: Path = RESULTS) -> str:
    """The table as Markdown, a column a benchmark."""
    reports = {
        name: json.loads((results / f"{name}.json").read_text(encoding="utf-8")) for name in ("mednist", "prostate")
    }
    cores = {report["machine"]["cores"] for report in reports.values()}
    kinds = {"generated" if "generated" in report["data"].lower() else "real" for report in reports.values()}
    lines = [
        f"| on {' and '.join(map(str, cores))} CPU cores, {' and '.join(kinds)} data | MedNIST (02) | Prostate (03) |",
        "|---|--:|--:|",
    ]
    lines += [
        f"| {label} | {' | '.join(cell(report) for report in reports.values())} |" for label, cell in ROWS.items()
    ]
    return "\n".join(lines)


def with_table(text: str, new: str) -> str:
    """``text`` with what stands between :data:`MARKS` replaced by ``new``."""
    return re.sub(
        rf"{re.escape(MARKS[0])}.*?{re.escape(MARKS[1])}", f"{MARKS[0]}\n{new}\n{MARKS[1]}", text, flags=re.DOTALL
    )


def main() -> int:
    """Renew the table in the README."""
    write_text(README, with_table(README.read_text(encoding="utf-8"), table()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
