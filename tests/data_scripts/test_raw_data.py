"""The raw data of both tasks: found, drawn or fetched, and what is said of them."""

import inspect
import json
import shutil
from pathlib import Path

import pytest

from data_scripts import datalists_gen, mednist_sites, prostate_download
from data_scripts.folders import GENERATED
from data_scripts.phantoms import mednist, prostate
from data_scripts.together import read_sites
from tests.data_support import grey_pictures, named, raw_cases
from tests.tests_support import course_error, names_in


def cases(folder: Path, _: int) -> None:
    raw_cases(folder, 8, named("PZ", "TZ"))
    hospitals = {f"site-{i + 1}": [f"case_{k}" for k in range(i, 8, 2)] for i in range(2)}
    (folder / "hospitals.json").write_text(json.dumps(hospitals))


class OfMedNIST:
    name, folder, part, archive, sizes = "mednist", "MedNIST", "Hand", "/MedNIST.tar.gz", [[27, 4, 8]] * 2
    said, lacks = "78 images (AbdomenCT 13,", r"No images \(\.jpeg, .*\) in .*/my data/MedNIST/Hand\. .*delete"
    module, prepare, draw, number = mednist_sites, mednist_sites.prepare, grey_pictures, mednist_sites.DRAWN_PER_CLASS


class OfProstate:
    name, folder, part, archive = "prostate", "Task05_Prostate", "labelsTr", "/Task05_Prostate.tar"
    sizes = [[2, 1, 1]] * 2
    said, lacks = "8 cases with mask, 0 without; channels T2, ADC", r"lacks labelsTr\. Add it, or move the rest away"
    module, prepare, draw, number = prostate_download, datalists_gen.prepare, cases, prostate_download.DRAWN_CASES


@pytest.fixture(params=[OfMedNIST, OfProstate], ids=["mednist", "prostate"])
def raw(request, monkeypatch) -> type:
    """A task whose drawings take no time; ``drawn`` counts them."""
    request.param.drawn = []

    def write(folder: Path, number: int, seed: int, *_) -> None:
        request.param.drawn.append((number, seed))
        request.param.draw(folder, 13)

    monkeypatch.setattr(request.param.module, "write", write)
    return request.param


def test_drawings_are_made_once_called_drawings_and_made_again_for_another_version(raw, home, monkeypatch):
    folder = home / "generated" / raw.folder
    assert raw.module.find_or_make() == raw.module.find_or_make("generated") == folder
    assert raw.drawn == [(raw.number, 0)]
    assert raw.module.describe(folder).startswith(f"generated drawings, not patients: {raw.said}")
    shutil.rmtree(folder / raw.part)
    monkeypatch.setattr(raw.module, "parameters", lambda *_: {"version": "another"})
    assert raw.module.find_or_make() == folder and (folder / raw.part).is_dir() and raw.drawn == [(raw.number, 0)] * 2
    (folder / GENERATED).unlink()
    assert raw.module.describe(folder).startswith("real ")
    course_error(r"'both'; .*'generated' .*or 'real'", raw.module.find_or_make, "both")


def test_real_data_that_are_there_are_used_as_they_are_and_refused_without_a_part(raw, home, tmp_path, monkeypatch):
    monkeypatch.setattr(raw.module, "fetch", lambda *_, **__: pytest.fail("must not download"))
    raw.draw(tmp_path / "elsewhere", 13)
    home.mkdir()
    (home / raw.folder).symlink_to(tmp_path / "elsewhere")
    assert raw.module.find_or_make("real") == raw.module.find_or_make("real", home)
    shutil.rmtree(home / raw.folder / raw.part)
    course_error(raw.lacks, raw.module.find_or_make, "real")


