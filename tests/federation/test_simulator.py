"""What goes on around FLARE's simulator, without FLARE: the simulator's process here is a script that writes a record."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil
import pytest

from src.common.errors import CourseError
from src.federation import simulator as environments
from src.federation.processes import end_processes_below, processes_below
from src.federation.run import Run
from src.federation.server import RECORD
from src.federation.simulator import LOG_CONFIG, CourseSimEnv
from tests.runs_support import links

SIMULATOR = """
import json, os, sys, time
from pathlib import Path

workspace = Path(sys.argv[sys.argv.index("-w") + 1])
Path("COMMAND").write_text(json.dumps([sys.argv, dict(os.environ)]))
place = workspace / "server" / "simulate_job"
place.mkdir(parents=True)
with (place / "RECORD").open("a") as file:
    for line in LINES:
        file.write(json.dumps({"time": time.time(), **line}) + "\\n")
        file.flush()
        time.sleep(PAUSE)
sys.exit(CODE)
"""


def record(rounds=2, sites=("site-1", "site-2")):
    lines = [{"event": "run started", "round": None, "rounds": None}]
    for number in range(rounds):
        lines.append({"event": "round started", "round": number, "rounds": rounds})
        lines += [
            {"event": "answer", "round": number, "site": s, "accepted": True, "reason": None, "samples": 1.0}
            for s in sites
        ]
        lines.append({"event": "model saved", "round": number, "rounds": rounds})
    return lines


class Job:
    """As much of a FedJob as an environment needs."""

    name, demands = "toy", 1

    def export_job(self, target):
        (Path(target) / self.name).mkdir(parents=True)
        (Path(target) / self.name / "meta.json").write_text(json.dumps({"min_clients": self.demands}))


@pytest.fixture
def simulator(tmp_path, monkeypatch):
    """``simulator(lines, pause, code)`` replaces FLARE's simulator; returns where its command line and environment will be."""
    real = subprocess.Popen

    def replace(lines=None, pause=0.0, code=0):
        script, seen = tmp_path / "federation.simulator", tmp_path / "command.json"
        values = {"COMMAND": str(seen), "RECORD": RECORD, "PAUSE": pause, "CODE": code}
        text = SIMULATOR.replace("LINES", repr(record() if lines is None else lines))
        for name, value in values.items():
            text = text.replace(name, str(value))
        script.write_text(text)

        def popen(command, **options):
            assert command[1:3] == ["-m", "src.federation.simulated"]
            return real([command[0], str(script), *command[3:]], **options)

        monkeypatch.setattr(environments.subprocess, "Popen", popen)
        monkeypatch.setattr(environments, "POLL_SECONDS", 0.02)
        return seen

    return replace


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    folder = tmp_path / "runs"
    monkeypatch.setenv("COURSE_RUNS", str(folder))
    return folder


# -- a run from beginning to end ---------------------------------------------------------------------------------------


def test_a_finished_run_is_in_a_folder_of_its_own_that_says_so(simulator, runs):
    simulator(record(sites=("north", "south")))
    env = CourseSimEnv(["north", "south"], name="study")
    assert env.deploy(Job()) == "toy"
    assert env.get_job_status("toy") == "finished" and env.get_job_result("toy") == str(env.run_folder)
    assert env.run_folder.parent == runs / "study"
    about = json.loads((env.run_folder / "run.json").read_text())
    assert (about["status"], about["job"], about["sites"]) == ("finished", "toy", ["north", "south"])
    assert about["seconds"] > 0
    assert Run(env.run_folder).contributions["round"].tolist() == [0, 0, 1, 1]
    other = CourseSimEnv(["north", "south"], name="study")
    assert other.run_folder != env.run_folder


def test_an_environment_is_for_one_run(simulator):
    simulator()
    env = CourseSimEnv(2)
    env.deploy(Job())
    with pytest.raises(CourseError, match=r"holds a run already\. Make a new CourseSimEnv"):
        env.deploy(Job())


@pytest.mark.parametrize("sites", [0, [], ["a", "a"], ["a b"], ["server"]])
def test_sites_that_cannot_be_met_are_refused_before_a_folder_is_made(sites, runs):
    with pytest.raises(CourseError):
        CourseSimEnv(sites)
    assert not runs.exists()


