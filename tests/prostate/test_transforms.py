"""From NIfTI to network: geometry in millimetres, intensities of any scanner, the cache, and files that cannot be used."""

import errno
import gzip
import os
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from src.common.errors import CourseError
from src.common.seeds import site_seed
from src.prostate import transforms
from src.prostate.card import Settings
from src.prostate.transforms import Normalise, augmentation, batches, prepare
from tests.tests_support import ball_case

SETTINGS = Settings(voxel_spacing=(2.0, 2.0, 3.0), field_of_view=(64.0, 64.0), patch_size=(32, 32, 16))


def centroid_mm(prepared):
    voxels = torch.nonzero(prepared["label"][0]).double().mean(dim=0)
    return (prepared["affine"][:3, :3] @ voxels + prepared["affine"][:3, 3]).numpy()


# -- the part that is the same each time -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "spacing", "shape"),
    [
        ("RAS", (1.0, 1.0, 3.0), (80, 80, 20)),
        ("LPS", (1.0, 1.0, 3.0), (80, 80, 20)),
        ("PIR", (0.5, 0.5, 4.0), (160, 160, 15)),
        ("LAS", (1.5, 1.5, 1.5), (54, 54, 40)),
    ],
)
def test_the_gland_stays_where_it_is_in_the_patient(tmp_path, codes, spacing, shape):
    item = ball_case(tmp_path, codes=codes, spacing=spacing, shape=shape)
    (prepared,) = prepare([item], SETTINGS)
    assert set(prepared) == {"image", "label", "affine", "case"} and prepared["case"] == "case"
    assert prepared["image"].dtype == torch.float32 and prepared["label"].dtype == torch.uint8
    assert prepared["image"].shape == prepared["label"].shape
    assert prepared["image"].shape[1:3] == (32, 32)
    np.testing.assert_allclose(centroid_mm(prepared), (4.0, -6.0, 3.0), atol=0.6)
    volume = float(prepared["label"].sum()) * 2 * 2 * 3
    assert volume == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.08)
    inside = prepared["image"][prepared["label"] > 0].mean()
    assert inside > prepared["image"][prepared["label"] == 0].mean() + 0.5


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_x_goes_to_the_right_and_y_to_the_front(tmp_path, codes):
    """As the text of ``preparation`` says, whatever way the scanner stored it."""
    (prepared,) = prepare([ball_case(tmp_path, codes=codes)], SETTINGS)
    assert nib.aff2axcodes(prepared["affine"].numpy()) == ("R", "A", "S")
    middle = (np.array(prepared["label"].shape[1:]) - 1) / 2
    away = torch.nonzero(prepared["label"][0]).double().mean(dim=0).numpy() - middle
    assert away[0] > 0.5 > -0.5 > away[1]  # the ball lies right of the middle and behind it
    assert "RAS" in transforms.preparation.__doc__ and "right, y to the front" in transforms.preparation.__doc__


def test_a_scanner_with_other_units_gives_the_same_volume(tmp_path):
    plain = prepare([ball_case(tmp_path / "a")], SETTINGS)[0]["image"]
    scaled = prepare([ball_case(tmp_path / "b", scale=200.0)], SETTINGS)[0]["image"]
    torch.testing.assert_close(plain, scaled, rtol=0, atol=1e-4)
    assert (float(plain.min()), float(plain.max())) == (0.0, 1.0)


def test_the_darkest_voxels_lie_below_the_mean(tmp_path):
    (prepared,) = prepare([ball_case(tmp_path)], SETTINGS)
    image = prepared["image"]
    assert (image == 0).sum() > 10, "the percentiles have set some voxels to 0"
    normalised = Normalise()({"image": image})["image"]
    assert float(normalised.mean()) == pytest.approx(0, abs=1e-4)
    assert float(normalised.std()) == pytest.approx(1, abs=1e-2)
    due = -float(image.mean() / image.std(correction=0))
    assert due < -0.3
    assert normalised[image == 0].numpy() == pytest.approx(due, abs=1e-3)


def test_fine_noise_does_not_become_coarse_noise(tmp_path):
    item = ball_case(tmp_path, spacing=(0.5, 0.5, 3.0), shape=(160, 160, 20))
    steps = transforms.preparation(SETTINGS).transforms
    loaded = steps[1](steps[0](item))
    smoothed = steps[2](dict(loaded))["image"]
    corner = (slice(None), slice(0, 40), slice(0, 40), slice(8, 12))
    assert smoothed[corner].std() < 0.4 * loaded["image"][corner].std()
    finer = transforms.SmoothBeforeCoarser("image", (0.25, 0.25, 1.0))(dict(loaded))["image"]
    torch.testing.assert_close(finer, loaded["image"])