def test_real_data_that_are_missing_are_fetched_from_where_monai_keeps_them(raw, home, monkeypatch):
    from monai.apps import DecathlonDataset, MedNISTDataset

    official = {"mednist": (MedNISTDataset.resource, MedNISTDataset.md5)}
    official["prostate"] = (DecathlonDataset.resource["Task05_Prostate"], DecathlonDataset.md5["Task05_Prostate"])

    def fetch(folder: Path, url: str, md5: str, check, *others, say) -> None:
        assert (url, md5, check) == (*official[raw.name], raw.module._check)
        assert url.startswith("https://") and url.endswith(raw.archive)
        assert raw.name == "mednist" or others == (prostate_download._from_google_drive,)
        raw.draw(folder, 13)

    monkeypatch.setattr(raw.module, "fetch", fetch)
    (home / raw.folder).mkdir(parents=True)  # an empty folder is as good as none
    assert raw.module.find_or_make("real") == home / raw.folder


def test_all_steps_from_nothing(raw, home):
    said = []
    for _ in range(2):
        said.clear()
        assert raw.prepare(said.append) == raw.name
    assert all("nothing to do" in line for line in said) and len(raw.drawn) == 1
    sites = read_sites(raw.name).values()
    assert [[len(items) for items in parts.values()] for parts in sites] == raw.sizes
    assert json.loads((home / "sites" / raw.name / "about.json").read_text())["generated"] is True
    assert names_in(home / "generated") == sorted({raw.folder, "prostate_t2" if raw.name == "prostate" else raw.folder})


@pytest.mark.parametrize("drawings", [mednist, prostate], ids=["mednist", "prostate"])
def test_parameters_say_what_the_drawings_are_and_impossible_ones_are_named(drawings, tmp_path):
    found = drawings.parameters(200, 3)
    assert "drawings, not patients" in found["note"] and json.loads(json.dumps(found)) == found
    assert 200 in found.values() and (found["version"], found["seed"]) == (drawings.VERSION, 3)
    for number, seed, said in ((0, 0, "=0"), (1.5, 0, "=1.5"), (1, -1, "seed=-1")):
        course_error(f"{said}: it is a whole number", drawings.write, tmp_path, number, seed)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_pictures_and_prostates_without_masks_and_names(home):
    folder = raw_cases(home, 4)
    (home / "MedNIST").write_text("a file")
    course_error(r"/my data/MedNIST is a file .*Delete it", mednist_sites.find_or_make, "real")
    assert f" {prostate_download.DRAWN_CASES} drawn cases" in prostate_download.__doc__
    (folder / "imagesTs").mkdir()
    (folder / "imagesTs/case_50.nii.gz").write_text("")
    said = f"real cases: 4 cases with mask, 1 without; channels without names ({folder})"
    assert prostate_download.describe(folder) == said


def test_drawings_with_outlines_of_each_hospitals_own_have_a_folder_and_a_name_of_their_own(home, monkeypatch):
    monkeypatch.setattr(prostate_download, "write", lambda folder, number, seed, outlines: cases(folder, number))
    assert datalists_gen.prepare(len, outlines="own") == "prostate_own"
    assert names_in(home / "generated") == ["Task05_Prostate_own", "prostate_t2_own"]
    course_error("for drawings", prostate_download.find_or_make, "real", outlines="own")


def test_google_drive_is_asked_by_its_id_without_cookies(tmp_path, monkeypatch):
    import gdown
    from gdown.exceptions import FileURLRetrievalError

    real, asked = inspect.signature(gdown.download), []

    def stand_in(*, id, output, **options):
        real.bind(id=id, output=output, **options)  # the real one takes these arguments
        assert options["use_cookies"] is False
        output.write(b"an archive")
        asked.append(id)
        if len(asked) > 1:
            raise FileURLRetrievalError("too many accesses")

    monkeypatch.setattr(gdown, "download", stand_in)
    prostate_download._from_google_drive(tmp_path / "archive")
    assert (tmp_path / "archive").read_bytes() == b"an archive" and asked == [prostate_download.GOOGLE_DRIVE_ID]
    course_error("Google Drive: too many accesses", prostate_download._from_google_drive, tmp_path / "archive")
