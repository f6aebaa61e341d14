"""The measurement of different hospitals: its plain loop, what mends a model at home, and what the kept reports say."""

import json

import numpy as np
import pytest
import torch

from benchmarks import findings, remedies
from benchmarks import methods as grid
from benchmarks.federate import federate
from benchmarks.local import train_locally
from src.common.files import read_json
from src.federation.methods import DEFAULTS, METHODS
from src.mednist.card import CARD, Settings
from src.mednist.evaluation import TASK
from tests.tests_support import rows
from tests.training_support import LINE, LineSettings, line_batches, same

FIRST = "features.norm0."


@pytest.fixture
def images():
    """Of two sites with other intensities."""
    draw = torch.Generator().manual_seed(0)
    return {"a": torch.rand(24, 1, 64, 64, generator=draw), "b": 0.3 * torch.rand(8, 1, 64, 64, generator=draw)}


@pytest.fixture
def model():
    return TASK.new_model(0, "CompactDenseNet").eval()


def test_own_statistics_are_those_of_the_images_and_nothing_else_changes(model, images):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = remedies.own_statistics(model, images["a"])
    seen = model.features.conv0(images["a"])
    torch.testing.assert_close(after.state_dict()[FIRST + "running_mean"], seen.mean((0, 2, 3)))
    torch.testing.assert_close(after.state_dict()[FIRST + "running_var"], seen.var((0, 2, 3)))
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"running_mean", "running_var", "num_batches_tracked"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    half = remedies.own_statistics(model, images["a"], prior=24)
    torch.testing.assert_close(half.state_dict()[FIRST + "running_mean"], seen.mean((0, 2, 3)) / 2)


def test_the_variance_of_all_is_the_mean_of_variances_and_the_variance_of_means(model, images):
    found = remedies.reestimated(model, images).state_dict()
    seen = model.features.conv0(torch.cat([*images.values()]))
    torch.testing.assert_close(found[FIRST + "running_mean"], seen.mean((0, 2, 3)))
    torch.testing.assert_close(found[FIRST + "running_var"], seen.var((0, 2, 3)), rtol=1e-4, atol=0)
    own = [remedies.own_statistics(model, one).state_dict()[FIRST + "running_var"] for one in images.values()]
    assert ((24 * own[0] + 8 * own[1]) / 32 < found[FIRST + "running_var"]).all(), "what an average of variances lacks"


def test_a_corrected_prior_multiplies_what_the_model_says_by_the_ratio_of_the_mixes(model, images):
    plain = model(images["b"]).softmax(dim=1)
    alike = remedies.PriorCorrected(model, [9.5] * 6, [99.5] * 6)(images["b"]).softmax(dim=1)
    torch.testing.assert_close(alike, plain)
    corrected = remedies.PriorCorrected(model, [11.5, 3.5, 0, 0, 0, 0], [5.5] * 6)(images["b"]).softmax(dim=1)
    torch.testing.assert_close(corrected[:, 0] / corrected[:, 1], 3 * plain[:, 0] / plain[:, 1])
    assert (corrected[:, 2:] > 0).all(), "a class that was not counted is not impossible"


def test_fine_tuning_starts_from_the_model_and_leaves_it_as_it_is():
    start, settings = LINE.new_model(5), LineSettings(rounds=3)
    before = start.weight.detach().clone()
    few, more = (
        remedies.fine_tuned(LINE, start, line_batches(3), settings, "north", epochs, 0.05) for epochs in (1, 10)
    )
    assert torch.equal(start.weight, before)
    assert 0 < (few.weight - before).norm() < (more.weight - before).norm()


@pytest.mark.parametrize("method", sorted({*METHODS} - {"fedbn"}))  # which needs BatchNorm
def test_the_plain_loop_of_one_site_is_that_sites_own_training(method):
    parts = {"north": {"training": line_batches(3)}}
    settings = LineSettings(method=method, fedproxloss_mu=0.5 if method == "fedprox" else 0.0)
    seen = []
    steps = {"path": "torch.optim.SGD", "args": {"lr": 1.0}} if method in ("fedadam", "fedavgm") else None
    found = federate(LINE, parts, settings, steps, watch=lambda number, received, sent: seen.append((received, sent)))
    alone = train_locally(LINE, {**parts["north"], "validation": []}, LineSettings(), "north")
    apart = float((found.model.weight - alone.model.weight).detach().abs().max())
    assert (apart > 1e-3) if method == "fedprox" else apart < 1e-5, "one site holds itself back by FedProx alone"
    assert len(seen) == len(found.curve) == 3 and same(found.models["north"], found.model) == (method != "ditto")


