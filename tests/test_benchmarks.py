"""Kept reports: the README and the course say what they say, a missed bar shows, and nothing that is there is measured again."""

import json
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from benchmarks import __main__ as benchmark
from benchmarks import deploy, measure, table
from benchmarks.peer_flower import run
from deploy.flare_2_9 import SIMULATOR
from src.common.files import write_json

BARS = json.loads(benchmark.BARS.read_text())


def test_the_pages_hold_the_kept_figures_and_every_fault_of_the_table_is_a_test():
    text, page = (place.read_text(encoding="utf-8") for place in (table.README, deploy.PAGE))
    for made, marks in ((table.table(), table.MARKS), (table.comparison(), table.MARKS_OF_COMPARISON)):
        assert all(mark in text for mark in marks)
        assert table.with_table(text, made, marks) == text, "run: python -m benchmarks.table"
    assert all(f"<!-- {name}: made by python -m benchmarks.deploy -->" in page for name in deploy.TABLES)
    told = table.PRIVACY.read_text(encoding="utf-8")
    assert table.with_table(told, table.attacks()) == told, "run: python -m benchmarks.table"
    assert deploy.with_tables(page) == page, "run: python -m benchmarks.deploy"
    folder = table.README.parent / "tests" / "deploy"
    tests = "".join(file.read_text(encoding="utf-8") for file in folder.glob("test_*.py"))
    assert [test for test in deploy.FAULTS if f"def {test.split('[')[0]}(" not in tests] == []


def test_the_table_of_a_comparison_is_over_seeds_and_weighs_sites_by_their_items(tmp_path):
    rows = [
        {"share": "even", "seed": seed, "model": model, "site": site, "items": items, "accuracy": accuracy + seed / 10}
        for seed in (0, 2)
        for model, accuracy in {"federated": 0.5, "pooled": 0.6, "site-1 alone": 0.3, "site-2 alone": 0.2}.items()
        for site, items in {"site-1": 30, "site-2": 10}.items()
    ]
    rows[0]["accuracy"] = 0.1  # federated at the larger site, seed 0: (30 × 0.1 + 10 × 0.5) / 40 = 0.2
    (tmp_path / "comparison").mkdir()
    write_json(tmp_path / "comparison" / "mednist.json", {"rows": rows})
    *_, row = table.comparison(tmp_path).splitlines()
    assert row == "| MedNIST, two hospitals alike: accuracy | 2 | 0.450 ± 0.354 | 0.700 ± 0.141 | 0.400 ± 0.141 |"


def test_kept_reports_say_of_each_bar_whether_it_was_met_a_missed_one_shows_and_any_name_gets_a_column(tmp_path):
    for name, bars in BARS.items():
        report = table.reports()[name]
        assert report["bars"] == benchmark.verdicts(report) and set(report["bars"]) == set(bars)
        assert report["task"] == name and 0 < report["limit_seconds"] < report["wall_seconds"]
        assert sum(report["seconds"].values()) <= report["wall_seconds"] * 1.05
    verdicts = benchmark.verdicts({"task": "mednist", "figures": dict.fromkeys(BARS["mednist"], 1.5)})
    assert verdicts["wall time / limit"] == {"measured": 1.5, "bar": "at most 1.3", "met": False}
    assert verdicts["test accuracy of the global model"]["met"] is True
    assert benchmark.verdicts({"task": "a third", "figures": {}}) == {}
    for name in ("mednist", "xray"):
        report = json.loads((table.RESULTS / "mednist.json").read_text())
        write_json(tmp_path / f"{name}.json", {**report, "title": name.upper()})
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
    assert measure._role(["python", "-m", SIMULATOR, "job", "-w", "runs"]) == "server"
    assert measure._role(["python", "-m", "somebody.simulator"]) is None
    # Outside: until it is a program, a fork weighs what this process does.
    started = [subprocess.Popen(program) for _ in range(2)]
    with measure.Watch(together=True) as watch:
        assert [process.wait() for process in started] == [0, 0]
    assert 160e6 < watch.peak_together < 400e6
    assert watch.peak_memory == {} and (watch.loopback_bytes is None or len(watch.traffic) > 1)


def test_floats_travel_in_half_precision_and_integers_as_they_are_by_a_filter_at_each_way_out_and_in(monkeypatch):
    for name in ("bitsandbytes", "bitsandbytes.functional"):  # FLARE imports it for types that are not used here
        monkeypatch.setitem(sys.modules, name, Mock(__spec__=None))
    from benchmarks import half_precision

    half_precision.send_half_precision(recipe := Mock())
    filters = {call[0].removeprefix("add_"): call.args[0] for call in recipe.method_calls}
    assert all(call.args[1] == ["train", "validate"] for call in recipe.method_calls)
    for sender, receiver in (("server", "client"), ("client", "server")):
        sent = {"weight": np.array([1.0, 1e-3, 1e9], np.float32), "batches": np.array(70_000)}
        message = DXO(DataKind.WEIGHTS, dict(sent)).update_shareable(Shareable())
        small = filters[f"{sender}_output_filter"].process(message, FLContext())
        types = {name: value.dtype for name, value in from_shareable(small).data.items()}
        assert types == {"weight": np.float16, "batches": sent["batches"].dtype}
        arrived = from_shareable(filters[f"{receiver}_input_filter"].process(small, FLContext())).data
        assert (arrived["weight"].dtype, arrived["batches"]) == (np.float32, 70_000)
        np.testing.assert_allclose(arrived["weight"], [1.0, 1e-3, 65504], rtol=1e-3)  # the largest number of 16 bits

    def sent_by_a_site(kind: str, value: float) -> float:
        message = DXO(kind, {"weight": np.array([value], np.float32)}).update_shareable(Shareable())
        small = filters["client_output_filter"].process(message, FLContext())
        return from_shareable(filters["server_input_filter"].process(small, FLContext())).data["weight"].item()

    late = 1e-4  # what a late round adds to a weight of one
    assert sent_by_a_site(DataKind.WEIGHTS, 1 + late) == 1, "a whole weight loses it"
    assert sent_by_a_site(DataKind.WEIGHT_DIFF, late) == pytest.approx(late, rel=1e-3), "a difference does not"


def test_where_flower_cannot_be_installed_it_is_left_out_with_a_sentence(tmp_path, monkeypatch, capsys):
    """A Python whose pip says no; that it runs where it can is in the kept report."""
    packages = tmp_path / "flower" / "lib" / "python" / "site-packages"
    monkeypatch.setattr(run.venv, "create", lambda folder, **how: packages.mkdir(parents=True))
    refused = subprocess.CompletedProcess([], 1, "", "looking\nERROR: No matching distribution\n")
    monkeypatch.setattr(run.subprocess, "run", lambda command, **how: refused)
    assert run.flower_seconds("mednist", tmp_path / "flower") is None
    said = "Flower is left out, for it cannot be installed here: ERROR: No matching distribution\n"
    assert capsys.readouterr().err == said
    assert len(table.reports()["mednist"]["flower_seconds"]) == benchmark.REPEATS
