"""What a run folder says where no real run shows it: who was missed, which model is best, what a run lacks and why it failed."""

import json

import torch

from src.federation.record import failure_report, progress, read_record, shortfall
from src.federation.run import BEST, FINAL, Run
from src.federation.server import LOST, RECORD
from tests.tests_support import course_error, rows

BOTH = ("north", "south")


class Lines:
    """Writes a record as the server does, one second a line."""

    def __init__(self, rounds=2):
        self.rounds, self.round, self.lines = rounds, None, []
        self.add("run started", rounds=None)

    def add(self, event, **more):
        self.lines.append({"time": 1000.0 + len(self.lines), "event": event, "round": self.round, **more})
        return self

    def start(self, number, *sites):
        """A round, with the answers of these sites and a model."""
        self.round = number
        self.add("round started", rounds=self.rounds)
        for site in sites:
            self.answer(site)
        return self.add("model saved", rounds=self.rounds) if sites else self

    def answer(self, site, reason=None, samples=10.0):
        return self.add("answer", site=site, accepted=not reason, reason=reason, samples=None if reason else samples)

    def write(self, folder):
        place = folder / "mednist" / "server" / "simulate_job"
        place.mkdir(parents=True, exist_ok=True)
        (place / RECORD).write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        return place


BACK = Lines(5).start(0, *BOTH).start(1, "north").add("site lost", site="south", reason="gone").start(2, "north")
BACK.start(3, "north").add("site back", site="south").start(4, *BOTH)


@rows(
    ("one that is back", BACK, [True, False, False, False, True], ["gone"] * 3),
    ("one that said nothing", Lines(1).start(0, "north"), [False], ["it did not answer"]),
    ("none", Lines(1).start(0, *BOTH), [True], []),
)
def test_missing_updates_are_in_the_table_and_show_when_the_run_is_printed(lines, accepted, reasons, tmp_path):
    lines.write(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"status": "finished", "sites": BOTH, "seconds": 12.4}))
    run = Run(tmp_path)
    south = run.contributions[run.contributions["site"] == "south"]
    assert south["accepted"].tolist() == accepted and south["reason"].dropna().tolist() == reasons
    assert ("updates are missing" in repr(run)) == bool(reasons)
    assert run.left_out == ({} if any(accepted) else {"south": reasons[0]})


def test_a_fetched_run_has_no_run_json_one_without_a_tracker_lacks_it_and_a_folder_holds_one_run(tmp_path):
    course_error(r"holds 0 runs with a record .*Give the folder of one run", Run, tmp_path)
    Lines().start(0, *BOTH).start(1, *BOTH).write(tmp_path)
    run = Run(tmp_path)
    assert (run.sites, run.rounds, run.seconds) == ([*BOTH], 2, 8.0), "as the record says"
    assert "fetched" in repr(run)
    course_error("streamed no metrics", getattr, run, "metrics")
    Lines().start(0, *BOTH).write(tmp_path / "another")
    course_error("holds 2 runs", Run, tmp_path)


@rows(
    ("FLARE's choice is better", (0.9, 0.9), (0.8, 0.8), (10, 30), BEST),
    ("the last one is better", (0.8, 0.8), (0.9, 0.9), (10, 30), FINAL),
    ("equal", (0.8, 0.8), (0.8, 0.8), (10, 30), FINAL),
    ("0.625 and 0.65", (1.0, 0.5), (0.5, 0.7), (10, 30), FINAL),
    ("0.875 and 0.55", (1.0, 0.5), (0.5, 0.7), (30, 10), BEST),
    ("below zero", (-0.3, -0.3), (-0.5, -0.5), (10, 30), BEST),
    ("a site that could not validate", (0.9, None), (0.8, None), (10, 30), BEST),
    ("the last one alone", (None, None), (-0.5, -0.5), (10, 30), FINAL),
)
def test_the_best_model_has_the_best_metric_weighed_by_samples(best, final, samples, expected, tmp_path):
    lines = Lines(1).start(0)
    for site, number in zip(BOTH, samples, strict=True):
        lines.answer(site, samples=number)
    server = lines.write(tmp_path)
    results = {site: {} for site in BOTH}
    for value, (name, scores) in enumerate({FINAL: final, BEST: best}.items()):
        torch.save({"model": {"w": torch.tensor([float(value)])}}, server / name)
        for site, score in zip(BOTH, scores, strict=True):
            results[site][f"SRV_{name}"] = {} if score is None else {"val_accuracy": score}
    (server / "cross_val_results.json").write_text(json.dumps(results))
    run = Run(tmp_path)
    found = run.best_model("val_accuracy")
    assert (found.name, run.final_model.name) == (expected, FINAL)
    assert Run.weights(found)["w"].item() == (expected == BEST)
    assert run.final_validation.get(BEST, {}).keys() == {s for s, score in zip(BOTH, best, strict=True) if score}


