"""A site's own side: what it decides for itself, and the few words that leave it when it fails."""

from dataclasses import replace

import pytest
import torch
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from src.common.errors import CourseError
from src.common.files import write_json
from src.common.settings import CONFIG
from src.federation.reasons import REASON, said_reason, short_reason
from src.federation.site import Site
from tests.tests_support import rows
from tests.training_support import LINE, LineSettings

PATIENT = "SURNAME_FIRSTNAME_1950"


NOTHING = "it sent nothing that can be averaged"
SCRIPTS, LEARNERS = FLModel(metrics={}, meta={REASON: "an image is bad"}), {REASON: "no memory"}


@rows(
    ("of a kind", short_reason, CourseError(f"no /data/{PATIENT}", "a file is missing"), "a file is missing"),
    ("the course's", short_reason, CourseError(PATIENT), "something is wrong with its settings or its data"),
    ("NaN", short_reason, FloatingPointError(PATIENT), "its loss or its weights became NaN or infinite"),
    ("memory", short_reason, MemoryError(PATIENT), "it ran out of memory"),
    ("any other", short_reason, FileNotFoundError(2, "No", PATIENT), "its software raised FileNotFoundError"),
    ("a learner's", said_reason, make_reply(ReturnCode.EXECUTION_EXCEPTION, headers=LEARNERS), "no memory"),
    ("a script's", said_reason, FLModelUtils.to_shareable(SCRIPTS), "an image is bad"),
    ("stopped", said_reason, make_reply(ReturnCode.TASK_ABORTED), "it answered with TASK_ABORTED"),
    ("empty", said_reason, Shareable(), NOTHING),
    ("without weights", said_reason, FLModelUtils.to_shareable(FLModel(metrics={"a": 1.0})), NOTHING),
    ("none", said_reason, None, "it sent nothing"),
)
def test_of_an_error_its_kind_leaves_and_never_its_message_and_of_any_answer_it_is_read(read, given, words):
    assert read(given) == words


@pytest.fixture
def north(tmp_path, monkeypatch):
    """``north(options)``: the site with these options, and the cache that its task was given; ``parts`` are its items."""
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    folder, caches = tmp_path / "sites" / "line" / "north", []
    folder.mkdir(parents=True)
    (folder / "a.png").touch()
    datalist = {"training": [{"image": "a.png", "label": 1}], "validation": [], "testing": []}
    write_json(folder / "datalist.json", datalist)
    LineSettings(batch_size=32).write(tmp_path / CONFIG)
    prepare = lambda items, settings, cache: [items, caches.append(cache)][0]  # noqa: E731
    task = replace(LINE, prepare=prepare, batches=lambda prepared, settings, **options: prepared)

    def open_site(options: str | None = None, name: str = "north"):
        if options is not None:
            (folder / "options.json").write_text(options)
        return Site.open(task, name, tmp_path), caches

    return open_site


@rows(("nothing", None, 2, 32, True), ("all it can", '{"threads": 1, "cache": false, "batch_size": 2}', 1, 2, False))
def test_what_a_site_decides_for_itself(options, threads, batch_size, cached, north, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        site, caches = north(options)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert site.settings == LineSettings(batch_size=batch_size)
    assert caches == [tmp_path / "sites/line/north/cache" if cached else None] * 2
    assert site.training == [{"image": str(tmp_path / "sites/line/north/a.png"), "label": 1, "site": "north"}]


WRONG, KEY = "its settings are wrong", r"options\.json cannot be used: .*"


@rows(
    ("unknown", ['{"thread": 1}'], f"{KEY}thread", WRONG),
    ("a word for a number", ['{"threads": "many"}'], f"{KEY}threads", WRONG),
    ("no items a step", ['{"batch_size": 0}'], f"{KEY}batch_size", WRONG),
    ("the study's", ['{"learning_rate": 1.0}'], f"{KEY}learning_rate", WRONG),
    ("no JSON", ["{threads: 1"], r"options\.json: .*one JSON object", "its settings cannot be read"),
    ("no data", [None, "south"], "datalist", "its datalist is missing or cannot be read"),
)
def test_what_a_site_cannot_use_is_named(given, says, kind, north):
    with pytest.raises(CourseError, match=says) as caught:
        north(*given)
    assert caught.value.kind == kind
