"""A real federation on this machine: FLARE's server and its sites as processes of their own, with certificates and mutual TLS.

The simulator's sites are children of one process and share its environment. Here each starts from its own start-up kit, as a
hospital starts it, with an environment of its own: what one site needs to find its data, nobody else is told.

    with Federation(folder, {"north": {"COURSE_DATA": "/a"}, "south": {"COURSE_DATA": "/b"}}) as hospitals:
        hospitals.start()
        run = hospitals.execute(recipe, folder / "results")

FLARE's proof of concept (``nvflare poc``, ``PocEnv``) does nearly this, but on a fixed port, with one environment for all, and it
leaves its processes when the caller is killed. On several machines, everybody starts their own kit; see ``docs/deploy.md``.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from nvflare.apis.fl_exception import FLCommunicationError
from nvflare.apis.job_def import RunStatus
from nvflare.fuel.flare_api.api_spec import JobTimeout
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session
from nvflare.recipe import ProdEnv
from nvflare.recipe.spec import Recipe

from deploy.kits import ADMIN, LEAD, SERVER, SILENCE_SECONDS, project, provision, set_up_server, set_up_site
from src.common.errors import CourseError
from src.common.files import write_json
from src.federation.processes import PLAIN, end_processes_below, plain_paths, processes_below
from src.federation.record import read_record, shortfall
from src.federation.run import RUN

CONSOLE = "console.log"
START_SECONDS = 120.0
POLL_SECONDS = 0.3
JOB_SECONDS = 600.0


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


class Federation(contextlib.AbstractContextManager):
    """A provisioned server and its sites on this machine; a context manager that leaves nothing running and no kit behind.

    In a notebook, where a ``with`` block cannot span cells, call :meth:`close` at the end. Should the notebook not get there, a
    guard, a process of its own, does the same as soon as this process is gone (:mod:`deploy.guard`).

    Args:
        folder: is made, and holds kits, logs and jobs. FLARE splits the command line of a job's process as a shell does; a path
            with a blank or the like is replaced by a new folder among the system's temporary ones.
        sites: name → environment variables of this site's process alone.
        silence: of :func:`deploy.kits.set_up_server`.

    Attributes:
        folder: that which is used.
        kits: participant (``server``, each site, each user) → the folder of its start-up kit.

    Raises:
        CourseError: if the folder is there already.
    """

    def __init__(self, folder: Path, sites: Mapping[str, Mapping[str, str]], silence: float = SILENCE_SECONDS):
        self.sites, self.port = dict(sites), free_port()
        about = project(list(sites), self.port)
        self.folder = _plain_folder(Path(folder))
        self.kits: dict[str, Path] = {}
        self._running: dict[str, subprocess.Popen] = {}
        self._guard: subprocess.Popen | None = None
        self._open = contextlib.ExitStack()
        try:
            python, _ = self._open.enter_context(plain_paths(Path(sys.executable), self.folder))
            self._python = Path(python)
            # Links to a Python with a blank in its path go with the federation.
            links = [] if python == sys.executable else [str(self._python.parents[2])]
            self._guard = subprocess.Popen(
                [sys.executable, "-m", "deploy.guard", str(self.folder), *links],
                stdin=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in a terminal is for its owner
                env={"PATH": os.environ.get("PATH", os.defpath)},
                cwd=Path(__file__).resolve().parents[1],  # the course's folder: Python looks for modules there first
            )
            self.kits = provision(self.folder, about)
            set_up_server(self.kits[SERVER], silence)
            for participant in (SERVER, *self.sites):
                set_up_site(self.kits[participant])
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End all processes and remove the folder; twice is as good as once."""
        if self._guard:
            self._guard.stdin.close()
            self._guard.wait()
        for process in self._running.values():
            process.wait()
        with contextlib.suppress(FileNotFoundError):  # the guard has removed the links
            self._open.close()

    # -- processes -----------------------------------------------------------------------------------------------------

    def start(self, *names: str, wait: bool = True) -> None:
        """Start the server and all sites, or these participants, and wait until they have registered.

        Raises:
            CourseError: if a process ends early, or not all have registered within ``START_SECONDS``; quotes their logs.
        """
        names, since = names or (SERVER, *self.sites), time.time()
        for name in names:
            self._running[name] = self._start(name)
        if wait:
            self._wait_until_registered([name for name in names if name != SERVER], since)

    def _start(self, name: str) -> subprocess.Popen:
        """Run a kit's own start script with this Python, its own variables, and nothing else of this process's environment."""
        kit = self.kits[name]
        common = {
            "PATH": os.pathsep.join([str(self._python.parent), os.environ.get("PATH", os.defpath)]),
            "HOME": str(kit),
            "TMPDIR": str(kit),
            "OMP_NUM_THREADS": "1",
            # All processes of a job start at once on this one machine; FLARE gives a site 60 s to meet the server's.
            "NVFLARE_MAX_RUNNER_SYNC_TIMEOUT": str(JOB_SECONDS),
        }
        with (kit / CONSOLE).open("a") as console:
            return subprocess.Popen(
                # Once: not in a loop that starts the process again when it ends.
                [kit / "startup" / "sub_start.sh", "--once"],
                cwd=kit,
                env={**common, **self.sites.get(name, {})},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """End a participant as a power failure does: at once, with all that it does for jobs, and without a word to anybody."""
        end_processes_below(self.kits[name], patience=0)
        self._running.pop(name).wait()

    def is_running(self, name: str) -> bool:
        """Whether a participant has a process."""
        return bool(processes_below(self.kits[name]))

    def _wait_until_registered(self, sites: Sequence[str], since: float) -> None:
        deadline, missing = time.monotonic() + START_SECONDS, set(sites)

        def pause() -> None:
            ended = [name for name, process in self._running.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise CourseError(f"Ended early: {ended}; not registered: {sorted(missing)}.\n{self.ends_of_logs()}")
            time.sleep(POLL_SECONDS)

        # A session that is opened too early and gives up can hang: FLARE 2.9 then waits for its own connection to end.
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("localhost", self.port)) == 0:
                    break
            pause()
        with self.session(ADMIN) as session:
            while missing:
                pause()
                there = session.get_system_info().client_info
                missing.difference_update(site.name for site in there if site.last_connect_time >= since)

    def ends_of_logs(self) -> str:
        """What each process last said, and those that it started for a job."""
        logs = [kit / CONSOLE for kit in self.kits.values() if (kit / CONSOLE).is_file()]
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)

    # -- what users do -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def session(self, user: str = LEAD) -> Iterator[Session]:
        """FLARE's session API for a user, closed at the end of the block."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                session = new_secure_session(user, str(self.kits[user]), timeout=START_SECONDS)
                break
            except FLCommunicationError:  # a busy server did not answer in the moment that FLARE gives it
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)
        with contextlib.closing(session):
            yield session

    def environment(self, user: str = LEAD) -> ProdEnv:
        """Where a recipe is executed: this federation, as this user."""
        return ProdEnv(str(self.kits[user]), login_timeout=START_SECONDS, username=user)

    def execute(self, recipe: Recipe, results: Path, timeout: float = JOB_SECONDS) -> Path:
        """Submit the recipe's job as the lead, wait for its end and fetch it: :meth:`fetch`."""
        return self.fetch(recipe.execute(self.environment()).get_job_id(), results, timeout)

    def fetch(self, job: str, results: Path, timeout: float = JOB_SECONDS) -> Path:
        """Wait for the end of a job and fetch what the server kept of it into ``results/<job>``, for ``Run``.

        Raises:
            CourseError: if the job did not end well (its results are fetched all the same), or not within ``timeout`` seconds.
        """
        with self.session() as session:
            try:
                about = session.wait_for_job(job, timeout, poll_interval=POLL_SECONDS)
            except JobTimeout as error:
                raise CourseError(f"Job {job} still runs after {timeout:.0f} s.\n{self.ends_of_logs()}") from error
            place = Path(session.download_job_result(job, str(results)))
        # What each site answered when the job came to it: "OK", or why it does not take part.
        told = [line.partition(": ") for line in about.get("job_deploy_detail", ())]
        answers = {name: said.removeprefix("NVFLARE_ERROR: ") for name, _, said in told if said}
        refused = {name: said for name, said in answers.items() if said != "OK"}
        error = shortfall(place)
        if about["status"] != RunStatus.FINISHED_COMPLETED:
            reasons = "".join(f" {name}: {said}." for name, said in refused.items())
            error = f"The job ended with {about['status']}.{reasons}"
        lasted = pd.to_timedelta(about["duration"], errors="coerce")  # not a time for a job that never ran: "N/A"
        status = {"status": "failed" if error else "finished", "job": about["name"], "refused": refused}
        status |= {"seconds": 0.0 if pd.isna(lasted) else lasted.total_seconds()}
        write_json(place / RUN, status | {"sites": sorted(answers.keys() - {SERVER})})
        if error:
            raise CourseError(f"{error} Its results are in {place}.\n{self.ends_of_logs()}")
        return place

    def record(self, job: str) -> list[dict]:
        """The record of a job that runs, from the server's folder; on another machine only its owner can look there."""
        return read_record(self.kits[SERVER] / job)

    def wait_for(self, job: str, event: str, timeout: float = JOB_SECONDS, **values) -> dict:
        """Wait for a line in a running job's record, for example ``wait_for(job, "round started", round=1)``, and return it.

        Raises:
            CourseError: if it does not come within ``timeout`` seconds, or the job ends before.
        """
        deadline, folder, began = time.monotonic() + timeout, self.kits[SERVER] / job, False
        while time.monotonic() < deadline:
            for entry in self.record(job):
                if entry["event"] == event and all(entry.get(name) == value for name, value in values.items()):
                    return entry
            if began and not folder.is_dir():  # the server has put the job's results away
                break
            began = folder.is_dir()
            time.sleep(POLL_SECONDS)
        how = f"still runs after {timeout:.0f} s" if folder.is_dir() else "has ended"
        raise CourseError(f"Job {job} {how} without {event!r} with {values}.\n{self.ends_of_logs()}")


def _plain_folder(folder: Path) -> Path:
    """Make a new folder whose real path FLARE can write into a command line."""
    if folder.exists():
        raise CourseError(f"{folder} is there already. Each federation needs a new folder.")
    if PLAIN.fullmatch(str(folder.resolve())):
        folder.mkdir(parents=True)
        return folder.resolve()
    place = Path(tempfile.gettempdir()).resolve()
    if not PLAIN.fullmatch(str(place)):
        raise CourseError(f"FLARE needs a folder with a plain path, without blanks; {place} is none. Set TMPDIR.")
    return Path(tempfile.mkdtemp(prefix="course-federation-", dir=place))
