"""What a run folder says: who took part, curves, checkpoints, and why a run failed. The folders are made by hand."""

import json
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from src.common.errors import CourseError
from src.federation.run import BEST, FINAL, Run, failure_report, progress, read_record, shortfall
from src.federation.server import LOST, RECORD


class Lines:
    """Writes a record as the server does, one second a line."""

    def __init__(self, rounds=2):
        self.rounds, self.time, self.round, self.lines = rounds, 1000.0, None, []
        self.add("run started", rounds=None)

    def add(self, event, **more):
        self.lines.append({"time": self.time, "event": event, "round": self.round, **more})
        self.time += 1
        return self

    def start(self, number):
        self.round = number
        return self.add("round started", rounds=self.rounds)

    def answer(self, site, reason=None, samples=10.0):
        return self.add(
            "answer", site=site, accepted=reason is None, reason=reason, samples=None if reason else samples
        )

    def save(self):
        return self.add("model saved", rounds=self.rounds)

    def write(self, folder):
        place = folder / "mednist" / "server" / "simulate_job"
        place.mkdir(parents=True, exist_ok=True)
        (place / RECORD).write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        return place


def whole(rounds=2, samples=(10.0, 30.0)):
    """The record of a run in which two sites did all they were asked."""
    lines = Lines(rounds)
    for number in range(rounds):
        lines.start(number).answer("north", samples=samples[0]).answer("south", samples=samples[1]).save()
    return lines


@pytest.fixture
def about(tmp_path):
    content = {"status": "finished", "job": "mednist", "sites": ["north", "south"], "started": 1.0, "seconds": 12.4}
    (tmp_path / "run.json").write_text(json.dumps(content))
    return content


def validation(server, models):
    """``cross_val_results.json`` as FLARE writes it, from model → site → metrics."""
    results = {}
    for model, sites in models.items():
        for site, metrics in sites.items():
            results.setdefault(site, {})[f"SRV_{model}" if model.endswith(".pt") else model] = metrics
    (server / "cross_site_val").mkdir(exist_ok=True)
    (server / "cross_site_val" / "cross_val_results.json").write_text(json.dumps(results))


def checkpoints(server, *names):
    (server / "app_server").mkdir(exist_ok=True)
    for number, name in enumerate(names):
        torch.save({"model": {"w": torch.tensor([float(number)])}}, server / "app_server" / name)


# -- who took part -----------------------------------------------------------------------------------------------------


def test_a_whole_run_is_read(tmp_path, about):
    whole().write(tmp_path)
    run = Run(tmp_path)
    assert (run.sites, run.rounds, run.seconds) == (["north", "south"], 2, 12.4)
    assert repr(run) == f"Run({str(tmp_path)!r}, finished, 12 s)"
    assert run.contributions.to_dict("list") == {
        "round": [0, 0, 1, 1],
        "site": ["north", "south", "north", "south"],
        "accepted": [True] * 4,
        "reason": [None] * 4,
    }


def test_missing_updates_are_in_the_table_and_show_when_the_run_is_printed(tmp_path, about):
    lines = Lines(rounds=3).start(0).answer("north").answer("south", "an image cannot be read").save()
    lines.start(1).answer("north").add("site lost", site="south", reason="gone").save().start(2).answer("north").save()
    lines.write(tmp_path)
    run = Run(tmp_path)
    assert repr(run).endswith(
        "1 of 2 sites left out: south: an image cannot be read, 3 of 6 updates are missing, see contributions)"
    )
    assert run.left_out == {"south": "an image cannot be read"}
    table = run.contributions.set_index(["round", "site"])
    assert table["accepted"].tolist() == [True, False, True, False, True, False]
    assert [table.loc[(number, "south"), "reason"] for number in range(3)] == [
        "an image cannot be read",
        "gone",
        "gone",
    ]


