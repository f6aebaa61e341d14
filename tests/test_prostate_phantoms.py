"""The drawn Task05_Prostate: MSD's layout, real shapes, no shortcut by intensity, nothing left when writing fails."""

import errno
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from src import prostate_phantoms as phantoms
from src.errors import CourseError

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference" / "msd_prostate_labels"
CASES = 8  # two of each hospital


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("with a space") / "Task05_Prostate"
    assert phantoms.make_prostate(folder, cases=CASES) == folder
    return folder


@pytest.fixture
def quick(monkeypatch):
    """One labelled case and nothing else, for tests that look at files and not at voxels."""
    monkeypatch.setattr(phantoms, "TEST_CASES", 0)


def load(task, entry):
    image, label = nib.load(task / entry["image"]), nib.load(task / entry["label"])
    return image, label, np.asarray(image.dataobj), np.asarray(label.dataobj)


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# Layout


def test_dataset_json_lists_exactly_what_is_there(task):
    description = json.loads((task / "dataset.json").read_text())
    assert description["modality"] == {"0": "T2", "1": "ADC"}
    assert description["labels"] == {"0": "background", "1": "PZ", "2": "TZ"}
    assert description["tensorImageSize"] == "4D"
    assert "GENERATED DRAWINGS, NOT PATIENTS" in description["description"]
    assert description["numTraining"] == len(description["training"]) == CASES
    assert description["numTest"] == len(description["test"]) == phantoms.TEST_CASES
    named = [path for entry in description["training"] for path in (entry["image"], entry["label"])]
    named += description["test"]
    assert all(path.startswith("./") and path.endswith(".nii.gz") for path in named)
    found = [path.relative_to(task).as_posix() for path in task.rglob("*.nii.gz")]
    assert sorted(found) == sorted(path[2:] for path in named)
    assert [e["image"][-9:-7] for e in description["training"]] == ["00", "01", "02", "04", "06", "07", "10", "13"]


def test_hospitals_json_names_each_case_once(task):
    hospitals = json.loads((task / "hospitals.json").read_text())
    assert list(hospitals) == ["site-1", "site-2", "site-3", "site-4"]
    named = sorted(name for cases in hospitals.values() for name in cases)
    assert named == sorted(path.name[:-7] for path in (task / "labelsTr").iterdir())
    assert {len(cases) for cases in hospitals.values()} == {2}


def test_images_and_masks_are_what_msd_has(task):
    for entry in json.loads((task / "dataset.json").read_text())["training"]:
        image, label, voxels, mask = load(task, entry)
        assert voxels.dtype == np.float32 and voxels.ndim == 4 and voxels.shape[3] == 2
        assert mask.dtype == np.uint8 and mask.shape == voxels.shape[:3]
        assert 11 <= mask.shape[2] <= 24
        assert set(np.unique(mask)) <= {0, 1, 2} and (mask > 0).any()
        assert np.isfinite(voxels).all() and voxels.min() >= 0
        assert 1000 < voxels[..., 1].max() <= 3600, "ADC is in 10⁻⁶ mm²/s"
        np.testing.assert_array_equal(image.affine, label.affine)
        lengths = np.linalg.norm(image.affine[:3, :3], axis=0)
        np.testing.assert_allclose(image.header.get_zooms()[:3], lengths, rtol=1e-5)
        np.testing.assert_allclose(label.header.get_zooms(), lengths, rtol=1e-5)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert np.linalg.det(image.affine[:3, :3] / lengths) == pytest.approx(1, abs=1e-6)


def test_unlabelled_images_have_the_same_form(task):
    for path in (task / "imagesTs").iterdir():
        image = nib.load(path)
        assert image.get_data_dtype() == np.float32 and image.shape[3] == 2


# Anatomy


@pytest.fixture(scope="module")
def masks():
    """The 32 masks of the default data set, from the shape functions alone: (mask, voxel size in mm)."""
    drawn = []
    for index in range(32):
        style = phantoms.HOSPITALS[index % 4]
        gland, slices, centre = phantoms._place(np.random.default_rng([0, 0, index]), style)
        axes = phantoms._axes(style, slices, centre)
        box, _, surface, zone = phantoms._surfaces(gland, axes)
        mask = phantoms._label(axes, box, surface, zone, False)
        drawn.append((mask, np.array([style.spacing, style.spacing, style.thickness])))
    return drawn


