"""MedNIST's images: found, drawn or fetched; which are read; who gets which."""

import hashlib
import io
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from data_scripts import mednist_sites as data
from data_scripts.folders import GENERATED
from data_scripts.sharing import who_has_what
from src.common.datalists import read_sites
from src.common.errors import CourseError
from src.mednist.card import CARD
from tests.tests_support import Server, failing, files_of, names_in

PER_CLASS = 20


def write(folder: Path, per_class: int = PER_CLASS, seed: int = 0) -> None:
    """Grey squares in the layout of MedNIST: what counts here is which file is where."""
    for label, name in enumerate(CARD.labels):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            Image.new("L", (64, 64), 40 * label + i).save(folder / name / f"{i:06d}.jpeg")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A data folder of the test's own that does not exist yet, reached without any proxy."""
    for name in ("COURSE_DATA_SOURCE", "COURSE_MEDNIST_PER_CLASS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "my data"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "my data"


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


# Finding it


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


def test_the_drawings_depend_on_what_they_say():
    asked = data.parameters(data.DRAWN_PER_CLASS, 0)
    assert asked != data.parameters(data.DRAWN_PER_CLASS, 1) and asked != data.parameters(1, 0)


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


# Fetching it; all that can go wrong on the way is in test_fetching.py


@pytest.fixture
def server(folder, monkeypatch):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name in CARD.labels:
            tar.add(folder / name / "000003.jpeg", f"MedNIST/{name}/000003.jpeg")
        tar.addfile(tarfile.TarInfo("MedNIST/Hand/._000003.jpeg"))
    server = Server("MedNIST.tar.gz", stream.getvalue())
    monkeypatch.setattr(data, "_official", lambda: (server.url, hashlib.md5(stream.getvalue()).hexdigest()))
    yield server
    server.close()


def test_real_data_are_downloaded_once_verified_and_unpacked(server, folder, home, monkeypatch):
    (home / "MedNIST").mkdir(parents=True)  # an empty folder is as good as none
    lacks = pytest.raises(CourseError, match=r"cannot be used: No \.jpeg images in MedNIST/Hand")
    with failing(monkeypatch, data, "_check", CourseError("No .jpeg images in MedNIST/Hand.")), lacks:
        data.find_or_make("real")
    assert names_in(home) == ["MedNIST", "MedNIST.tar.gz"]
    (home / "MedNIST.tar.gz").unlink()
    said = []
    for _ in range(2):
        assert data.find_or_make("real", say=said.append) == home / "MedNIST"
    assert said[0] == f"Downloading MedNIST from {server.url}"
    assert (home / "MedNIST/CXR/000003.jpeg").read_bytes() == (folder / "CXR/000003.jpeg").read_bytes()
    assert len(data.read_items(home / "MedNIST")) == 6, "a Mac's hidden files are no images"
    assert names_in(home) == ["MedNIST"] and server.asked == 2


def test_address_and_checksum_are_monais():
    from monai.apps import MedNISTDataset

    address, md5 = data._official()
    assert (address, md5) == (MedNISTDataset.resource, MedNISTDataset.md5)
    assert address.startswith("https://") and address.endswith("/MedNIST.tar.gz")


# Reading the list of images


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


# Sharing out


def share_out(*arguments, **more) -> list[str]:
    """Shares out, and returns what was said."""
    said = []
    data.share_out(*arguments, **more, say=said.append)
    return said


def test_all_steps_from_nothing(few, home):
    assert data.prepare(lambda line: None) == "mednist"
    table = who_has_what(read_sites("mednist"), CARD.labels)
    assert list(table.index) == ["site-1", "site-2", "all sites"]
    assert table.loc["all sites", list(CARD.labels)].tolist() == [13] * 6
    assert (home / "sites" / "mednist" / "about.json").read_text().count('"generated": true') == 1


def test_two_hospitals_share_no_image_and_a_moved_copy_needs_nothing_else(folder, home, tmp_path, monkeypatch):
    arguments = (["north", "south"], "even"), {"seed": 3, "data": "mine", "folder": folder}
    share_out(*arguments[0], **arguments[1])
    assert share_out(*arguments[0], **arguments[1])[-1].endswith("shared out already over north, south, nothing to do.")
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
    share_out(few=3, folder=folder)
    table = who_has_what(read_sites("mednist"), CARD.labels)
    scanner = [3 if name in ("BreastMRI", "CXR", "Hand") else 17 for name in CARD.labels]
    assert table.loc["site-1", list(CARD.labels)].tolist() == scanner
    assert table.loc["all sites", list(CARD.labels)].tolist() == [20] * 6
    share_out(3, few=0, data="three", folder=folder)
    three = who_has_what(read_sites("three"), CARD.labels).loc["site-2"]
    assert three[three.index.isin(CARD.labels) & (three > 0)].to_dict() == {"CXR": 20, "HeadCT": 20}


def test_unequal_hospitals(folder):
    share_out(3, how="counts", counts=[1, 2, 30], folder=folder)
    sizes = [[len(items) for items in parts.values()] for parts in read_sites("mednist").values()]
    assert sizes == [[1, 0, 0], [1, 1, 0], [21, 3, 6]]


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
        share_out(**{"folder": folder, **arguments})
    assert not (home / "sites" / "mednist").exists()
