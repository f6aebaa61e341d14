"""The benchmark of outlines: its grid, its tables, and its remedies on what can be followed by hand."""

from types import SimpleNamespace

import pytest
import torch
from nvflare.app_common.abstract.fl_model import FLModel

from benchmarks import prostates
from benchmarks.prostate_remedies import AffineUNet, OwnAffine, RandCoil, affine_tensors
from benchmarks.prostates import CHOICES, SEEDS, VALIDATION, Cell, grid, left_out, read, table
from src.common.files import write_json
from src.unet import UNet
from tests.tests_support import course_error


def test_every_cell_is_there_once_and_what_is_chosen_is_chosen_on_other_drawings_before_it_is_heeded(tmp_path):
    cells = list(grid())
    assert len(set(map(str, cells))) == len(cells) and VALIDATION not in SEEDS
    course_error("not measured yet", prostates.chosen, "ditto", tmp_path)
    for value, mean in zip(CHOICES["ditto"], (0.5, 0.7), strict=True):
        cell = Cell("own", "ditto", VALIDATION, value)
        assert cells.index(cell) < cells.index(Cell("own", "ditto", SEEDS[0]))
        write_json(tmp_path / f"{cell}.json", {"rows": {"ditto": {"mean": mean}}})
    assert prostates.chosen("ditto", tmp_path) == CHOICES["ditto"][1]


def test_tables_are_means_over_cases_and_seeds_and_compare_with_pooled_training_site_by_site(tmp_path):
    scores = {"pooled": (0.8, 1.0), "fedavg30x2": (0.6, 0.9)}
    for name, (one, other) in scores.items():
        rows = {name: {"cases": {"site-1": [one, one], "site-2": [other]}}}
        write_json(tmp_path / f"own-{name}-0.json", {"outlines": "own", "training": name, "seed": 0, "rows": rows})
    rows = {f"{n} cases": {"cases": {"site-2": [0.1 * n]}} for n in prostates.FEW}
    name = "without-site-2"
    write_json(tmp_path / f"own-{name}-0.json", {"outlines": "own", "training": name, "seed": 0, "rows": rows})
    found = table(read(tmp_path), "own").loc[prostates.TITLES["fedavg30x2"]]
    assert found[["of pooled", "worst site", "seeds"]].tolist() == pytest.approx([0.75 / 0.9, 0.75, 1])
    assert left_out(read(tmp_path)).loc["site-2"].tolist() == pytest.approx([1.0, 0.0, 0.1, 0.3, 1.0])


def test_the_light_of_a_random_coil_comes_from_behind_and_the_range_is_zero_to_one():
    coil = RandCoil((2.0, 2.0, 3.0), prob=1.0).set_random_state(0)
    image = coil({"image": torch.rand(1, 64, 64, 16)})["image"]
    assert (image.min(), image.max()) == (0, 1) and image[:, 24:40, 12:20].mean() > 3 * image[:, 24:40, -8:].mean()


def test_scales_and_shifts_of_a_sites_own_outlive_the_next_global_model():
    names = affine_tensors(AffineUNet(0))
    assert len(names) % 2 == 0 < len(names) and not affine_tensors(UNet())
    site = SimpleNamespace(model=AffineUNet(0), keeps={})
    part = OwnAffine(site)
    part.kept[names[0]] = torch.full_like(site.model.state_dict()[names[0]], 7.0)
    part.receive(FLModel(params={name: value + 1 for name, value in site.model.state_dict().items()}))
    now, new = site.model.state_dict(), AffineUNet(0).state_dict()
    assert (now[names[0]] == 7).all() and torch.equal(now[names[1]], new[names[1]] + 1)