def measure(mask, size):
    """Volumes in mL, box in mm, centre relative to the image, and slices that show the gland."""
    where = np.argwhere(mask > 0)
    return {
        "volume": (mask > 0).sum() * size.prod() / 1000,
        "peripheral": (mask == 1).sum() * size.prod() / 1000,
        "transition": (mask == 2).sum() * size.prod() / 1000,
        "box": (np.ptp(where, axis=0) + 1) * size,
        "centre": (where.mean(0) + 0.5) / mask.shape - 0.5,
        "slices": len(np.unique(where[:, 2])),
    }


def test_masks_of_the_shape_functions_are_the_masks_on_disk(task, masks):
    entries = json.loads((task / "dataset.json").read_text())["training"]
    for entry, (mask, _) in zip(entries, masks, strict=False):
        np.testing.assert_array_equal(load(task, entry)[3], mask)


def test_glands_follow_the_real_distribution(masks):
    facts = [measure(*drawn) for drawn in masks]
    volume = np.array([fact["volume"] for fact in facts])
    assert volume.min() >= 16 and volume.max() <= 315
    assert volume.mean() == pytest.approx(74, abs=20) and 25 < volume.std() < 75
    assert np.median(volume) < volume.mean(), "a few very large glands, as in life"
    boxes = np.array([fact["box"] for fact in facts])
    assert (boxes.min(0) >= [38, 30, 32]).all() and (boxes.max(0) <= [94, 85.1, 72.1]).all()
    assert np.abs([fact["centre"][:2] for fact in facts]).max() <= 0.06
    assert {9 <= fact["slices"] <= 20 for fact in facts} == {True}
    for zone, low, high in (("peripheral", 6, 36), ("transition", 8, 304)):
        part = np.array([fact[zone] for fact in facts])
        assert part.min() >= low and part.max() <= high, zone


def test_peripheral_zone_is_behind_and_the_apex_is_narrow(masks):
    for mask, size in masks:
        peripheral, transition = np.argwhere(mask == 1).mean(0), np.argwhere(mask == 2).mean(0)
        assert (transition - peripheral)[1] * size[1] > 4, "mm that the peripheral zone lies further back"
        areas = (mask > 0).sum((0, 1))
        areas = areas[areas > 0]
        assert areas[0] < 0.6 * areas.max() and areas[-1] < 0.75 * areas.max()


def test_coil_flattens_the_gland(masks):
    ratio = np.array([measure(*drawn)["box"][1] / measure(*drawn)["box"][0] for drawn in masks])
    coil = np.array([phantoms.HOSPITALS[index % 4].coil for index in range(32)])
    assert ratio[coil].max() < 0.72
    assert ratio[coil].mean() < ratio[~coil].mean() - 0.15


def test_masks_look_like_real_ones(masks):
    paths = sorted(REFERENCE.glob("*.nii.gz"))
    if not paths:
        pytest.skip("no reference masks here")
    real = []
    for path in paths:
        label = nib.load(path)
        real.append(measure(np.asarray(label.dataobj), np.array(label.header.get_zooms()[:3])))
    drawn = [measure(*one) for one in masks]
    for what in (
        lambda fact: fact["volume"],
        lambda fact: fact["box"][0],
        lambda fact: fact["box"][1],
        lambda fact: fact["box"][2],
        lambda fact: fact["box"][1] / fact["box"][0],
        lambda fact: fact["volume"] * 1000 / fact["box"].prod(),
    ):
        ours, theirs = np.array([what(f) for f in drawn]), np.array([what(f) for f in real])
        assert theirs.min() >= 0.9 * ours.min() and theirs.max() <= 1.1 * ours.max()


def test_two_of_the_32_cases_carry_one_label(monkeypatch, tmp_path):
    one_label = []

    def drawn(rng, style, alone=False):
        one_label.append(alone)
        return np.zeros((2, 2, 2, 2), np.float32), np.zeros((2, 2, 2), np.uint8), np.eye(4)

    monkeypatch.setattr(phantoms, "draw_case", drawn)
    phantoms.make_prostate(tmp_path / "task")
    assert len(one_label) == 32 + phantoms.TEST_CASES and sum(one_label) == 2


def test_one_label_marks_the_whole_gland():
    style = phantoms.HOSPITALS[1]
    _, zones, _ = phantoms.draw_case(np.random.default_rng(3), style)
    _, whole, _ = phantoms.draw_case(np.random.default_rng(3), style, one_label=True)
    np.testing.assert_array_equal(whole, (zones > 0).astype(np.uint8))


# Images


