"""Runs a FLARE job on this machine: a server and one process for every site, in a run folder of its own."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from nvflare.job_config.api import FedJob
from nvflare.recipe.sim_env import SimEnv
from tqdm.auto import tqdm

from src.errors import CourseError
from src.runs import Run, failure_report, read_record

POLL_SECONDS = 0.3


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_per_site(sites: int) -> int:
    """CPU threads for each of ``sites`` processes, so that together they ask for no more cores than there are."""
    return max(1, cores() // sites)


class CourseSimEnv(SimEnv):
    """FLARE's ``SimEnv`` for folders with blanks in their names, for Ctrl-C, and for a reader who waits.

    FLARE builds the simulator's command line as one string and splits it at blanks, so neither the interpreter
    nor the workspace may have one in its path; where they do, the simulator sees them through a link without.
    The console output goes to a file, a progress bar follows the rounds, and whatever ends the run early
    (an error, Ctrl-C, a kernel restart) ends every process of it.

    Args:
        run_folder: a fresh folder; the workspace becomes ``<run_folder>/<job name>``.
        sites: names of the sites; each gets one process.
        rounds: number of rounds, for the progress bar.
    """

    def __init__(self, run_folder: Path, sites: list[str], rounds: int):
        super().__init__(clients=sites, num_threads=len(sites), workspace_root=str(run_folder))
        self.run_folder = Path(run_folder)
        self.rounds = rounds

    def deploy(self, job: FedJob) -> str:
        """Run the job to its end.

        Raises:
            CourseError: if it fails; the message holds the failing site's own last error.
        """
        workspace = Path(self.workspace_root) / job.name
        self._ensure_default_component_policy(str(workspace))
        job.export_job(str(self.run_folder / "job"))
        with _paths_without_blanks(Path(sys.executable), self.run_folder) as (python, folder):
            command = [python, "-m", "nvflare.private.fed.app.simulator.simulator", f"{folder}/job/{job.name}"]
            command += ["-w", f"{folder}/{job.name}", "-c", ",".join(self.clients)]
            command += ["-n", str(self.num_clients), "-t", str(self.num_threads)]
            returncode = self._run(command, workspace)
        self.last_run_failed = returncode != 0
        if self.last_run_failed:
            raise CourseError(failure_report(self.run_folder, workspace, self.clients))
        return job.name

    def _run(self, command: list[str], workspace: Path) -> int:
        threads = str(threads_per_site(self.num_clients))
        # FLARE's many threads would each get a heap of their own, which glibc never shrinks: one is enough.
        environment = {"MALLOC_ARENA_MAX": "1", **os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        bar = tqdm(total=self.rounds * self.num_clients, unit="update", desc="starting", leave=False)
        with (self.run_folder / "console.log").open("w") as console, bar:
            process = subprocess.Popen(command, stdout=console, stderr=subprocess.STDOUT, env=environment)
            try:
                while process.poll() is None:
                    time.sleep(POLL_SECONDS)
                    self._show_progress(bar, workspace)
            finally:
                _end_processes_of(process, command[command.index("-w") + 1])
        return process.returncode

    def _show_progress(self, bar, workspace: Path) -> None:
        record = read_record(workspace)
        answers = [entry for entry in record if entry["event"] == "answer" and entry["round"] < self.rounds]
        started = [entry["round"] for entry in record if entry["event"] == "round started"]
        if started:
            bar.set_description(f"round {started[-1] + 1} of {self.rounds}")
        bar.update(len(answers) - bar.n)


@contextlib.contextmanager
def _paths_without_blanks(python: Path, folder: Path):
    """Yield an interpreter and a folder as strings without blanks: as they are, or through links that live only here."""
    if " " not in f"{python}{folder}":
        yield str(python), str(folder)
        return
    links = Path(tempfile.mkdtemp(prefix="course-"))
    if " " in str(links):
        links.rmdir()
        raise CourseError(f"FLARE's simulator needs a temporary folder without blanks, not {links}; set TMPDIR to one.")
    try:
        # The interpreter finds its packages from its own place, so the environment is linked, not the binary.
        (links / "environment").symlink_to(python.parent.parent, target_is_directory=True)
        (links / "run").symlink_to(folder, target_is_directory=True)
        yield str(links / "environment" / python.parent.name / python.name), str(links / "run")
    finally:
        shutil.rmtree(links)


def _end_processes_of(process: subprocess.Popen, workspace: str, patience: float = 5.0) -> None:
    """End a simulator and all that it started; a no-op after a normal end.

    Its sites are found by the workspace in their command lines: they are sessions of their own, and lose their parent
    when Ctrl-C in a terminal reaches the simulator first.
    """
    # Only FLARE's own: a TensorBoard that a reader opened on the same folder stays.
    family = [
        one
        for one in psutil.process_iter(["cmdline"])
        if workspace in (command := " ".join(one.info["cmdline"] or ())) and "nvflare." in command
    ]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    _, alive = psutil.wait_procs(family, timeout=patience)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def simulate(job: FedJob, run_folder: Path, sites: list[str], rounds: int, about: dict) -> Run:
    """Run a job in the simulator and return its :class:`src.runs.Run`.

    Args:
        job: the job.
        run_folder: a fresh folder from :func:`src.paths.new_run_folder`.
        sites: names of the sites.
        rounds: number of rounds.
        about: settings to keep in ``run.json`` beside the results.

    Raises:
        CourseError: if the run fails; ``run.json`` then says ``"status": "failed"``.
    """
    started = time.time()
    status = "failed"
    try:
        CourseSimEnv(run_folder, sites, rounds).deploy(job)
        status = "finished"
    finally:
        entry = {"status": status, "job": job.name, "sites": sites, "rounds": rounds, **about}
        entry |= {"started": started, "seconds": time.time() - started}
        (Path(run_folder) / "run.json").write_text(json.dumps(entry, indent=2) + "\n")
    return Run(run_folder)
