"""The grid of methods: what a cell is, that what is there is not measured again, and that the kept reports are whole."""

import json

import numpy as np
import pytest

from benchmarks import methods as grid
from src.federation.methods import METHODS

REPORTS = sorted(grid.RESULTS.glob("*.json"))


def test_the_grid_has_every_method_skew_and_seed_once():
    cells = list(grid.grid())
    assert len({str(cell) for cell in cells}) == len(cells) == 5 * 9 * 3 + 11 * 3
    methods = {"local", "pooled", *METHODS, *grid.VARIANTS["prostate"]}
    assert {cell.method for cell in cells} == methods == set(grid.TITLES)
    assert "mednist-alpha0.1-scaffold-0" in map(str, cells)
    assert {path.stem for path in REPORTS} == {str(cell) for cell in cells}


def test_methods_of_a_task_do_the_same_work_and_differ_in_the_method_alone_and_a_variant_in_what_it_says():
    for task in grid.SKEWS:
        cells = [cell for cell in grid.grid() if cell.task == task]
        assert len({cell.settings.epochs for cell in cells}) == 1
        plain = [cell.settings for cell in cells if cell.method not in grid.VARIANTS.get(task, ())]
        same = {"method": "fedavg", "fedproxloss_mu": 0.0, "data": "x", "seed": 0}
        assert len({settings.changed(**same).model_dump_json() for settings in plain}) == 1
    (settings,) = [cell.settings for cell in grid.grid() if str(cell) == "prostate-hospitals-rounds30-1"]
    assert (settings.rounds, settings.local_epochs, settings.method, settings.seed) == (30, 2, "fedavg", 1)


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_a_kept_report_is_that_of_its_cell(path):
    report = json.loads(path.read_text())
    (cell,) = [cell for cell in grid.grid() if str(cell) == path.stem]
    assert report["command"] == f"python -m benchmarks.methods {cell}" and report["seed"] == cell.seed
    assert report["settings"] == json.loads(cell.settings.model_dump_json()), "the grid has changed since"
    assert report["mean"]["home"] == pytest.approx(np.mean([*report["home"].values()]))
    assert report["mean"]["everywhere"] == pytest.approx(np.mean([*report["everywhere"].values()]))
    assert set(report["versions"]) == {"torch", "monai", "nvflare"} and report["date"]


def report_of(cell, home=0.5) -> dict:
    fields = {name: getattr(cell, name) for name in ("task", "skew", "method", "seed")}
    sites, mean = {"site-1": home, "site-2": home + 0.2}, {"home": home + 0.1, "everywhere": home}
    return {**fields, "home": sites, "mean": mean, "date": "2026-01-01", "seconds": 1}


def test_it_measures_what_is_missing_and_nothing_else(tmp_path, monkeypatch, capsys):
    measured = []
    monkeypatch.setattr(grid, "measure", lambda cell, python: measured.append(str(cell)) or report_of(cell))
    monkeypatch.setenv("COURSE_DATA_SOURCE", "generated")
    pattern = "mednist-sizes-[lp]*-*"
    for _ in range(2):
        assert grid.main([pattern, "--out", str(tmp_path)]) == 0
    assert sorted(measured) == sorted(f"mednist-sizes-{m}-{s}" for m in ("local", "pooled") for s in (0, 1, 2))
    (tmp_path / "mednist-sizes-local-1.json").unlink()
    assert grid.main([pattern, "--out", str(tmp_path)]) == 0
    assert measured[-1] == "mednist-sizes-local-1" and len(measured) == 7
    assert grid.main(["--table", "--out", str(tmp_path)]) == 0 and len(measured) == 7
    assert "each site alone  0.600 ± 0.000" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        grid.main(["mednist-sices-*"])


def test_the_table_has_means_and_spreads(tmp_path):
    cells = [cell for cell in grid.grid() if (cell.skew, cell.method) == ("sizes", "fedavg")]
    for cell, home in zip(cells, (0.5, 0.6, 0.7), strict=True):
        (tmp_path / f"{cell}.json").write_text(json.dumps(report_of(cell, home)))
    results = grid.read(tmp_path)
    assert results["worst"].tolist() == [0.5, 0.6, 0.7]
    assert grid.table(results, "mednist").to_dict() == {"sizes": {"FedAvg": "0.700 ± 0.100"}}


def test_sites_are_compared_with_pooled_training(tmp_path):
    cells = {cell.method: cell for cell in grid.grid() if (cell.task, cell.skew, cell.seed) == ("mednist", "sizes", 0)}
    for method, home in (("pooled", 0.5), ("fedavg", 0.4)):
        report = {**report_of(cells[method]), "home": {"site-1": home, "site-2": 0.6}}
        (tmp_path / f"{cells[method]}.json").write_text(json.dumps(report))
    found = grid.by_site("mednist", "sizes", tmp_path)
    assert list(found.index) == ["pooled", "FedAvg"]
    right = {"site-1": 0.4, "site-2": 0.6, "mean": 0.5, "of pooled": 0.5 / 0.55, "worst site": 0.8}
    assert found.loc["FedAvg"].to_dict() == pytest.approx(right)


def best(method: str, skew: str, chosen=max) -> float:
    """The best of the models that sites end with, or with ``np.mean`` all, on all sites' testing parts: mean over the seeds."""
    reports = [json.loads(path.read_text()) for path in REPORTS if path.stem.startswith(f"mednist-{skew}-{method}-")]
    assert len(reports) == len(grid.SEEDS)
    return float(np.mean([chosen([*report["everywhere"].values()]) for report in reports]))


def test_the_kept_reports_say_what_the_course_says():
    # Where hospitals are alike, federation is no worse than the best of them, which is chosen anew for each seed.
    assert min(best("fedavg", "alpha100"), best("fedavg", "alpha100", np.mean)) >= best("local", "alpha100")
    # A hospital with most of the images gains little; a twentieth is far more than three seeds' spread.
    assert abs(best("fedavg", "sizes") - best("local", "sizes")) < 0.05
    # Meeting more often, the default of notebook 03, repairs what different scanners cost, and leaves no hospital behind.
    found = grid.by_site("prostate", "hospitals").loc[grid.TITLES["rounds30"]]
    assert found["of pooled"] >= 0.95 and found["worst site"] >= 0.85
