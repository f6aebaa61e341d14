"""Who gets which items, and the folder in which a site finds its own."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_scripts import folders
from data_scripts.sharing import classes, distances, mixed, mixes, partition, split, who_has_what, write_sites
from data_scripts.together import pooled, read_sites, sites_of
from src.common.datalists import PARTS, read_datalist, read_site
from src.common.errors import CourseError
from tests.tests_support import FULL, course_error, failing, files_of, names_in, rows


def fake_items(counts) -> list[dict]:  # so many images of each class, without files
    return [{"image": f"/{label}/{i}", "label": label} for label, count in enumerate(counts) for i in range(count)]


def fake_cases(number: int) -> list[dict]:  # their label is a file, as for a segmentation
    return [{"image": f"/images/{i}", "label": f"/labels/{i}"} for i in range(number)]


def names_of(items) -> list[str]:
    return [item["image"] for item in items]


def counts_of(items, classes: int = 6) -> np.ndarray:
    return np.bincount([item["label"] for item in items], minlength=classes)


def test_split_is_disjoint_complete_stratified_and_reproducible():
    items = fake_items(counts := np.array([50, 50, 40, 50, 50, 50]))
    parts = split(items, 0.1, 0.2, seed=3)
    assert {name: len(part) for name, part in parts.items()} == {"training": 203, "validation": 29, "testing": 58}
    assert sorted(image for part in parts.values() for image in names_of(part)) == sorted(names_of(items))
    for part, share in (("validation", 0.1), ("testing", 0.2)):
        assert np.abs(counts_of(parts[part]) - share * counts).max() <= 1
    assert parts == split(items, 0.1, 0.2, seed=3) and parts != split(items, 0.1, 0.2, seed=4)
    assert parts != split(items, 0.1, 0.2, seed=3, site="north")


def test_few_items_go_to_training_first_and_parts_are_as_near_to_their_shares_as_whole_items_can_be():
    few = {1: [1, 0, 0], 2: [1, 1, 0], 3: [1, 1, 1], 4: [2, 1, 1], 5: [3, 1, 1], 8: [4, 2, 2], 32: [16, 8, 8]}
    for cases in range(1, 60):
        sizes = [len(items) for items in split(fake_cases(cases), 0.25, 0.25).values()]
        assert sizes == few.get(cases, sizes) and sum(sizes) == cases
        if cases >= 3:
            assert min(sizes) >= 1 and np.abs(np.array(sizes) - cases * np.array([0.5, 0.25, 0.25])).max() <= 1


def test_a_split_that_cannot_be_made_is_refused():
    course_error("must leave some for training", split, fake_cases(9), 0.5, 0.5)
    course_error("'validation' is -0.1; it must be greater", split, fake_cases(9), -0.1, 0.5)
    course_error("north has no items to split", split, [], 0.1, 0.2, site="north")


@pytest.mark.parametrize("number", [2, 3, 16])
@pytest.mark.parametrize("how", ["even", "counts", "dirichlet"])
def test_no_image_is_at_two_sites(how, number):
    items, counts = fake_items([40, 30, 40, 40, 40, 1]), [11] * (number - 1) + [20]
    options = {"counts": {"counts": counts}, "dirichlet": {"alpha": 0.2}}.get(how, {})
    shares = partition(items, number, how, seed=1, **options)
    assert list(shares) == [f"site-{i + 1}" for i in range(number)]
    used = [image for share in shares.values() for image in names_of(share)]
    assert len(used) == len(set(used)) and set(used) <= set(names_of(items))
    sizes = [len(share) for share in shares.values()]
    if how == "counts":
        assert sizes == counts
    else:
        assert len(used) == len(items) and max(sizes) - min(sizes) <= 1
    assert shares == partition(items, number, how, seed=1, **options)
    assert shares != partition(items, number, how, seed=2, **options)


def test_even_shares_and_every_stretch_of_a_mixed_list_have_the_same_mix_of_classes():
    shares = partition(fake_items([41, 30, 40, 40, 40, 7]), list("abcd"))
    table = np.array([counts_of(share) for share in shares.values()])
    assert np.ptp(table, axis=0).max() <= 1 and table.sum(axis=0).tolist() == [41, 30, 40, 40, 40, 7]
    masks = partition(fake_cases(10), 3, seed=5)
    assert sorted(len(share) for share in masks.values()) == [3, 3, 4], "masks are like one class"
    order = mixed(fake_items([60, 30, 10]), np.random.default_rng(0))
    for start in range(0, 100, 10):
        assert np.abs(counts_of(order[start : start + 10], 3) - [6, 3, 1]).max() <= 1


def test_each_class_is_at_home_at_one_site_and_a_few_are_elsewhere():
    items = fake_items([40, 30, 20])
    asked = {"sites": ["a", "b"], "how": "specialised", "homes": (2, 0, 1), "few": 5}
    one, again, other = (partition(items, **asked, seed=seed) for seed in (4, 4, 5))
    assert {site: counts_of(own, 3).tolist() for site, own in one.items()} == {"a": [35, 5, 15], "b": [5, 25, 5]}
    assert len({image for share in one.values() for image in names_of(share)}) == 90 and one == again != other


def test_labels_are_the_more_skewed_the_smaller_alpha_is():
    def largest_class_share(alpha: float) -> float:
        """Mean over sites and seeds of the share of the site's most frequent class; 1/6 without skew."""
        shares = [partition(fake_items([100] * 6), 4, "dirichlet", alpha=alpha, seed=seed) for seed in range(5)]
        tables = [counts_of(own) for one in shares for own in one.values()]
        return float(np.mean([table.max() / table.sum() for table in tables]))

    shares = [largest_class_share(alpha) for alpha in (1e-9, 0.1, 1.0, 10.0, 1000.0)]
    assert shares == sorted(shares, reverse=True)
    # With 4 sites and 6 classes every site has to take a second one.
    assert shares[0] > 0.5 and shares[-1] < 0.25


