"""The three bash commands as an engineer calls them: from anywhere, with spaces in paths, more than once."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "data_scripts"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@pytest.fixture
def data(tmp_path) -> Path:
    """A data folder with a few real-looking cases of two hospitals."""
    data = tmp_path / "my data"
    task = data / "Task05_Prostate"
    mask = np.zeros((6, 5, 4), np.uint8)
    mask[2:4, 2:4, 1:3] = 2
    for folder in ("imagesTr", "labelsTr"):
        (task / folder).mkdir(parents=True)
    for index in range(7):
        image = np.random.default_rng(index).uniform(0, 900, (6, 5, 4, 2)).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), task / f"imagesTr/prostate_{index:02d}.nii.gz")
        nib.save(nib.Nifti1Image(mask, np.eye(4)), task / f"labelsTr/prostate_{index:02d}.nii.gz")
    (task / "dataset.json").write_text(json.dumps({"modality": {"0": "T2", "1": "ADC"}}))
    sites = {"site-1": [f"prostate_{i:02d}" for i in range(4)], "site-2": [f"prostate_{i:02d}" for i in range(4, 7)]}
    (task / "hospitals.json").write_text(json.dumps(sites))
    return data


@pytest.fixture
def call(data):
    def run(name: str, *arguments, cwd: Path | str = "/", **environment) -> subprocess.CompletedProcess:
        environment = {"COURSE_DATA": str(data), "COURSE_DATA_SOURCE": "real", **environment}
        kept = {key: value for key, value in os.environ.items() if key != "PYTHON"}
        return subprocess.run(
            ["bash", SCRIPTS / name, *arguments], cwd=cwd, env={**kept, **environment}, capture_output=True, text=True
        )

    return run


def test_download_convert_split_with_defaults(call, data):
    task = data / "Task05_Prostate"
    for name, arguments, said in (
        ("prostate_download.sh", (), "7 cases with mask"),
        ("data_conversion.sh", (), "Converted 7 of 7 cases."),
        ("data_conversion.sh", (), "nothing to do"),
        ("datalists_gen.sh", ("--sites", task / "hospitals.json"), "2 training, 1 validation, 1 testing"),
        ("datalists_gen.sh", ("--sites", task / "hospitals.json"), "nothing to do"),
    ):
        done = call(name, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert said in done.stdout
    assert sorted(folder.name for folder in data.iterdir()) == ["Task05_Prostate", "prostate_datalists", "prostate_t2"]
    datalist = json.loads((data / "prostate_datalists/site-2.json").read_text())
    assert {part: len(cases) for part, cases in datalist.items()} == {"training": 1, "validation": 1, "testing": 1}
    for part in datalist.values():
        for case in part:
            image, mask = (nib.load(data / "prostate_t2" / case[key]) for key in ("image", "label"))
            assert image.shape == mask.shape == (6, 5, 4)
            assert np.unique(mask.get_fdata()).tolist() == [0, 1]


def test_folders_as_arguments_relative_to_the_current_directory(call, data):
    done = call("data_conversion.sh", "Task05_Prostate", "../out here", "--channel", "1", cwd=data)
    assert (done.returncode, done.stderr) == (0, "")
    done = call("datalists_gen.sh", "../out here", "../the lists", "--num-sites", "1", "--seed", "5", cwd=data)
    assert (done.returncode, done.stderr) == (0, "")
    assert [file.name for file in (data.parent / "the lists").iterdir()] == ["site-1.json"]
    given = nib.load(data / "Task05_Prostate/imagesTr/prostate_03.nii.gz").get_fdata()
    np.testing.assert_array_equal(
        nib.load(data.parent / "out here/images/prostate_03.nii.gz").get_fdata(), given[..., 1]
    )


def test_bad_input_ends_with_2_and_one_message(call, data):
    (data / "Task05_Prostate/labelsTr/prostate_00.nii.gz").unlink()
    (data / "Task05_Prostate/imagesTr/prostate_01.nii.gz").write_bytes(b"")
    done = call("data_conversion.sh")
    assert done.returncode == 2
    assert done.stderr.startswith("error: Nothing was converted: 2 problems.") and "Traceback" not in done.stderr
    assert not (data / "prostate_t2").exists()
    done = call("datalists_gen.sh")
    assert done.returncode == 2 and str(data / "prostate_t2") in done.stderr
    assert call("datalists_gen.sh", "--num-sites", "two").returncode == 2


@pytest.mark.parametrize("name", ["prostate_download.sh", "data_conversion.sh", "datalists_gen.sh"])
def test_help_names_the_command_and_the_environment(call, name):
    done = call(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: {name}") and "COURSE_DATA" in done.stdout


def test_python_that_is_not_there_and_python_that_lacks_the_libraries(call, tmp_path):
    done = call("data_conversion.sh", PYTHON="/no such/python")
    assert done.returncode == 2 and "/no such/python" in done.stderr
    bare = tmp_path / "bare python"
    bare.write_text('#!/usr/bin/env bash\nexec python3 -S "$@"\n')
    bare.chmod(0o755)
    done = call("data_conversion.sh", PYTHON=str(bare))
    assert done.returncode == 2 and "no module" in done.stderr and "Traceback" not in done.stderr
