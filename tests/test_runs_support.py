"""The look into the logs of what a notebook ran: it finds a complaint, and only in runs that have ended."""

from src.federation.run import RUN
from tests.runs_support import finished_runs, noisy


def test_an_error_in_a_log_of_a_finished_run_is_found(tmp_path):
    said = {"quiet": "INFO - all well", "noisy": "FedAvg - ERROR - no", "at work": "FedAvg - ERROR - not yet"}
    for name, line in said.items():
        site = tmp_path / name / "20260101-000000" / "job" / "site-1"
        site.mkdir(parents=True)
        (site / "log.txt").write_text(line)
        if name != "at work":
            (site.parents[1] / RUN).touch()
    runs = finished_runs(tmp_path)
    assert {run.parent.name for run in runs} == {"quiet", "noisy"} and list(noisy(runs).values()) == [[said["noisy"]]]