def best_threshold_dice(values, gland, total, levels):
    """Dice of every interval [low, high] between two levels, one-sided thresholds included, as a square array."""
    cell = np.clip(np.searchsorted(levels, values, side="right") - 1, 0, len(levels) - 2)
    count = np.bincount(cell, minlength=len(levels) - 1)
    hits = np.bincount(cell, weights=gland, minlength=len(levels) - 1)
    count, hits = np.r_[0, count.cumsum()], np.r_[0, hits.cumsum()]
    size = np.maximum(count[None] - count[:, None], 0)
    return np.where(size > 0, 2 * (hits[None] - hits[:, None]) / (size + total), 0)


@pytest.mark.parametrize("central", [False, True])
def test_no_threshold_segments_the_gland(task, central):
    dice = []
    for entry in json.loads((task / "dataset.json").read_text())["training"]:
        _, _, voxels, mask = load(task, entry)
        t2, gland = voxels[..., 0], mask > 0
        levels = np.percentile(t2, np.linspace(0, 100, 101))
        levels[-1] += 1
        total = gland.sum()
        if central:
            edge = mask.shape[0] // 4
            t2, gland = t2[edge:-edge, edge:-edge], gland[edge:-edge, edge:-edge]
        dice.append(best_threshold_dice(t2.ravel(), gland.ravel(), total, levels))
    dice = np.array(dice)
    assert dice.max() > 0.1, "the search itself works"
    assert dice.mean(0).max() <= 0.5, "one interval for all cases"
    assert dice.max((1, 2)).mean() <= 0.5, "even the best interval of each case"


def test_threshold_search_finds_a_gland_that_is_bright():
    gland = np.zeros(1000)
    gland[:200] = 1
    dice = best_threshold_dice(gland * 50 + np.arange(1000) % 7, gland, 200, np.linspace(0, 60, 61))
    assert dice.max() == pytest.approx(1)


def test_the_border_of_the_gland_can_be_seen(task):
    """A capsule darker than what surrounds it, in every hospital: what is to be learnt is in the image."""
    plane = np.ones((3, 3, 1), bool)
    for entry in json.loads((task / "dataset.json").read_text())["training"]:
        _, _, voxels, mask = load(task, entry)
        middle = int(np.argwhere(mask > 0).mean(0)[2])
        t2, gland = (array[:, :, middle - 1 : middle + 2] for array in (voxels[..., 0], mask > 0))
        wider = [ndimage.binary_dilation(gland, plane, steps) for steps in (1, 2, 5)]
        capsule = wider[0] & ~ndimage.binary_erosion(gland, plane, 1)
        assert np.median(t2[capsule]) < 0.93 * np.median(t2[wider[2] & ~wider[1]])


def test_hospitals_differ(task):
    styles = phantoms.HOSPITALS
    assert len(styles) == 4 and len({style.name for style in styles}) == 4
    assert sum(style.coil for style in styles) == 1
    assert all(128 <= style.matrix <= 160 and 3 <= style.thickness <= 4 for style in styles)
    assert all(179 <= style.field_of_view <= 200.1 for style in styles)
    entries = json.loads((task / "dataset.json").read_text())["training"]
    top = [np.percentile(load(task, entry)[2][..., 0], 99) for entry in entries]
    for style, first, second in zip(styles, top[:4], top[4:], strict=True):
        assert 0.5 * style.scale < min(first, second) and max(first, second) < 2.5 * style.scale
    assert max(top) > 20 * min(top)