def test_a_coils_falloff_is_divided_out(tmp_path):
    """A coil behind the gland, twenty times as bright there as in front: the correction leaves a fifth of the falloff or less."""
    item = ball_case(tmp_path)
    image = nib.load(item["image"])
    behind = np.linspace(0, 1, image.shape[1])[None, :, None]
    nib.save(nib.Nifti1Image(image.get_fdata() * 20 ** (1 - behind), image.affine), item["image"])
    even, uneven = (
        prepare([item], SETTINGS.changed(coil_correction=width, field_of_view=(0, 0)))[0] for width in (12.0, 0.0)
    )

    def ratio(prepared):
        outside = torch.where(prepared["label"] > 0, torch.nan, prepared["image"])
        return float(outside[:, :, 4:8].nanmean() / outside[:, :, -8:-4].nanmean())

    assert ratio(uneven) > 15 and ratio(even) < ratio(uneven) / 5
    inside = even["image"][even["label"] > 0].mean()
    assert inside > even["image"][even["label"] == 0].mean() + 0.2, "the gland is still to be seen"


def test_an_image_of_zeros_stays_one(tmp_path):
    zeros = {"image": MetaTensor(torch.zeros(1, 8, 8, 4))}
    assert not transforms.CorrectCoil("image", 10.0)(zeros)["image"].any()


def test_a_small_field_is_padded_to_a_patch(tmp_path):
    item = ball_case(tmp_path, spacing=(1.0, 1.0, 3.0), shape=(40, 40, 5), centre=(0, 0, 0), radius=6)
    assert prepare([item], SETTINGS)[0]["image"].shape == (1, 32, 32, 16)


def test_a_field_of_0_keeps_all(tmp_path):
    whole = SETTINGS.changed(field_of_view=(0, 0))
    assert prepare([ball_case(tmp_path)], whole)[0]["image"].shape == (1, 40, 40, 20)


def test_a_cut_gland_is_told_by_name(tmp_path):
    item = ball_case(tmp_path, name="prostate_07", shape=(120, 120, 20), centre=(30.0, 0, 0))
    with pytest.warns(UserWarning, match=r"site-x: .*cuts \d+\.\d% of the gland of prostate_07; enlarge field_of_view"):
        prepare([item], SETTINGS)


def test_an_empty_mask_is_told_by_name(tmp_path):
    item = ball_case(tmp_path, name="prostate_09", radius=0)
    with pytest.warns(UserWarning, match="site-x: the mask of prostate_09 is empty"):
        (prepared,) = prepare([item], SETTINGS)
    assert not prepared["label"].any()


def test_a_case_without_a_mask_can_be_prepared_for_a_prediction(tmp_path):
    item = {key: value for key, value in ball_case(tmp_path).items() if key != "label"}
    (prepared,) = prepare([item], SETTINGS)
    assert set(prepared) == {"image", "affine", "case"}


