"""The README's figures are those of the kept reports, a missed bar shows, and a task is measured because it is there."""

import json
import subprocess
import sys

import pytest

from benchmarks import __main__ as benchmark
from benchmarks import deploy, measure, table


def test_the_readme_holds_the_kept_figures():
    text = table.README.read_text(encoding="utf-8")
    for made, marks in ((table.table(), table.MARKS), (table.comparison(), table.MARKS_OF_COMPARISON)):
        assert all(mark in text for mark in marks)
        assert table.with_table(text, made, marks) == text, "run: python -m benchmarks.table"


def test_the_table_of_a_comparison_is_over_seeds_and_weighs_sites_by_their_items(tmp_path):
    rows = [
        {"share": "even", "seed": seed, "model": model, "site": site, "items": items, "accuracy": accuracy + seed / 10}
        for seed in (0, 2)
        for model, accuracy in {"federated": 0.5, "pooled": 0.6, "site-1 alone": 0.3, "site-2 alone": 0.2}.items()
        for site, items in {"site-1": 30, "site-2": 10}.items()
    ]
    rows[0]["accuracy"] = 0.1  # federated at the larger site, seed 0: (30 × 0.1 + 10 × 0.5) / 40 = 0.2
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "mednist.json").write_text(json.dumps({"rows": rows}))
    *_, row = table.comparison(tmp_path).splitlines()
    assert row == "| MedNIST, two hospitals alike: accuracy | 2 | 0.450 ± 0.354 | 0.700 ± 0.141 | 0.400 ± 0.141 |"


def test_the_tables_of_the_deployment_page_are_those_of_the_kept_reports():
    text = deploy.PAGE.read_text(encoding="utf-8")
    assert all(f"<!-- {name}: made by python -m benchmarks.deploy -->" in text for name in deploy.TABLES)
    assert deploy.with_tables(text) == text, "run: python -m benchmarks.deploy"


def test_every_fault_of_the_table_is_a_test():
    folder = table.README.parent / "tests" / "deploy"
    tests = "".join(file.read_text(encoding="utf-8") for file in folder.glob("test_*.py"))
    assert [test for *_, test in deploy.FAULTS if f"def {test.split('[')[0]}(" not in tests] == []


@pytest.mark.parametrize("name", sorted(json.loads(benchmark.BARS.read_text())))
def test_a_kept_report_says_of_each_bar_whether_it_was_met(name):
    report = table.reports()[name]
    assert report["bars"] == benchmark.verdicts(report)
    assert set(report["bars"]) == set(json.loads(benchmark.BARS.read_text())[name])
    assert report["task"] == name and 0 < report["limit_seconds"] < report["wall_seconds"]
    parts = report["seconds"]
    assert sum(parts.values()) <= report["wall_seconds"] * 1.05


def test_a_missed_bar_shows():
    report = {"task": "mednist", "figures": dict.fromkeys(json.loads(benchmark.BARS.read_text())["mednist"], 1.5)}
    verdicts = benchmark.verdicts(report)
    assert verdicts["wall time / limit"] == {"measured": 1.5, "bar": "at most 1.4", "met": False}
    assert verdicts["test accuracy of the global model"]["met"] is True
    assert benchmark.verdicts({"task": "a third", "figures": {}}) == {}


def test_a_report_of_any_name_gets_a_column(tmp_path):
    for name in ("mednist", "xray"):
        report = json.loads((table.RESULTS / "mednist.json").read_text())
        (tmp_path / f"{name}.json").write_text(json.dumps({**report, "title": name.upper()}))
    first, second, *rows = table.table(tmp_path).splitlines()
    assert first.endswith("| MEDNIST | XRAY |") and second == "|---|--:|--:|"
    assert len(rows) == len(table.ROWS) and all(row.count("|") == 4 for row in rows)


def test_the_watch_sees_what_its_block_starts_and_adds_up_what_all_hold_at_one_moment_when_asked(monkeypatch):
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 0.05)
    monkeypatch.setattr(measure, "TOGETHER_SECONDS", 0.1)
    program = [sys.executable, "-c", "import time; hold = bytearray(80_000_000); time.sleep(1)"]
    with measure.Watch() as watch:
        subprocess.run([*program, "--client", "site-9"], check=True)
    assert watch.peak_memory["site-9"] > 80e6 and 1 < watch.seconds < 20 and watch.peak_together == 0
    assert measure._role(["python", "-m", "src.federation.simulated", "job", "-w", "runs"]) == "server"
    assert measure._role(["python", "-m", "somebody.simulator"]) is None
    started = [
        subprocess.Popen(program) for _ in range(2)
    ]  # outside: until it is a program, a fork weighs what this process does
    with measure.Watch(together=True) as watch:
        assert [process.wait() for process in started] == [0, 0]
    assert 160e6 < watch.peak_together < 400e6
    assert watch.peak_memory == {} and (watch.loopback_bytes is None or len(watch.traffic) > 1)
