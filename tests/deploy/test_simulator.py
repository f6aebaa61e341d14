"""What goes on around FLARE's simulator, without FLARE: its process here is another one, for which a record is written."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy import simulator as module
from deploy.flare_2_9 import SIMULATOR
from deploy.processes import end_processes_below, processes_below
from deploy.simulator import LOG_CONFIG, CourseSimEnv
from src.federation.server import RECORD
from tests.federation.test_run import Lines
from tests.runs_support import links
from tests.tests_support import course_error, rows

JOB = SimpleNamespace(name="toy", export_job=lambda target: Path(target, "toy").mkdir(parents=True))


def record(sites=("site-1", "site-2")):
    """Two rounds."""
    return Lines().start(0, *sites).start(1, *sites).lines


@pytest.fixture
def simulator(monkeypatch):
    """``simulator(lines)`` replaces FLARE's simulator; returns a list that will hold its command line and environment."""

    def replace(lines=None):
        seen = []

        def start(request):
            command = request["arguments"]
            seen.extend([command, request["environment"]])
            place = Path(command[command.index("-w") + 1], "server", "simulate_job")
            place.mkdir(parents=True)
            told = record() if lines is None else lines
            (place / RECORD).write_text("".join(json.dumps(line) + "\n" for line in told))
            ends = time.monotonic() + 0.3
            run = SimpleNamespace(returncode=0, close=lambda: None)
            run.wait = lambda seconds: time.sleep(seconds) if time.monotonic() < ends else 0
            return run

        monkeypatch.setattr(module, "Simulated", start)
        monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
        return seen

    return replace


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_an_environment_is_for_one_run_in_a_folder_of_its_own_and_leaves_signals_as_they_were(simulator, runs):
    simulator()
    env, other, before = CourseSimEnv(2, name="study"), CourseSimEnv(2, name="study"), signal.getsignal(signal.SIGTERM)
    assert env.deploy(JOB) == "toy" and env.get_job_result("toy") == str(env.run_folder)
    assert signal.getsignal(signal.SIGTERM) == before
    assert env.run_folder.parent == other.run_folder.parent == runs / "study" and env.run_folder != other.run_folder
    course_error(r"holds a run already\. Make a new CourseSimEnv", env.deploy, JOB)
    for sites in ([], ["a", "a"]):
        course_error(r"give .*a list of names", CourseSimEnv, sites, name="refused")
    assert not (runs / "refused").exists(), "before a folder is made"


@rows(("one site", 1, 8), ("three", 3, 2), ("sixteen", 16, 1))
def test_sites_ask_for_no_more_threads_than_cores_and_log_to_files_only(sites, threads, simulator, monkeypatch):
    names = [f"site-{i + 1}" for i in range(sites)]
    seen = simulator(record(names))
    monkeypatch.setattr(module, "cores", lambda: 8)
    CourseSimEnv(sites).deploy(JOB)
    command, environment = seen
    given = dict(zip(command[1::2], command[2::2], strict=True))
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == str(threads)
    assert environment["OPENBLAS_NUM_THREADS"] == "1", (
        "it starts threads as NumPy loads, and what has threads cannot fork"
    )
    assert given["-n"] == given["-t"] == str(sites) and given["-c"] == ",".join(names)
    assert given["-l"] == f"{given['-w']}/local/{LOG_CONFIG}"
    (logging,) = Path(environment["COURSE_RUNS"]).glob(f"*/*/toy/local/{LOG_CONFIG}")
    handlers = json.loads(logging.read_text())["loggers"]["root"]["handlers"]
    assert handlers and "consoleHandler" not in handlers


@rows(
    ("it ends well with half its rounds", record()[:5], {}, r"ended in round 1 of 2\. All logs are in .*runs"),
    ("it logs nothing", None, {"silence": 0.01}, r"logged a line for 0\.01 s: it was ended\. All logs are in .*runs"),
)
def test_a_run_fails_though_flare_does_not(lines, options, says, simulator):
    """All that it may lack: see ``test_run.py``."""
    simulator(lines)
    env = CourseSimEnv(2, **options)
    course_error(says, env.deploy, JOB)
    assert json.loads((env.run_folder / "run.json").read_text())["status"] == "failed"


@rows(("rounds", record(), ["round 2 of 2", "/4"]), ("no rounds", [], ["finished: 100%"]))
def test_in_a_terminal_a_bar_counts_the_updates(lines, seen, simulator, capfd, monkeypatch):
    """In a log, a round is one line: see ``test_jobs.py``."""
    simulator(lines)
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    CourseSimEnv(2).deploy(JOB)
    out, err = capfd.readouterr()
    assert all(words in err for words in seen) and "round" not in out


def test_somebody_else_s_src_in_the_current_folder_is_not_taken_for_the_course(tmp_path, monkeypatch):
    """Where the program of the simulator, and what it imports, comes from."""
    for package in (tmp_path / "src", tmp_path / "src" / "federation", tmp_path / "deploy"):
        package.mkdir()
        (package / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(module.CODE))
    real = subprocess.Popen
    asks = "import deploy.simulated as one, src.federation as other; print(one.__file__, next(iter(other.__path__)))"
    monkeypatch.setattr(module.subprocess, "Popen", lambda command, **how: real([command[0], "-c", asks], **how))
    env = CourseSimEnv(2)
    env.deploy(JOB)
    found = f"{module.CODE}/deploy/simulated.py {module.CODE}/src/federation"
    assert (env.run_folder / "console.log").read_text().strip() == found


def test_links_of_a_process_that_was_killed_are_cleared_away(simulator, monkeypatch, tmp_path):
    """An odd path of a run: see ``test_jobs.py``; Ctrl-C and SIGTERM while it runs: ``test_simulated.py``."""
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    simulator()
    left, mine = (Path(tempfile.mkdtemp(prefix=f"course-links-{pid}-")) for pid in (dead.stdout.strip(), os.getpid()))
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "with a blank"))
    CourseSimEnv(2).deploy(JOB)
    assert not left.exists()
    assert links() == {mine.name}, "another run may be on its way in this process"
    mine.rmdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "odd place"))
    course_error(r"not .*odd place; set TMPDIR", CourseSimEnv(2).deploy, JOB)


SLEEPS = "import time; print(1, flush=True); time.sleep(60)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPS}"
STARTS_ANEW = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: setattr(sys, "ending", True))
while True:
    site = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "nvflare.site", sys.argv[2]])
    print(site.pid, flush=True)
    site.wait()
    if hasattr(sys, "ending") and subprocess.Popen([sys.executable, *site.args[1:]]):
        break
"""


@rows(
    ("of FLARE", SLEEPS, ["nvflare.x", "FOLDER"], True),
    ("the simulator", SLEEPS, ["-m", SIMULATOR, "FOLDER"], True),
    ("one that does not listen", DEAF, ["nvflare.x", "FOLDER"], True),
    # FLARE's simulator starts a site again whose process has ended, as long as it lives itself.
    ("one that starts another meanwhile", STARTS_ANEW, ["nvflare.x", "FOLDER"], True),
    ("a reader's TensorBoard", SLEEPS, ["tensorboard", "FOLDER"], False),
    ("of another folder", SLEEPS, ["nvflare.x", "/elsewhere"], False),
)
def test_of_what_works_in_the_run_folder_only_flares_processes_end(code, words, ends, tmp_path):
    command = [sys.executable, "-c", code, *(word.replace("FOLDER", str(tmp_path)) for word in words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            end_processes_below(tmp_path, patience=0.3)
            assert (process.poll() is not None) == ends and processes_below(tmp_path) == []
        finally:
            process.kill()
