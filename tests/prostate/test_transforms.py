"""From NIfTI to network: geometry in millimetres, intensities of any scanner, the cache, and files that cannot be used."""

import contextlib
import gzip
import os
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from src.common.errors import CourseError
from src.common.seeds import site_seed
from src.prostate import transforms
from src.prostate.card import Settings
from src.prostate.transforms import LoadCase, augmentation, batches, normalise, prepare
from tests.tests_support import FULL, ball_case, course_error, failing, flipped_bit, rows

SETTINGS = Settings(voxel_spacing=(2.0, 2.0, 3.0), field_of_view=(64.0, 64.0), patch_size=(32, 32, 16))
KEYS = ("image", "label", "affine")


@pytest.fixture
def prepared(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a case in which all is well warns of nothing
        return prepare([ball_case(tmp_path)], SETTINGS)[0]


@rows(
    ("RAS", (1.0, 1.0, 3.0), (80, 80, 20), "RAS"),
    ("LPS", (1.0, 1.0, 3.0), (80, 80, 20), "LPS"),
    ("PIR", (0.5, 0.5, 4.0), (160, 160, 15), "PIR"),
    ("LAS", (1.5, 1.5, 1.5), (54, 54, 40), "LAS"),
)
def test_the_gland_stays_where_it_is_in_the_patient(spacing, shape, codes, tmp_path):
    """x goes to the right and y to the front, as the text of ``preparation`` says, whatever way the scanner stored it."""
    (prepared,) = prepare([ball_case(tmp_path, "case", spacing, shape, codes=codes)], SETTINGS)
    image, label, affine = (prepared[key] for key in KEYS)
    assert set(prepared) == {*KEYS, "case"} and prepared["case"] == "case"
    assert image.dtype == torch.float32 and label.dtype == torch.uint8
    assert image.shape == label.shape and image.shape[1:3] == (32, 32)
    voxel = torch.nonzero(label[0]).double().mean(dim=0)
    np.testing.assert_allclose((affine[:3, :3] @ voxel + affine[:3, 3]).numpy(), (4.0, -6.0, 3.0), atol=0.6)
    assert float(label.sum()) * 2 * 2 * 3 == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.08)
    assert image[label > 0].mean() > image[label == 0].mean() + 0.5
    assert nib.aff2axcodes(affine.numpy()) == ("R", "A", "S")
    away = voxel.numpy() - (np.array(label.shape[1:]) - 1) / 2
    assert away[0] > 0.5 > -0.5 > away[1]  # the ball lies right of the middle and behind it
    assert "RAS" in transforms.preparation.__doc__ and "right, y to the front" in transforms.preparation.__doc__


def test_a_scanner_with_other_units_gives_the_same_volume_whose_darkest_voxels_lie_below_the_mean(tmp_path):
    image, scaled = (prepare([ball_case(tmp_path / str(k), scale=k)], SETTINGS)[0]["image"] for k in (1.0, 200.0))
    torch.testing.assert_close(image, scaled, rtol=0, atol=1e-4)
    assert (float(image.min()), float(image.max())) == (0.0, 1.0)
    assert (image == 0).sum() > 10, "the percentiles have set some voxels to 0"
    normalised = normalise({"image": image})["image"]
    assert float(normalised.mean()) == pytest.approx(0, abs=1e-4)
    assert float(normalised.std()) == pytest.approx(1, abs=1e-2)
    due = -float(image.mean() / image.std(correction=0))
    assert due < -0.3 and normalised[image == 0].numpy() == pytest.approx(due, abs=1e-3)


def test_fine_noise_does_not_become_coarse_noise(tmp_path):
    loaded = LoadCase()(ball_case(tmp_path, spacing=(0.5, 0.5, 3.0), shape=(160, 160, 20)))["image"]
    smoothed = transforms.smooth_before_coarser(loaded, SETTINGS.voxel_spacing)
    corner = (slice(None), slice(0, 40), slice(0, 40), slice(8, 12))
    assert smoothed[corner].std() < 0.4 * loaded[corner].std()
    torch.testing.assert_close(transforms.smooth_before_coarser(loaded, (0.25, 0.25, 1.0)), loaded)