def test_cosines_are_those_of_what_the_sites_changed():
    watch, names = grid.Cosines(), ("features.conv0.weight", "features.norm0.running_mean", "class_layers.out.bias")
    received = dict.fromkeys(names, torch.ones(2))
    move = {"a": ([2.0, 1.0], [9.0, 9.0], [2.0, 1.0]), "b": ([3.0, 1.0], [-9.0, 9.0], [0.0, 1.0])}
    sent = {s: dict(zip(received, map(torch.tensor, both), strict=True)) for s, both in move.items()}
    watch(0, received, sent)
    right = {"features.conv0": 1.0, "class_layers.out": -1.0, "all": 1 / np.sqrt(2 * 5)}
    assert watch.rounds == [pytest.approx(right)]
    assert (
        watch.table() == {part: [round(cosine, 3)] for part, cosine in right.items()} and grid.Cosines().table() == {}
    )


@rows(
    ("labels alone", "s0.95", 0.0, [1]),
    ("scanners", "scanners", 0.0, [4]),
)
def test_at_home_weighs_classes_by_the_sites_own_mix_and_bits_give_the_scores_again(skew, value, sizes, monkeypatch):
    class Images(grid.Bank):
        labels = np.repeat(np.arange(6), 10)

        def __init__(self):
            self.asked = []

        def right(self, model, style):
            self.asked.append(style)
            return np.random.default_rng([model, style]).random(60) < 0.7

    counts = {f"site-{k + 1}": np.roll([50, 10, 1, 1, 1, 1], k) for k in range(4)}
    monkeypatch.setattr(grid, "counted", lambda datalists: counts)
    bank = Images()
    models = {site: 7 if skew == "s0.95" else 7 + number for number, site in enumerate(counts)}
    judged = grid.judge(models, counts, grid.SKEWS[skew], bank)
    first = grid.by_class(bank.right(7, 0), bank.labels)
    assert judged["home"]["site-1"] == pytest.approx((50 * first[0] + 10 * first[1] + first[2:].sum()) / 64)
    report = {"rows": {"x": judged}, "labels": [10] * 6, "counts": {site: own.tolist() for site, own in counts.items()}}
    monkeypatch.setattr(findings, "reports", lambda folder: {(skew, "x", 0): report})
    for score in ("home", "everywhere"):
        assert findings.by_image(skew, "x", 0, score).mean() == pytest.approx(np.mean([*judged[score].values()]))
    assert findings.by_image(skew, "x", 0, "home", "site-2").mean() == pytest.approx(judged["home"]["site-2"])


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Four hospitals with six images, and a bank of twelve."""
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    for name, value in {"ROUNDS": 4, "PER_CLASS": 12, "BANK": 2, "ADAPTED_WITH": (1, 3)}.items():
        monkeypatch.setattr(grid, name, value)
    monkeypatch.setitem(grid.SKEWS, "small", grid.Skew("", 0.5, True, (6,) * 4))
    grid.bank.cache_clear()
    yield "small"
    grid.bank.cache_clear()


@pytest.mark.parametrize("training", grid.CHOICES)
def test_what_is_chosen_for_each_training_is_judged_from_nothing(training, small):
    first = {name: values[0] for name, values in grid.CHOICES.items()}
    scores = grid._scores(training, first, grid.CHOICES[training][:2], small)
    assert len(scores) == 2 and all(0 <= score <= 1 for score in scores)


def test_hospitals_share_no_image_and_validate_on_what_nobody_trains_on(small):
    datalists, left = grid.draw(grid.SKEWS[small], 0, few=2)
    names = [item["image"].split("/")[-2:] for parts in datalists.values() for own in parts.values() for item in own]
    assert len(names) == 4 * (6 + 2) == len({tuple(name) for name in names}) and len(left) == 6 * 12 - 4 * 6


# -- kept reports ------------------------------------------------------------------------------------------------------


def test_every_cell_is_kept_as_the_grid_says_and_with_what_was_chosen():
    chosen, cells = grid.tuned(), [*grid.grid()]
    kept = {path.stem for path in grid.RESULTS.glob("*.json")} - {grid.TUNING.stem, grid.FLARE.stem}
    assert kept == {str(cell) for cell in cells} and len(cells) == len(kept)
    for cell in cells:
        report = read_json(grid.RESULTS / f"{cell}.json")
        assert report["command"] == f"python -m benchmarks.methods {cell}" and chosen | report["chosen"] == chosen
        # Settings that came later were off.
        due = json.loads(grid.settings_of(cell.training, cell.seed, chosen).model_dump_json())
        assert json.loads(Settings(**report["settings"]).model_dump_json()) == due
        assert sum(report["labels"]) == 6 * grid.BANK
    assert {row for _, row, _ in findings.reports()} == set(grid.TITLES)
    for (skew, row, seed), report in [*findings.reports().items()][::17]:
        for score in ("home", "everywhere"):
            means = np.mean([*report["rows"][row][score].values()])
            assert findings.by_image(skew, row, seed, score).mean() == pytest.approx(means)


def test_the_defaults_of_the_methods_were_chosen_on_validation():
    report = read_json(grid.TUNING)
    assert report["seed"] not in grid.SEEDS and report["bank"] not in range(
        grid.TESTING, grid.TESTING + len(grid.SEEDS)
    )
    for name, one in report["trainings"].items():
        means = np.mean([one[skew] for skew in grid.TUNED_ON if skew in one], axis=0)
        assert one["values"][int(means.argmax())] == one["chosen"], name
    chosen = grid.tuned()
    assert DEFAULTS["fedadam"]["args"]["lr"] == chosen["fedadam"] and DEFAULTS["ditto"] == chosen["ditto"]
    assert DEFAULTS["fedavgm"]["args"]["momentum"] == chosen["fedavgm"]


def test_flare_and_the_plain_loop_end_with_the_same_weights():
    report = read_json(grid.FLARE)["methods"]
    assert set(report) == set(METHODS)
    assert all(report[name]["weights_apart"] == 0 for name in ("fedavg", "fedprox", "ditto"))
    assert all(one["weights_apart"] < 0.05 for one in report.values()), "FLARE adds some means in single precision"


def test_it_measures_what_is_missing_and_nothing_else(tmp_path, monkeypatch):
    measured = []

    def measure(cell, real):
        measured.append(str(cell))
        return {"rows": {"x": {"home": {"site-1": 0.5}, "everywhere": {"site-1": 0.5}}}, "date": "2026-01-01"}

    class Here:
        def __init__(self, *_):
            pass

        __enter__, __exit__ = (lambda self: self), (lambda self, *_: None)
        map = staticmethod(map)

    monkeypatch.setattr(grid, "measure", measure)
    monkeypatch.setattr(grid, "ProcessPoolExecutor", Here)
    for _ in range(2):
        assert grid.main(["sizes-[lp]*-[01]", "--out", str(tmp_path)]) == 0
    assert sorted(measured) == sorted(f"sizes-{name}-{seed}" for name in ("local", "pooled") for seed in (0, 1))
    (tmp_path / "sizes-local-1.json").unlink()
    assert grid.main(["sizes-*", "--table", "--out", str(tmp_path)]) == 0 and len(measured) == 4
    with pytest.raises(SystemExit):
        grid.main(["sices-*"])


def test_the_bank_is_of_drawings_that_no_hospital_has():
    seeds = [grid.DRAWINGS + seed for seed in (*grid.SEEDS, grid.TUNING_SEED)]
    assert not {*seeds} & {grid.VALIDATION, *range(grid.TESTING, grid.TESTING + len(grid.SEEDS))}
    assert len(CARD.labels) * grid.BANK == 1200