def test_a_mix_is_that_of_home_classes_and_all_classes_exactly():
    table = 16 * np.array(mixes(4, 6, 0.75))
    assert table[0].round(2).tolist() == [6.67, 6.67, 0.67, 0.67, 0.67, 0.67] and np.allclose(table.sum(axis=1), 16)
    assert [np.flatnonzero(row > 1).tolist() for row in table] == [[0, 1], [2, 3], [4, 5], [1, 2]]
    items, asked = fake_items([70] * 6), {"counts": [64, 64, 64, 32], "skew": 0.95}
    shares = partition(items, 4, "mixed", **asked)
    counts = np.array([counts_of(own) for own in shares.values()])
    assert counts[0].tolist() == [31, 31, 1, 1, 0, 0] and counts.sum(axis=1).tolist() == asked["counts"]
    assert len({image for own in shares.values() for image in names_of(own)}) == 224
    assert shares == partition(items, 4, "mixed", **asked) != partition(items, 4, "mixed", **asked, seed=1)
    even = partition(items, 4, "mixed", counts=[60] * 4, skew=0.0)
    assert {tuple(counts_of(own)) for own in even.values()} == {(10,) * 6}


@rows(
    ("another way", {"how": "fair"}, "Unknown partition 'fair'; choose one of specialised, even, counts, dirichlet"),
    ("no counts", {"how": "counts"}, r"counts is \[\]; give one number .* 2 sites"),
    ("too few counts", {"how": "counts", "counts": [3]}, r"counts is \[3\]"),
    ("a count of 0", {"how": "counts", "counts": [0, 3]}, r"'counts\[0\]' is 0; it must be greater than or equal to 1"),
    ("more than there are", {"how": "counts", "counts": [6, 7]}, "at most 12 in all"),
    ("alpha of 0", {"how": "dirichlet", "alpha": 0}, "'alpha' is 0; it must be greater than 0"),
    ("more sites than items", {"sites": 13}, "12 items cannot be shared out over 13 sites"),
    ("a name twice", {"sites": ["a", "a"]}, "names that differ"),
    ("a negative seed", {"seed": -1}, "'seed' is -1; it must be greater than or equal to 0"),
    ("counts for even shares", {"counts": [6, 6]}, r"counts is \[6, 6\], which 'even' does not heed"),
    ("alpha for counts", {"how": "counts", "counts": [6, 6], "alpha": 0.5}, "alpha is 0.5, which 'counts' does not"),
    ("few for a random mix", {"how": "dirichlet", "few": 0}, "few is 0, .* leave it out, or choose 'specialised'"),
    ("a class without a home", {"how": "specialised", "homes": (0, 1, 2, 3, 5)}, r"no site would get .* of class 4\."),
    (
        "a skew above 1",
        {"how": "mixed", "counts": [3, 3], "skew": 1.5},
        "'skew' is 1.5; it must be less than or equal to 1",
    ),
    ("a mix of how many", {"how": "mixed", "skew": 0.5}, r"counts is \(\); give one number for each of the 2 sites"),
    (
        "a pool too small",
        {"how": "mixed", "counts": [6, 6], "skew": 1.0},
        "Site 1 would get 3 items of class 0, of which 2",
    ),
    ("homes for scanners", {"how": "scanners", "homes": (1, 2)}, r"homes is \(1, 2\), which 'scanners' does not heed"),
)
def test_a_partition_that_cannot_be_made_is_refused(arguments, message):
    course_error(message, partition, fake_items([2] * 6), **{"sites": 2, **arguments})


