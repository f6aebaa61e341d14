"""MedNIST's items: which are read, who gets which, and what reaches the network."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src import mednist, phantoms
from src.errors import CourseError

PER_CLASS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return phantoms.make_mednist(tmp_path_factory.mktemp("my data") / "MedNIST", per_class=PER_CLASS, seed=2)


@pytest.fixture(scope="module")
def items(folder) -> list[dict]:
    return mednist.read_datalist(folder)


def fake_items(counts) -> list[dict]:
    """Items without files: ``counts[label]`` images of each class."""
    return [{"image": f"/{label}/{i}", "label": label} for label, count in enumerate(counts) for i in range(count)]


def names_of(items) -> list[str]:
    return [item["image"] for item in items]


def everything(datalists) -> list[str]:
    return [image for parts in datalists.values() for part in parts.values() for image in names_of(part)]


def sites(number: int) -> list[str]:
    return [f"site-{i}" for i in range(1, number + 1)]


# Finding, and reading the list of images


def test_generated_data_are_made_once_and_called_drawings(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "my data"))
    monkeypatch.delenv("COURSE_DATA_SOURCE", raising=False)
    made = []
    original = phantoms.make_mednist

    def make_few(folder):
        made.append(folder)
        return original(folder, per_class=3)

    monkeypatch.setattr(phantoms, "make_mednist", make_few)
    folder = mednist.find_or_make()
    assert folder == tmp_path / "my data" / "generated" / "MedNIST"
    assert mednist.find_or_make() == folder
    assert len(made) == 1
    assert mednist.is_generated(folder)
    assert mednist.describe(folder).startswith("generated drawings, not patients: 18 images (AbdomenCT 3,")

    (folder / "ABOUT.txt").unlink()
    assert not mednist.is_generated(folder)
    assert mednist.describe(folder).startswith("real MedNIST: 18 images")
    with pytest.raises(CourseError, match="'generated' or 'real'"):
        mednist.find_or_make("both")


def test_generated_data_without_a_class_are_refused_by_its_name(folder, tmp_path):
    home = tmp_path / "generated" / "MedNIST"
    for name in mednist.CLASSES:
        (home / name).mkdir(parents=True)
        if name != "Hand":
            (home / name / "000000.jpeg").symlink_to(folder / name / "000000.jpeg")
    (home / "ABOUT.txt").symlink_to(folder / "ABOUT.txt")
    with pytest.raises(CourseError, match=r"No \.jpeg images in \S+/generated/MedNIST/Hand\. .*delete"):
        mednist.find_or_make("generated", tmp_path)


def test_items_are_sorted_and_chosen_by_seed(folder, items, monkeypatch):
    monkeypatch.delenv("COURSE_MEDNIST_PER_CLASS", raising=False)
    assert [item["label"] for item in items] == [label for label in range(6) for _ in range(PER_CLASS)]
    assert items[PER_CLASS]["image"] == str(folder / "BreastMRI" / "000000.jpeg")
    few = mednist.read_datalist(folder, per_class=5, seed=1)
    assert [item["label"] for item in few] == [label for label in range(6) for _ in range(5)]
    assert names_of(few) == sorted(names_of(few)) and set(names_of(few)) < set(names_of(items))
    assert few == mednist.read_datalist(folder, per_class=5, seed=1)
    assert few != mednist.read_datalist(folder, per_class=5, seed=2)

    monkeypatch.setenv("COURSE_MEDNIST_PER_CLASS", "7")
    assert len(mednist.read_datalist(folder)) == 7 * 6
    monkeypatch.setenv("COURSE_MEDNIST_PER_CLASS", "all")
    assert mednist.read_datalist(folder) == items
    monkeypatch.setenv("COURSE_MEDNIST_PER_CLASS", "many")
    with pytest.raises(CourseError, match="COURSE_MEDNIST_PER_CLASS is 'many'"):
        mednist.read_datalist(folder)
    with pytest.raises(CourseError, match="per_class is 0"):
        mednist.read_datalist(folder, per_class=0)


def test_of_real_images_500_a_class_are_read_unless_told_otherwise(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("COURSE_MEDNIST_PER_CLASS", raising=False)
    monkeypatch.setattr(mednist, "REAL_PER_CLASS", 4)
    for name in mednist.CLASSES:
        (tmp_path / name).symlink_to(folder / name)
    assert len(mednist.read_datalist(tmp_path)) == 4 * 6
    assert len(mednist.read_datalist(tmp_path, per_class=6)) == 6 * 6
    assert len(mednist.read_datalist(folder)) == PER_CLASS * 6


# Splitting


def test_split_is_disjoint_complete_stratified_and_reproducible():
    items = fake_items([50, 50, 40, 50, 50, 50])
    parts = mednist.split(items, seed=3)
    assert {name: len(part) for name, part in parts.items()} == {"training": 203, "validation": 29, "test": 58}
    assert sorted(image for part in parts.values() for image in names_of(part)) == sorted(names_of(items))
    for part, fraction in (("validation", 0.1), ("test", 0.2)):
        counts = np.bincount([item["label"] for item in parts[part]], minlength=6)
        assert np.abs(counts - fraction * np.array([50, 50, 40, 50, 50, 50])).max() <= 1
    assert parts == mednist.split(items, seed=3)
    assert parts != mednist.split(items, seed=4)
    with pytest.raises(CourseError, match="leave some for training"):
        mednist.split(items, validation=0.5, test=0.5)
    with pytest.raises(CourseError, match="0 images are too few"):
        mednist.split([])


@pytest.mark.parametrize("number", [2, 3, 16])
@pytest.mark.parametrize("how", ["even", "counts", "dirichlet"])
def test_no_image_is_at_two_sites_and_every_site_has_both_parts(how, number):
    items = fake_items([40, 30, 40, 40, 40, 1])
    counts = [11] * (number - 1) + [20] if how == "counts" else None
    datalists = mednist.site_datalists(items, sites(number), how=how, counts=counts, alpha=0.2, seed=1)
    assert list(datalists) == sites(number)
    used = everything(datalists)
    assert len(used) == len(set(used)) and set(used) <= set(names_of(items))
    sizes = [len(parts["training"]) + len(parts["validation"]) for parts in datalists.values()]
    if how == "counts":
        assert sizes == counts
    else:
        assert len(used) == len(items) and max(sizes) - min(sizes) <= 1
    for parts in datalists.values():
        held, total = len(parts["validation"]), len(parts["training"]) + len(parts["validation"])
        assert held == max(1, round(total * 0.125))
    again = mednist.site_datalists(items, sites(number), how=how, counts=counts, alpha=0.2, seed=1)
    assert again == datalists
    assert again != mednist.site_datalists(items, sites(number), how=how, counts=counts, alpha=0.2, seed=2)


def test_even_shares_have_the_same_mix_of_classes():
    table = mednist.partition_table(mednist.site_datalists(fake_items([41, 30, 40, 40, 40, 7]), sites(4)))
    assert (table.max() - table.min()).max() <= 1
    assert table.sum().tolist() == [41, 30, 40, 40, 40, 7]
    assert list(table.columns) == list(mednist.CLASSES) and list(table.index) == sites(4)


def test_labels_are_the_more_skewed_the_smaller_alpha_is():
    items = fake_items([100] * 6)

    def largest_class_share(alpha: float) -> float:
        """Mean over sites and seeds of the share of the site's most frequent class; 1/6 without skew."""
        tables = [
            mednist.partition_table(mednist.site_datalists(items, sites(4), how="dirichlet", alpha=alpha, seed=seed))
            for seed in range(5)
        ]
        return float(np.mean([(table.max(axis=1) / table.sum(axis=1)).mean() for table in tables]))

    shares = [largest_class_share(alpha) for alpha in (1e-9, 0.1, 1.0, 10.0, 1000.0)]
    assert shares == sorted(shares, reverse=True)
    # With 4 sites and 6 classes every site has to take a second one.
    assert shares[0] > 0.5 and shares[-1] < 0.25


