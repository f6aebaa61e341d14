"""The simulator's surroundings: its processes end with the run, whoever ends it, and paths may have blanks."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from src import simulation
from src.jobs import fedavg_job
from src.paths import new_run_folder
from src.runs import Run, failure_report, read_record

# A client that needs neither MONAI nor images: what is tested here is what goes on around it.
CLIENT = """
import time
import nvflare.client as flare
flare.init()
while flare.is_running():
    model = flare.receive()
    if model is None:
        break
    time.sleep({seconds})
    flare.send(flare.FLModel(params=model.params, metrics={{"accuracy": 0.5}}, meta={{"NUM_STEPS_CURRENT_ROUND": 1}}))
"""
PROGRAM = """
import sys
import tempfile
from pathlib import Path
import torch
from nvflare.job_config.script_runner import ScriptRunner
from src.jobs import fedavg_job, save_initial_model
from src.paths import new_run_folder
from src.simulation import simulate

folder = new_run_folder("toy")
first = save_initial_model(folder, torch.nn.Linear(2, 2).state_dict())
job = fedavg_job("toy", ["site-1", "site-2"], 2, first, key_metric="accuracy")
for site in ("site-1", "site-2"):
    job.to(ScriptRunner(script=sys.argv[1]), site)
print(folder, flush=True)
simulate(job, folder, ["site-1", "site-2"], 2, {})
"""


def processes_with(text: str) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if text in " ".join(p.info["cmdline"] or ())]


def start(tmp_path, seconds: float) -> tuple[subprocess.Popen, Path]:
    (tmp_path / "client.py").write_text(CLIENT.format(seconds=seconds))
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "COURSE_RUNS": str(tmp_path / "my runs")}
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "client.py")]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    return process, Path(process.stdout.readline().strip())


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["the notebook's kernel", "the terminal's whole group"])
def test_ctrl_c_leaves_no_process_behind(tmp_path, whom):
    process, folder = start(tmp_path, seconds=600)
    token = None
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        workers = [p for p in processes_with("simulator_worker") if str(folder) in os.path.realpath(_workspace(p))]
        if len(workers) == 2 and any(e["event"] == "round started" for e in read_record(folder / "toy")):
            token = _workspace(workers[0])
            break
        time.sleep(0.2)
    assert token, "the run did not start"
    time.sleep(2)

    if whom == "the notebook's kernel":
        process.send_signal(signal.SIGINT)
    else:
        os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=60)
    assert process.returncode != 0
    left = [p for p in workers if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert left == []
    assert processes_with(str(folder)) == []
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    with pytest.raises(Exception, match="saved no"):
        _ = Run(folder).best_model


def _workspace(worker: psutil.Process) -> str:
    try:
        command = worker.cmdline()
    except psutil.Error:
        return ""
    return command[command.index("--simulator_root") + 1] if "--simulator_root" in command else ""


@pytest.mark.slow
def test_a_run_with_blanks_in_its_folder_finishes_and_leaves_no_link(tmp_path):
    before = set(Path(tempfile.gettempdir()).glob("course-*"))
    process, folder = start(tmp_path, seconds=0)
    assert process.wait(timeout=120) == 0
    run = Run(folder)
    assert " " in str(folder) and run.about["status"] == "finished"
    assert run.contributions["accepted"].tolist() == [True] * 4
    assert set(Path(tempfile.gettempdir()).glob("course-*")) == before
    assert processes_with(str(folder)) == []


def test_sites_together_ask_for_no_more_threads_than_there_are_cores(monkeypatch):
    monkeypatch.setattr(simulation, "cores", lambda: 8)
    assert [simulation.threads_per_site(sites) for sites in (1, 2, 3, 4, 16)] == [8, 4, 2, 2, 1]


def log(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "error_log.txt").write_text(textwrap.dedent(text))


def test_the_report_names_the_first_cause_and_not_its_echo(tmp_path):
    (tmp_path / "console.log").write_text("")
    log(tmp_path / "toy" / "site-1", "")
    log(
        tmp_path / "toy" / "site-2",
        """\
        2026-01-01 00:00:00,000 - TaskScriptRunner - ERROR - Traceback (most recent call last):
          File "/somewhere/runner.py", line 95, in run
            main()
          File "/somewhere/client.py", line 7, in main
            load(path)
        src.errors.CourseError: cannot read scan.nii.gz; copy it again.

        2026-01-01 00:00:00,100 - InProcessClientAPI - ERROR - ask to abort job
        Traceback (most recent call last):
          File "/somewhere/else.py", line 1, in f
        RuntimeError: aborted
        """,
    )
    message = failure_report(tmp_path, tmp_path / "toy", ["site-1", "site-2"])
    assert (
        "before the first round. site-2: CourseError: cannot read scan.nii.gz; copy it again (client.py, line 7)"
        in message
    )
    assert "site-1" not in message and "aborted" not in message


def test_the_report_names_a_process_that_was_killed(tmp_path):
    (tmp_path / "console.log").write_text("ERROR - Subprocess died for client site-2, exit code: -9\n")
    for name in ("site-1", "site-2", "server"):
        log(tmp_path / "toy" / name, "")
    message = failure_report(tmp_path, tmp_path / "toy", ["site-1", "site-2"])
    assert "site-2: its process ended with exit code -9; often a lack of memory" in message


def test_the_best_model_needs_a_known_tracker(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
    folder = new_run_folder("toy")
    with pytest.raises(Exception, match="Unknown tracker 'excel'; choose one of tensorboard, mlflow"):
        fedavg_job("toy", ["site-1"], 1, folder / "first.pt", key_metric="accuracy", tracker="excel")