@pytest.fixture
def base(tmp_path) -> Path:
    """Nine cases with masks in a folder."""
    for kind in ("images", "labels"):
        (tmp_path / "converted" / kind).mkdir(parents=True)
        for i in range(9):
            (tmp_path / "converted" / kind / f"case {i}.nii.gz").write_text(f"{kind} {i}")
    return tmp_path / "converted"


@pytest.fixture
def toy(home) -> Path:
    return home / "sites" / "toy"


def shared(base: Path) -> dict:
    """North has cases 0 to 4, south 5 to 8."""

    def case(number: int) -> dict:
        return {key: str(base / f"{key}s" / f"case {number}.nii.gz") for key in ("image", "label")}

    parts = {"north": ([0, 1, 2], [3], [4]), "south": ([5, 6], [7], [8])}
    cases = {site: [[*map(case, own)] for own in numbers] for site, numbers in parts.items()}
    return {site: dict(zip(PARTS, own, strict=True)) for site, own in cases.items()}


def write(base: Path, datalists: dict | None = None, **about) -> list[str]:
    said = []
    assert write_sites("toy", datalists or shared(base), base, about, said.append) == "toy"
    return said


def test_each_site_gets_a_folder_of_its_own_that_can_be_moved(base, toy, tmp_path):
    ends = ("north: 3 training, 1 validation, 1 testing", "south: 2 training, 1 validation, 1 testing")
    assert write(base) == [f"{toy}/{end}" for end in ends] and names_in(toy) == ["about.json", "north", "south"]
    assert names_in(toy / "south") == ["checked.json", "datalist.json", "images", "labels"]
    assert names_in(toy / "south" / "images") == [f"case {i}.nii.gz" for i in (5, 6, 7, 8)]
    datalist = (toy / "south" / "datalist.json").read_text()
    place = {"image": "images/case 7.nii.gz", "label": "labels/case 7.nii.gz"}
    assert json.loads(datalist)["validation"] == [place] and str(tmp_path) not in datalist
    sums = json.loads((toy / "south" / "checked.json").read_text())
    files = {name: content for name, content in files_of(toy / "south").items() if name.endswith(".gz")}
    known = {name: (hashlib.sha256(content).hexdigest(), len(content)) for name, content in files.items()}
    assert {name: (one["sha256"], one["bytes"]) for name, one in sums.items()} == known

    shutil.move(toy / "south", tmp_path / "the hospital")
    shutil.rmtree(base)
    (item,) = read_datalist(tmp_path / "the hospital" / "datalist.json", "south")["testing"]
    assert [Path(item[key]).read_text() for key in ("image", "label")] == ["images 8", "labels 8"]
    assert item["site"] == "south"


def test_images_with_classes_keep_their_class_and_may_be_alike(toy, tmp_path):
    items = [{"image": str(tmp_path / f"{i}.jpeg"), "label": i} for i in range(3)]
    for item in items:
        Path(item["image"]).write_text("all alike")
    write(tmp_path, {"a": {part: [item] for part, item in zip(PARTS, items, strict=True)}})
    assert names_in(toy / "a") == ["0.jpeg", "1.jpeg", "2.jpeg", "datalist.json"], "no sums of pictures"
    read = [item for part in read_site("toy", "a").values() for item in part]
    assert [(Path(item["image"]).name, item["label"]) for item in read] == [(f"{i}.jpeg", i) for i in range(3)]