def test_a_site_with_one_image_trains_on_it_and_validates_on_none():
    datalists = mednist.site_datalists(fake_items([4] * 6), sites(3), how="counts", counts=[1, 2, 15])
    sizes = [(len(parts["training"]), len(parts["validation"])) for parts in datalists.values()]
    assert sizes == [(1, 0), (1, 1), (13, 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"how": "fair"}, "Unknown partition 'fair'; choose one of even, counts, dirichlet"),
        ({"how": "counts"}, r"counts is \[\]; give one number .* 2 sites"),
        ({"how": "counts", "counts": [3]}, r"counts is \[3\]"),
        ({"how": "counts", "counts": [0, 3]}, r"counts is \[0, 3\]"),
        ({"how": "counts", "counts": [6, 7]}, "at most 12 images in all"),
        ({"how": "dirichlet", "alpha": 0}, "alpha is 0; it must be above 0"),
        ({"how": "dirichlet", "alpha": float("nan")}, "alpha is nan"),
        ({"validation": 1}, "validation is 1"),
        ({"names": sites(13)}, "12 images cannot be shared out over 13 sites"),
        ({"names": ["a", "a"]}, "each once"),
        ({"names": []}, "at least one"),
    ],
)
def test_a_partition_that_cannot_be_made_is_refused(arguments, message):
    with pytest.raises(CourseError, match=message):
        mednist.site_datalists(fake_items([2] * 6), **{"names": sites(2), **arguments})