def test_a_site_that_is_back_has_a_reason_only_for_the_rounds_without_it(tmp_path, about):
    lines = Lines(rounds=5).start(0).answer("north").answer("south").save().start(1).answer("north")
    lines.add("site lost", site="south", reason="gone").save().start(2).answer("north").save()
    lines.start(3).add("site back", site="south").answer("north").save()
    lines.start(4).answer("north").answer("south").save().write(tmp_path)
    table = Run(tmp_path).contributions.set_index(["round", "site"])
    assert table["accepted"].xs("south", level="site").tolist() == [True, False, False, False, True]
    assert table["reason"].xs("south", level="site").dropna().tolist() == ["gone", "gone", "gone"]


def test_a_site_that_said_nothing_is_missed(tmp_path, about):
    Lines(rounds=1).start(0).answer("north").save().write(tmp_path)
    north, south = Run(tmp_path).contributions["reason"]
    assert pd.isna(north) and south == "it did not answer"


def test_a_fetched_run_has_no_run_json_and_knows_its_sites_from_the_record(tmp_path):
    whole().write(tmp_path)
    run = Run(tmp_path)
    assert run.sites == ["north", "south"]
    assert run.seconds == 8.0
    assert "fetched" in repr(run)


def test_a_folder_that_is_not_one_run_is_refused_by_name(tmp_path):
    with pytest.raises(CourseError, match=r"holds 0 runs with a record .*Give the folder of one run"):
        Run(tmp_path)
    (tmp_path / "half" / "mednist" / "server").mkdir(parents=True)
    with pytest.raises(CourseError, match="half holds 0 runs"):
        Run(tmp_path / "half")
    for name in ("one", "two"):
        whole().write(tmp_path / name)
    with pytest.raises(CourseError, match="holds 2 runs"):
        Run(tmp_path)
    assert Run(tmp_path / "one").rounds == 2


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("best", "final", "samples", "expected"),
    [
        ((0.9, 0.9), (0.8, 0.8), (10, 30), BEST),
        ((0.8, 0.8), (0.9, 0.9), (10, 30), FINAL),
        ((0.8, 0.8), (0.8, 0.8), (10, 30), FINAL),
        ((1.0, 0.5), (0.5, 0.7), (10, 30), FINAL),  # 0.625 and 0.65
        ((1.0, 0.5), (0.5, 0.7), (30, 10), BEST),  # 0.875 and 0.55
        ((-0.3, -0.3), (-0.5, -0.5), (10, 30), BEST),
        (None, (-0.5, -0.5), (10, 30), FINAL),
        (None, None, (10, 30), FINAL),
    ],
)
def test_the_best_model_has_the_best_metric_weighed_by_samples(tmp_path, about, best, final, samples, expected):
    server = whole(samples=samples).write(tmp_path)
    checkpoints(server, FINAL, BEST)
    models = {name: scores for name, scores in ((BEST, best), (FINAL, final)) if scores}
    validation(
        server,
        {
            name: {site: {"val_accuracy": one} for site, one in zip(("north", "south"), scores, strict=True)}
            for name, scores in models.items()
        },
    )
    run = Run(tmp_path)
    assert run.best_model("val_accuracy").name == expected
    assert run.final_model.name == FINAL
    assert Run.weights(run.best_model("val_accuracy"))["w"].item() == (1.0 if expected == BEST else 0.0)


def test_a_site_that_could_not_validate_does_not_count(tmp_path, about):
    server = whole().write(tmp_path)
    checkpoints(server, FINAL, BEST)
    models = {BEST: {"north": {"val_accuracy": 0.9}, "south": {}}, FINAL: {"north": {"val_accuracy": 0.8}, "south": {}}}
    validation(server, models)
    run = Run(tmp_path)
    assert run.best_model("val_accuracy").name == BEST
    assert run.final_validation == {
        BEST: {"north": {"val_accuracy": 0.9}},
        FINAL: {"north": {"val_accuracy": 0.8}},
    }


