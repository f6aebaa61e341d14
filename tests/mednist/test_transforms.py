"""From a JPEG file to a batch: the picture as it is, changed at random for training, and files that cannot be used."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import RandAffined, RandFlipd
from PIL import Image

from data_scripts.mednist_sites import read_items
from data_scripts.phantoms.mednist import write
from src.common.errors import CourseError
from src.common.seeds import site_seed
from src.mednist.card import Settings
from src.mednist.transforms import augmentation, batches, prepare


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("my data") / "MedNIST"
    folder.mkdir()
    write(folder, 10, seed=2)
    return read_items(folder)


@pytest.fixture(scope="module")
def prepared(items) -> list[dict]:
    """Every fourth image; the label names the image here, to see the order."""
    return [{**one, "label": i} for i, one in enumerate(prepare(items[::4], Settings()))]


def small(**changes) -> Settings:
    return Settings(batch_size=8, **changes)


def test_an_image_arrives_with_its_rows_first(tmp_path):
    """A picture with a bright top left corner that is wider than high."""
    pixels = np.zeros((64, 64), dtype=np.uint8)
    pixels[:16, :32] = 255
    file = tmp_path / "corner.jpeg"
    Image.fromarray(pixels).save(file, quality=100)
    with Image.open(file) as stored:
        expected = np.asarray(stored.convert("L"), dtype=np.float32) / 255
    (ready,) = prepare([{"image": str(file), "label": 3}], Settings())
    image = ready["image"]
    assert type(image) is torch.Tensor and image.dtype == torch.float32 and image.shape == (1, 64, 64)
    np.testing.assert_allclose(image[0], expected, atol=1e-6)
    assert ready["label"] == 3


def test_images_of_another_size_fit_in_the_batch(items, tmp_path):
    Image.new("L", (100, 100), 128).save(tmp_path / "large.png")
    ready = prepare([*items[:3], {"image": str(tmp_path / "large.png"), "label": 0}], Settings())
    batch = next(iter(batches(ready, Settings(batch_size=4), train=False)))
    assert batch["image"].shape == (4, 1, 64, 64)
    torch.testing.assert_close(batch["image"][3], torch.full((1, 64, 64), 128 / 255), atol=1e-3, rtol=0)


def test_validation_has_every_image_once_in_order_and_unchanged(items):
    chosen = prepare(items[::4], Settings())
    loaded = list(batches(chosen, small(), train=False))
    assert [len(batch["label"]) for batch in loaded] == [8, 7]
    assert torch.cat([batch["label"] for batch in loaded]).tolist() == [item["label"] for item in items[::4]]
    assert loaded[0]["label"].dtype == torch.int64
    assert torch.equal(torch.cat([batch["image"] for batch in loaded]), torch.stack([one["image"] for one in chosen]))
    assert len(batches([], small(), train=False)) == 0


def two_epochs(prepared, seed):
    """Order, and images in the order of their labels, of two epochs of training."""
    loader = batches(prepared, small(), train=True, seed=seed)
    epochs = [list(loader), list(loader)]
    orders = [torch.cat([batch["label"] for batch in epoch]) for epoch in epochs]
    images = [torch.cat([batch["image"] for batch in epoch]) for epoch in epochs]
    return orders, [image[order.argsort()] for order, image in zip(orders, images, strict=True)]


def test_training_shuffles_and_augments_differently_in_each_epoch_and_the_same_with_one_seed(prepared):
    plain = torch.stack([one["image"] for one in prepared])
    orders, images = two_epochs(prepared, seed=1)
    for order, image in zip(orders, images, strict=True):
        assert sorted(order.tolist()) == list(range(len(prepared)))
        assert image.dtype == torch.float32 and type(image) is torch.Tensor
        assert image.min() >= 0 and image.max() <= 1
    changed = (torch.cat(images) - torch.cat([plain, plain])).abs().amax(dim=(1, 2, 3)) > 0.02
    assert 0.4 < changed.float().mean() < 1, "three of four images are mirrored, moved or both"
    assert orders[0].tolist() != orders[1].tolist()
    assert not torch.equal(images[0], images[1])

    torch.manual_seed(99)  # nothing else that draws random numbers may change them
    orders_again, images_again = two_epochs(prepared, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(orders + images, orders_again + images_again, strict=True))
    assert orders[0].tolist() != two_epochs(prepared, seed=2)[0][0].tolist()


def test_two_sites_with_the_same_images_see_them_in_their_own_way(prepared):
    """Before, all sites of a study drew one and the same stream."""
    (orders, images), (other_orders, other_images) = (
        two_epochs(prepared, site_seed(0, site)) for site in ("site-1", "site-2")
    )
    assert orders[0].tolist() != other_orders[0].tolist()
    same = (images[0] - other_images[0]).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert same.float().mean() < 0.6, "only those that neither site changed"


def test_images_are_mirrored_left_and_right_and_never_upside_down(prepared):
    steps = augmentation(Settings()).transforms
    (flip,) = [step for step in steps if isinstance(step, RandFlipd)]
    flip.set_random_state(0)
    flip.prob = 1.0
    image = prepared[0]["image"]
    assert torch.equal(torch.as_tensor(flip({"image": image})["image"]), image.flip(-1))
    (affine,) = [step for step in steps if isinstance(step, RandAffined)]
    affine.set_random_state(0)
    affine.rand_affine.prob = affine.prob = 1.0
    moved = torch.as_tensor(affine({"image": image})["image"])
    assert not torch.equal(moved, image)
    assert float((moved - image).abs().mean()) < float((image.flip(-2) - image).abs().mean())


def test_what_is_kept_is_never_written_to(prepared):
    before = [one["image"].clone() for one in prepared]
    two_epochs(prepared, seed=4)
    assert all(torch.equal(one["image"], kept) for one, kept in zip(prepared, before, strict=True))


def test_nothing_to_train_on_is_said_at_once():
    with pytest.raises(CourseError, match="no image to train on") as caught:
        batches([], small(), train=True)
    assert caught.value.kind == "it has nothing to train on"


@pytest.mark.parametrize("fault", ["truncated", "text", "empty", "missing", "folder"])
def test_an_unreadable_image_is_named_here_and_not_elsewhere(items, tmp_path, fault):
    broken = tmp_path / "my images" / "SURNAME_FIRSTNAME_1950.jpeg"
    broken.parent.mkdir()
    if fault == "folder":
        broken.mkdir()
    elif fault != "missing":
        whole = Path(items[1]["image"]).read_bytes()
        broken.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"not an image", "empty": b""}[fault])
    bad = {"image": str(broken), "label": 1, "site": "site-9"}
    with pytest.raises(
        CourseError, match=r"^site-9 cannot read the image .*/my images/SURNAME_FIRSTNAME_1950\.jpeg: .+ Replace it"
    ) as caught:
        prepare([items[0], bad], Settings())
    assert caught.value.kind == "an image cannot be read"


def test_loading_is_silent(items, capfd):
    prepare(items[:1], Settings())  # what the first import of a library has to say is not ours
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ready = prepare(items[::10], Settings())
        loaded = [batch for train in (True, False) for batch in batches(ready, small(), train)]
    assert sum(len(batch["label"]) for batch in loaded) == 12
    assert capfd.readouterr() == ("", "")
