"""Tables of the README and of docs/privacy.md, made from the kept reports: ``python -m benchmarks.table``.

``benchmarks/results/`` keeps a report of each task; to renew them: ``python -m benchmarks --out benchmarks/results``. A task
that has a report gets a column by itself. ``results/before/`` has the reports of the code before these rooms were built, of the
same machine and day, in an older format: its limit is one process with all threads, and its drawings are other ones.
"""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from benchmarks import privacy
from benchmarks.defences import DEFENCES
from src.common.files import write_file
from src.tasks import tasks

RESULTS = Path(__file__).with_name("results")
README = Path(__file__).resolve().parent.parent / "README.md"
PRIVACY = README.parent / "docs" / "privacy.md"
MARKS = "<!-- made by python -m benchmarks.table -->", "<!-- end of the table -->"
MARKS_OF_COMPARISON = "<!-- what it brings, made by python -m benchmarks.table -->", "<!-- end of what it brings -->"
TITLES = {
    "specialised": "two hospitals, each with classes of its own",
    "even": "two hospitals alike",
    "hospitals": "four hospitals",
}
ROWS = {
    "wall time of the federated run": lambda r: f"{r['wall_seconds']:.0f} s",
    "of it start-up and tear-down; in the first run of a notebook": lambda r: (
        f"{r['seconds']['start-up'] + r['seconds']['shut-down']:.0f} s; "
        f"{r['first_start_up_seconds'] + r['seconds']['shut-down']:.0f} s"
    ),
    "of it transfer and aggregation": lambda r: f"{r['seconds']['transfer and averaging']:.0f} s",
    "a plain loop for the same work, data prepared": lambda r: f"{r['limit_seconds']:.0f} s",
    "wall time ÷ plain loop": lambda r: f"{r['figures']['wall time / limit']:.2f}",
    "Flower's wall time for the same work ÷ this one": lambda r: (
        f"{r['figures']['wall time of Flower / wall time']:.2f}" if r["flower_seconds"] else "not measured"
    ),
    "weights sent in a round": lambda r: f"{r['bytes_per_round']['weights'] / 1e6:.0f} MB",
    "peak memory of a site": lambda r: f"{r['figures']['peak memory of a site (GB)']:.2f} GB",
    "global model, testing parts": lambda r: _score(r["test"], "federated"),
    "pooled training, testing parts": lambda r: _score(r["test"], "pooled"),
}


def _score(test: dict, name: str) -> str:
    return f"{test['metric']} {test[name]:.3f}"


def reports(results: Path = RESULTS) -> dict[str, dict]:
    """All kept reports, by task."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob("*.json"))}


def table(results: Path = RESULTS) -> str:
    """The table as Markdown, a column a report."""
    found = reports(results)
    cores = sorted({report["machine"]["cores"] for report in found.values()})
    kinds = sorted({"generated" if "generated" in report["data"] else "real" for report in found.values()})
    where = f"on {' and '.join(map(str, cores))} CPU cores, {' and '.join(kinds)} data"
    head = [where, *(report["title"] for report in found.values())]
    return _markdown(head, [(label, *map(cell, found.values())) for label, cell in ROWS.items()])


def _markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table whose columns after the first hold numbers."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---|" + "--:|" * (len(head) - 1), *lines[1:]])


def comparison(results: Path = RESULTS) -> str:
    """What federation brings over seeds, as Markdown: mean ± standard deviation of each model, a row a share of a task's data.

    All models of a row are tested on the same images, the testing parts of all sites.
    """
    head, lines = (
        ["generated data, testing parts of all sites", "seeds", "federated", "pooled", "best hospital alone"],
        [],
    )
    for name, report in reports(results / "comparison").items():
        card = tasks()[name]
        measure, rows = card.key_metric.removeprefix("val_"), pd.DataFrame(report["rows"])
        rows = rows.assign(items=rows.get("items", 1))
        rows["sum"] = rows[measure] * rows["items"]
        sums = rows.groupby(["share", "seed", "model"], sort=False)[["sum", "items"]].sum()
        means = (sums["sum"] / sums["items"]).unstack()
        means["alone"] = means[[model for model in means if model.endswith(" alone")]].max(axis=1)
        for share, of_share in means.groupby("share", sort=False):
            cells = [
                f"{of_share[model].mean():.3f} ± {of_share[model].std():.3f}"
                for model in ("federated", "pooled", "alone")
            ]
            lines.append((f"{card.title}, {TITLES[share]}: {measure}", len(of_share), *cells))
    return _markdown(head, lines)


def attacks(results: Path = privacy.RESULTS) -> str:
    """What attacks found and defences cost, as Markdown: means over images and seeds."""
    stored = privacy.read(results)
    found = stored.groupby(["part", "case", "row"])["value"]
    mean, high, count = found.mean(), found.agg(lambda one: int((one >= 0.7).sum())), found.count()
    exact = found.agg(lambda one: int((one >= 0.99).sum()))
    said, rules, tables = privacy.TITLES, list(privacy.RULES), []

    def share(case: str, of: pd.Series, part: str) -> str:
        return f"{of[part, case, 'found']} of {count[part, case, 'found']}"

    def score(part: str, case: str, row: str, digits: int = 2) -> str:
        return f"{mean[part, case, row]:.{digits}f}" if (part, case, row) in mean else "–"

    head = ["images rebuilt from an update", "SSIM, mean", "0.7 and more", "nearest public image"]
    near = ("found", "nearest public")
    rows = [(case, *(score("inversion", case, row) for row in near)) for case in privacy.INVERSIONS]
    tables.append((head, [(said[case], mine, share(case, high, "inversion"), other) for case, mine, other in rows]))
    head = ["a server that changes DenseNet121", "images read exactly"]
    tables.append((head, [(said[case], share(case, exact, "imprint")) for case in privacy.IMPRINTS]))
    head = ["defence, one image a step", "SSIM", "attacker knows it", "accuracy of the study"]
    asked = ("naive", 2), ("knowing", 2), ("accuracy", 3)
    rows = [(one.title, *(score("defence", case, *how) for how in asked)) for case, one in DEFENCES.items()]
    tables.append((head, rows))
    head, asked = ["who was in the training?", "AUC, all", "AUC, wrongly labelled"], ("auc, all", "auc, unusual")
    rows = [(said[case], *(score("membership", case, row) for row in asked)) for case in privacy.MEMBERSHIPS]
    tables.append((head, rows))
    head = ["one of five sites lies: accuracy", *rules]
    cells = {lie: [score("malicious", f"{lie}-{rule}", "accuracy", 3) for rule in rules] for lie in privacy.MALICE}
    tables.append((head, [(said[lie], *own) for lie, own in cells.items()]))
    about = f"Drawings, {stored['seed'].nunique()} seeds; `python -m benchmarks.privacy` measures it again."
    return "\n\n".join([about, *(_markdown(*one) for one in tables)])


def with_table(text: str, new: str, marks: tuple[str, str] = MARKS) -> str:
    """``text`` with what stands between two marks replaced by ``new``."""
    between = rf"{re.escape(marks[0])}.*?{re.escape(marks[1])}"
    return re.sub(between, f"{marks[0]}\n{new}\n{marks[1]}", text, flags=re.DOTALL)


def main() -> int:
    """Renew the tables in the README and in docs/privacy.md."""
    text = with_table(README.read_text(encoding="utf-8"), table())
    write_file(README, with_table(text, comparison(), MARKS_OF_COMPARISON))
    write_file(PRIVACY, with_table(PRIVACY.read_text(encoding="utf-8"), attacks()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