# The data list of a site


def test_data_lists_are_written_and_read(items, tmp_path):
    datalists = mednist.site_datalists(items, ["north", "south"])
    mednist.write_datalists(tmp_path / "my lists", datalists)
    mednist.write_datalists(tmp_path / "my lists", datalists)
    assert sorted(path.name for path in (tmp_path / "my lists").iterdir()) == ["north.json", "south.json"]
    assert mednist.read_site_datalist(tmp_path / "my lists" / "south.json") == datalists["south"]


def test_data_lists_go_to_a_folder_or_nowhere(items, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(CourseError, match=r"Cannot create \S+/taken: "):
        mednist.write_datalists(tmp_path / "taken", mednist.site_datalists(items, ["a"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"Cannot read the data list \S+site-1.json: No such file"),
        ("{", r"site-1\.json is no data list"),
        ('{"training": []}', r"site-1\.json is no data list .*KeyError: 'validation'"),
        ('{"training": [{"image": "a"}], "validation": []}', r"KeyError: 'label'"),
        ("[1]", r"site-1\.json is no data list"),
        (
            json.dumps({"training": [{"image": "/not here.jpeg", "label": 1}], "validation": []}),
            r"1 images of \S+site-1.json are missing, the first is /not here\.jpeg",
        ),
    ],
)
def test_a_broken_data_list_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "site-1.json").write_text(content)
    with pytest.raises(CourseError, match=message):
        mednist.read_site_datalist(tmp_path / "site-1.json")


# Transforms and loader


@pytest.mark.parametrize(("mode", "suffix"), [("L", "jpeg"), ("RGB", "jpeg"), ("L", "png")])
def test_an_image_arrives_with_its_rows_first(tmp_path, mode, suffix):
    """A picture with a bright top left corner that is wider than high."""
    pixels = np.zeros((64, 64), dtype=np.uint8)
    pixels[:16, :32] = 255
    file = tmp_path / f"corner.{suffix}"
    Image.fromarray(pixels).convert(mode).save(file, quality=100)
    with Image.open(file) as stored:
        expected = np.asarray(stored.convert("L"), dtype=np.float32) / 255
    image = mednist.transforms(train=False)({"image": str(file), "label": 3})["image"]
    assert type(image) is torch.Tensor and image.dtype == torch.float32 and image.shape == (1, 64, 64)
    np.testing.assert_allclose(image[0], expected, atol=1e-6)