def test_a_field_may_be_small_or_all_and_a_cut_gland_and_an_empty_mask_are_told_by_name(tmp_path):
    small = ball_case(tmp_path, spacing=(1.0, 1.0, 3.0), shape=(40, 40, 5), centre=(0, 0, 0), radius=6)
    assert prepare([small], SETTINGS)[0]["image"].shape == (1, 32, 32, 16), "it is padded to a patch"
    assert prepare([ball_case(tmp_path)], SETTINGS.changed(field_of_view=(0, 0)))[0]["image"].shape == (1, 40, 40, 20)
    item = ball_case(tmp_path, name="prostate_07", shape=(120, 120, 20), centre=(30.0, 0, 0))
    with pytest.warns(UserWarning, match=r"site-x: .*cuts \d+\.\d% of the gland of prostate_07; enlarge field_of_view"):
        prepare([item], SETTINGS)
    with pytest.warns(UserWarning, match="site-x: the mask of prostate_09 is empty"):
        (prepared,) = prepare([ball_case(tmp_path, name="prostate_09", radius=0)], SETTINGS)
    assert not prepared["label"].any()


def of_another_shape(file: Path) -> None:
    Path(ball_case(file.parent / "b", shape=(80, 80, 21))["label"]).replace(file)


DAMAGED = "cannot be read: it may be damaged, "


