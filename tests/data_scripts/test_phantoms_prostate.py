"""The drawn Task05_Prostate: MSD's layout, real shapes, no shortcut by intensity, the same seed for the same files."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from data_scripts.phantoms import prostate as phantoms
from data_scripts.phantoms.prostate import HOSPITALS, TEST_CASES, VERSION, draw_case, parameters, write
from src.common.errors import CourseError

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "msd_prostate_labels"
CASES = 12  # three of each hospital


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("with a space")
    write(folder, CASES, 0)
    return folder


@pytest.fixture(scope="module")
def entries(task) -> list[dict[str, str]]:
    return json.loads((task / "dataset.json").read_text())["training"]


@pytest.fixture(scope="module")
def cases(task, entries) -> list[tuple]:
    """Image, label, their voxels, and the size of a voxel in mm, of each case."""
    found = []
    for entry in entries:
        image, label = nib.load(task / entry["image"]), nib.load(task / entry["label"])
        size = np.array(label.header.get_zooms())
        found.append((image, label, np.asarray(image.dataobj), np.asarray(label.dataobj), size))
    return found


# Layout


def test_dataset_json_lists_exactly_what_is_there(task):
    description = json.loads((task / "dataset.json").read_text())
    assert description["modality"] == {"0": "T2", "1": "ADC"}
    assert description["labels"] == {"0": "background", "1": "PZ", "2": "TZ"}
    assert description["tensorImageSize"] == "4D"
    assert "GENERATED DRAWINGS, NOT PATIENTS" in description["description"]
    assert description["numTraining"] == len(description["training"]) == CASES
    assert description["numTest"] == len(description["test"]) == TEST_CASES
    named = [path for entry in description["training"] for path in entry.values()] + description["test"]
    assert sorted(named) == sorted(f"./{path.relative_to(task).as_posix()}" for path in task.rglob("*.nii.gz"))
    first = [entry["image"][-9:-7] for entry in description["training"][:8]]
    assert first == ["00", "01", "02", "04", "06", "07", "10", "13"]


def test_hospitals_json_names_each_case_once(task):
    hospitals = json.loads((task / "hospitals.json").read_text())
    assert list(hospitals) == ["site-1", "site-2", "site-3", "site-4"]
    named = sorted(name for cases in hospitals.values() for name in cases)
    assert named == sorted(path.name[:-7] for path in (task / "labelsTr").iterdir())
    assert {len(cases) for cases in hospitals.values()} == {CASES // 4}


def test_images_and_masks_are_what_msd_has(task, cases):
    for image, label, voxels, mask, size in cases:
        assert voxels.dtype == np.float32 and voxels.ndim == 4 and voxels.shape[3] == 2
        assert mask.dtype == np.uint8 and mask.shape == voxels.shape[:3]
        assert 11 <= mask.shape[2] <= 24
        assert set(np.unique(mask)) <= {0, 1, 2} and (mask > 0).any()
        assert np.isfinite(voxels).all() and voxels.min() >= 0
        assert 1000 < voxels[..., 1].max() <= 3600, "ADC is in 10⁻⁶ mm²/s"
        np.testing.assert_array_equal(image.affine, label.affine)
        lengths = np.linalg.norm(image.affine[:3, :3], axis=0)
        np.testing.assert_allclose([image.header.get_zooms()[:3], size], [lengths, lengths], rtol=1e-5)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert np.linalg.det(image.affine[:3, :3] / lengths) == pytest.approx(1, abs=1e-6)
    for path in (task / "imagesTs").iterdir():
        image = nib.load(path)
        assert image.get_data_dtype() == np.float32 and image.shape[3] == 2


# Anatomy


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


@pytest.fixture(scope="module")
def masks(cases):
    """Mask and voxel size in mm of each case; one of them carries the whole gland as one label."""
    return [(mask, size) for _, _, _, mask, size in cases]


def with_zones(masks):
    return [one for one in masks if (one[0] == 2).any()]


def test_glands_follow_the_real_distribution(masks):
    facts = [measure(*one) for one in masks]
    volume = np.array([fact["volume"] for fact in facts])
    assert volume.min() >= 16 and volume.max() <= 315
    assert volume.mean() == pytest.approx(74, abs=20) and 25 < volume.std() < 75
    assert np.median(volume) < volume.mean(), "a few very large glands, as in life"
    boxes = np.array([fact["box"] for fact in facts])
    assert (boxes.min(0) >= [38, 30, 32]).all() and (boxes.max(0) <= [94, 85.1, 72.1]).all()
    assert np.abs([fact["centre"][:2] for fact in facts]).max() <= 0.06
    assert {9 <= fact["slices"] <= 20 for fact in facts} == {True}
    facts = [measure(*one) for one in with_zones(masks)]
    for zone, low, high in (("peripheral", 6, 36), ("transition", 8, 304)):
        part = np.array([fact[zone] for fact in facts])
        assert part.min() >= low and part.max() <= high, zone


def test_peripheral_zone_is_behind_and_the_apex_is_narrow(masks):
    for mask, size in with_zones(masks):
        peripheral, transition = np.argwhere(mask == 1).mean(0), np.argwhere(mask == 2).mean(0)
        assert (transition - peripheral)[1] * size[1] > 4, "mm that the peripheral zone lies further back"
        areas = (mask > 0).sum((0, 1))
        areas = areas[areas > 0]
        assert areas[0] < 0.6 * areas.max() and areas[-1] < 0.75 * areas.max()


def test_coil_flattens_the_gland(masks):
    boxes = [measure(*one)["box"] for one in masks]
    ratio = np.array([box[1] / box[0] for box in boxes])
    coil = np.array([HOSPITALS[index % 4].coil is not None for index in range(len(masks))])
    assert ratio[coil].max() < 0.72
    assert ratio[coil].mean() < ratio[~coil].mean() - 0.15


def test_masks_look_like_real_ones(masks):
    paths = sorted(REFERENCE.glob("*.nii.gz"))
    if not paths:
        pytest.skip("no reference masks here")
    labels = [nib.load(path) for path in paths]
    real = [measure(np.asarray(label.dataobj), np.array(label.header.get_zooms()[:3])) for label in labels]
    facts = [
        np.array(
            [
                [one["volume"], *one["box"], one["box"][1] / one["box"][0], one["volume"] * 1000 / one["box"].prod()]
                for one in own
            ]
        )
        for own in ([measure(*one) for one in masks], real)
    ]
    ours, theirs = facts
    assert (theirs.min(0) >= 0.9 * ours.min(0)).all() and (theirs.max(0) <= 1.1 * ours.max(0)).all()


def test_two_of_the_32_cases_carry_one_label(monkeypatch, tmp_path):
    one_label = []

    def drawn(rng, style, alone=False):
        one_label.append(alone)
        return np.zeros((2, 2, 2, 2), np.float32), np.zeros((2, 2, 2), np.uint8), np.eye(4)

    monkeypatch.setattr(phantoms, "draw_case", drawn)
    write(tmp_path, 32, 0)
    assert len(one_label) == 32 + TEST_CASES and sum(one_label) == 2


def test_one_label_marks_the_whole_gland():
    _, zones, _ = draw_case(np.random.default_rng(3), HOSPITALS[1])
    _, whole, _ = draw_case(np.random.default_rng(3), HOSPITALS[1], one_label=True)
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
def test_no_threshold_segments_the_gland(cases, central):
    dice = []
    for _, _, voxels, mask, _ in cases[:8]:
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


def test_the_border_of_the_gland_can_be_seen(cases):
    """What is to be learnt is in the image: a capsule darker than the fat around it or, where fat is suppressed, brighter."""
    plane = np.ones((3, 3, 1), bool)
    for style, (_, _, voxels, mask, _) in zip(HOSPITALS * 2, cases[:8], strict=True):
        middle = int(np.argwhere(mask > 0).mean(0)[2])
        t2, gland = (array[:, :, middle - 1 : middle + 2] for array in (voxels[..., 0], mask > 0))
        wider = [ndimage.binary_dilation(gland, plane, steps) for steps in (1, 2, 5)]
        capsule = wider[0] & ~ndimage.binary_erosion(gland, plane, 1)
        ratio = np.median(t2[capsule]) / np.median(t2[wider[2] & ~wider[1]])
        assert ratio > 1.3 if style.fat < 0.2 else ratio < 0.93


def test_hospitals_differ(cases):
    assert len(HOSPITALS) == 4 and len({style.name for style in HOSPITALS}) == 4
    assert sum(style.coil is not None for style in HOSPITALS) == 1
    assert all(128 <= style.matrix <= 160 and 3 <= style.thickness <= 4 for style in HOSPITALS)
    fields = {style.name: style.matrix * style.spacing for style in HOSPITALS}
    assert 130 < fields.pop("site-2") < 140, "a small field, as with an endorectal coil"
    assert all(179 <= field <= 200.1 for field in fields.values())
    top = [np.percentile(voxels[..., 0], 99) for _, _, voxels, _, _ in cases[:8]]
    for style, first, second in zip(HOSPITALS, top[:4], top[4:], strict=True):
        assert 0.5 * style.scale < min(first, second) and max(first, second) < 2.5 * style.scale
    assert max(top) > 20 * min(top)


def test_a_coil_lights_up_what_is_near_and_its_light_falls_by_a_decade_within_the_gland(cases):
    """From the back of the gland, at the coil, to its front; by far less where no coil is."""
    near_over_far = []
    for style, (_, _, voxels, mask, _) in zip(HOSPITALS, cases[:4], strict=True):
        t2 = voxels[..., 0]
        far = t2[: len(t2) // 5, len(t2) // 3 : -len(t2) // 3]
        near_over_far.append(np.median(t2[mask == 1]) / np.median(far[far > 0.1 * np.median(far)]))
        middle = int(np.argwhere(mask > 0).mean(0)[2])
        t2, gland = t2[:, :, middle], mask[:, :, middle] > 0
        rows = np.flatnonzero(gland.any(0))
        back, front = (np.median(t2[:, part][gland[:, part]]) for part in (rows[:6], rows[-6:]))
        assert back > 10 * front if style.coil else back < 6 * front
    assert near_over_far[1] == max(near_over_far)


# The same again


def test_same_seed_same_bytes_and_other_seed_other_voxels(task, tmp_path, monkeypatch):
    monkeypatch.setattr(phantoms, "TEST_CASES", 0)
    folders = {}
    for name, seed in (("same", 0), ("other", 1)):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        write(folders[name], 1, seed)
    for part in ("imagesTr", "labelsTr"):
        before, same, other = (f / part / "prostate_00.nii.gz" for f in (task, folders["same"], folders["other"]))
        assert same.read_bytes() == before.read_bytes()
        assert other.read_bytes() != before.read_bytes()
    assert json.loads((folders["same"] / "hospitals.json").read_text()) == {"site-1": ["prostate_00"]}


def test_parameters_say_what_the_images_are_and_survive_json():
    found = parameters(32, 3)
    assert "drawings, not patients" in found["note"]
    assert (found["version"], found["cases"], found["seed"]) == (VERSION, 32, 3)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(("bad", "value"), [("cases", 0), ("cases", 1.5), ("seed", -1)])
def test_impossible_numbers_are_named_and_nothing_is_written(tmp_path, bad, value):
    with pytest.raises(CourseError, match=f"{bad}={value}.*whole number"):
        write(tmp_path, **{"cases": 4, "seed": 0, bad: value})
    assert not list(tmp_path.iterdir())