def test_a_normal_case_warns_of_nothing(tmp_path):
    item = ball_case(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared = prepare([item], SETTINGS)
        augmentation(SETTINGS)(prepared[0])


# -- files that cannot be used -----------------------------------------------------------------------------------------


def refusal(items, **changes) -> CourseError:
    with pytest.raises(CourseError) as caught:
        prepare(items, SETTINGS.changed(**changes))
    # What may leave the site says nothing of which file, which case or where.
    assert "case" not in caught.value.kind and "/" not in caught.value.kind
    return caught.value


def test_a_corrupt_file_is_named_with_its_site(tmp_path):
    item = ball_case(tmp_path)
    packed = Path(item["image"]).read_bytes()
    Path(item["image"]).write_bytes(packed[: len(packed) // 2])
    error = refusal([item])
    assert str(error).startswith(
        f"site-x: {item['image']}: cannot be read as NIfTI, it may be damaged ("
    ) and "datalist" in str(error)
    assert error.kind == "an image cannot be used"


def test_a_file_that_is_no_nifti_is_named(tmp_path):
    item = ball_case(tmp_path)
    with gzip.open(item["label"], "wb") as file:
        file.write(b"not a volume" * 100)
    assert str(refusal([item])).startswith(f"site-x: {item['label']}: cannot be read as NIfTI, it may be damaged (")


def test_a_mask_of_another_shape_is_named(tmp_path):
    item = ball_case(tmp_path / "a")
    item["label"] = ball_case(tmp_path / "b", shape=(80, 80, 21))["label"]
    error = refusal([item])
    assert f"site-x: {item['label']}: has shape (80, 80, 21), its image (80, 80, 20)" in str(error)
    assert error.kind == "a mask cannot be used"


def test_a_missing_file_is_named(tmp_path):
    item = {**ball_case(tmp_path), "image": str(tmp_path / "gone.nii.gz")}
    error = refusal([item])
    assert "gone.nii.gz: cannot be read: No such file or directory" in str(error)
    assert error.kind == "an image cannot be used"


# -- the cache ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def loads(monkeypatch):
    """Counts how often a case is read from its own files."""
    seen = []
    original = transforms.LoadCase.__call__

    def counting(self, item):
        seen.append(item["image"])
        return original(self, item)

    monkeypatch.setattr(transforms.LoadCase, "__call__", counting)
    return seen


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "the site's" / "cache"


def test_a_second_run_finds_the_volumes_again(tmp_path, cache, loads):
    item = ball_case(tmp_path)
    first, second = (prepare([item], SETTINGS, cache)[0] for _ in range(2))
    assert len(loads) == 1
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in ("image", "label", "affine"))
    assert {file.suffix for file in cache.iterdir()} == {".pt"}


@pytest.mark.parametrize("change", ["voxel_spacing", "field_of_view", "patch_size", "image", "label", "version"])
def test_what_changed_is_prepared_anew(tmp_path, cache, loads, monkeypatch, change):
    item = ball_case(tmp_path)
    prepare([item], SETTINGS, cache)
    other = {"voxel_spacing": (2.5, 2.5, 3.0), "field_of_view": (72.0, 72.0), "patch_size": (48, 32, 16)}
    if change in other:
        prepare([item], SETTINGS.changed(**{change: other[change]}), cache)
    elif change == "version":
        monkeypatch.setattr(transforms, "VERSION", transforms.VERSION + 1)
        prepare([item], SETTINGS, cache)
    else:  # the same size and other content, as after an edit in place
        os.utime(item[change], (1, 1))
        prepare([item], SETTINGS, cache)
    assert len(loads) == 2


def test_what_does_not_matter_to_the_volumes_is_not_asked(tmp_path, cache, loads):
    item = ball_case(tmp_path)
    for settings in (SETTINGS, SETTINGS.changed(learning_rate=0.1, rounds=3, seed=5, augmentation=False)):
        prepare([item], settings, cache)
    assert len(loads) == 1


@pytest.mark.parametrize("length", [0, 4, 1000, -10])
def test_after_a_damaged_cache_file_the_cache_is_made_again(tmp_path, cache, loads, length):
    item = ball_case(tmp_path)
    first = prepare([item], SETTINGS, cache)[0]
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:length])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # who warns, MONAI or this course, depends on where the file ends
        again = prepare([item], SETTINGS, cache)[0]
    assert torch.equal(first["image"], again["image"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert torch.equal(first["image"], prepare([item], SETTINGS, cache)[0]["image"])
    assert len(loads) in (2, 3)


def test_without_a_cache_nothing_is_written(tmp_path, loads):
    item = ball_case(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):
        prepare([item], SETTINGS)
    assert len(loads) == 2
    assert sorted(tmp_path.rglob("*")) == before


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def torchs_full_disk(*args, **kwargs):
    raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0 (could not write)")


@pytest.mark.parametrize("fault", [full_disk, torchs_full_disk])
def test_a_full_disk_costs_only_the_cache(tmp_path, cache, monkeypatch, fault):
    monkeypatch.setattr(torch, "save", fault)
    with pytest.warns(UserWarning, match=r"cannot use the cache .*; preparing in memory"):
        (prepared,) = prepare([ball_case(tmp_path)], SETTINGS, cache)
    assert prepared["label"].any()
    assert not list(cache.iterdir())


def test_an_interrupted_write_leaves_nothing(tmp_path, cache, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare([ball_case(tmp_path)], SETTINGS, cache)
    assert not list(cache.iterdir())


def test_a_folder_that_cannot_be_made_costs_only_the_cache(tmp_path, cache):
    cache.parent.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot use the cache"):
        (prepared,) = prepare([ball_case(tmp_path)], SETTINGS, cache)
    assert prepared["label"].any()


def test_a_broken_case_is_named_with_a_cache_as_without(tmp_path, cache):
    item = ball_case(tmp_path)
    Path(item["image"]).write_bytes(b"")
    with pytest.raises(CourseError, match=r"site-x: .*case\.nii\.gz: cannot be read"):
        prepare([item], SETTINGS, cache)


# -- the random part ---------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path):
    return prepare([ball_case(tmp_path)], SETTINGS)[0]


def test_a_patch_is_what_the_network_takes(prepared):
    random = augmentation(SETTINGS)
    random.set_random_state(0)
    for _ in range(10):
        (patch,) = random(prepared)
        assert patch["image"].shape == patch["label"].shape == (1, *SETTINGS.patch_size)
        assert type(patch["image"]) is torch.Tensor and torch.isfinite(patch["image"]).all()
        assert set(patch["label"].unique().tolist()) <= {0, 1}


def test_every_case_is_in_every_epoch_and_the_seed_fixes_all(tmp_path):
    cases = prepare([ball_case(tmp_path, f"c{i}", radius=5.0 + 2 * i, seed=i) for i in range(3)], SETTINGS)

    def two_epochs(seed):
        loader = batches(cases, SETTINGS, train=True, seed=seed)
        epochs = [list(loader), list(loader)]
        assert [len(batch["image"]) for epoch in epochs for batch in epoch] == [2, 1, 2, 1]
        return [torch.cat([batch["image"] for batch in epoch]) for epoch in epochs]

    once, again = two_epochs(1), two_epochs(1)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not torch.equal(once[0], once[1])
    sites = [two_epochs(site_seed(0, site))[0] for site in ("site-1", "site-2")]
    assert not torch.equal(*sites)


def test_validation_sees_whole_volumes_in_order(tmp_path):
    cases = prepare([ball_case(tmp_path, f"c{i}", radius=5.0 + 5 * i) for i in range(2)], SETTINGS)
    loaded = list(batches(cases, SETTINGS, train=False))
    assert [set(batch) for batch in loaded] == [{"image", "label"}] * 2
    for batch, case in zip(loaded, cases, strict=True):
        assert torch.equal(batch["label"][0], case["label"])
        torch.testing.assert_close(batch["image"][0], Normalise()({"image": case["image"]})["image"])
    assert len(batches([], SETTINGS, train=False)) == 0
    with pytest.raises(CourseError, match="no case to train on"):
        batches([], SETTINGS, train=True)


def test_the_kept_volume_is_never_written_to(prepared):
    before = {key: prepared[key].clone() for key in ("image", "label")}
    random = augmentation(SETTINGS)
    random.set_random_state(0)
    for _ in range(20):
        random(prepared)
    Normalise()(prepared)
    assert all(torch.equal(prepared[key], before[key]) for key in before)


def test_image_and_mask_move_together(prepared):
    random = augmentation(SETTINGS)
    random.set_random_state(3)
    with_gland = 0
    for _ in range(10):
        (patch,) = random(prepared)
        gland = patch["label"] > 0
        if gland.any():
            with_gland += 1
            assert patch["image"][gland].mean() > patch["image"][~gland].mean() + 1
    assert with_gland > 4


def test_augmentation_can_be_turned_off(tmp_path):
    (prepared,) = prepare([ball_case(tmp_path, shape=(64, 64, 16), spacing=(1.0, 1.0, 3.0))], SETTINGS)
    plain = augmentation(SETTINGS.changed(augmentation=False))
    first, second = plain(prepared)[0]["image"], plain(prepared)[0]["image"]
    assert torch.equal(first, second)
    torch.testing.assert_close(first, torch.as_tensor(Normalise()({"image": prepared["image"]})["image"]))


def test_each_kind_of_augmentation_changes_something(prepared):
    random = augmentation(SETTINGS)
    names = [type(step).__name__ for step in random.transforms]
    for step in random.transforms:
        if not hasattr(step, "prob") or "Crop" in type(step).__name__:
            continue
        step.set_random_state(0)
        step.prob = 1.0
        inner = next((value for value in vars(step).values() if hasattr(value, "prob")), None)
        if inner is not None:
            inner.prob = 1.0
        before = {key: prepared[key].clone() for key in ("image", "label")}
        after = step(dict(before))
        assert not torch.equal(torch.as_tensor(after["image"]).float(), before["image"]), type(step).__name__
    assert {"RandBiasFieldd", "RandAdjustContrastd", "RandFlipd", "RandAffined", "RandGaussianNoised"} <= set(names)