def test_the_cross_site_table_has_every_sites_last_model_and_the_final_one(tmp_path, about):
    def scores(north, south):
        return {"north": {"val_accuracy": north}, "south": {"val_accuracy": south} if south else {}}

    validation(
        whole().write(tmp_path),
        {FINAL: scores(0.8, 0.7), "south": scores(0.1, 0.9), BEST: scores(0.5, 0.5), "north": scores(0.6, None)},
    )
    table = Run(tmp_path).cross_site("val_accuracy")
    assert list(table.index) == ["north", "south", "all"] and list(table.columns) == ["north", "south"]
    assert table.loc["all"].tolist() == [0.8, 0.7] and table.loc["south"].tolist() == [0.1, 0.9]
    assert table.loc["north", "north"] == 0.6 and np.isnan(table.loc["north", "south"])


def test_a_run_that_saved_nothing_says_so(tmp_path, about):
    Lines().start(0).write(tmp_path)
    with pytest.raises(CourseError, match=r"\(finished\) saved no FL_global_model\.pt"):
        _ = Run(tmp_path).final_model


# -- curves ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def streamed(tmp_path, about):
    """A run of two rounds whose sites streamed to TensorBoard."""
    server = whole().write(tmp_path)
    for site, values in (("north", [0.2, 0.4]), ("south", [0.1, 0.3])):
        with SummaryWriter(str(server / "tb_events" / site)) as writer:
            for step, value in enumerate(values):
                writer.add_scalar("val_accuracy", value, step)
                writer.add_scalar("train_loss", 1 - value, step)
    validation(server, {FINAL: {"north": {"val_accuracy": 0.6}, "south": {"val_accuracy": 0.5}}})
    return Run(tmp_path)


def test_a_curve_has_a_row_a_round_and_the_final_validation_after_the_last(streamed):
    curve = streamed.curve("val_accuracy")
    assert list(curve.index) == [0, 1, 2] and list(curve.columns) == ["north", "south"]
    assert curve["north"].tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert curve["south"].tolist() == pytest.approx([0.1, 0.3, 0.5])
    assert streamed.curve("train_loss").index.tolist() == [0, 1]
    assert streamed.tensorboard_folder.is_dir()


def test_an_unknown_curve_lists_those_that_there_are(streamed):
    with pytest.raises(CourseError, match=r"No site streamed 'val_dice'; there are \['train_loss', 'val_accuracy'\]"):
        streamed.curve("val_dice")


def test_a_run_without_a_tracker_says_what_it_lacks(tmp_path, about):
    whole().write(tmp_path)
    with pytest.raises(CourseError, match="streamed no metrics"):
        _ = Run(tmp_path).metrics


# -- the record while and after it is written --------------------------------------------------------------------------


def test_a_line_in_the_writing_is_not_read(tmp_path):
    assert read_record(tmp_path) == []
    server = whole(rounds=1).write(tmp_path)
    record = (server / RECORD).read_text()
    (server / RECORD).write_text(record + '{"time": 1, "eve')
    assert len(read_record(tmp_path)) == len(record.splitlines())


def test_progress_counts_rounds_from_one_and_accepted_answers():
    assert progress([]) == progress(Lines().lines) == (0, 0, 0)
    lines = Lines(rounds=3).start(0).answer("north").answer("south", "it sent nothing").save().start(1)
    assert progress(lines.lines) == (2, 3, 1)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (whole(), None),
        (Lines().start(0).answer("north").save().start(1).answer("north"), r"ended in round 2 of 2"),
        (Lines().start(0).answer("north").save(), r"ended in round 1 of 2"),
        (Lines().start(0), "without a single update"),
        (Lines().start(0).answer("north", "no").save().start(1).answer("north", "no").save(), "without a single"),
        (Lines(), "without a single update"),
    ],
)
def test_what_a_run_lacks_is_a_sentence(tmp_path, lines, says):
    lines.write(tmp_path)
    found = shortfall(tmp_path)
    assert (found is None) if says is None else says in found


