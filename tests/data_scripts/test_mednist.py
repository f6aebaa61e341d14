"""MedNIST's images: found, drawn or fetched; which are read; who gets which."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from data_scripts import mednist_sites as data
from data_scripts.folders import GENERATED
from data_scripts.sharing import who_has_what
from data_scripts.together import read_sites
from src.common.errors import CourseError
from src.mednist.card import CARD
from tests.tests_support import files_of, names_in

PER_CLASS = 20


def write(folder: Path, per_class: int = PER_CLASS, seed: int = 0) -> None:
    """Grey squares in the layout of MedNIST: what counts here is which file is where."""
    for label, name in enumerate(CARD.labels):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            Image.new("L", (64, 64), 40 * label + i).save(folder / name / f"{i:06d}.jpeg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawings") / "MedNIST"
    write(folder)
    (folder / GENERATED).write_text("{}")
    return folder


@pytest.fixture
def few(monkeypatch) -> list[Path]:
    """Lets the drawings take no time, and counts how often they are drawn."""
    drawn = []

    def draw(folder, per_class, seed):
        drawn.append(folder)
        write(folder, 13)

    monkeypatch.setattr(data, "write", draw)
    return drawn


def test_generated_data_are_made_once_and_called_drawings(few, home, monkeypatch):
    folder = data.find_or_make()
    assert folder == data.find_or_make() == home / "generated" / "MedNIST" and len(few) == 1
    assert data.describe(folder).startswith("generated drawings, not patients: 78 images (AbdomenCT 13,")
    (folder / "Hand" / "000000.jpeg").unlink()
    monkeypatch.setattr(data, "parameters", lambda per_class, seed: {"version": 99})
    assert data.find_or_make() == folder
    assert len(few) == 2 and (folder / "Hand" / "000000.jpeg").exists(), "another version is drawn again"
    (folder / GENERATED).unlink()
    assert data.describe(folder).startswith("real MedNIST: 78 images")
    with pytest.raises(CourseError, match=r"'generated' .*or 'real'"):
        data.find_or_make("both")


def test_real_data_that_are_there_are_used_as_they_are_and_refused_without_a_class(folder, home, monkeypatch):
    monkeypatch.setattr(data, "fetch", lambda *_, **__: pytest.fail("must not download"))
    home.mkdir()
    (home / "MedNIST").symlink_to(folder)
    assert data.find_or_make("real") == data.find_or_make("real", home) == home / "MedNIST"
    (home / "MedNIST").unlink()
    (home / "MedNIST").write_text("a file")
    with pytest.raises(CourseError, match=r"/my data/MedNIST is a file .*Delete it"):
        data.find_or_make("real")
    (home / "MedNIST").unlink()
    for name in CARD.labels:
        (home / "MedNIST" / name).mkdir(parents=True)
        if name not in ("CXR", "Hand"):
            (home / "MedNIST" / name / "000000.jpeg").symlink_to(folder / name / "000000.jpeg")
    (home / "MedNIST" / "Hand").rmdir()
    missing = r"No images \(\.jpeg, .*\) in .*/my data/MedNIST/CXR, .*/MedNIST/Hand\. .*delete"
    with pytest.raises(CourseError, match=missing):
        data.find_or_make("real")


def test_real_data_that_are_missing_are_fetched_from_where_monai_keeps_them(folder, home, monkeypatch):
    from monai.apps import MedNISTDataset

    def fetch(place, url, md5, check, say):
        assert (url, md5, check) == (MedNISTDataset.resource, MedNISTDataset.md5, data._check)
        shutil.copytree(folder, place, dirs_exist_ok=True)

    monkeypatch.setattr(data, "fetch", fetch)
    (home / "MedNIST").mkdir(parents=True)  # an empty folder is as good as none
    assert data.find_or_make("real") == home / "MedNIST" and len(data.read_items(home / "MedNIST")) == 6 * PER_CLASS
    assert data._official()[0].startswith("https://") and data._official()[0].endswith("/MedNIST.tar.gz")


def test_items_are_sorted_and_chosen_by_seed(folder, monkeypatch):
    items = data.read_items(folder)
    assert [item["label"] for item in items] == [label for label in range(6) for _ in range(PER_CLASS)]
    assert items[PER_CLASS]["image"] == str(folder / "BreastMRI" / "000000.jpeg")
    few = data.read_items(folder, per_class=5, seed=1)
    assert [item["label"] for item in few] == [label for label in range(6) for _ in range(5)]
    names, all_names = ([item["image"] for item in one] for one in (few, items))
    assert names == sorted(names) and set(names) < set(all_names)
    assert few == data.read_items(folder, per_class=5, seed=1) != data.read_items(folder, per_class=5, seed=2)
    for told, count in (("7", 7 * 6), ("all", PER_CLASS * 6)):
        monkeypatch.setenv("COURSE_MEDNIST_PER_CLASS", told)
        assert len(data.read_items(folder)) == count
    monkeypatch.setenv("COURSE_MEDNIST_PER_CLASS", "many")
    for arguments, said in (
        ({}, "COURSE_MEDNIST_PER_CLASS is 'many'"),
        ({"per_class": 0}, "per_class is 0"),
        ({"per_class": 5, "seed": -1}, "seed is -1"),
    ):
        with pytest.raises(CourseError, match=said):
            data.read_items(folder, **arguments)


def test_of_real_images_500_a_class_are_read_unless_told_otherwise(folder, tmp_path, monkeypatch):
    assert data.REAL_PER_CLASS == 500
    monkeypatch.setattr(data, "REAL_PER_CLASS", 4)
    for name in CARD.labels:
        (tmp_path / name).symlink_to(folder / name)
    assert len(data.read_items(tmp_path)) == 4 * 6
    assert len(data.read_items(tmp_path, per_class=6)) == 6 * 6


def test_all_steps_from_nothing(few, home):
    assert data.prepare(lambda line: None) == "mednist"
    table = who_has_what(read_sites("mednist"), CARD.labels)
    assert list(table.index) == ["site-1", "site-2", "all sites"]
    assert table.loc["all sites", list(CARD.labels)].tolist() == [13] * 6
    assert (home / "sites" / "mednist" / "about.json").read_text().count('"generated": true') == 1


def test_two_hospitals_share_no_image_and_a_moved_copy_needs_nothing_else(folder, home, tmp_path, monkeypatch):
    said = []
    for _ in range(2):
        data.share_out(["north", "south"], "even", seed=3, data="mine", folder=folder, say=said.append)
    assert said[-1].endswith("shared out already over north, south, nothing to do.")
    assert names_in(home / "sites/mine/north") == sorted([*CARD.labels, "datalist.json"]), "no sums of pictures"
    shutil.move(home, tmp_path / "moved")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "moved"))
    sites = read_sites("mine")
    assert [[len(items) for items in parts.values()] for parts in sites.values()] == [[42, 6, 12]] * 2
    items = [item for parts in sites.values() for items in parts.values() for item in items]
    read = {"/".join(Path(item["image"]).parts[-2:]): Path(item["image"]).read_bytes() for item in items}
    assert read == {name: content for name, content in files_of(folder).items() if name != GENERATED}
    assert all(Path(item["image"]).parent.name == CARD.labels[item["label"]] for item in items)


def test_a_hospital_has_plenty_of_its_own_kinds_and_a_few_of_the_others(folder):
    data.share_out(few=3, folder=folder, say=len)
    table = who_has_what(read_sites("mednist"), CARD.labels)
    scanner = [3 if name in ("BreastMRI", "CXR", "Hand") else 17 for name in CARD.labels]
    assert table.loc["site-1", list(CARD.labels)].tolist() == scanner
    assert table.loc["all sites", list(CARD.labels)].tolist() == [20] * 6
    data.share_out(3, few=0, data="three", folder=folder, say=len)
    three = who_has_what(read_sites("three"), CARD.labels).loc["site-2"]
    assert three[three.index.isin(CARD.labels) & (three > 0)].to_dict() == {"CXR": 20, "HeadCT": 20}


REFUSED = {
    "no sites": ({"sites": 0}, "sites is 0"),
    "more sites than classes": ({"sites": 7}, "6 classes cannot be at home at 7 sites"),
    "too many of the few": ({"few": 11}, "few is 11: of the 20 items of class 0 11 would go"),
    "less than none": ({"few": -1}, "few is -1"),
    "more sites than images": ({"sites": 121}, "120 items cannot be shared out over 121 sites"),
    "another way": ({"how": "fair"}, "Unknown partition 'fair'"),
    "a negative seed": ({"seed": -1}, "seed is -1"),
    "a path as a name": ({"data": "../mine"}, "'data' is '../mine'; it must match"),
    "no folder": ({"folder": Path("/nowhere")}, r"No images \(.*\) in /nowhere/AbdomenCT"),
    "few of each elsewhere, with equal shares": ({"how": "even", "few": 3}, "few is 3, which 'even' does not heed"),
    "counts without their way": ({"counts": [9, 9]}, r"counts is \[9, 9\], which 'specialised' does not heed"),
    "alpha with scanners": ({"how": "scanners", "alpha": 0.5}, "alpha is 0.5, which 'scanners' .* choose 'dirichlet'"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_shared_out_is_refused(folder, home, arguments, message):
    with pytest.raises(CourseError, match=message):
        data.share_out(**{"folder": folder, "say": len, **arguments})
    assert not (home / "sites" / "mednist").exists()
