"""Where a recipe is executed: FLARE's simulator on this machine, with a progress bar and errors that name the site."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from nvflare.fuel.utils import log_utils
from nvflare.job_config.api import FedJob
from nvflare.recipe.sim_env import SimEnv
from tqdm.auto import tqdm

from src.common.datalists import site_names
from src.common.errors import CourseError, some_of
from src.common.files import read_json, write_json
from src.common.paths import new_run_folder
from src.federation.flare_2_9 import allow_usual_classes
from src.federation.processes import end_processes_below, plain_paths
from src.federation.record import failure_report, progress, read_record, shortfall
from src.federation.run import RUN, Run

POLL_SECONDS, SILENCE, LOG_CONFIG = 0.3, 24 * 3600, "log_config.json"
CODE = Path(__file__).resolve().parents[2]  # where this process's ``src`` is, for those that it starts
EXPORT = threading.Lock()  # of threads: it parses code, see https://github.com/python/cpython/issues/106905


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CourseSimEnv(SimEnv):
    """FLARE's ``SimEnv`` in a run folder of its own, for a reader who waits.

    What FLARE's lacks: any path works; sites share the cores; a progress bar follows the record; each process logs into its own
    folder; an error names site, round and kind of fault; and whatever ends a run early ends every process of it. ``sites``: how
    many, or their names. ``run_folder`` is ``folder``, or a new one in ``COURSE_RUNS``, below ``name``. A run that is silent for
    ``silence`` seconds is ended."""

    def __init__(self, sites: int | Sequence[str], name="simulation", folder: Path | None = None, silence=SILENCE):
        names, self.silence, self.python = site_names(sites), silence, Path(sys.executable)
        self.run_folder = Path(folder or new_run_folder(name)).resolve()
        super().__init__(clients=names, num_threads=len(names), workspace_root=str(self.run_folder))

    def deploy(self, job: FedJob) -> str:
        """Run the job to its end, return its name; a ``CourseError`` if it is for other sites, fails, or lacks rounds or sites."""
        if (self.run_folder / RUN).exists():
            raise CourseError(f"{self.run_folder} holds a run already. Make a new CourseSimEnv for another one.")
        about = {"status": "failed", "job": job.name, "sites": self.clients, "started": time.time()}
        with EXPORT:
            job.export_job(str(self.run_folder / "job"))
        self._refuse_other_sites(self.run_folder / "job" / job.name)
        try:
            self._simulate(job.name)
            if lacks := shortfall(self.run_folder):
                raise CourseError(f"{lacks} All logs are in {self.run_folder}.")
            about["status"] = "finished"
        finally:
            write_json(self.run_folder / RUN, about | {"seconds": time.time() - about["started"]})
        if read_record(self.run_folder) and not (run := Run(self.run_folder)).contributions["accepted"].all():
            warnings.warn(f"The run finished without some of its updates: {run!r}", stacklevel=2)
        return job.name

    def get_job_result(self, job_id: str, timeout: float = 0.0) -> str:
        """The run folder, for :class:`src.federation.run.Run`."""
        return str(self.run_folder)

    def _refuse_other_sites(self, job: Path) -> None:
        meta, configs = read_json(job / "meta.json") or {}, job.glob("*/config/config_fed_server.json")
        named = {site for places in meta.get("deploy_map", {}).values() for site in places} - {"server", "@ALL"}
        workflows = [one["args"] for file in configs for one in (read_json(file) or {})["workflows"]]
        asked = max([meta.get("min_clients", 1), *(one.get("num_clients", 1) for one in workflows)])
        here = f"this simulator has {self.num_clients} ({some_of(self.clients)})"
        if named and named != set(self.clients):
            raise CourseError(f"The job is for {some_of(sorted(named))}; {here}. Give it the same sites.")
        quick = [one["min_clients"] for one in workflows if one.get("wait_time_after_min_received") == 0]
        if min(quick, default=self.num_clients) < self.num_clients:
            raise CourseError(f"The job goes on with the first {min(quick)} answers, {here}; give it as many.")
        if asked > self.num_clients:
            raise CourseError(f"The job asks {asked} sites, {here}; give it as many.")

    def _simulate(self, job: str) -> None:
        workspace = self.run_folder / job
        allow_usual_classes(str(workspace))
        # FLARE's own logging without its console, on which all processes would write what belongs into each one's own log.
        logging = read_json(Path(log_utils.__file__).with_name(LOG_CONFIG))
        logging["loggers"]["root"]["handlers"].remove("consoleHandler")
        write_json(workspace / "local" / LOG_CONFIG, logging)
        with _exit_on_sigterm(), plain_paths(self.python, self.run_folder) as (python, folder):
            command = [python, "-m", "src.federation.simulated", f"{folder}/job/{job}", "-w", f"{folder}/{job}"]
            command += ["-c", ",".join(self.clients), "-n", str(self.num_clients), "-t", str(self.num_threads)]
            command += ["-l", f"{folder}/{job}/local/{LOG_CONFIG}"]
            threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(max(1, cores() // self.num_clients)))
            # FLARE's many threads would each get a heap of their own, which glibc never shrinks: one is enough.
            environment = {"MALLOC_ARENA_MAX": "1", **os.environ, **threads}
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(CODE)]))
            # Not in the current folder: what is called src there may be somebody else's.
            how = {"cwd": self.run_folder, "env": environment, "stderr": subprocess.STDOUT}
            with (self.run_folder / "console.log").open("w") as console:
                process = subprocess.Popen(command, stdout=console, **how)
                try:
                    self._wait(process)
                finally:
                    # Found by the workspace in their command lines: sites are sessions of their own, and lose their parent when
                    # Ctrl-C in a terminal reaches the simulator first. After a normal end there is none.
                    end_processes_below(f"{folder}/{job}", patience=5.0)
                    process.wait(timeout=60)
        if process.returncode:
            raise CourseError(failure_report(self.run_folder, workspace, self.clients))

    def _wait(self, process: subprocess.Popen) -> None:
        """Follow the record: a bar where somebody looks, in a terminal or a notebook, one line a round in a log."""
        ipython = sys.modules.get("IPython")  # that it is imported does not make this process a notebook's kernel
        quiet = not (sys.stderr.isatty() or (ipython and ipython.get_ipython()))
        said = 0
        with tqdm(total=0, unit="update", desc="starting", leave=False, disable=quiet) as bar:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                logs = self.run_folder / "console.log", *self.run_folder.glob("*/*/log.txt")
                if time.time() - max(log.stat().st_mtime for log in logs) > self.silence:
                    since = f"No process of this run has logged a line for {self.silence:g} s: it was ended"
                    raise CourseError(f"{since}. All logs are in {self.run_folder}; a longer silence is an argument.")
                number, rounds, answers = progress(read_record(self.run_folder))
                if number > said and quiet:
                    print(f"round {number} of {rounds}", flush=True)
                elif number:
                    bar.total = rounds * self.num_clients
                    bar.set_description(f"round {number} of {rounds}")
                    bar.update(answers - bar.n)
                said = number
            if not bar.total and process.returncode == 0:  # it had no rounds, as one that only counts
                bar.total = 1
                bar.update(1)
                bar.set_description("finished")


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as an exception does, so that what the block started and linked is cleared away."""
    with contextlib.ExitStack() as after:
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
            after.callback(signal.signal, signal.SIGTERM, before)
        yield