@rows(
    ("half a file", "image", lambda file: os.truncate(file, file.stat().st_size // 2), DAMAGED),
    ("an empty file", "image", lambda file: os.truncate(file, 0), DAMAGED),
    ("no NIfTI", "label", lambda file: file.write_bytes(gzip.compress(b"no volume" * 99)), DAMAGED),
    ("a flipped bit", "label", flipped_bit, DAMAGED + "CRC"),
    ("no file", "image", Path.unlink, "cannot be read: No such file or directory"),
    ("another shape", "label", of_another_shape, "has shape (80, 80, 21), its image (80, 80, 20)"),
)
def test_a_file_that_cannot_be_used_is_named_with_its_site(key, fault, said, tmp_path):
    """More such files are in ``test_what_people_bring.py``."""
    item = ball_case(tmp_path)
    fault(Path(item[key]))
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(CourseError) as caught:
            prepare([item], SETTINGS, cache)
        assert str(caught.value).startswith(f"site-x: {item[key]}: {said}")
        assert str(caught.value).endswith("data_conversion.sh first, or take it out of the datalist.")
        # What may leave the site says nothing of which file, which case or where.
        assert caught.value.kind == {"image": "an image cannot be used", "label": "a mask cannot be used"}[key]


@pytest.fixture
def loads(monkeypatch):
    """Counts how often a case is read from its own files."""
    seen, original = [], LoadCase.__call__
    monkeypatch.setattr(LoadCase, "__call__", lambda self, item: seen.append(item["image"]) or original(self, item))
    return seen


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "the site's" / "cache"


@pytest.mark.parametrize("change", ["voxel_spacing", "field_of_view", "patch_size", "image", "label", "version", ""])
def test_a_second_run_prepares_anew_what_changed_and_no_more(tmp_path, cache, loads, monkeypatch, change):
    item = ball_case(tmp_path)
    other = {"voxel_spacing": (2.5, 2.5, 3.0), "field_of_view": (72.0, 72.0), "patch_size": (48, 32, 16)}
    first, again = (prepare([item], SETTINGS, cache)[0] for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in KEYS) and len(loads) == 1
    assert {file.suffix for file in cache.iterdir()} == {".pt"}
    # The volumes depend on none of these.
    settings = SETTINGS.changed(learning_rate=0.1, rounds=3, seed=5, augmentation=False)
    if change in other:
        settings = settings.changed(**{change: other[change]})
    elif change == "version":
        monkeypatch.setattr(transforms, "VERSION", transforms.VERSION + 1)
    elif change:  # the same size and other content, as after an edit in place
        os.utime(item[change], (1, 1))
    prepare([item], settings, cache)
    assert len(loads) == (2 if change else 1)


@pytest.mark.parametrize("length", [0, 4, 1000, -10])
def test_after_a_damaged_cache_file_the_cache_is_made_again(tmp_path, cache, loads, monkeypatch, length):
    item = ball_case(tmp_path)
    before, (first,) = sorted(tmp_path.rglob("*")), prepare([item], SETTINGS)
    assert loads.pop() and sorted(tmp_path.rglob("*")) == before, "without a cache nothing is written"
    with failing(monkeypatch, torch, "save", KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        prepare([item], SETTINGS, cache)
    assert loads.pop() and not list(cache.glob("*")), "an interruption leaves no half a cache"
    prepare([item], SETTINGS, cache)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:length])
    for said in ("ignore", "error", "error"):  # who warns first, MONAI or this course, depends on where the file ends
        with warnings.catch_warnings():
            warnings.simplefilter(said)
            assert torch.equal(first["image"], prepare([item], SETTINGS, cache)[0]["image"])
    assert len(loads) in (2, 3)


OF_TORCH = RuntimeError("[enforce fail] . unexpected pos 64 vs 0")


@pytest.mark.parametrize("fault", [FULL, OF_TORCH, None], ids=["a full disk", "torch on one", "a file is in its place"])
def test_what_cannot_be_written_costs_only_the_cache(tmp_path, cache, monkeypatch, fault):
    if fault is None:
        cache.parent.write_text("")
    broken = failing(monkeypatch, torch, "save", fault) if fault else contextlib.nullcontext()
    with broken, pytest.warns(UserWarning, match=r"cannot use the cache .*; preparing in memory"):
        (prepared,) = prepare([ball_case(tmp_path)], SETTINGS, cache)
    assert prepared["label"].any() and not list(cache.glob("*"))


def test_patches_are_what_the_network_takes_and_the_kept_volume_is_never_written_to(prepared):
    before = {key: prepared[key].clone() for key in ("image", "label")}
    random, with_gland = augmentation(SETTINGS), 0
    random.set_random_state(3)
    for _ in range(20):
        (patch,) = random(prepared)
        image, gland = patch["image"], patch["label"] > 0
        assert image.shape == gland.shape == (1, *SETTINGS.patch_size)
        assert type(image) is torch.Tensor and torch.isfinite(image).all()
        assert set(patch["label"].unique().tolist()) <= {0, 1}
        if gland.any():
            with_gland += 1
            assert image[gland].mean() > image[~gland].mean() + 1, "image and mask move together"
    assert with_gland > 8 and all(torch.equal(prepared[key], before[key]) for key in before)


def test_every_case_is_in_every_epoch_the_seed_fixes_all_and_validation_sees_whole_volumes_in_order(tmp_path):
    cases = prepare([ball_case(tmp_path, f"c{i}", radius=5.0 + 2 * i, seed=i) for i in range(3)], SETTINGS)

    def two_epochs(site):
        loader = batches(cases, SETTINGS, train=True, seed=site_seed(0, site))
        epochs = [[batch["image"] for batch in loader] for _ in range(2)]
        assert [len(images) for epoch in epochs for images in epoch] == [2, 1, 2, 1]
        return torch.stack([torch.cat(epoch) for epoch in epochs])

    once, again, elsewhere = (two_epochs(site) for site in ("site-1", "site-1", "site-2"))
    assert torch.equal(once, again) and not torch.equal(once[0], once[1]) and not torch.equal(once, elsewhere)
    loaded = list(batches(cases, SETTINGS, train=False))
    assert [set(batch) for batch in loaded] == [{"image", "label"}] * 3
    for batch, case in zip(loaded, cases, strict=True):
        assert torch.equal(batch["label"][0], case["label"])
        torch.testing.assert_close(batch["image"][0], normalise({"image": case["image"]})["image"])
    assert not list(batches([], SETTINGS, train=False))
    course_error("no case to train on", batches, [], SETTINGS, train=True)


def test_each_kind_of_augmentation_changes_something_and_all_can_be_turned_off(tmp_path, prepared):
    (fits,) = prepare([ball_case(tmp_path, shape=(64, 64, 16), spacing=(1.0, 1.0, 3.0))], SETTINGS)
    (patch,) = augmentation(SETTINGS.changed(augmentation=False))(fits)
    torch.testing.assert_close(patch["image"], torch.as_tensor(normalise({"image": fits["image"]})["image"]))
    steps = {type(step).__name__: step for step in augmentation(SETTINGS).transforms if hasattr(step, "prob")}
    assert {"RandBiasFieldd", "RandAdjustContrastd", "RandFlipd", "RandAffined", "RandGaussianNoised"} <= set(steps)
    for name, step in steps.items():
        step.set_random_state(0)
        for random in (step, *(value for value in vars(step).values() if hasattr(value, "prob"))):
            random.prob = 1.0
        after = step({key: prepared[key].clone() for key in ("image", "label")})
        assert not torch.equal(torch.as_tensor(after["image"]).float(), prepared["image"]), name
