"""Where a recipe is executed: FLARE's simulator on this machine, with a progress bar and errors that name the site."""

import atexit
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import ClassVar

from nvflare.fuel.utils import log_utils
from nvflare.job_config.api import FedJob
from nvflare.recipe.sim_env import SimEnv
from tqdm.auto import tqdm

from deploy.flare_2_9 import allow_usual_classes
from deploy.processes import END_SECONDS, end_processes_below, plain_paths
from deploy.simulated import FORKS, STALE
from src.common.datalists import site_names
from src.common.errors import CourseError, some_of
from src.common.files import read_json, write_json
from src.common.paths import new_run_folder
from src.federation.record import failure_report, progress, read_record, shortfall
from src.federation.run import RUN, Run

POLL_SECONDS, SILENCE, LOG_CONFIG = 0.3, 24 * 3600, "log_config.json"
LATE = (
    "COURSE_",
    "PYTEST_",
)  # of the environment: read when it is needed, not when a package loads; the name of a test
CODE = Path(__file__).resolve().parents[1]  # where this process's ``src`` is, for those that it starts
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
        names, self.silence = site_names(sites), silence
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
        with _exit_on_sigterm(), plain_paths(Path(sys.executable), self.run_folder) as (python, folder):
            arguments = [f"{folder}/job/{job}", "-w", f"{folder}/{job}", "-l", f"{folder}/{job}/local/{LOG_CONFIG}"]
            arguments += ["-c", ",".join(self.clients), "-n", str(self.num_clients), "-t", str(self.num_threads)]
            threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(max(1, cores() // self.num_clients)))
            # FLARE's many threads would each get a heap of their own, which glibc never shrinks: one is enough. NumPy's start as it
            # loads, and what has threads should not fork; PyTorch's, which train, start with the first layer.
            environment = {"MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ, **threads}
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(CODE)]))
            console = self.run_folder / "console.log"
            console.touch()
            request = {"arguments": arguments, "sites": self.num_clients, "environment": environment, "python": python}
            process = Simulated(request | {"folder": str(self.run_folder), "console": str(console)})
            try:
                self._wait(process)
            finally:
                process.close()
                # Found by the workspace in their command lines. After a normal end there is none.
                end_processes_below(f"{folder}/{job}", patience=0)
        if process.returncode:
            raise CourseError(failure_report(self.run_folder, workspace, self.clients))

    def _wait(self, process: "Simulated") -> None:
        """Follow the record: a bar where somebody looks, in a terminal or a notebook, one line a round in a log."""
        ipython = sys.modules.get("IPython")  # that it is imported does not make this process a notebook's kernel
        quiet = not (sys.stderr.isatty() or (ipython and ipython.get_ipython()))
        said = 0
        with tqdm(total=0, unit="update", desc="starting", leave=False, disable=quiet) as bar:
            while process.wait(POLL_SECONDS) is None:
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


class Forker:
    """A process of :mod:`deploy.simulated`. One is kept for the next run, unless ``COURSE_WARM=0``; it costs some 400 MB meanwhile.

    It is taken again only while a new one would be the same: with this environment, but for what is read late, and the same code
    on the disk, as it sees for itself."""

    kept: ClassVar["Forker | None"] = None
    lock = threading.Lock()

    def __init__(self, environment: dict[str, str], console: Path):
        self.environment, self.runs = _early(environment), 0
        self.control, other = multiprocessing.Pipe()
        command = [sys.executable, "-m", "deploy.simulated"]
        # A session of its own, for Ctrl-C in a terminal is for this process. Not in the current folder: what is called src there
        # may be somebody else's.
        how = {"cwd": CODE, "env": environment, "start_new_session": True}
        with console.open("a") as out, other:
            self.process = subprocess.Popen(command, stdin=other.fileno(), stdout=out, stderr=out, **how)

    @classmethod
    def take(cls, environment: dict[str, str], console: Path) -> "Forker":
        """The kept one if it is as a new one would be, else a new one."""
        with cls.lock:
            alive = FORKS and cls.kept and cls.kept.process.poll() is None
            if not alive or cls.kept.environment != _early(environment):
                cls.drop()
                cls.kept = cls(environment, console)
            cls.kept.runs += 1
            return cls.kept

    def give_back(self, again: bool) -> None:
        """After a run; ``again``: it may serve another one."""
        with self.lock:
            self.runs -= 1
            if self is Forker.kept and not (again and FORKS and os.environ.get("COURSE_WARM") != "0"):
                self.drop()
            elif self is not Forker.kept and not self.runs:
                self.end()

    @classmethod
    def drop(cls) -> None:
        if (one := cls.kept) and not one.runs:
            one.end()
        cls.kept = None

    def end(self) -> None:
        self.control.close()
        self.process.kill()  # what it has forked ends with it
        self.process.wait(END_SECONDS)


atexit.register(Forker.drop)


def _early(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(LATE)}


class Simulated:
    """A run by a :class:`Forker`: ``request`` is what :func:`deploy.simulated._simulate` is given."""

    def __init__(self, request: dict):
        self.request, self.returncode = request, None
        self._start()

    def _start(self) -> None:
        self.forker = Forker.take(self.request["environment"], Path(self.request["console"]))
        self.status, other = multiprocessing.Pipe()
        with other, contextlib.suppress(BrokenPipeError), Forker.lock:  # if it has ended, poll() will see that
            self.forker.control.send(self.request)
            send_handle(self.forker.control, other.fileno(), self.forker.process.pid)

    def wait(self, seconds: float) -> int | None:
        """The exit status of the run, as soon as it has ended; None if it goes on after so many seconds."""
        if self.returncode is None and self.status.poll(seconds):
            try:
                said = self.status.recv()
            except EOFError:  # the process is gone
                said = self.forker.process.wait(END_SECONDS)
            if said == STALE:
                self.close(again=False)
                self._start()
            else:
                self.returncode = said
        return self.returncode

    def close(self, again: bool = True) -> None:
        """End the run, if it goes on."""
        self.status.close()
        self.forker.give_back(again)
