"""The generated MedNIST: layout, statistics, difficulty, reproducibility, and what happens when the disk says no."""

import errno
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from src import phantoms
from src.errors import CourseError
from src.phantoms import CLASSES, STYLES, ScannerStyle, draw, make_mednist, read_about

REAL_SAMPLE = Path(__file__).resolve().parents[2] / "shared" / "reference" / "mednist_sample" / "MedNIST"
PER_CLASS = 200
# Mean and standard deviation of the pixel values (0…1) of the real data set.
REAL_STATISTICS = {
    "AbdomenCT": (0.44, 0.10),
    "BreastMRI": (0.11, 0.22),
    "CXR": (0.56, 0.30),
    "ChestCT": (0.51, 0.06),
    "Hand": (0.26, 0.32),
    "HeadCT": (0.23, 0.25),
}


def load(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures as rows of 4096 values 0…1, and their class numbers."""
    files = [(number, file) for number, name in enumerate(CLASSES) for file in sorted((folder / name).glob("*.jpeg"))]
    pictures = np.array([np.asarray(Image.open(file)).ravel() for _, file in files]) / 255
    return pictures, np.array([number for number, _ in files])


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def mednist(tmp_path_factory, record_testsuite_property) -> Path:
    folder = tmp_path_factory.mktemp("data of the course") / "generated" / "MedNIST"
    start = time.perf_counter()
    assert make_mednist(folder, per_class=PER_CLASS, seed=0) == folder
    record_testsuite_property("seconds_for_200_drawings_a_class", round(time.perf_counter() - start, 2))
    return folder


def test_layout_and_format_are_those_of_mednist(mednist):
    assert sorted(path.name for path in mednist.iterdir()) == sorted([*CLASSES, "ABOUT.txt"])
    assert [path.name for path in mednist.parent.iterdir()] == ["MedNIST"], "the folder written beside is gone"
    for name in CLASSES:
        files = sorted((mednist / name).iterdir())
        assert [file.name for file in files] == [f"{i:06d}.jpeg" for i in range(PER_CLASS)]
        for file in files[:: PER_CLASS // 10]:
            with Image.open(file) as picture:
                assert (picture.format, picture.mode, picture.size) == ("JPEG", "L", (64, 64))


def test_about_says_that_these_are_drawings_and_how_they_were_made(mednist):
    assert "drawings, not patients" in (mednist / "ABOUT.txt").read_text(encoding="utf-8")
    about = read_about(mednist)
    assert (about["seed"], about["per_class"]) == ("0", "200")
    assert all(style.name in about["styles"] for style in STYLES)


def test_a_folder_of_real_images_says_nothing_about_itself(tmp_path):
    assert read_about(tmp_path) is None
    (tmp_path / "ABOUT.txt").write_text("MedNIST was collected from TCIA.\nseed: none\n", encoding="utf-8")
    assert read_about(tmp_path) is None


def test_statistics_by_class_are_close_to_the_real_ones(mednist):
    pictures, labels = load(mednist)
    for number, name in enumerate(CLASSES):
        values, (mean, spread) = pictures[labels == number], REAL_STATISTICS[name]
        assert values.mean() == pytest.approx(mean, abs=0.035), name
        assert values.std() == pytest.approx(spread, abs=0.035), name
        # Pose and exposure vary: no two pictures are nearly the same, and no picture is empty.
        assert values.std(axis=1).min() > 0.02, name
        assert values.std(axis=0).mean() > 0.03, name
    breast = pictures[labels == CLASSES.index("BreastMRI")]
    assert (breast < 0.02).mean() == pytest.approx(0.68, abs=0.06)


def test_no_two_pictures_are_equal(mednist):
    pictures = [value for key, value in digests(mednist).items() if key.endswith(".jpeg")]
    assert len(set(pictures)) == len(pictures) == PER_CLASS * len(CLASSES)


def test_a_linear_classifier_finds_them_no_easier_than_real_images(mednist):
    pictures, labels = load(mednist)
    with threadpool_limits(1):  # the matrices are small: threads that share cores with other tests only wait
        # Rotating the pixels onto the pictures' own 1200 axes changes nothing for a linear classifier, but saves time.
        rotated = PCA(svd_solver="full").fit_transform(StandardScaler().fit_transform(pictures.astype(np.float32)))
        classifier = LogisticRegression(C=0.001, max_iter=2000)
        splits = StratifiedKFold(5, shuffle=True, random_state=0)
        accuracy = cross_val_score(classifier, rotated, labels, cv=splits).mean()
    assert 0.80 <= accuracy <= 0.96, accuracy


@pytest.mark.skipif(not REAL_SAMPLE.is_dir(), reason="no sample of the real MedNIST here")
def test_class_means_of_the_drawings_recognise_real_images(mednist):
    pictures, labels = load(REAL_SAMPLE)
    accuracy = NearestCentroid().fit(*load(mednist)).score(pictures, labels)
    assert accuracy > 0.85, accuracy  # 0.95 measured; chance is 0.17


def test_same_seed_same_bytes_and_more_pictures_begin_with_the_same(tmp_path):
    first, again = (make_mednist(tmp_path / name / "MedNIST", per_class=3, seed=7) for name in "ab")
    assert digests(first) == digests(again)
    more = digests(make_mednist(tmp_path / "c" / "MedNIST", per_class=5, seed=7))
    assert all(more[name] == digest for name, digest in digests(first).items() if name.endswith(".jpeg"))


def test_another_seed_gives_other_pictures(tmp_path):
    one, two = (digests(make_mednist(tmp_path / str(seed), per_class=3, seed=seed)) for seed in (0, 1))
    assert one.keys() == two.keys()
    assert all(one[name] != two[name] for name in one)


@pytest.mark.parametrize("name", CLASSES)
def test_draw_gives_one_picture_that_its_generator_alone_decides(name):
    first, again, other = (draw(name, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first.shape, first.dtype) == ((64, 64), np.uint8)
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 1


def test_draw_refuses_an_unknown_class():
    with pytest.raises(CourseError, match=r"'Knee'.*AbdomenCT"):
        draw("Knee", np.random.default_rng(0))


def test_styles_differ_measurably_and_each_varies_in_itself():
    def drawn(style):
        return np.array([draw(name, np.random.default_rng(i), style) for name in CLASSES for i in range(12)]) / 255

    pictures = {style.name: drawn(style) for style in STYLES}
    assert len(pictures) == len(STYLES) >= 3
    # The same anatomy at every site: fine detail (difference of neighbours) tells the scanners apart.
    detail = {name: np.abs(np.diff(values, axis=2)).mean() for name, values in pictures.items()}
    assert detail["sharp"] > 1.15 * detail["soft"]
    assert pictures["soft"].mean() != pytest.approx(pictures["standard"].mean(), abs=0.002)
    bright = drawn(ScannerStyle("bright", offset=0.2))
    assert bright.mean() > pictures["standard"].mean() + 0.1
    for values in pictures.values():
        assert values[:12].mean(axis=(1, 2)).std() > 0.005


def test_styles_of_one_site(tmp_path):
    sharp = next(style for style in STYLES if style.name == "sharp")
    one = digests(make_mednist(tmp_path / "one", per_class=2, styles=[sharp]))
    all_styles = digests(make_mednist(tmp_path / "all", per_class=2))
    assert read_about(tmp_path / "one")["styles"] == str(sharp)
    assert one["Hand/000000.jpeg"] != all_styles["Hand/000000.jpeg"]


def test_a_finished_folder_is_used_at_once(tmp_path, monkeypatch):
    folder = make_mednist(tmp_path / "MedNIST", per_class=2, seed=3)
    monkeypatch.setattr(phantoms, "draw", lambda *_: pytest.fail("drawn again"))
    assert make_mednist(folder, per_class=2, seed=3) == folder


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "MedNIST").mkdir()
    assert read_about(make_mednist(tmp_path / "MedNIST", per_class=1))["per_class"] == "1"


@pytest.mark.parametrize("change", [{"seed": 4}, {"per_class": 3}, {"styles": STYLES[:1]}])
def test_a_folder_with_other_drawings_is_an_error_and_stays(tmp_path, change):
    folder = make_mednist(tmp_path / "MedNIST", per_class=2, seed=3)
    before = digests(folder)
    with pytest.raises(CourseError, match=r"MedNIST holds other drawings \(seed 3, 2 a class"):
        make_mednist(folder, **{"per_class": 2, "seed": 3, **change})
    assert digests(folder) == before


def test_a_folder_of_somebody_else_is_an_error_and_stays(tmp_path):
    (tmp_path / "MedNIST" / "Hand").mkdir(parents=True)
    (tmp_path / "MedNIST" / "Hand" / "000000.jpeg").write_bytes(b"mine")
    with pytest.raises(CourseError, match="not made by this generator"):
        make_mednist(tmp_path / "MedNIST", per_class=1)
    assert digests(tmp_path).keys() == {"MedNIST/Hand/000000.jpeg"}


def test_a_lost_picture_is_noticed(tmp_path):
    folder = make_mednist(tmp_path / "MedNIST", per_class=2)
    (folder / "CXR" / "000001.jpeg").unlink()
    with pytest.raises(CourseError, match=r"CXR has 1 pictures where ABOUT.txt promises 2.*Delete"):
        make_mednist(folder, per_class=2)


@pytest.mark.parametrize("bad", [{"per_class": 0}, {"per_class": 2.5}, {"seed": -1}, {"styles": ()}])
def test_arguments_out_of_range(tmp_path, bad):
    with pytest.raises(CourseError, match="per_class is a whole number"):
        make_mednist(tmp_path / "MedNIST", **bad)
    assert not list(tmp_path.iterdir())


def test_two_processes_make_the_same_folder_at_once(tmp_path):
    command = [
        sys.executable,
        "-m",
        "src.phantoms",
        "mednist",
        "--folder",
        str(tmp_path / "MedNIST"),
        "--per-class",
        "8",
    ]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "drawings" in out
    assert [path.name for path in tmp_path.iterdir()] == ["MedNIST"]
    assert len(list((tmp_path / "MedNIST").rglob("*.jpeg"))) == 8 * len(CLASSES)


@pytest.mark.parametrize("their_seed", [0, 5])
def test_another_process_is_faster_by_a_moment(tmp_path, monkeypatch, their_seed):
    """The other one's folder appears just before ours is moved into place."""
    folder, rename = tmp_path / "MedNIST", Path.rename

    def late(self, target):
        monkeypatch.setattr(Path, "rename", rename)
        make_mednist(folder, per_class=2, seed=their_seed)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    if their_seed == 0:
        assert make_mednist(folder, per_class=2, seed=0) == folder
    else:
        with pytest.raises(CourseError, match="other drawings"):
            make_mednist(folder, per_class=2, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["MedNIST"]
    assert read_about(folder)["seed"] == str(their_seed)


def test_disk_full_half_way_leaves_nothing(tmp_path, monkeypatch):
    written, write = [], Path.write_bytes

    def full(self, data):
        written.append(self)
        if len(written) == 8:
            write(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CourseError, match=r"MedNIST: No space left on device.*Free some space or set COURSE_DATA"):
        make_mednist(tmp_path / "MedNIST", per_class=3)
    assert len(written) == 8
    assert not list(tmp_path.iterdir())


def test_read_only_folder(tmp_path, monkeypatch):
    def read_only(*_args, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", read_only)
    with pytest.raises(CourseError, match="MedNIST: Read-only file system"):
        make_mednist(tmp_path / "MedNIST", per_class=1)
    assert not list(tmp_path.iterdir())


def test_the_parent_is_a_file(tmp_path):
    (tmp_path / "data").write_text("not a folder", encoding="utf-8")
    with pytest.raises(CourseError, match=r"data.MedNIST: .*COURSE_DATA"):
        make_mednist(tmp_path / "data" / "MedNIST", per_class=1)
    assert (tmp_path / "data").read_text(encoding="utf-8") == "not a folder"


def test_command_line_reports_an_error_in_one_line(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert phantoms.main(["mednist", "--folder", str(tmp_path), "--per-class", "1"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
