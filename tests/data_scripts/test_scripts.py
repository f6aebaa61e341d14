"""The bash commands as an engineer calls them: from anywhere, with spaces in paths, more than once."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from src.common.datalists import read_site
from tests.data_support import SHAPE, grey_pictures, modality, raw_cases, signal
from tests.tests_support import names_in

SCRIPTS = Path(__file__).resolve().parents[2] / "data_scripts"
NAMES = ("prostate_download", "data_conversion", "datalists_gen", "mednist_sites")
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@pytest.fixture(autouse=True)
def data(home) -> Path:
    """A data folder with a few cases of two hospitals."""
    task = raw_cases(home / "Task05_Prostate", 7, modality("T2", "ADC"))
    sites = {"BIDMC": [f"case_{i}" for i in range(4)], "HK": [f"case_{i}" for i in range(4, 7)]}
    (task / "hospitals.json").write_text(json.dumps(sites))
    return home


def call(name: str, *arguments, status=0, cwd="/", **environment) -> str:
    """What a script says: on stdout where it ends well, else on stderr."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHON"}
    kept |= {"COURSE_DATA_SOURCE": "real", **environment}
    command = ["bash", SCRIPTS / f"{name}.sh", *arguments]
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True)
    assert (done.returncode, bool(done.stderr)) == (status, status != 0), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if status else done.stdout


def test_download_convert_share_out_with_defaults(data):
    for name, said in (
        ("prostate_download", "7 cases with mask"),
        ("data_conversion", "Converted 7 of 7 cases: channel 0 (T2)"),
        ("data_conversion", "nothing to do"),
        ("datalists_gen", "sites/prostate/HK: 1 training, 1 validation, 1 testing"),
        ("datalists_gen", "nothing to do"),
    ):
        assert said in call(name)
    assert names_in(data) == ["Task05_Prostate", "prostate_t2", "sites"]
    for case in read_site("prostate", "HK")["training"]:
        image, mask = (nib.load(case[key]) for key in ("image", "label"))
        assert image.shape == mask.shape == SHAPE and np.unique(mask.get_fdata()).tolist() == [0, 1]


def test_arguments_and_folders_relative_to_the_current_one(data):
    call("data_conversion", "Task05_Prostate", "../out here", "--channel", "1", "--labels", "2", cwd=data)
    call("datalists_gen", "../out here", "--name", "mine", "--num-sites", "1", "--seed", "5", cwd=data)
    assert names_in(data / "sites") == ["mine"] and names_in(data / "sites" / "mine") == ["about.json", "site-1"]
    converted = nib.load(data.parent / "out here/images/case_3.nii.gz").get_fdata()
    np.testing.assert_array_equal(converted, signal(3, 2)[..., 1])
    sites = {"MGH": [f"case_{i}" for i in (0, 2, 4)], "LMU": [f"case_{i}" for i in (1, 3, 5)]}
    (data / "my sites.json").write_text(json.dumps(sites))
    said = call("datalists_gen", "../out here", "--sites", "my sites.json", cwd=data)
    assert "warning: in no site, so left out: case_6" in said
    assert names_in(data / "sites/prostate/MGH/images") == [f"case_{i}.nii.gz" for i in (0, 2, 4)]


def test_mednist_for_hospitals_with_names(data):
    grey_pictures(data / "MedNIST", 4)
    arguments = ("--sites", "north", "south", "--how", "counts", "--counts", "4", "10", "--name", "two", "--seed", "1")
    said = call("mednist_sites", *arguments)
    assert "real MedNIST: 24 images" in said and "sites/two/south: 7 training, 1 validation, 2 testing" in said
    assert names_in(data / "sites/two") == ["about.json", "north", "south"]
    assert "nothing to do" in call("mednist_sites", *arguments)
    said = call("mednist_sites", data / "MedNIST", "--num-sites", "3", "--how", "even", "--per-class", "2")
    assert names_in(data / "sites/mednist") == ["about.json", "site-1", "site-2", "site-3"]
    assert "sites/mednist/site-1: 2 training, 1 validation, 1 testing" in said
    said = call("mednist_sites", "--how", "even", "--few", "3", status=2)
    assert said == "error: few is 3, which 'even' does not heed; leave it out, or choose 'specialised'.\n"


def test_bad_input_ends_with_2_and_one_message(data):
    (data / "Task05_Prostate/labelsTr/case_0.nii.gz").unlink()
    (data / "Task05_Prostate/imagesTr/case_1.nii.gz").write_bytes(b"")
    assert call("data_conversion", status=2).startswith("error: Nothing was converted, 2 problems:")
    assert not (data / "prostate_t2").exists() and str(data / "prostate_t2") in call("datalists_gen", status=2)
    call("datalists_gen", "--num-sites", "two", status=2)
    assert call("mednist_sites", data / "nowhere", status=2).startswith("error: No images (.jpeg")


def test_names_that_are_no_text_in_a_strict_terminal(data):
    file = data / "Task05_Prostate" / "imagesTr" / os.fsdecode(b"fall_\xe4.nii.gz")
    try:
        file.write_bytes(b"")
        (file.parent / os.fsdecode(b"\xe4.dcm")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes no such names")
    assert "its name is not UTF-8" in call("data_conversion", status=2, PYTHONIOENCODING="utf-8:strict")
    file.unlink()
    assert r"Left out, 1 files" in call("data_conversion", PYTHONIOENCODING="ascii:strict")
    assert names_in(data) == ["Task05_Prostate", "prostate_t2"]


@pytest.mark.parametrize("name", NAMES)
def test_help_names_the_command_and_the_environment(tmp_path, name):
    for other in ("src", "data_scripts"):  # somebody else's, in the folder in which one stands
        (tmp_path / other).mkdir()
        (tmp_path / other / "__init__.py").write_text("raise SystemExit('another package')")
    said = call(name, "--help", cwd=tmp_path)
    assert said.startswith(f"usage: {name}.sh") and "COURSE_DATA" in said


def test_python_that_is_not_there_and_python_that_lacks_the_libraries(tmp_path):
    assert "/no such/python" in call("data_conversion", status=2, PYTHON="/no such/python")
    bare = tmp_path / "bare python"
    bare.write_text('#!/usr/bin/env bash\nexec python3 -S "$@"\n')
    bare.chmod(0o755)
    said = call("data_conversion", status=2, PYTHON=str(bare))
    assert "no module" in said and "Run 'make course' first" in said
