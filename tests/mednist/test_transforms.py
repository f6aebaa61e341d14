"""From a JPEG file to a batch: the picture as it is, changed at random for training, and files that cannot be used."""

import warnings
from pathlib import Path

import pytest
import torch
from monai.transforms import RandAffined, RandFlipd

from data_scripts.mednist_sites import read_items
from src.common.errors import CourseError
from src.common.seeds import site_seed
from src.mednist.card import Settings
from src.mednist.transforms import augmentation, batches, prepare
from tests.runs_support import drawings

SETTINGS = Settings(batch_size=8)


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> list[dict]:
    return read_items(drawings(tmp_path_factory.mktemp("my data"), per_class=10, seed=2))


@pytest.fixture(scope="module")
def prepared(items) -> list[dict]:
    """Every fourth image; the label names the image here, to see the order."""
    return [{**one, "label": i} for i, one in enumerate(prepare(items[::4], SETTINGS))]


def test_validation_has_every_image_once_in_order_and_unchanged_and_says_nothing(items, capfd):
    prepare(items[:1], SETTINGS)  # what the first import of a library has to say is not ours
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = prepare(items[::4], SETTINGS)
        loaded, _ = (list(batches(chosen, SETTINGS, train)) for train in (False, True))
    assert capfd.readouterr() == ("", "") and [len(batch["label"]) for batch in loaded] == [8, 7]
    assert torch.cat([batch["label"] for batch in loaded]).tolist() == [item["label"] for item in items[::4]]
    assert loaded[0]["label"].dtype == torch.int64
    assert torch.equal(torch.cat([batch["image"] for batch in loaded]), torch.stack([one["image"] for one in chosen]))
    assert len(batches([], SETTINGS, train=False)) == 0
    with pytest.raises(CourseError, match="no image to train on") as caught:
        batches([], SETTINGS, train=True)
    assert caught.value.kind == "it has nothing to train on"


def two_epochs(prepared, site="site-1"):
    """Order ``(2, images)``, and images in the order of their labels, of two epochs of a site's training."""
    loader = batches(prepared, SETTINGS, train=True, seed=site_seed(0, site))
    epochs = [list(loader), list(loader)]
    orders, images = (torch.stack([torch.cat([b[key] for b in e]) for e in epochs]) for key in ("label", "image"))
    return orders, torch.stack([image[order.argsort()] for order, image in zip(orders, images, strict=True)])


def test_training_shuffles_and_augments_differently_in_each_epoch_and_the_same_with_one_seed(prepared):
    plain = torch.stack([one["image"] for one in prepared])
    orders, images = two_epochs(prepared)
    assert orders.sort(dim=1).values.tolist() == [list(range(len(prepared)))] * 2
    assert type(images) is torch.Tensor and images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
    changed = (images - plain).abs().amax(dim=(2, 3, 4)) > 0.02
    assert 0.4 < changed.float().mean() < 1, "three of four images are mirrored, moved or both"
    assert not torch.equal(*orders) and not torch.equal(*images)
    assert torch.equal(torch.stack([one["image"] for one in prepared]), plain), "what is kept is never written to"

    torch.manual_seed(99)  # nothing else that draws random numbers may change them
    orders_again, images_again = two_epochs(prepared)
    assert torch.equal(orders, orders_again) and torch.equal(images, images_again)
    elsewhere, others = two_epochs(prepared, "site-2")  # the same images, seen in its own way
    assert not torch.equal(orders[0], elsewhere[0])
    same = (images[0] - others[0]).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert same.float().mean() < 0.6, "only those that neither site changed"


def test_images_are_mirrored_left_and_right_and_never_upside_down(prepared):
    steps = {type(step): step.set_random_state(0) for step in augmentation(SETTINGS).transforms[:2]}
    flip, affine, image = steps[RandFlipd], steps[RandAffined], prepared[0]["image"]
    flip.prob = affine.prob = affine.rand_affine.prob = 1.0
    assert torch.equal(torch.as_tensor(flip({"image": image})["image"]), image.flip(-1))
    moved = torch.as_tensor(affine({"image": image})["image"])
    assert not torch.equal(moved, image)
    assert float((moved - image).abs().mean()) < float((image.flip(-2) - image).abs().mean())


@pytest.mark.parametrize("fault", ["truncated", "text", "empty", "missing", "folder"])
def test_an_unreadable_image_is_named_here_and_not_elsewhere(items, tmp_path, fault):
    broken = tmp_path / "my images" / "SURNAME_FIRSTNAME_1950.jpeg"
    (broken if fault == "folder" else broken.parent).mkdir(parents=True)
    contents = {"truncated": Path(items[1]["image"]).read_bytes()[:500], "text": b"not an image", "empty": b""}
    if fault in contents:
        broken.write_bytes(contents[fault])
    said = r"^site-9 cannot read the image .*/my images/SURNAME_FIRSTNAME_1950\.jpeg: .+ Replace it"
    with pytest.raises(CourseError, match=said) as caught:
        prepare([items[0], {"image": str(broken), "label": 1, "site": "site-9"}], SETTINGS)
    assert caught.value.kind == "an image cannot be read"