def test_every_sites_last_model_and_the_global_one_are_tried_at_every_site(tmp_path):
    server = Lines().start(0, *BOTH).write(tmp_path)
    scores, models = {"north": (0.9, 0.5, 0.7), "south": (0.4, 0.8, 0.6)}, (*BOTH, f"SRV_{FINAL}")
    of = lambda found: {name: {"val_accuracy": score} for name, score in zip(models, found, strict=True)}  # noqa: E731
    (server / "cross_val_results.json").write_text(json.dumps({at: of(found) for at, found in scores.items()}))
    table = Run(tmp_path).cross_site("val_accuracy")
    assert list(table.index) == [*BOTH, "all"]
    assert table.to_dict("list") == {"north": [0.9, 0.5, 0.7], "south": [0.4, 0.8, 0.6]}


def test_progress_counts_rounds_from_one_and_accepted_answers_and_a_line_in_the_writing_is_not_read(tmp_path):
    assert read_record(tmp_path) == [] and progress([]) == progress(Lines().lines) == (0, 0, 0)
    server = Lines(3).start(0, "north").answer("south", "it sent nothing").start(1).write(tmp_path)
    with (server / RECORD).open("a") as file:
        file.write('{"time": 1, "eve')
    assert progress(read_record(tmp_path)) == (2, 3, 1)


ONE_MISSED = Lines().start(0, *BOTH).start(1, "north").answer("south", "no")


@rows(
    ("nothing", Lines().start(0, *BOTH).start(1, *BOTH), 2, None),
    ("a model", Lines().start(0, "north").start(1).answer("north"), 1, "ended in round 2 of 2"),
    ("a round", Lines().start(0, "north"), 1, "ended in round 1 of 2"),
    ("all rounds", Lines(), 1, "without a single update"),
    ("all answers", Lines().start(0), 1, "without a single update"),
    ("all that is accepted", Lines(1).start(0).answer("north", "no"), 1, "without a single"),
    ("a site that is not demanded", ONE_MISSED, 1, None),
    ("a site", ONE_MISSED, 2, "2 site(s) in each round; there were fewer in round 2 of 2."),
)
def test_what_a_run_lacks_is_a_sentence(lines, demands, says, tmp_path):
    lines.write(tmp_path)
    (tmp_path / "job" / "mednist").mkdir(parents=True)
    (tmp_path / "job" / "mednist" / "meta.json").write_text(json.dumps({"min_clients": demands}))
    found = shortfall(tmp_path)
    assert (found is None) if says is None else says in found


def test_a_run_without_a_record_lacks_one_only_if_its_job_wanted_it(tmp_path):
    config = tmp_path / "job" / "mednist" / "app" / "config" / "config_fed_server.json"
    config.parent.mkdir(parents=True)
    assert shortfall(tmp_path) is None
    config.write_text('{"components": []}')
    assert shortfall(tmp_path) is None
    config.write_text('{"components": [{"path": "src.federation.server.RunRecorder"}]}')
    assert "before the server" in shortfall(tmp_path)


LOG = """\
2026-01-01 00:00:00,000 - TaskScriptRunner - ERROR - Traceback (most recent call last):
  File "/somewhere/client.py", line 7, in main
    load(path)
src.common.errors.CourseError: cannot read /data/SURNAME_FIRSTNAME_1950.nii.gz; copy it again.

2026-01-01 00:00:00,100 - InProcessClientAPI - ERROR - ask to abort job
Traceback (most recent call last):
  File "/somewhere/else.py", line 1, in f
RuntimeError: aborted
"""
RECORDED = Lines(3).start(0, *BOTH).start(1).answer("north", "it sent nothing")
RECORDED.add("site lost", site="south", reason=LOST)
IMPORT = "Traceback\nModuleNotFoundError: No module named 'x'\n"
KINDS = "south: its software raised CourseError; server: its software raised ModuleNotFoundError"
LOGS = {"north": "", "south": LOG, "server": IMPORT}


@rows(
    ("as the record says", RECORDED, {"north": LOG}, f"in round 2 of 3. north: it sent nothing; south: {LOST}. More", BOTH),
    # The kind of the first error in a log, and never its text.
    ("as the logs say", None, LOGS, f"before the first round. {KINDS}. More", ("south", "server")),
    ("as nobody says", None, {}, "no process left an error", ()),
)  # fmt: skip
def test_the_report_names_round_sites_and_reasons_and_where_more_is_written(lines, logs, says, more, tmp_path):
    workspace = tmp_path / "toy"
    for name, text in logs.items():
        (workspace / name).mkdir(parents=True)
        (workspace / name / "error_log.txt").write_text(text)
    if lines:
        lines.write(tmp_path)
    message = failure_report(tmp_path, workspace, [*BOTH])
    assert message.startswith("The run failed ") and says in message
    places = ", ".join(str(workspace / name / "log.txt") for name in more) or tmp_path / "console.log"
    assert message.endswith(f"is in the log of its own: {places}.")
