"""MedNIST's images: which are read, and who gets which."""

from pathlib import Path

import pytest

from data_scripts import mednist_sites as data
from data_scripts.folders import GENERATED
from data_scripts.sharing import who_has_what
from data_scripts.together import read_sites
from src.mednist.card import CARD
from tests.data_support import grey_pictures
from tests.tests_support import course_error, rows

PER_CLASS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = grey_pictures(tmp_path_factory.mktemp("drawings") / "MedNIST", PER_CLASS)
    (folder / GENERATED).write_text("{}")
    return folder


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
        ({"per_class": 0}, "'per_class' is 0"),
        ({"per_class": 5, "seed": -1}, "'seed' is -1"),
    ):
        course_error(said, data.read_items, folder, **arguments)


def test_of_real_images_500_a_class_are_read_unless_told_otherwise(folder, tmp_path, monkeypatch):
    assert data.REAL_PER_CLASS == 500
    monkeypatch.setattr(data, "REAL_PER_CLASS", 4)
    for name in CARD.labels:
        (tmp_path / name).symlink_to(folder / name)
    assert len(data.read_items(tmp_path)) == 4 * 6 and len(data.read_items(tmp_path, per_class=6)) == 6 * 6


def test_a_hospital_has_plenty_of_its_own_kinds_and_a_few_of_the_others(folder):
    data.share_out(few=3, folder=folder, say=len)
    table = who_has_what(read_sites("mednist"), CARD.labels)
    scanner = [3 if name in ("BreastMRI", "CXR", "Hand") else 17 for name in CARD.labels]
    assert table.loc["site-1", list(CARD.labels)].tolist() == scanner
    assert table.loc["all sites", list(CARD.labels)].tolist() == [20] * 6
    data.share_out(3, few=0, data="three", folder=folder, say=len)
    three = who_has_what(read_sites("three"), CARD.labels).loc["site-2"]
    assert three[three.index.isin(CARD.labels) & (three > 0)].to_dict() == {"CXR": 20, "HeadCT": 20}


@rows(
    ("more sites than classes", {"sites": 7}, "6 classes cannot be at home at 7 sites"),
    ("too many of the few", {"few": 11}, "few is 11: of the 20 items of class 0 11 would go"),
    ("less than none", {"few": -1}, "'few' is -1"),
    ("a path as a name", {"data": "../mine"}, "'data' is '../mine'; it must match"),
    ("no folder", {"folder": Path("/nowhere")}, r"No images \(.*\) in /nowhere/AbdomenCT"),
    ("counts without their way", {"counts": [9, 9]}, r"counts is \[9, 9\], which 'specialised' does not heed"),
)
def test_what_cannot_be_shared_out_is_refused(arguments, message, folder, home):
    course_error(message, data.share_out, **{"folder": folder, "say": len, **arguments})
    assert not (home / "sites" / "mednist").exists()
