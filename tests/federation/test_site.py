"""A site's own side: what it decides for itself, and the few words that leave it when it fails."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from src.common.datalists import cache_folder
from src.common.errors import CourseError
from src.common.files import write_json
from src.federation import reasons
from src.federation.reasons import REASON, run_site, said_reason, short_reason
from src.federation.site import Site
from tests.training_support import LINE, LineSettings

PATIENT = "SURNAME_FIRSTNAME_1950"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (CourseError(f"/data/{PATIENT}.nii.gz is missing", "a file is missing"), "a file is missing"),
        (CourseError(f"/data/{PATIENT}.nii.gz is missing"), "something is wrong with its settings or its data"),
        (FloatingPointError(PATIENT), "its loss or its weights became NaN or infinite"),
        (MemoryError(PATIENT), "it ran out of memory"),
        (FileNotFoundError(2, "No such file", f"/data/{PATIENT}"), "its software raised FileNotFoundError"),
    ],
    ids=["the course's with a kind", "the course's", "NaN", "memory", "any other"],
)
def test_of_an_error_its_kind_leaves_and_never_its_message(error, words):
    assert short_reason(error) == words


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (make_reply(ReturnCode.EXECUTION_EXCEPTION, headers={REASON: "no memory"}), "no memory"),
        (FLModelUtils.to_shareable(FLModel(metrics={}, meta={REASON: "an image is bad"})), "an image is bad"),
        (make_reply(ReturnCode.TASK_ABORTED), "it answered with TASK_ABORTED"),
        (Shareable(), "it sent nothing that can be averaged"),
        (FLModelUtils.to_shareable(FLModel(metrics={"a": 1.0})), "it sent nothing that can be averaged"),
        (None, "it sent nothing"),
    ],
    ids=["a learner's", "a script's", "stopped", "empty", "without weights", "none"],
)
def test_the_reason_is_read_from_an_answer_of_any_kind(answer, words):
    assert said_reason(answer) == words


# -- what a site decides -----------------------------------------------------------------------------------------------


@pytest.fixture
def north(tmp_path, monkeypatch):
    """``north(options)``: the site with these options, and the cache that its task was given; ``parts`` are its items."""
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    folder, caches = tmp_path / "sites" / "line" / "north", []
    folder.mkdir(parents=True)
    (folder / "a.png").touch()
    datalist = {"training": [{"image": "a.png", "label": 1}], "validation": [], "testing": []}
    write_json(folder / "datalist.json", datalist)
    settings = LineSettings(batch_size=32).write(tmp_path / "settings.json")
    prepare = lambda items, settings, cache: [items, caches.append(cache)][0]  # noqa: E731
    task = replace(LINE, prepare=prepare, batches=lambda prepared, settings, **options: prepared)

    def open_site(options: str | None = None, name: str = "north"):
        if options is not None:
            (folder / "options.json").write_text(options)
        return Site.open(task, name, settings), caches

    return open_site


def test_without_options_a_site_takes_the_studys_settings_and_keeps_a_cache(north, tmp_path):
    threads, (site, caches) = torch.get_num_threads(), north()
    assert site.training == [{"image": str(tmp_path / "sites/line/north/a.png"), "label": 1, "site": "north"}]
    assert site.settings == LineSettings(batch_size=32)
    assert caches == [cache_folder("line", "north")] * 2
    assert torch.get_num_threads() == threads


def test_a_site_decides_on_threads_cache_and_batch_size_for_itself(north):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        site, caches = north('{"threads": 1, "cache": false, "batch_size": 2}')
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert site.settings == LineSettings(batch_size=2) and caches == [None, None]


@pytest.mark.parametrize(
    ("given", "says", "kind"),
    [
        (['{"thread": 1}'], r"options\.json cannot be used: .*thread", "its settings are wrong"),
        (['{"threads": "many"}'], r"options\.json cannot be used: .*threads", "its settings are wrong"),
        (['{"batch_size": 0}'], r"options\.json cannot be used: .*batch_size", "its settings are wrong"),
        (['{"learning_rate": 1.0}'], r"options\.json cannot be used: .*learning_rate", "its settings are wrong"),
        (["{threads: 1"], r"options\.json cannot be read as a JSON object", "its settings cannot be read"),
        ([None, "south"], "datalist", "its datalist is missing or cannot be read"),
    ],
    ids=["unknown", "a word for a number", "no items a step", "the study's", "no JSON", "no data"],
)
def test_what_a_site_cannot_use_is_named(north, given, says, kind):
    with pytest.raises(CourseError, match=says) as caught:
        north(*given)
    assert caught.value.kind == kind


# -- a script that fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [True, False], ids=["fails", "does its work"])
def test_a_script_that_fails_answers_every_task_with_the_kind_and_logs_the_rest(monkeypatch, caplog, fails):
    tasks, sent = [1, 2, 3], []
    client = SimpleNamespace(FLModel=FLModel, is_running=lambda: bool(tasks), receive=tasks.pop, send=sent.append)
    monkeypatch.setattr(reasons, "flare", client)

    def main():
        client.receive()
        if fails:
            raise ValueError(f"/data/{PATIENT}")

    run_site(main)
    assert [model.meta[REASON] for model in sent] == ["its software raised ValueError"] * (2 if fails else 0)
    assert all(not model.params and PATIENT not in repr(model.meta) for model in sent)
    assert (f"ValueError: /data/{PATIENT}" in caplog.text and "Traceback" in caplog.text) == fails
    assert fails or caplog.text == ""
