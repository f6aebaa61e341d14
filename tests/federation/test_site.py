"""A site's own side: what it decides for itself, and the few words that leave it when it fails."""

from types import SimpleNamespace

import pytest
import torch
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.executors.client_api import in_process_backend
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.client.in_process.api import InProcessClientAPI

from src.common.datalists import cache_folder
from src.common.errors import CourseError
from src.common.files import write_json
from src.federation import site as site_module
from src.federation.site import REASON, SCRIPT_SECONDS, open_site, run_site, said_reason, short_reason
from src.mednist.card import Settings

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
)
def test_of_an_error_its_kind_leaves_and_never_its_message(error, words):
    assert short_reason(error) == words


def test_the_reason_is_read_from_an_answer_of_either_kind():
    assert said_reason(make_reply(ReturnCode.EXECUTION_EXCEPTION, headers={REASON: "no memory"})) == "no memory"
    model = FLModel(metrics={}, meta={REASON: "an image cannot be read"})
    assert said_reason(FLModelUtils.to_shareable(model)) == "an image cannot be read"
    assert said_reason(make_reply(ReturnCode.TASK_ABORTED)) == "it answered with TASK_ABORTED"
    assert said_reason(Shareable()) == "it sent nothing that can be averaged"
    assert said_reason(FLModelUtils.to_shareable(FLModel(metrics={"a": 1.0}))) == "it sent nothing that can be averaged"
    assert said_reason(None) == "it sent nothing"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    folder = tmp_path / "sites" / "tiny" / "north"
    folder.mkdir(parents=True)
    (folder / "a.png").touch()
    write_json(
        folder / "datalist.json", {"training": [{"image": "a.png", "label": 1}], "validation": [], "testing": []}
    )
    return folder


def test_without_options_a_site_takes_the_studys_settings_and_keeps_a_cache(folder):
    settings, threads = Settings(data="tiny"), torch.get_num_threads()
    parts, found, cache = open_site("north", settings)
    assert parts["training"] == [{"image": str(folder / "a.png"), "label": 1, "site": "north"}]
    assert found == settings
    assert cache == cache_folder("tiny", "north")
    assert torch.get_num_threads() == threads


def test_a_site_decides_on_threads_cache_and_batch_size_for_itself(folder):
    write_json(folder / "options.json", {"threads": 1, "cache": False, "batch_size": 2})
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _, found, cache = open_site("north", Settings(data="tiny", batch_size=32))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert found == Settings(data="tiny", batch_size=2)
    assert cache is None


@pytest.mark.parametrize("options", [{"thread": 1}, {"threads": "many"}, {"batch_size": 0}, {"learning_rate": 1.0}])
def test_options_that_a_site_does_not_have_are_named(folder, options):
    write_json(folder / "options.json", options)
    with pytest.raises(CourseError, match=rf"options\.json cannot be used: .*{next(iter(options))}") as caught:
        open_site("north", Settings(data="tiny"))
    assert caught.value.kind == "its settings are wrong"


def test_options_that_cannot_be_read_are_not_taken_for_none(folder):
    (folder / "options.json").write_text("{threads: 1")
    with pytest.raises(CourseError, match=r"options\.json cannot be read as a JSON object") as caught:
        open_site("north", Settings(data="tiny"))
    assert caught.value.kind == "its settings cannot be read"


def test_data_that_the_site_does_not_have_are_named(folder):
    with pytest.raises(CourseError, match="datalist") as caught:
        open_site("south", Settings(data="tiny"))
    assert caught.value.kind == "its datalist is missing or cannot be read"


class Flare:
    """FLARE's Client API for a script to which three tasks come."""

    FLModel = FLModel

    def __init__(self):
        self.tasks, self.sent, self.api = 3, [], InProcessClientAPI({})

    def init(self):
        return SimpleNamespace(api=self.api)

    def is_running(self):
        return self.tasks > 0

    def receive(self):
        self.tasks -= 1

    def send(self, model):
        self.sent.append(model)


def test_a_script_that_fails_answers_every_task_with_the_kind_and_logs_the_rest(monkeypatch, caplog):
    flare = Flare()
    monkeypatch.setattr(site_module, "flare", flare)

    def main():
        flare.receive()
        raise ValueError(f"/data/{PATIENT}")

    run_site(main)
    assert [model.meta[REASON] for model in flare.sent] == ["its software raised ValueError"] * 2
    assert all(not model.params and PATIENT not in repr(model.meta) for model in flare.sent)
    assert f"ValueError: /data/{PATIENT}" in caplog.text and "Traceback" in caplog.text


def test_a_script_that_does_its_work_is_left_alone(monkeypatch, caplog):
    flare = Flare()
    monkeypatch.setattr(site_module, "flare", flare)
    run_site(lambda: setattr(flare, "tasks", 0))
    assert flare.sent == [] and caplog.text == ""


def test_in_the_simulator_a_script_and_flare_look_for_each_other_more_often(monkeypatch):
    """Both names are FLARE's own: as new ones they would do nothing."""
    flare = Flare()
    monkeypatch.setattr(site_module, "flare", flare)
    monkeypatch.setattr(in_process_backend, "_RESULT_POLL_INTERVAL", 0.5)  # fails where FLARE has it no more
    run_site(lambda: setattr(flare, "tasks", 0))
    assert min(flare.api.result_check_interval, in_process_backend._RESULT_POLL_INTERVAL) > SCRIPT_SECONDS
    monkeypatch.setattr(site_module, "is_simulated", lambda: True)
    run_site(lambda: setattr(flare, "tasks", 0))
    assert flare.api.result_check_interval == in_process_backend._RESULT_POLL_INTERVAL == SCRIPT_SECONDS