def test_images_of_another_size_fit_in_the_batch(items, tmp_path):
    Image.new("L", (100, 80), 128).save(tmp_path / "large.png")
    batch = next(iter(mednist.loader([*items[:3], {"image": str(tmp_path / "large.png"), "label": 0}], 4, train=False)))
    assert batch["image"].shape == (4, 1, 64, 64)
    torch.testing.assert_close(batch["image"][3], torch.full((1, 64, 64), 128 / 255), atol=1e-3, rtol=0)


def test_validation_has_every_image_once_in_order_and_unchanged(items):
    batches = list(mednist.loader(items[::7], 8, train=False))
    assert [len(batch["label"]) for batch in batches] == [8, 8, 2]
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [item["label"] for item in items[::7]]
    assert batches[0]["label"].dtype == torch.int64
    again = next(iter(mednist.loader(items[::7], 8, train=False, seed=5)))
    assert torch.equal(again["image"], batches[0]["image"])
    assert len(mednist.loader([], 8, train=False)) == 0


def test_training_shuffles_and_augments_differently_in_each_epoch_and_the_same_with_one_seed(items):
    few = items[::5]
    # The label names the image here, to see the order.
    few = [{"image": item["image"], "label": i} for i, item in enumerate(few)]
    plain = next(iter(mednist.loader(few, len(few), train=False)))["image"]

    def two_epochs(seed):
        loader = mednist.loader(few, 8, train=True, seed=seed)
        epochs = [list(loader), list(loader)]
        orders = [torch.cat([batch["label"] for batch in epoch]) for epoch in epochs]
        images = [torch.cat([batch["image"] for batch in epoch]) for epoch in epochs]
        return orders, [image[order.argsort()] for order, image in zip(orders, images, strict=True)]

    orders, images = two_epochs(seed=1)
    for order, image in zip(orders, images, strict=True):
        assert sorted(order.tolist()) == list(range(len(few)))
        assert image.dtype == torch.float32 and type(image) is torch.Tensor
        assert image.min() >= 0 and image.max() <= 1
        changed = (image - plain).abs().amax(dim=(1, 2, 3)) > 0.02
        assert 0.4 < changed.float().mean() < 1, "three of four images are mirrored, moved or both"
    assert orders[0].tolist() != orders[1].tolist()
    assert not torch.equal(images[0], images[1])

    torch.manual_seed(99)  # nothing else that draws random numbers may change them
    orders_again, images_again = two_epochs(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(orders + images, orders_again + images_again, strict=True))
    assert orders[0].tolist() != two_epochs(seed=2)[0][0].tolist()


def test_a_single_image_trains_the_network(items):
    from src.densenet import DenseNet121

    batch = next(iter(mednist.loader(items[:1], 32, train=True)))
    loss = torch.nn.functional.cross_entropy(DenseNet121()(batch["image"]), batch["label"])
    loss.backward()
    assert torch.isfinite(loss)
    with pytest.raises(CourseError, match="no image to train on"):
        mednist.loader([], 32, train=True)


@pytest.mark.parametrize("fault", ["truncated", "text", "empty", "missing", "folder"])
def test_an_unreadable_image_is_named_when_the_loader_is_built(items, tmp_path, fault):
    broken = tmp_path / "my images" / "broken.jpeg"
    broken.parent.mkdir()
    if fault == "folder":
        broken.mkdir()
    elif fault != "missing":
        whole = Path(items[1]["image"]).read_bytes()
        broken.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"not an image", "empty": b""}[fault])
    with pytest.raises(CourseError, match=r"Cannot read the image .*/my images/broken\.jpeg: .+ Replace it"):
        mednist.loader([items[0], {"image": str(broken), "label": 1}], 2, train=True)


def test_loading_is_silent(items, tmp_path, capfd):
    mednist.write_datalists(tmp_path, mednist.site_datalists(items[::10], ["a"]))
    mednist.loader(items[:1], 1, train=True)  # what the first import of a library has to say is not ours
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = mednist.read_site_datalist(tmp_path / "a.json")
        batches = [batch for name in parts for batch in mednist.loader(parts[name], 4, train=name == "training")]
    assert sum(len(batch["label"]) for batch in batches) == 12
    assert capfd.readouterr() == ("", "")