@pytest.mark.parametrize("sites", [1, 2, 3, 16])
def test_sites_together_ask_for_no_more_threads_than_there_are_cores(simulator, monkeypatch, sites):
    seen = simulator(record(sites=[f"site-{i + 1}" for i in range(sites)]))
    monkeypatch.setattr(environments, "cores", lambda: 8)
    CourseSimEnv(sites).deploy(Job())
    command, environment = json.loads(seen.read_text())
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == str(max(1, 8 // sites))
    assert command[command.index("-n") + 1] == command[command.index("-t") + 1] == str(sites)
    assert command[command.index("-c") + 1] == ",".join(f"site-{i + 1}" for i in range(sites))


def test_logs_go_to_files_only(simulator):
    seen = simulator()
    env = CourseSimEnv(1)
    env.deploy(Job())
    command, _ = json.loads(seen.read_text())
    workspace = command[command.index("-w") + 1]
    assert command[command.index("-l") + 1] == f"{workspace}/local/{LOG_CONFIG}"
    settings = json.loads((env.run_folder / "toy" / "local" / LOG_CONFIG).read_text())
    assert "consoleHandler" not in settings["loggers"]["root"]["handlers"]
    assert settings["loggers"]["root"]["handlers"], "but they are kept"


def test_a_run_that_fails_says_where_and_is_marked(simulator):
    simulator(record()[:2], code=1)
    env = CourseSimEnv(2)
    with pytest.raises(CourseError, match="The run failed in round 1 of 2"):
        env.deploy(Job())
    assert env.get_job_status("toy") == "failed"


def test_a_run_that_ends_well_with_half_its_rounds_is_a_failure(simulator):
    simulator(record(rounds=2)[:5])
    env = CourseSimEnv(2)
    with pytest.raises(CourseError, match=r"ended in round 1 of 2\. All logs are in .*runs"):
        env.deploy(Job())
    assert env.get_job_status("toy") == "failed"


def test_a_run_that_finished_without_a_site_warns_and_names_it(simulator):
    """The job demands one of three; two fail in every round."""
    simulator(record(sites=["site-2"]))
    with pytest.warns(
        UserWarning, match=r"2 of 3 sites left out: site-1: it did not answer; site-3: it did not answer"
    ):
        CourseSimEnv(3).deploy(Job())


def test_a_round_without_a_site_that_the_job_demands_is_a_failure(simulator):
    simulator(record(sites=["site-2"]))
    job = Job()
    job.demands = 2
    env = CourseSimEnv(2)
    with pytest.raises(
        CourseError, match=r"The job needs 2 site\(s\) in each round; there were fewer in round 1 of 2\."
    ):
        env.deploy(job)
    assert env.get_job_status("toy") == "failed"


def test_a_job_that_was_exported_runs_from_a_copy(simulator, tmp_path):
    simulator()
    exported = tmp_path / "from a colleague"
    exported.mkdir()
    (exported / "meta.json").write_text('{"name": "theirs"}')
    (exported / "app.txt").write_text("code")
    env = CourseSimEnv(2)
    assert env.run_exported(exported) == env.run_folder
    assert (env.run_folder / "job" / "theirs" / "app.txt").read_text() == "code"
    assert json.loads((env.run_folder / "run.json").read_text())["job"] == "theirs"


# -- what a reader sees meanwhile --------------------------------------------------------------------------------------


def test_in_a_log_a_round_is_one_line(simulator, capfd):
    """Before, a bar that was redrawn: three lines a second."""
    simulator(record(rounds=3), pause=0.05)
    CourseSimEnv(2).deploy(Job())
    out, err = capfd.readouterr()
    assert out.splitlines() == ["round 1 of 3", "round 2 of 3", "round 3 of 3"]
    assert err == ""


def test_in_a_terminal_a_bar_counts_the_updates(simulator, capfd, monkeypatch):
    simulator(record(rounds=2), pause=0.05)
    monkeypatch.setattr(environments.sys.stderr, "isatty", lambda: True, raising=False)
    CourseSimEnv(2).deploy(Job())
    out, err = capfd.readouterr()
    assert "round 2 of 2" in err and "/4" in err
    assert "round" not in out


def test_a_run_without_rounds_ends_with_a_full_bar(simulator, capfd, monkeypatch):
    simulator([])
    monkeypatch.setattr(environments.sys.stderr, "isatty", lambda: True, raising=False)
    CourseSimEnv(2).deploy(Job())
    assert "finished: 100%" in capfd.readouterr().err


def test_somebody_else_s_src_in_the_current_folder_is_not_taken_for_the_course(tmp_path, monkeypatch):
    """The program that the simulator's process imports, for its help."""
    for package in (tmp_path / "src", tmp_path / "src" / "federation"):
        package.mkdir()
        (package / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(environments.CODE))
    real, seen = subprocess.Popen, []

    def popen(command, **options):
        asked = real([*command[:3], "--help"], **{**options, "stdout": subprocess.PIPE}, text=True)
        seen.append(asked.communicate()[0])
        return real([command[0], "-c", "raise SystemExit(1)"], **options)

    monkeypatch.setattr(environments.subprocess, "Popen", popen)
    with pytest.raises(CourseError):
        CourseSimEnv(2).deploy(Job())
    assert "job_folder" in seen[0]


# -- paths -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "with a blank"])
def test_any_path_works_and_no_link_is_left(simulator, monkeypatch, tmp_path, name):
    seen, before = simulator(), links()
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / name))
    env = CourseSimEnv(2, name="study")
    env.deploy(Job())
    command, _ = json.loads(seen.read_text())
    workspace = command[command.index("-w") + 1]
    assert environments.PLAIN.fullmatch(workspace)
    # No link where none is needed; this Python's own path may need one.
    plain = name == "plain" and environments.PLAIN.fullmatch(f"{sys.executable}{tmp_path}")
    assert (workspace == str(env.run_folder / "toy")) == bool(plain)
    assert (env.run_folder / "toy" / "server").is_dir()
    assert links() == before


