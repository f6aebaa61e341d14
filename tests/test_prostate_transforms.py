"""From NIfTI to network: geometry in millimetres, intensities of any scanner, the cache, and files that cannot be used."""

import errno
import gzip
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from tests_support import ball_case

from src import prostate_transforms
from src.errors import CourseError
from src.prostate_settings import TrainSettings
from src.prostate_transforms import Normalise, augmentation, prepare


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data"))


@pytest.fixture
def settings():
    return TrainSettings(voxel_spacing=(2.0, 2.0, 3.0), field_of_view=(64.0, 64.0), patch_size=(32, 32, 16))


def centroid_mm(prepared):
    voxels = torch.nonzero(prepared["label"][0]).double().mean(dim=0)
    return (prepared["affine"][:3, :3] @ voxels + prepared["affine"][:3, 3]).numpy()


@pytest.mark.parametrize(
    ("codes", "spacing", "shape"),
    [
        ("RAS", (1.0, 1.0, 3.0), (80, 80, 20)),
        ("LPS", (1.0, 1.0, 3.0), (80, 80, 20)),
        ("PIR", (0.5, 0.5, 4.0), (160, 160, 15)),
        ("LAS", (1.5, 1.5, 1.5), (54, 54, 40)),
    ],
)
def test_the_gland_stays_where_it_is_in_the_patient(tmp_path, settings, codes, spacing, shape):
    item = ball_case(tmp_path, codes=codes, spacing=spacing, shape=shape)
    (prepared,) = prepare([item], settings)
    assert prepared["image"].shape == prepared["label"].shape
    assert prepared["image"].shape[1:3] == (32, 32)
    np.testing.assert_allclose(centroid_mm(prepared), (4.0, -6.0, 3.0), atol=0.6)
    volume = float(prepared["label"].sum()) * 2 * 2 * 3
    assert volume == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.08)
    inside = prepared["image"][prepared["label"] > 0].mean()
    assert inside > prepared["image"][prepared["label"] == 0].mean() + 0.5


def test_a_scanner_with_other_units_gives_the_same_volume(tmp_path, settings):
    plain = prepare([ball_case(tmp_path / "a")], settings)[0]["image"]
    scaled = prepare([ball_case(tmp_path / "b", scale=200.0)], settings)[0]["image"]
    torch.testing.assert_close(plain, scaled, rtol=0, atol=1e-4)
    assert (float(plain.min()), float(plain.max())) == (0.0, 1.0)
    normalised = Normalise()({"image": plain})["image"]
    body = normalised[torch.as_tensor(plain) != 0]
    assert float(body.mean()) == pytest.approx(0, abs=1e-4)
    assert float(body.std()) == pytest.approx(1, abs=1e-2)


def test_fine_noise_does_not_become_coarse_noise(tmp_path, settings):
    item = ball_case(tmp_path, spacing=(0.5, 0.5, 3.0), shape=(160, 160, 20))
    prepared = prostate_transforms.preparation(settings)
    loaded = prepared.transforms[1](prepared.transforms[0](item))
    smoothed = prepared.transforms[2](dict(loaded))["image"]
    corner = (slice(None), slice(0, 40), slice(0, 40), slice(8, 12))
    assert smoothed[corner].std() < 0.4 * loaded["image"][corner].std()


def test_a_small_field_is_padded_to_a_patch(tmp_path, settings):
    item = ball_case(tmp_path, spacing=(1.0, 1.0, 3.0), shape=(40, 40, 5), centre=(0, 0, 0), radius=6)
    assert prepare([item], settings)[0]["image"].shape == (1, 32, 32, 16)


def test_a_cut_gland_is_told_by_name(tmp_path, settings):
    item = ball_case(tmp_path, name="prostate_07", shape=(120, 120, 20), centre=(30.0, 0, 0))
    with pytest.warns(UserWarning, match=r"site-x: .*cuts \d+\.\d% of the gland of prostate_07"):
        prepare([item], settings)