@pytest.mark.parametrize(
    ("demanded", "says"), [(1, None), (2, "The job needs 2 site(s) in each round; there were fewer in round 2 of 2.")]
)
def test_a_run_lacks_a_round_with_fewer_sites_than_its_job_demands(tmp_path, demanded, says):
    lines = (
        Lines().start(0).answer("north").answer("south").save().start(1).answer("north").answer("south", "no").save()
    )
    lines.write(tmp_path)
    (tmp_path / "job" / "mednist").mkdir(parents=True)
    (tmp_path / "job" / "mednist" / "meta.json").write_text(json.dumps({"min_clients": demanded}))
    assert shortfall(tmp_path) == says


def test_a_run_without_a_record_lacks_one_only_if_its_job_wanted_it(tmp_path):
    assert shortfall(tmp_path) is None
    config = tmp_path / "job" / "mednist" / "app" / "config"
    config.mkdir(parents=True)
    (config / "config_fed_server.json").write_text('{"components": []}')
    assert shortfall(tmp_path) is None
    (config / "config_fed_server.json").write_text('{"components": [{"path": "src.federation.server.RunRecorder"}]}')
    assert "before the server started" in shortfall(tmp_path)


# -- why a run failed --------------------------------------------------------------------------------------------------


def error_log(folder, text):
    folder.mkdir(parents=True)
    (folder / "error_log.txt").write_text(textwrap.dedent(text))


def test_the_report_names_round_site_and_reason_and_where_more_is_written(tmp_path):
    Lines(rounds=3).start(0).answer("north").answer("south").save().start(1).answer(
        "north", "an image cannot be read"
    ).write(tmp_path)
    message = failure_report(tmp_path, tmp_path / "mednist", ["north", "south"])
    assert message == (
        "The run failed in round 2 of 3. north: an image cannot be read. "
        f"More is in the log of its own: {tmp_path / 'mednist' / 'north' / 'log.txt'}."
    )


def test_the_report_names_all_that_failed(tmp_path):
    lines = Lines().start(0).answer("north", "it sent nothing").add("site lost", site="south", reason=LOST)
    lines.write(tmp_path)
    message = failure_report(tmp_path, tmp_path / "mednist", ["north", "south"])
    assert "in round 1 of 2. north: it sent nothing; south: its process has ended; often a lack of memory." in message
    assert all(str(tmp_path / "mednist" / site / "log.txt") in message for site in ("north", "south"))


def test_what_the_record_does_not_know_is_the_kind_of_the_first_error_in_a_log_and_never_its_text(tmp_path):
    error_log(tmp_path / "toy" / "site-1", "")
    error_log(
        tmp_path / "toy" / "site-2",
        """\
        2026-01-01 00:00:00,000 - TaskScriptRunner - ERROR - Traceback (most recent call last):
          File "/somewhere/client.py", line 7, in main
            load(path)
        src.common.errors.CourseError: cannot read /data/SURNAME_FIRSTNAME_1950.nii.gz; copy it again.

        2026-01-01 00:00:00,100 - InProcessClientAPI - ERROR - ask to abort job
        Traceback (most recent call last):
          File "/somewhere/else.py", line 1, in f
        RuntimeError: aborted
        """,
    )
    message = failure_report(tmp_path, tmp_path / "toy", ["site-1", "site-2"])
    assert message == (
        "The run failed before the first round. site-2: its software raised CourseError. "
        f"More is in the log of its own: {tmp_path / 'toy' / 'site-2' / 'log.txt'}."
    )


def test_the_servers_own_error_is_named_too(tmp_path):
    error_log(tmp_path / "toy" / "server", "Traceback\nModuleNotFoundError: No module named 'x'\n")
    message = failure_report(tmp_path, tmp_path / "toy", ["site-1"])
    assert "server: its software raised ModuleNotFoundError" in message


def test_without_any_trace_the_report_points_at_the_console(tmp_path):
    message = failure_report(tmp_path, tmp_path / "toy", ["site-1"])
    assert "no process left an error" in message and str(tmp_path / "console.log") in message
