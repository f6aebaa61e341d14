"""Tables of the README and of docs/privacy.md, made from the kept reports: ``python -m benchmarks.table``.

``benchmarks/results/`` keeps a report of each task; to renew them: ``python -m benchmarks --out benchmarks/results``. A task
that has a report gets a column by itself. ``results/before/`` has the reports of the code before these rooms were built, of the
same machine and day, in an older format: its limit is one process with all threads, and its drawings are other ones.
"""

import json
import re
import sys
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
    "specialised": "two hospitals with different scanners",
    "even": "two hospitals alike",
    "hospitals": "four hospitals",
}
ROWS = {
    "wall time of the federated run": lambda r: f"{r['wall_seconds']:.0f} s",
    "of it start-up and tear-down": lambda r: f"{r['seconds']['start-up'] + r['seconds']['shut-down']:.0f} s",
    "of it transfer and aggregation": lambda r: f"{r['seconds']['transfer and averaging']:.0f} s",
    "a plain loop for the same work, data prepared": lambda r: f"{r['limit_seconds']:.0f} s",
    "wall time ÷ plain loop": lambda r: f"{r['figures']['wall time / limit']:.2f}",
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
    titles = " | ".join(report["title"] for report in found.values())
    lines = [
        f"| on {' and '.join(map(str, cores))} CPU cores, {' and '.join(kinds)} data | {titles} |",
        "|---|" + "--:|" * len(found),
    ]
    lines += [f"| {label} | {' | '.join(cell(report) for report in found.values())} |" for label, cell in ROWS.items()]
    return "\n".join(lines)


def comparison(results: Path = RESULTS) -> str:
    """What federation brings over seeds, as Markdown: mean ± standard deviation of each model, a row a share of a task's data.

    All models of a row are tested on the same images, the testing parts of all sites.
    """
    lines = [
        "| generated data, testing parts of all sites | seeds | federated | pooled | best hospital alone |",
        "|---|--:|--:|--:|--:|",
    ]
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
            lines.append(f"| {card.title}, {TITLES[share]}: {measure} | {len(of_share)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def attacks(results: Path = privacy.RESULTS) -> str:
    """What attacks found and defences cost, as Markdown: means over images and seeds."""
    stored = privacy.read(results)
    found = stored.groupby(["part", "case", "row"])["value"]
    mean, high, count = found.mean(), found.agg(lambda one: int((one >= 0.7).sum())), found.count()
    exact = found.agg(lambda one: int((one >= 0.99).sum()))
    lines = [f"Drawings, {stored['seed'].nunique()} seeds; `python -m benchmarks.privacy` measures it again.", ""]
    lines += [
        "| images rebuilt from an update | SSIM, mean | 0.7 and more | nearest public image |",
        "|---|--:|--:|--:|",
    ]
    for case in privacy.INVERSIONS:
        at = "inversion", case, "found"
        near = mean["inversion", case, "nearest public"]
        lines.append(f"| {privacy.TITLES[case]} | {mean[at]:.2f} | {high[at]} of {count[at]} | {near:.2f} |")
    lines += ["", "| a server that changes DenseNet121 | images read exactly |", "|---|--:|"]
    for case in privacy.IMPRINTS:
        at = "imprint", case, "found"
        lines.append(f"| {privacy.TITLES[case]} | {exact[at]} of {count[at]} |")
    lines += [
        "",
        "| defence, one image a step | SSIM | attacker knows it | accuracy of the study |",
        "|---|--:|--:|--:|",
    ]
    for case, defence in DEFENCES.items():
        knows = mean.get(("defence", case, "knowing"))
        told = "–" if knows is None else f"{knows:.2f}"
        scores = f"{mean['defence', case, 'naive']:.2f} | {told} | {mean['defence', case, 'accuracy']:.3f}"
        lines.append(f"| {defence.title} | {scores} |")
    lines += ["", "| who was in the training? | AUC, all | AUC, wrongly labelled |", "|---|--:|--:|"]
    for case in privacy.MEMBERSHIPS:
        unusual = mean.get(("membership", case, "auc, unusual"))
        told = "–" if unusual is None else f"{unusual:.2f}"
        lines.append(f"| {privacy.TITLES[case]} | {mean['membership', case, 'auc, all']:.2f} | {told} |")
    rules = list(privacy.RULES)
    lines += ["", f"| one of five sites lies: accuracy | {' | '.join(rules)} |", "|---|" + "--:|" * len(rules)]
    for lie in privacy.MALICE:
        scores = " | ".join(f"{mean['malicious', f'{lie}-{rule}', 'accuracy']:.3f}" for rule in rules)
        lines.append(f"| {privacy.TITLES[lie]} | {scores} |")
    return "\n".join(lines)


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