def test_an_empty_mask_is_told_by_name(tmp_path, settings):
    item = ball_case(tmp_path, name="prostate_09", radius=0)
    with pytest.warns(UserWarning, match="site-x: the mask of prostate_09 is empty"):
        (prepared,) = prepare([item], settings)
    assert not prepared["label"].any()


def test_a_normal_case_warns_of_nothing(tmp_path, settings):
    item = ball_case(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared = prepare([item], settings)
        augmentation(settings)(prepared[0])


# -- files that cannot be used ----------------------------------------------------------------------------------------


def test_a_corrupt_file_is_named_with_its_site(tmp_path, settings):
    item = ball_case(tmp_path)
    packed = open(item["image"], "rb").read()  # noqa: SIM115, PTH123
    (tmp_path / "case.nii.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(CourseError, match=r"site-x: cannot read .*case\.nii\.gz") as caught:
        prepare([item], settings)
    assert "datalist" in str(caught.value)


def test_a_file_that_is_no_nifti_is_named(tmp_path, settings):
    item = ball_case(tmp_path)
    with gzip.open(item["label"], "wb") as file:
        file.write(b"not a volume" * 100)
    with pytest.raises(CourseError, match=r"site-x: cannot read .*case_mask\.nii\.gz"):
        prepare([item], settings)


def test_a_mask_of_another_shape_is_named(tmp_path, settings):
    item = ball_case(tmp_path / "a")
    item["label"] = ball_case(tmp_path / "b", shape=(80, 80, 21))["label"]
    with pytest.raises(CourseError, match=r"site-x: the mask .* has 80×80×21 voxels, its image .* has 80×80×20"):
        prepare([item], settings)


def test_a_missing_file_is_named(tmp_path, settings):
    item = ball_case(tmp_path)
    item["image"] = str(tmp_path / "gone.nii.gz")
    with pytest.raises(CourseError, match=r"gone\.nii\.gz is missing"):
        prepare([item], settings)


def test_nan_in_an_image_is_named(tmp_path, settings):
    item = ball_case(tmp_path)
    stored = nib.load(item["image"])
    volume = stored.get_fdata(dtype=np.float32)
    volume[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(volume, stored.affine), item["image"])
    with pytest.raises(CourseError, match=r"case\.nii\.gz holds NaN"):
        prepare([item], settings)


# -- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def loads(monkeypatch):
    """Counts how often a case is read from its own files."""
    seen = []
    original = prostate_transforms.LoadCase.__call__

    def counting(self, item):
        seen.append(item["image"])
        return original(self, item)

    monkeypatch.setattr(prostate_transforms.LoadCase, "__call__", counting)
    return seen


def test_a_second_run_finds_the_volumes_again(tmp_path, settings, loads):
    item = ball_case(tmp_path)
    first = prepare([item], settings)[0]
    second = prepare([item], settings)[0]
    assert len(loads) == 1
    assert first.keys() == second.keys()
    assert torch.equal(first["image"], second["image"]) and torch.equal(first["label"], second["label"])
    assert {file.suffix for file in settings.cache_folder.iterdir()} == {".pt"}


@pytest.mark.parametrize("change", ["voxel_spacing", "field_of_view", "patch_size", "file"])
def test_what_changed_is_prepared_anew(tmp_path, settings, loads, change):
    item = ball_case(tmp_path)
    prepare([item], settings)
    other = {"voxel_spacing": (2.5, 2.5, 3.0), "field_of_view": (72.0, 72.0), "patch_size": (48, 32, 16)}
    if change == "file":
        ball_case(tmp_path, scale=3.0, radius=12)
        again = settings
    else:
        again = TrainSettings(**{**settings.__dict__, change: other[change]})
    prepare([item], again)
    assert len(loads) == 2


def test_a_damaged_cache_file_is_made_again(tmp_path, settings, loads):
    item = ball_case(tmp_path)
    first = prepare([item], settings)[0]
    (file,) = settings.cache_folder.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="damaged"):
        again = prepare([item], settings)[0]
    assert torch.equal(first["image"], again["image"])
    prepare([item], settings)
    assert len(loads) == 2


def test_without_caching_nothing_is_written(tmp_path, settings, loads):
    item = ball_case(tmp_path)
    off = TrainSettings(**{**settings.__dict__, "cache_dataset": False})
    prepare([item], off)
    prepare([item], off)
    assert len(loads) == 2
    assert not (tmp_path / "data").exists()


def test_a_full_disk_costs_only_the_cache(tmp_path, settings, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prostate_transforms.torch, "save", full)
    with pytest.warns(UserWarning, match=r"cannot write to the cache .*No space left"):
        (prepared,) = prepare([ball_case(tmp_path)], settings)
    assert prepared["label"].any()
    assert not list(settings.cache_folder.iterdir())


def test_an_interrupted_write_leaves_nothing(tmp_path, settings, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(prostate_transforms.torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare([ball_case(tmp_path)], settings)
    assert not list(settings.cache_folder.iterdir())


def test_a_folder_that_cannot_be_made_costs_only_the_cache(tmp_path, settings):
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot write to the cache"):
        (prepared,) = prepare([ball_case(tmp_path)], settings)
    assert prepared["label"].any()


# -- the random part --------------------------------------------------------------------------------------------------


def test_a_patch_is_what_the_network_takes(tmp_path, settings):
    (prepared,) = prepare([ball_case(tmp_path)], settings)
    random = augmentation(settings)
    random.set_random_state(0)
    for _ in range(10):
        (patch,) = random(prepared)
        assert patch["image"].shape == patch["label"].shape == (1, *settings.patch_size)
        assert type(patch["image"]) is torch.Tensor and torch.isfinite(patch["image"]).all()
        assert set(patch["label"].unique().tolist()) <= {0, 1}


def test_the_seed_fixes_the_patches(tmp_path, settings):
    (prepared,) = prepare([ball_case(tmp_path)], settings)

    def patches(seed):
        random = augmentation(settings)
        random.set_random_state(seed)
        return torch.stack([random(prepared)[0]["image"] for _ in range(8)])

    assert torch.equal(patches(1), patches(1))
    assert not torch.equal(patches(1), patches(2))


def test_the_kept_volume_is_never_written_to(tmp_path, settings):
    (prepared,) = prepare([ball_case(tmp_path)], settings)
    before = {key: prepared[key].clone() for key in ("image", "label")}
    random = augmentation(settings)
    random.set_random_state(0)
    for _ in range(20):
        random(prepared)
    Normalise()(prepared)
    assert all(torch.equal(prepared[key], before[key]) for key in before)


def test_image_and_mask_move_together(tmp_path, settings):
    (prepared,) = prepare([ball_case(tmp_path)], settings)
    random = augmentation(settings)
    random.set_random_state(3)
    for _ in range(10):
        (patch,) = random(prepared)
        gland = patch["label"] > 0
        if gland.any():
            assert patch["image"][gland].mean() > patch["image"][~gland].mean() + 1


def test_augmentation_can_be_turned_off(tmp_path, settings):
    (prepared,) = prepare([ball_case(tmp_path, shape=(64, 64, 16), spacing=(1.0, 1.0, 3.0))], settings)
    plain = augmentation(TrainSettings(**{**settings.__dict__, "augmentation": False}))
    first, second = plain(prepared)[0]["image"], plain(prepared)[0]["image"]
    assert torch.equal(first, second)
    torch.testing.assert_close(first, torch.as_tensor(Normalise()({"image": prepared["image"]})["image"]))


def test_each_kind_of_augmentation_changes_something(tmp_path, settings):
    (prepared,) = prepare([ball_case(tmp_path)], settings)
    random = augmentation(settings)
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