def test_coil_lights_up_what_is_near(task):
    entries = json.loads((task / "dataset.json").read_text())["training"]
    near_over_far = []
    for entry in entries[:4]:
        _, _, voxels, mask = load(task, entry)
        t2 = voxels[..., 0]
        far = t2[: len(t2) // 5, len(t2) // 3 : -len(t2) // 3]
        near_over_far.append(np.median(t2[mask == 1]) / np.median(far[far > 0.1 * np.median(far)]))
    assert near_over_far[1] == max(near_over_far)


# Reruns and faults


def test_same_seed_same_bytes_and_other_seed_other_voxels(task, tmp_path, quick):
    one = phantoms.make_prostate(tmp_path / "one", cases=1)
    for part in ("imagesTr", "labelsTr"):
        assert (one / part / "prostate_00.nii.gz").read_bytes() == (task / part / "prostate_00.nii.gz").read_bytes()
    other = phantoms.make_prostate(tmp_path / "other", cases=1, seed=1)
    packed = "imagesTr/prostate_00.nii.gz"
    assert (one / packed).read_bytes() != (other / packed).read_bytes()


def test_second_call_returns_at_once(task, monkeypatch):
    monkeypatch.setattr(phantoms, "_write", lambda *_: pytest.fail("written again"))
    before = {path: path.stat().st_mtime_ns for path in task.rglob("*")}
    assert phantoms.make_prostate(task, cases=CASES) == task
    assert {path: path.stat().st_mtime_ns for path in task.rglob("*")} == before


def test_other_parameters_and_other_data_are_not_overwritten(task, tmp_path):
    before = listing(task)
    with pytest.raises(CourseError, match=r"was generated with.*'seed': 0.*wanted is.*'seed': 5"):
        phantoms.make_prostate(task, cases=CASES, seed=5)
    assert listing(task) == before
    real = tmp_path / "real"
    (real / "imagesTr").mkdir(parents=True)
    with pytest.raises(CourseError, match=r"real exists and holds no generated data set"):
        phantoms.make_prostate(real)
    (real / "dataset.json").write_text('{"name": "PROSTATE"}')
    with pytest.raises(CourseError, match="did not generate"):
        phantoms.make_prostate(real)
    (real / "dataset.json").write_text("[]")
    with pytest.raises(CourseError, match="holds no generated"):
        phantoms.make_prostate(real)
    assert listing(real) == ["dataset.json", "imagesTr"]
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(CourseError, match="file exists"):
        phantoms.make_prostate(file)
    assert file.read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path, quick):
    (tmp_path / "task").mkdir()
    phantoms.make_prostate(tmp_path / "task", cases=1)
    assert (tmp_path / "task" / "dataset.json").is_file()
    assert listing(tmp_path / "task" / "imagesTr") == ["prostate_00.nii.gz"]
    assert json.loads((tmp_path / "task" / "hospitals.json").read_text()) == {"site-1": ["prostate_00"]}


@pytest.mark.parametrize(("cases", "seed"), [(0, 0), (4, -1)])
def test_impossible_parameters_are_named(tmp_path, cases, seed):
    with pytest.raises(CourseError, match=f"cases={cases} and seed={seed}"):
        phantoms.make_prostate(tmp_path / "task", cases=cases, seed=seed)


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    saved = phantoms._save

    def full(array, affine, path):
        if path.parent.name == "labelsTr":
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        saved(array, affine, path)

    monkeypatch.setattr(phantoms, "_save", full)
    with pytest.raises(CourseError, match=r"No space left on device.*free some space"):
        phantoms.make_prostate(tmp_path / "task", cases=2)
    assert listing(tmp_path) == []


def test_a_limit_of_the_kernel_leaves_nothing(tmp_path):
    """The same with a write that the operating system itself cuts short."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(CourseError, match="Cannot write the generated prostate data"):
            phantoms.make_prostate(tmp_path / "task", cases=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert listing(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(phantoms.tempfile, "mkdtemp", read_only)
    with pytest.raises(CourseError, match=r"task: Read-only file system.*COURSE_DATA"):
        phantoms.make_prostate(tmp_path / "task", cases=1)
    assert listing(tmp_path) == []


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(phantoms, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        phantoms.make_prostate(tmp_path / "task", cases=1)
    assert listing(tmp_path) == []


def test_the_slower_of_two_takes_the_result_of_the_faster(tmp_path, monkeypatch, quick):
    target, write = tmp_path / "task", phantoms._write

    def overtaken(folder, cases, seed):
        write(folder, cases, seed)
        shutil.copytree(folder, target)

    monkeypatch.setattr(phantoms, "_write", overtaken)
    assert phantoms.make_prostate(target, cases=1) == target
    assert [path.name for path in tmp_path.iterdir()] == ["task"]


def test_the_slower_of_two_refuses_what_it_did_not_ask_for(tmp_path, monkeypatch):
    target = tmp_path / "task"

    def overtaken(folder, cases, seed):
        folder.mkdir()
        target.mkdir()
        (target / "notes.txt").write_text("mine")

    monkeypatch.setattr(phantoms, "_write", overtaken)
    with pytest.raises(CourseError, match="holds no generated data set"):
        phantoms.make_prostate(target, cases=1)
    assert listing(tmp_path) == ["task", "task/notes.txt"]


def test_two_processes_at_once_both_succeed(tmp_path):
    script = (
        "import sys, pathlib, src.prostate_phantoms as p; p.TEST_CASES = 0; "
        "print(p.make_prostate(pathlib.Path(sys.argv[1]), cases=2))"
    )
    target = tmp_path / "task"
    both = [
        subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in both] == [str(target)] * 2
    assert [process.returncode for process in both] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["task"]
    assert len(listing(target / "labelsTr")) == 2