def test_the_same_again_does_nothing_and_a_change_writes_all(base, toy):
    write(base, seed=0)
    assert write(base, seed=0) == [f"{toy}: shared out already over north, south, nothing to do."]
    (base / "images" / "case 5.nii.gz").unlink()
    (base / "images" / "case 5.nii.gz").write_text("another scan")
    assert len(write(base, seed=0)) == 2 and (toy / "south/images/case 5.nii.gz").read_text() == "another scan"
    for lost in ("south/labels/case 6.nii.gz", "north/datalist.json", "north/checked.json"):
        (toy / lost).unlink()
        assert len(write(base, seed=0)) == 2, "what was lost is made again"
    assert len(write(base, {"north": shared(base)["north"]}, seed=0)) == 1 and sites_of("toy") == ["north"]
    assert names_in(toy.parent) == ["toy"]


def test_a_folder_that_was_not_shared_out_here_is_left_alone(base, toy):
    (toy / "north").mkdir(parents=True)
    (toy / "north" / "datalist.json").write_text("a hospital's own")
    course_error("sites/toy holds sites that were not made by sharing out here", write, base)
    course_error("'Hospital A' cannot be the name of a site", write, base, {"Hospital A": shared(base)["north"]})
    assert files_of(toy) == {"north/datalist.json": b"a hospital's own"}
    shutil.rmtree(toy)
    toy.write_text("a file")
    course_error("were not made by sharing out here", write, base)


def test_a_full_disk_keeps_what_was_shared_out_before(base, toy, monkeypatch):
    write(base, seed=0)
    before = files_of(toy)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another disk")))
    full = failing(monkeypatch, folders.shutil, "copyfile", FULL, after=3)
    with full, pytest.raises(CourseError, match="No space left"):
        write(base, seed=1)
    assert files_of(toy) == before and names_in(toy.parent) == ["toy"]


def test_a_datalist_that_somebody_edited(base, toy, monkeypatch):
    """It may have keys of its own, and is read from anywhere; all that is wrong with it is named at once."""
    write(base)
    file = toy / "north/datalist.json"
    entry = {"image": "images/case 0.nii.gz", "label": "labels/case 0.nii.gz", "age": 61}
    file.write_text(json.dumps({"training": [entry], "validation": [], "testing": []}))
    monkeypatch.chdir(toy)
    (item,) = read_datalist(Path("north/datalist.json"), "north")["training"]
    assert item == {**entry, **{key: str(toy / "north" / entry[key]) for key in ("image", "label")}, "site": "north"}
    gone = {**entry, "image": "images/case 77.nii.gz"}
    file.write_text(json.dumps({"training": [entry, gone, {"image": "x"}, 7], "testing": [entry]}))
    with pytest.raises(CourseError) as caught:
        read_datalist(file)
    said = ("'validation' is missing", "case 77", "training[2]", "training[3]", "in training and in testing")
    assert all(message in str(caught.value) for message in (str(file), "5 problems", *said))
    assert caught.value.kind == "its datalist cannot be used", "no case name leaves a site"


def test_who_has_what(base):
    write(base)
    table = who_has_what(read_sites("toy"))
    assert table.loc["north"].to_dict() == {"training": 3, "validation": 1, "testing": 1, "all parts": 5}
    assert table.loc["all sites"].to_dict() == {"training": 5, "validation": 2, "testing": 2, "all parts": 9}
    assert [len(pooled(read_sites("toy"))[part]) for part in PARTS] == [5, 2, 2]
    shares = partition(fake_items([4, 6]), ["a", "b"])
    table = who_has_what({site: split(own, 0.2, 0.2, site=site) for site, own in shares.items()}, ["hand", "chest"])
    assert list(table.columns) == [*PARTS, "all parts", "hand", "chest"]
    assert table.loc["a"].tolist() == [3, 1, 1, 5, 2, 3]
    assert table.loc["all sites", ["hand", "chest"]].tolist() == [4, 6]


def test_distances_are_0_for_the_same_mix_and_1_for_no_class_in_common():
    for counts, apart in (
        ({"a": (2, 2), "b": (5, 5)}, {"a": 0, "b": 0}),
        ({"a": (4, 0), "b": (0, 3)}, {"a": 1, "b": 1}),
        ({"a": (3, 1), "b": (1, 1), "c": (0, 2)}, {"a": 0.75 - 0.25, "b": 0.0, "c": 4 / 6}),
    ):
        table = classes({site: fake_items(own) for site, own in counts.items()}, ["x", "y"])
        assert table.loc["all sites"].tolist() == np.sum([*counts.values()], axis=0).tolist()
        assert distances(table).to_dict() == pytest.approx(apart)
