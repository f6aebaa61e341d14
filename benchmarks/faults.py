"""How often a real federation does what its fault tests ask: ``python -m benchmarks.faults [--tries N] [--rejoin N]``.

Each try is a run of the tests in ``tests/deploy`` that are marked ``faults``, with federations of its own; the kept report is
``benchmarks/results/federation/faults.json``.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.__main__ import machine
from benchmarks.limits import limited
from src.common.files import write_json

ROOT = Path(__file__).resolve().parents[1]
TESTS = "tests/deploy"
REJOIN = "test_a_site_killed_in_mid_round_is_missed_once_and_comes_back"
TRY_SECONDS = 7200  # of tests that take some ten minutes on two cores
REPORT = Path(__file__).with_name("results") / "federation" / "faults.json"


def try_once(selection: str) -> dict[str, dict]:
    """Run the fault tests whose names match, and return for each whether it passed and what it measured."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "faults", TESTS, f"--junitxml={file}", "-k", selection]
        with limited(f"the fault tests ({selection})", TRY_SECONDS) as seconds:
            subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False, timeout=seconds)
        cases = ElementTree.parse(file).iter("testcase")
        return {
            case.get("name"): {
                "passed": not any(case.find(kind) is not None for kind in ("failure", "error", "skipped")),
                "seconds": round(float(case.get("time")), 1),
                **{one.get("name"): float(one.get("value")) for one in case.iter("property")},
            }
            for case in cases
        }


def main(arguments: list[str] | None = None) -> int:
    """Run all tries and write the report. Returns 0 if every try passed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=3, help="of every fault")
    parser.add_argument("--rejoin", type=int, default=10, help="of a site that is killed and comes back")
    parser.add_argument("--out", type=Path, default=REPORT, help="file for the report")
    options = parser.parse_args(arguments)
    found: dict[str, list[dict]] = {}
    for number in range(max(options.tries, options.rejoin)):
        for name, outcome in try_once("test" if number < options.tries else REJOIN).items():
            found.setdefault(name, []).append(outcome)
        counts = {
            name: {"passed": sum(one["passed"] for one in tries), "of": len(tries)} for name, tries in found.items()
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, {"machine": machine(), "counts": counts, "tries": found})
        print(f"try {number + 1}: {counts}", flush=True)
    return 0 if all(one["passed"] == one["of"] for one in counts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
