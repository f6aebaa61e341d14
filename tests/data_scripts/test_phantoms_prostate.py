"""The drawn Task05_Prostate: MSD's layout, real shapes, no shortcut by intensity, the same seed for the same files."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from data_scripts.phantoms import prostate as phantoms
from data_scripts.phantoms.prostate import HOSPITALS, SHARED, TEST_CASES, draw_case, write
from tests.tests_support import REFERENCE, course_error

CASES = 12  # three of each hospital


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    write(folder := tmp_path_factory.mktemp("with a space"), CASES, 0)
    return folder


@pytest.fixture(scope="module")
def cases(task) -> list[tuple]:
    """Image, label, and their voxels, of each case."""
    entries = json.loads((task / "dataset.json").read_text())["training"]
    files = [[nib.load(task / entry[key]) for key in ("image", "label")] for entry in entries]
    return [(*pair, *(np.asarray(one.dataobj) for one in pair)) for pair in files]


def test_the_lists_name_exactly_what_is_there(task):
    description = json.loads((task / "dataset.json").read_text())
    right = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "PZ", "2": "TZ"}}
    assert description == {**description, **right, "tensorImageSize": "4D", "numTraining": CASES, "numTest": TEST_CASES}
    assert (len(description["training"]), len(description["test"])) == (CASES, TEST_CASES)
    assert "GENERATED DRAWINGS, NOT PATIENTS" in description["description"]
    named = [path for entry in description["training"] for path in entry.values()] + description["test"]
    assert sorted(named) == sorted(f"./{path.relative_to(task).as_posix()}" for path in task.rglob("*.nii.gz"))
    first = [entry["image"][-9:-7] for entry in description["training"][:8]]
    assert first == ["00", "01", "02", "04", "06", "07", "10", "13"]
    hospitals = json.loads((task / "hospitals.json").read_text())
    assert {site: len(cases) for site, cases in hospitals.items()} == {style.name: CASES // 4 for style in HOSPITALS}
    named = sorted(name for cases in hospitals.values() for name in cases)
    assert named == sorted(path.name[:-7] for path in (task / "labelsTr").iterdir())


def test_images_and_masks_are_what_msd_has(task, cases):
    for image, label, voxels, mask in cases:
        assert (voxels.dtype, mask.dtype, voxels.shape) == (np.float32, np.uint8, (*mask.shape, 2))
        assert 11 <= mask.shape[2] <= 24 and set(np.unique(mask)) <= {0, 1, 2} and (mask > 0).any()
        assert np.isfinite(voxels).all() and voxels.min() >= 0
        assert 1000 < voxels[..., 1].max() <= 3600, "ADC is in 10⁻⁶ mm²/s"
        np.testing.assert_array_equal(image.affine, label.affine)
        lengths = np.linalg.norm(image.affine[:3, :3], axis=0)
        zooms = [image.header.get_zooms()[:3], label.header.get_zooms()]
        np.testing.assert_allclose(zooms, [lengths, lengths], rtol=1e-5)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert np.linalg.det(image.affine[:3, :3] / lengths) == pytest.approx(1, abs=1e-6)
    for image in map(nib.load, (task / "imagesTs").iterdir()):
        assert image.get_data_dtype() == np.float32 and image.shape[3] == 2


def measure(label) -> dict:
    """Volumes in mL, box in mm, centre relative to the image, and slices that show the gland."""
    mask, size = np.asarray(label.dataobj), np.array(label.header.get_zooms()[:3])
    zones = {"volume": mask > 0, "peripheral": mask == 1, "transition": mask == 2}
    found, where = {name: zone.sum() * size.prod() / 1000 for name, zone in zones.items()}, np.argwhere(mask > 0)
    box, centre = (np.ptp(where, axis=0) + 1) * size, (where.mean(0) + 0.5) / mask.shape - 0.5
    found |= {"box": box, "centre": centre, "slices": len(np.unique(where[:, 2]))}
    return found | {"form": [found["volume"], *box, box[1] / box[0], found["volume"] * 1000 / box.prod()]}


@pytest.fixture(scope="module")
def facts(cases) -> dict[str, np.ndarray]:
    found = [measure(label) for _, label, _, _ in cases]
    return {name: np.array([one[name] for one in found]) for name in found[0]}


def test_glands_follow_the_real_distribution_their_peripheral_zone_behind_and_their_apex_narrow(facts, cases):
    volume, zones = facts["volume"], facts["transition"] > 0
    assert volume.min() >= 16 and volume.max() <= 315
    assert volume.mean() == pytest.approx(74, abs=20) and 25 < volume.std() < 75
    assert np.median(volume) < volume.mean(), "a few very large glands, as in life"
    assert (facts["box"].min(0) >= [38, 30, 32]).all() and (facts["box"].max(0) <= [94, 85.1, 72.1]).all()
    assert np.abs(facts["centre"][:, :2]).max() <= 0.06 and facts["slices"].min() >= 9 and facts["slices"].max() <= 20
    for zone, low, high in (("peripheral", 6, 36), ("transition", 8, 304)):
        part = facts[zone][zones]  # one case carries the whole gland as one label
        assert part.min() >= low and part.max() <= high, zone
    ratio, coil = facts["box"][:, 1] / facts["box"][:, 0], np.arange(CASES) % 4 == 1
    assert ratio[coil].max() < 0.72 and ratio[coil].mean() < ratio[~coil].mean() - 0.15, "a coil flattens the gland"
    for _, label, _, mask in cases:
        areas = (mask > 0).sum((0, 1))
        areas = areas[areas > 0]
        assert areas[0] < 0.6 * areas.max() and areas[-1] < 0.75 * areas.max()
        if (mask == 2).any():
            further_back = np.argwhere(mask == 2).mean(0) - np.argwhere(mask == 1).mean(0)
            assert further_back[1] * label.header.get_zooms()[1] > 4, "mm"


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference masks here")
def test_masks_look_like_real_ones(facts):
    real = [nib.load(path) for path in REFERENCE.glob("msd_prostate_labels/*.nii.gz")]
    ours, theirs = facts["form"], np.array([measure(label)["form"] for label in real])
    assert (theirs.min(0) >= 0.9 * ours.min(0)).all() and (theirs.max(0) <= 1.15 * ours.max(0)).all()


def test_two_of_the_32_cases_carry_one_label_that_marks_the_whole_gland(monkeypatch, tmp_path):
    (_, zones, _), (_, whole, _) = (draw_case(np.random.default_rng(3), HOSPITALS[1], alone) for alone in (False, True))
    np.testing.assert_array_equal(whole, (zones > 0).astype(np.uint8))
    one_label = []

    def drawn(rng, style, alone, how):
        one_label.append(alone)
        return np.zeros((2, 2, 2, 2), np.float32), np.zeros((2, 2, 2), np.uint8), np.eye(4)

    monkeypatch.setattr(phantoms, "draw_case", drawn)
    write(tmp_path, 32, 0)
    assert len(one_label) == 32 + TEST_CASES and sum(one_label) == 2
    hospitals = json.loads((tmp_path / "hospitals.json").read_text())
    assert [len(cases) for cases in hospitals.values()] == [10, 8, 8, 6], "unequal numbers, as their shares"


def test_an_outline_of_ones_own_changes_the_mask_as_its_protocol_says_and_never_the_image(tmp_path):
    rows = {}
    for style in HOSPITALS:
        shared, own = (draw_case(np.random.default_rng(7), style, how=how) for how in (SHARED, style.own))
        np.testing.assert_array_equal(own[0], shared[0])
        (few, many), ends = (
            sorted([(shared[1] > 0).sum(), (own[1] > 0).sum()]),
            [(m[1] > 0).any((0, 1)).sum() for m in (shared, own)],
        )
        rows[style.name] = few / many, ends[1] - ends[0]
    assert rows["site-1"] == (1, 0) and all(0.4 < rows[site][0] < 0.9 for site in ("site-2", "site-3", "site-4"))
    assert rows["site-3"][1] > 0 > rows["site-4"][1], "slices at both ends"
    course_error("outlines='mine'; it is 'shared'", write, tmp_path, 1, 0, "mine")


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
    for _, _, voxels, mask in cases[:8]:
        t2, gland = voxels[..., 0], mask > 0
        levels = np.percentile(t2, np.linspace(0, 100, 101))
        levels[-1] += 1
        edge = mask.shape[0] // 4 if central else 0
        middle = slice(edge, mask.shape[0] - edge)
        t2, part = t2[middle, middle], gland[middle, middle]
        dice.append(best_threshold_dice(t2.ravel(), part.ravel(), gland.sum(), levels))
    dice = np.array(dice)
    assert dice.max() > 0.1, "the search itself works"
    assert dice.mean(0).max() <= 0.5, "one interval for all cases"
    assert dice.max((1, 2)).mean() <= 0.5, "even the best interval of each case"


def test_the_border_of_the_gland_can_be_seen(cases):
    """What is to be learnt is in the image: a capsule darker than the fat around it or, where fat is suppressed, brighter."""
    plane = np.ones((3, 3, 1), bool)
    for style, (_, _, voxels, mask) in zip(HOSPITALS * 2, cases[:8], strict=True):
        middle = int(np.argwhere(mask > 0).mean(0)[2])
        t2, gland = (array[:, :, middle - 1 : middle + 2] for array in (voxels[..., 0], mask > 0))
        wider = [ndimage.binary_dilation(gland, plane, steps) for steps in (1, 2, 5)]
        capsule = wider[0] & ~ndimage.binary_erosion(gland, plane, 1)
        ratio = np.median(t2[capsule]) / np.median(t2[wider[2] & ~wider[1]])
        assert ratio > 1.15 if style.fat < 0.2 else ratio < 0.93


def test_hospitals_differ_and_the_light_of_a_coil_falls_by_a_decade_within_the_gland(cases):
    """From the back of the gland, at the coil, to its front; by far less where no coil is."""
    assert [style.name for style in HOSPITALS if style.coil] == ["site-2"]
    assert all(128 <= style.matrix <= 160 and 3 <= style.thickness <= 4 for style in HOSPITALS)
    fields = {style.name: style.matrix * style.spacing for style in HOSPITALS}
    assert len(fields) == 4 and 130 < fields.pop("site-2") < 140, "a small field, as with an endorectal coil"
    assert all(179 <= field <= 200.1 for field in fields.values())
    top = [np.percentile(voxels[..., 0], 99) for _, _, voxels, _ in cases[:8]]
    assert all(0.5 * style.scale < one < 2.5 * style.scale for style, one in zip(HOSPITALS * 2, top, strict=True))
    assert max(top) > 20 * min(top)
    near_over_far = []
    for style, (_, _, voxels, mask) in zip(HOSPITALS, cases[:4], strict=True):
        t2 = voxels[..., 0]
        far = t2[: len(t2) // 5, len(t2) // 3 : -len(t2) // 3]
        near_over_far.append(np.median(t2[mask == 1]) / np.median(far[far > 0.1 * np.median(far)]))
        middle = int(np.argwhere(mask > 0).mean(0)[2])
        t2, gland = t2[:, :, middle], mask[:, :, middle] > 0
        rows = np.flatnonzero(gland.any(0))
        back, front = (np.median(t2[:, part][gland[:, part]]) for part in (rows[:6], rows[-6:]))
        assert back > 10 * front if style.coil else back < 6 * front
    assert near_over_far[1] == max(near_over_far)


def test_same_seed_same_bytes_and_other_seed_other_voxels(task, tmp_path, monkeypatch):
    monkeypatch.setattr(phantoms, "TEST_CASES", 0)
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        write(tmp_path / str(seed), 1, seed)
    for part in ("imagesTr", "labelsTr"):
        folders = (task, tmp_path / "0", tmp_path / "1")
        before, same, other = ((folder / part / "prostate_00.nii.gz").read_bytes() for folder in folders)
        assert before == same != other
    assert json.loads((tmp_path / "0" / "hospitals.json").read_text()) == {"site-1": ["prostate_00"]}
