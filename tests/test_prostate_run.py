"""One real federation of six hospitals, most of which fail, each in its own way."""

import json
import os

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from tests_support import ball_case

from src.errors import CourseError
from src.jobs import prostate_fedavg
from src.prostate_training import new_model

SITES = ["healthy", "corrupt", "dies", "poisons", "shape", "empty"]
TINY = {"voxel_spacing": [2, 2, 3], "field_of_view": [64, 64], "patch_size": [32, 32, 16]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Converted data and datalists of four tiny hospitals in a folder with a blank; one image of ``corrupt`` is cut off."""
    root = tmp_path_factory.mktemp("four hospitals")
    (root / "lists").mkdir()
    for site in SITES:
        entries = []
        for number in range(4):
            ball_case(root / site, f"c{number}", centre=(2.0 * number, -3.0, 1.5), seed=number)
            entries.append({"image": f"{site}/c{number}.nii.gz", "label": f"{site}/c{number}_mask.nii.gz"})
        parts = {"training": entries[:2], "validation": entries[2:3], "testing": entries[3:]}
        (root / "lists" / f"{site}.json").write_text(json.dumps(parts))
    mask = nib.load(root / "shape" / "c0_mask.nii.gz")
    nib.save(mask.slicer[:, :, :-1], root / "shape" / "c0_mask.nii.gz")
    mask = nib.load(root / "empty" / "c0_mask.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(mask.shape, np.uint8), mask.affine), root / "empty" / "c0_mask.nii.gz")
    image = root / "corrupt" / "c1.nii.gz"
    image.write_bytes(image.read_bytes()[:2000])
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    from src.learners import supervised_monai_prostate_learner

    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        from faulty_learner import FaultyLearner

        patch.setenv("COURSE_RUNS", str(root / "runs"))
        patch.setenv("COURSE_DATA", str(root / "data"))
        patch.setattr(supervised_monai_prostate_learner, "SupervisedMonaiProstateLearner", FaultyLearner)
        job = prostate_fedavg(
            sites=SITES, rounds=3, local_epochs=1, datalists=data / "lists", dataset=data, round_timeout=120, **TINY
        )
        return job.simulate()


pytestmark = pytest.mark.slow


def test_the_others_finish_and_the_table_says_who_did_not(run):
    table = run.contributions.set_index(["site", "round"])
    assert table.accepted.unstack().to_dict("index") == {
        "healthy": {0: True, 1: True, 2: True},
        "corrupt": {0: False, 1: False, 2: False},
        "dies": {0: True, 1: False, 2: False},
        "poisons": {0: False, 1: False, 2: False},
        "shape": {0: False, 1: False, 2: False},
        "empty": {0: True, 1: True, 2: True},  # a case without a gland teaches where none is
    }
    assert "c0" in table.loc[("shape", 0), "reason"] and "shape" in table.loc[("shape", 0), "reason"]
    assert "NaN" in table.loc[("poisons", 0), "reason"]
    assert "model.0.conv.unit0.conv.weight" in table.loc[("poisons", 0), "reason"]
    assert "corrupt: cannot read" in table.loc[("corrupt", 0), "reason"]
    assert "c1.nii.gz" in table.loc[("corrupt", 2), "reason"]
    assert table.loc[("dies", 1), "reason"] == "no answer"
    # A dead site is not waited for until the timeout.
    assert run.about["seconds"] < 100


def test_the_corrupt_file_is_named_in_the_sites_own_log(run):
    log = (run.workspace / "corrupt" / "error_log.txt").read_text()
    assert "corrupt: cannot read" in log and "c1.nii.gz" in log


def test_the_global_model_is_finite_and_moved(run):
    weights = run.weights(run.final_model)
    start = new_model(0).state_dict()
    assert weights.keys() == start.keys()
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert any(not torch.equal(weights[name], start[name]) for name in start)


def test_the_run_remembers_its_settings_with_whole_paths(run, data):
    settings = run.about["settings"]
    assert settings["patch_size"] == TINY["patch_size"]
    assert settings["dataset_base_dir"] == str(data.resolve())
    assert os.path.isabs(settings["cache_dir"])  # noqa: PTH117


def test_curves_of_all_sites_are_on_the_server(run):
    val_dice = run.curve("val_dice")
    assert list(val_dice.columns) == ["dies", "empty", "healthy", "poisons"]
    assert list(val_dice.index) == [0, 1, 2, 3]  # before each of three rounds, and the final model
    assert val_dice["healthy"].between(0, 1).all()
    assert np.isfinite(run.curve("train_loss")["healthy"]).all()


def test_prepared_volumes_are_found_by_the_next_training(run, data):
    folder = pd.Series(sorted(os.listdir(run.about["settings"]["cache_dir"])))  # noqa: PTH208
    assert folder.str.endswith(".pt").all()
    assert len(folder) >= 3 * 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"sites": ["healthy", "healthy"]}, "names that differ"),
        ({"sites": ["elsewhere"]}, "elsewhere.json"),
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"tracker": "paper"}, "Unknown tracker 'paper'"),
    ],
)
def test_what_cannot_be_met_is_said_before_anything_runs(data, tmp_path, monkeypatch, arguments, says):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    with pytest.raises(CourseError, match=says):
        prostate_fedavg(**{"datalists": data / "lists", "dataset": data, **arguments})
