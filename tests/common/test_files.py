"""What writes: whole or not at all, one process at a time, and never over somebody else's work."""

import errno
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_scripts import folders
from data_scripts.folders import GENERATED, generated, is_generated, link_or_copy, one_at_a_time, staged
from src.common.errors import CourseError
from src.common.files import read_json, write_file, write_json
from tests.tests_support import FULL, course_error, failing, files_of, names_in


def test_a_file_is_written_for_all_to_read_whole_or_not_at_all(tmp_path, monkeypatch):
    for content, stored in {"Prostata ä": "Prostata ä".encode(), b"\0\xff": b"\0\xff"}.items():
        assert write_file(tmp_path / "page.html", content) == tmp_path / "page.html"
        assert files_of(tmp_path) == {"page.html": stored} and (tmp_path / "page.html").stat().st_mode & 0o777 == 0o644
    said = r"Cannot write \S+page\.html: No space left.*Free some space.*is unchanged"
    with failing(monkeypatch, Path, "replace", FULL), pytest.raises(CourseError, match=said) as caught:
        write_file(tmp_path / "page.html", "after")
    assert caught.value.kind == "it cannot write to its disk", "what may leave a site names no file"
    assert files_of(tmp_path) == {"page.html": b"\0\xff"}
    with pytest.raises(CourseError, match=r"/page\.html/x: Not a directory\. Choose a folder that you can"):
        write_file(tmp_path / "page.html" / "x", "")
    # JSON comes back with any file name in it, and is None where it is no object.
    content, file = {"case": "Prostata ä", "bytes": os.fsdecode(b"fall_\xe4"), "n": [1, 2.5, None]}, tmp_path / "a.json"
    assert read_json(file) is None
    write_json(file, content)
    assert read_json(file) == content and b"fall_\xe4" in file.read_bytes()
    for other in (b"", b"{", b"[1]", b"3", b"\xff\xfe{\0}\0"):
        file.write_bytes(other)
        assert read_json(file) is None, other


def test_a_second_name_is_a_link_or_else_a_copy_and_a_folder_appears_whole(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("image")
    link_or_copy(tmp_path / "a", tmp_path / "linked")
    with failing(monkeypatch, os, "link", OSError(errno.EXDEV, "another disk")):
        link_or_copy(tmp_path / "a", tmp_path / "copied")
    assert [(tmp_path / name).samefile(tmp_path / "a") for name in ("linked", "copied")] == [True, False]
    assert (tmp_path / "copied").read_text() == "image"
    # And it replaces what was there.
    place = tmp_path / "new parent" / "data"
    for content in ("first", "second"):
        with staged(place) as new:
            assert not list(new.iterdir())
            (new / content).write_text(content)
            assert content == "first" or files_of(place) == {"first": b"first"}
        assert files_of(place) == {content: content.encode()} and names_in(place.parent) == ["data"]


@pytest.mark.parametrize("error", [CourseError("no"), KeyboardInterrupt(), FULL], ids=["error", "Ctrl+C", "full disk"])
def test_after_an_error_the_folder_is_as_it_was(tmp_path, error):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old").write_text("old")
    expected = CourseError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), staged(tmp_path / "data") as new:
        (new / "half").write_text("half")
        raise error
    assert files_of(tmp_path) == {"data/old": b"old"} and names_in(tmp_path) == ["data"]


def draw(folder: Path, calls: list) -> None:
    time.sleep(0.02)
    calls.append(folder)
    (folder / "image").write_text(f"drawing {len(calls)}")


def test_drawings_are_made_by_one_process_at_a_time_once_and_again_for_other_parameters(tmp_path):
    folder, calls = tmp_path / "generated" / "MedNIST", []
    for version in (1, 2):
        about = {"version": version, "seed": 0}
        with ThreadPoolExecutor(5) as pool:
            asked = [pool.submit(generated, folder, about, lambda new: draw(new, calls)) for _ in range(5)]
        assert {one.result() for one in asked} == {folder} and len(calls) == version
        assert json.loads((folder / GENERATED).read_text()) == about
    assert (folder / "image").read_text() == "drawing 2" and is_generated(folder) and not is_generated(tmp_path)
    assert names_in(folder.parent) == ["MedNIST"], "the lock leaves no file"
    course_error(r"Cannot write \S+/image", one_at_a_time(folder / "image").__enter__)


def test_drawings_never_replace_what_was_not_drawn(tmp_path, monkeypatch):
    (tmp_path / "MedNIST").mkdir()
    with failing(monkeypatch, folders, "write_json", FULL), pytest.raises(CourseError, match="No space left"):
        generated(tmp_path / "MedNIST", {}, lambda new: draw(new, []))
    assert names_in(tmp_path) == ["MedNIST"] and not files_of(tmp_path), "a drawing that fails leaves nothing"
    generated(tmp_path / "MedNIST", {}, lambda new: draw(new, []))  # an empty folder is as good as none
    (tmp_path / "MedNIST" / GENERATED).unlink()
    (tmp_path / "file").write_text("thesis")
    for name, said in {"MedNIST": r"MedNIST is in the place .*COURSE_DATA", "file": "was not drawn by this"}.items():
        course_error(said, generated, tmp_path / name, {}, lambda new: draw(new, []))
    assert files_of(tmp_path) == {"MedNIST/image": b"drawing 1", "file": b"thesis"}