def test_links_of_a_process_that_was_killed_are_cleared_away(simulator, monkeypatch, tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    simulator()
    left = Path(tempfile.mkdtemp(prefix=f"course-links-{dead.stdout.strip()}-"))
    mine = Path(tempfile.mkdtemp(prefix=f"course-links-{os.getpid()}-"))
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "with a blank"))
    try:
        CourseSimEnv(2).deploy(Job())
        assert not left.exists()
        assert mine.exists(), "another run may be on its way in this process"
    finally:
        mine.rmdir()


def test_a_temporary_folder_with_an_odd_name_is_refused_by_name(simulator, monkeypatch, tmp_path):
    simulator()
    (tmp_path / "odd place").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "odd place"))
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "with a blank"))
    with pytest.raises(CourseError, match=r"not .*odd place; set TMPDIR"):
        CourseSimEnv(2).deploy(Job())


# -- whatever ends it --------------------------------------------------------------------------------------------------


def test_sigterm_ends_the_block_as_an_exception_does_and_what_was_set_before_comes_back():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        cleared = []
        with pytest.raises(SystemExit) as caught, environments._exit_on_sigterm():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                signal.sigtimedwait([], 1)
            finally:
                cleared.append(True)
        assert caught.value.code == 128 + signal.SIGTERM and cleared
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_beside_the_main_thread_signals_are_left_alone():
    seen = []

    def run():
        with environments._exit_on_sigterm():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_of_what_works_in_the_run_folder_only_flares_processes_end(tmp_path):
    """A TensorBoard that a reader opened on the same folder stays."""
    code = "import time; time.sleep(60)"
    started = [
        subprocess.Popen([sys.executable, "-c", code, *words])
        for words in (["nvflare.x", str(tmp_path)], ["tensorboard", str(tmp_path)], ["nvflare.x", f"{tmp_path}-other"])
    ]
    simulator = subprocess.Popen([sys.executable, "-c", code, "-m", "src.federation.simulated", str(tmp_path)])
    try:
        end_processes_below(tmp_path)
        assert simulator.poll() is not None
        assert [process.poll() is None for process in started] == [False, True, True]
    finally:
        for process in (*started, simulator):
            process.kill()
            process.wait()


def test_a_process_that_does_not_listen_is_killed(tmp_path):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    deaf = subprocess.Popen([sys.executable, "-c", code, "nvflare.x", str(tmp_path)], stdout=subprocess.PIPE)
    deaf.stdout.readline()
    end_processes_below(tmp_path, patience=0.2)
    assert deaf.poll() is not None and processes_below(tmp_path) == []


def test_a_site_that_the_simulator_starts_anew_meanwhile_ends_too(tmp_path):
    """FLARE's simulator starts a site again whose process has ended, as long as it lives itself."""
    code = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: setattr(sys, "ending", True))
while True:
    site = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "nvflare.site", sys.argv[2]])
    print(site.pid, flush=True)
    site.wait()
    if hasattr(sys, "ending") and subprocess.Popen([sys.executable, *site.args[1:]]):
        break
"""
    simulator = subprocess.Popen(
        [sys.executable, "-c", code, "nvflare.x", str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    simulator.stdout.readline()
    end_processes_below(tmp_path)
    assert processes_below(tmp_path) == []
    assert simulator.poll() is not None


def test_ctrl_c_while_it_waits_ends_the_simulator_and_marks_the_run(simulator, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "with a blank"))
    before = links()
    simulator(record(), pause=30.0)
    env = CourseSimEnv(2)

    def interrupt(process):
        raise KeyboardInterrupt

    monkeypatch.setattr(env, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        env.deploy(Job())
    assert env.get_job_status("toy") == "failed"
    assert links() == before
    children = [child for child in psutil.Process().children() if "federation.simulator" in " ".join(child.cmdline())]
    assert children == []
