"""The one place that writes: whole or not at all, and never over somebody else's work."""

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest

from data_scripts.folders import GENERATED, generated, is_generated, link_or_copy, one_at_a_time, staged
from src.common import files
from src.common.errors import CourseError, all_of
from src.common.files import read_json, stamp, write_file, write_json, writing
from tests.tests_support import FULL, failing, files_of, names_in

# Files


@pytest.mark.parametrize(
    ("content", "stored"), [("Prostata ä", "Prostata ä".encode()), (b"\0\xff", b"\0\xff")], ids=["text", "bytes"]
)
def test_a_file_is_written_for_all_to_read(tmp_path, content, stored):
    assert write_file(tmp_path / "page.html", content) == tmp_path / "page.html"
    assert (tmp_path / "page.html").read_bytes() == stored
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o644
    assert names_in(tmp_path) == ["page.html"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    write_file(tmp_path / "page.html", "before")
    with (
        failing(monkeypatch, Path, "replace", FULL),
        pytest.raises(
            CourseError, match=r"Cannot write \S+page\.html: No space left.*Free some space.*is unchanged"
        ) as caught,
    ):
        write_file(tmp_path / "page.html", "after")
    assert caught.value.kind == "it cannot write to its disk", "what may leave a site names no file"
    assert files_of(tmp_path) == {"page.html": b"before"}


def test_what_the_system_says_becomes_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CourseError, match=r"Cannot write \S+/file/page: Not a directory\. Choose a folder that you can"
    ):
        write_file(tmp_path / "file" / "page", "")
    with pytest.raises(CourseError, match="Permission denied"), writing(tmp_path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_json_comes_back_with_any_file_name_in_it(tmp_path):
    content = {"case": "Prostata ä", "bytes": os.fsdecode(b"fall_\xe4"), "n": [1, 2.5, None]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert b"fall_\xe4" in (tmp_path / "a.json").read_bytes()


@pytest.mark.parametrize(
    "content",
    [None, "", "{", "[1]", "3", b"\xff\xfe{\0}\0"],
    ids=["none", "nothing", "half", "list", "number", "UTF-16"],
)
def test_json_that_is_no_object_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_json(tmp_path / "a.json") is None


def test_a_stamp_changes_with_size_and_with_time(tmp_path):
    file = tmp_path / "a"
    file.write_text("1")
    os.utime(file, ns=(0, 1_000))
    assert stamp(file) == [1, 1_000]
    os.utime(file, ns=(0, 2_000))
    assert stamp(file, file) == [1, 2_000, 1, 2_000]


def test_a_second_name_is_a_link_or_else_a_copy(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("image")
    link_or_copy(tmp_path / "a", tmp_path / "linked")
    assert (tmp_path / "linked").samefile(tmp_path / "a")
    with failing(monkeypatch, os, "link", OSError(errno.EXDEV, "another disk")):
        link_or_copy(tmp_path / "a", tmp_path / "copied")
    assert not (tmp_path / "copied").samefile(tmp_path / "a")
    assert (tmp_path / "copied").read_text() == "image"


# Folders


def test_a_folder_appears_whole_and_replaces_what_was_there(tmp_path):
    place = tmp_path / "new parent" / "data"
    for content in ("first", "second"):
        with staged(place) as new:
            assert not list(new.iterdir())
            (new / content).write_text(content)
            assert content == "first" or files_of(place) == {"first": b"first"}
        assert files_of(place) == {content: content.encode()}
        assert names_in(place.parent) == ["data"]


@pytest.mark.parametrize("error", [CourseError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_after_an_error_the_folder_is_as_it_was(tmp_path, error):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old").write_text("old")
    expected = CourseError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), staged(tmp_path / "data") as new:
        (new / "half").write_text("half")
        raise error
    assert files_of(tmp_path) == {"data/old": b"old"}
    assert names_in(tmp_path) == ["data"]


def test_one_process_at_a_time(tmp_path):
    seen, first_is_in = [], threading.Event()

    def work(name, pause):
        with one_at_a_time(tmp_path / "data"):
            seen.append(f"{name} in")
            first_is_in.set()
            time.sleep(pause)
            seen.append(f"{name} out")

    threads = [threading.Thread(target=work, args=("a", 0.1)), threading.Thread(target=work, args=("b", 0))]
    threads[0].start()
    first_is_in.wait()
    threads[1].start()
    for thread in threads:
        thread.join()
    assert seen == ["a in", "a out", "b in", "b out"]


def test_a_file_system_that_cannot_lock_is_no_obstacle(tmp_path, monkeypatch):
    with (
        failing(monkeypatch, files.fcntl, "flock", OSError(errno.ENOLCK, "no locks")),
        one_at_a_time(tmp_path / "data"),
    ):
        assert (tmp_path / "data").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(CourseError, match=r"Cannot write \S+/file"), one_at_a_time(tmp_path / "file"):
        pass


# Drawings


def draw(calls: list):
    def into(folder: Path):
        calls.append(folder)
        (folder / "image").write_text(f"drawing {len(calls)}")

    return into


def test_drawings_are_made_once_and_again_for_other_parameters(tmp_path):
    folder, calls = tmp_path / "generated" / "MedNIST", []
    for version, drawn in ((1, 1), (1, 1), (2, 2), (2, 2)):
        assert generated(folder, {"version": version, "seed": 0}, draw(calls)) == folder
        assert len(calls) == drawn
        assert json.loads((folder / GENERATED).read_text()) == {"version": version, "seed": 0}
    assert (folder / "image").read_text() == "drawing 2"
    assert is_generated(folder) and not is_generated(tmp_path)
    assert names_in(folder.parent) == ["MedNIST"]


def test_drawings_never_replace_what_was_not_drawn(tmp_path):
    (tmp_path / "MedNIST").mkdir()
    generated(tmp_path / "MedNIST", {}, draw([]))  # an empty folder is as good as none
    (tmp_path / "MedNIST" / GENERATED).unlink()
    with pytest.raises(CourseError, match=r"MedNIST is in the place of the drawings .*COURSE_DATA"):
        generated(tmp_path / "MedNIST", {}, draw([]))
    (tmp_path / "file").write_text("thesis")
    with pytest.raises(CourseError, match="was not drawn by this course"):
        generated(tmp_path / "file", {}, draw([]))
    assert files_of(tmp_path) == {"MedNIST/image": b"drawing 1", "file": b"thesis"}


def test_a_drawing_that_fails_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "half").write_text("")
        raise FULL

    with pytest.raises(CourseError, match="No space left"):
        generated(tmp_path / "MedNIST", {}, fail)
    assert names_in(tmp_path) == []


def test_two_that_ask_at_once_draw_once(tmp_path):
    calls = []

    def slowly(folder):
        time.sleep(0.05)
        draw(calls)(folder)

    threads = [threading.Thread(target=generated, args=(tmp_path / "MedNIST", {"seed": 0}, slowly)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


# Errors


def test_one_problem_is_a_sentence_and_more_are_a_list():
    assert str(all_of("Nothing was converted", ["a.nii: is empty"])) == "Nothing was converted: a.nii: is empty"
    several = all_of("Nothing was converted", ["a", "b"], kind="several files are damaged")
    assert str(several) == "Nothing was converted, 2 problems:\n  - a\n  - b"
    assert several.kind == "several files are damaged"
