"""A real federation on this machine: FLARE's server and its sites as processes of their own, with certificates and mutual TLS.

Each starts from its own kit, as at a hospital, in an environment of its own: what it needs to find its data, nobody else is told.

    with Federation(folder, {"north": {"COURSE_DATA": "/a"}, "south": {"COURSE_DATA": "/b"}}) as hospitals:
        hospitals.start()
        run = hospitals.execute(recipe, folder / "results")

FLARE's ``PocEnv`` does nearly this, but on a fixed port, with one environment for all, and leaves its processes when the caller is
killed. On several machines, everybody starts their own kit: ``docs/deploy.md``.
"""

import contextlib
import os
import site as user_packages
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pandas as pd
from nvflare.apis.fl_exception import FLCommunicationError
from nvflare.apis.job_def import ALL_SITES, RunStatus
from nvflare.fuel.flare_api.api_spec import JobNotFound, JobTimeout, NoConnection
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session
from nvflare.fuel.utils.network_utils import get_open_ports
from nvflare.recipe import ProdEnv
from nvflare.recipe.spec import Recipe

from deploy.guard import READY, clear_away
from deploy.kits import ADMIN, LEAD, SERVER, SILENCE_SECONDS, USERS, project, provision, set_up_server, set_up_site
from deploy.processes import END_SECONDS, PLAIN, end_processes_below, plain_paths, processes_below
from src.common.errors import CourseError, some_of
from src.common.files import write_json
from src.federation.record import read_record, shortfall
from src.federation.run import RUN

CONSOLE = "console.log"
GUARD_SECONDS = 60.0
START_SECONDS = 120.0
POLL_SECONDS = 0.3
JOB_SECONDS = 600.0


def handed_on(**own: str) -> dict[str, str]:
    """The environment of a federation's process: this one's, so that it finds the same packages and devices, and ``own``; but for
    ``COURSE_*``, which say where *this* process's data are, and the variable that names another folder for FLARE's kit."""
    ours = {name: text for name, text in os.environ.items() if not name.startswith(("COURSE_", "NVFL_WORKSPACE"))}
    # Python looks for packages of the user below HOME, which is the kit, and for a relative path in its current folder.
    ours["PYTHONUSERBASE"] = str(Path(ours.get("PYTHONUSERBASE") or user_packages.getuserbase()).absolute())
    if places := ours.get("PYTHONPATH"):
        ours["PYTHONPATH"] = os.pathsep.join(str(Path(place).absolute()) for place in places.split(os.pathsep))
    return ours | own


class Federation(contextlib.AbstractContextManager):
    """A provisioned server and its sites on this machine; a context manager that leaves nothing running and no kit behind.

    In a notebook, where a ``with`` block cannot span cells, call :meth:`close` at the end. A guard, a process of its own, does the
    same as soon as this process is gone: :mod:`deploy.guard`.

    Args:
        folder: is made, and holds kits, logs and jobs. FLARE splits the command line of a job's process as a shell does: in the
            place of a path with a blank or the like there is a new folder among the system's temporary ones.
        sites: name → environment variables of this site's process alone, on top of :func:`handed_on`.
        silence: of :func:`deploy.kits.set_up_server`.
        he: of :func:`deploy.kits.project`: whether kits hold keys for homomorphic encryption.

    Attributes:
        folder: that which is used.
        kits: participant (``server``, each site, each user) → the folder of its start-up kit.

    Raises:
        CourseError: if the folder is there already, a name or a variable cannot be one, or the guard does not start; nothing is
            made then. Wherever a participant, a user or a job is unknown, it names those there are.
    """

    def __init__(
        self, folder: Path, sites: Mapping[str, Mapping[str, str]], silence: float = SILENCE_SECONDS, he: bool = False
    ):
        self.sites, (self.port,) = _variables(sites), get_open_ports(1)
        about = project(list(self.sites), self.port, he=he)
        self._participants, own = [SERVER, *self.sites], Path(folder).resolve()  # as FLARE does
        if own.exists():
            raise CourseError(f"{folder} is there already. Each federation needs a new folder.")
        self.kits: dict[str, Path] = {}
        self._running: dict[str, subprocess.Popen] = {}
        self._guard: subprocess.Popen | None = None
        self._to_clear: list[Path] = []
        self._open = contextlib.ExitStack()
        try:
            python, place = self._open.enter_context(plain_paths(Path(sys.executable), own))
            self._python, links = Path(python), Path(place).parent
            self.folder = own if PLAIN.fullmatch(str(own)) else links.resolve() / "federation"
            self.folder.mkdir(parents=True)
            self._to_clear = [self.folder] if place == str(own) else [self.folder, links]
            self._start_guard()
            self.kits = provision(self.folder, about)
            set_up_server(self.kits[SERVER], silence)
            for participant in self._participants:
                set_up_site(self.kits[participant])
        except BaseException:
            self.close()
            raise

    def _start_guard(self) -> None:
        """Return when the guard has said that it is there: only then there may be keys."""
        # Ctrl-C in a terminal is for its owner; in the course's folder Python finds the course's modules first.
        how = {"start_new_session": True, "cwd": Path(__file__).resolve().parents[1], "env": handed_on(), "text": True}
        how |= dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        alarm = threading.Timer(GUARD_SECONDS, lambda: self._guard.kill())
        try:
            self._guard = subprocess.Popen([sys.executable, "-m", "deploy.guard", *self._to_clear], **how)
            alarm.start()
            if any(line.strip() == READY for line in self._guard.stdout):
                return
            said = self._guard.stderr.read()[-2000:].strip()
        except OSError as error:
            said = str(error)
        finally:
            alarm.cancel()
        said = said or f"it said nothing in {GUARD_SECONDS:.0f} s, or at its end"
        raise CourseError(f"The guard does not start, so no kit was made: {said}")

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End all processes and remove the folder, twice as well as once; a ``CourseError`` if a process or the folder stays."""
        if self._guard:
            self._guard.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(END_SECONDS)
            self._guard.kill()
        clear_away(*self._to_clear)  # once more: somebody may have ended the guard before
        for process in [*self._running.values(), *filter(None, [self._guard])]:
            _wait(process)
        with contextlib.suppress(FileNotFoundError):  # the links are gone
            self._open.close()
        if left := [str(path) for path in self._to_clear if path.exists()]:
            raise CourseError(f"{some_of(left)} cannot be removed. Delete it by hand: it may hold private keys.")

    # -- processes -----------------------------------------------------------------------------------------------------

    def start(self, *names: str, wait: bool = True) -> None:
        """Start the server and all sites, or these participants, and wait until they have registered. Who runs is left alone.
        A ``CourseError``, with the ends of their logs, if the server's port is taken or it does not run, a process ends early, or
        not all have registered within ``START_SECONDS``."""
        names, since = names or self._participants, time.time()
        new = [name for name in dict.fromkeys(names) if not self.is_running(name)]
        if SERVER in new:
            try:
                socket.create_server(("", self.port)).close()
            except OSError as error:
                said = f"Port {self.port} is taken by another program ({os.strerror(error.errno)})"
                raise CourseError(f"{said}. End that program, or make a new Federation.") from error
        for name in new:
            self._running[name] = self._start(name)
        if wait:
            self._wait_until_registered(set(names) - {SERVER}, new, since)

    def _start(self, name: str) -> subprocess.Popen:
        """Run a kit's own start script with this Python, what is handed on to all, and its own variables."""
        kit = self.kits[name]
        own = {"PATH": os.pathsep.join([str(self._python.parent), os.environ.get("PATH", os.defpath)])}
        own |= {"HOME": str(kit), "TMPDIR": str(kit), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        # All processes of a job start at once on this one machine; FLARE gives a site 60 s to meet the server's.
        own |= {"NVFLARE_MAX_RUNNER_SYNC_TIMEOUT": str(JOB_SECONDS), **self.sites.get(name, {})}
        how = {"cwd": kit, "env": handed_on(**own), "stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        script = kit / "startup" / "sub_start.sh"
        with (kit / CONSOLE).open("a") as console:
            # Once: not in a loop that starts the process again when it ends.
            return subprocess.Popen([script, "--once"], stdout=console, start_new_session=True, **how)

    def kill(self, name: str) -> None:
        """End a participant as a power failure does: at once, with all that it does for jobs, and without a word to anybody."""
        if not self.is_running(name):
            runs = [one for one in self._participants if self.is_running(one)]
            raise CourseError(f"{name} does not run. Of this federation there run: {some_of(runs) or 'none'}.")
        end_processes_below(self.kits[name], patience=0)
        if name in self._running:
            _wait(self._running.pop(name))

    def is_running(self, name: str) -> bool:
        """Whether a participant has a process."""
        return bool(processes_below(self._kit(name, self._participants)))

    def _kit(self, name: str, among: Collection[str]) -> Path:
        if name not in among:
            raise CourseError(f"{name!r} is none of this federation's. There are: {some_of(list(among))}.")
        if not self.folder.is_dir():
            raise CourseError("This federation is closed. Make a new one.")
        return self.kits[name]

    def _wait_until_registered(self, missing: set[str], new: Collection[str], since: float) -> None:
        deadline = time.monotonic() + START_SECONDS

        def pause() -> None:
            ended = [name for name in new if self._running[name].poll() is not None]
            if ended or time.monotonic() > deadline:
                raise CourseError(f"Ended early: {ended}; not registered: {sorted(missing)}.\n{self.ends_of_logs()}")
            time.sleep(POLL_SECONDS)

        self._refuse_without_server()
        # A session that is opened too early and gives up can hang: FLARE 2.9 then waits for its own connection to end.
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("localhost", self.port)):
                break
            pause()
        with self.session(ADMIN) as session:
            while missing:
                pause()
                there = session.get_system_info().client_info
                missing -= {one.name for one in there if one.name not in new or one.last_connect_time >= since}

    def _refuse_without_server(self) -> None:
        if not self.is_running(SERVER):
            raise CourseError(f"The server does not run; start({SERVER!r}) starts it.\n{self.ends_of_logs()}")

    def ends_of_logs(self) -> str:
        """What each process last said, and those that it started for a job."""
        logs = [kit / CONSOLE for kit in self.kits.values() if (kit / CONSOLE).is_file()]
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)

    # -- what users do -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def session(self, user: str = LEAD) -> Iterator[Session]:
        """FLARE's session API for a user, closed at the end of the block."""
        kit, deadline = self._kit(user, USERS), time.monotonic() + START_SECONDS
        self._refuse_without_server()
        session = None
        while not session:
            try:
                session = new_secure_session(user, str(kit), timeout=START_SECONDS)
            except (FLCommunicationError, NoConnection) as error:  # a busy server, in the moment that FLARE gives it
                said = f"The server did not answer {user} within {START_SECONDS:.0f} s.\n{self.ends_of_logs()}"
                if time.monotonic() > deadline:
                    raise CourseError(said) from error
                time.sleep(POLL_SECONDS)
        with contextlib.closing(session):
            yield session

    def environment(self, user: str = LEAD) -> ProdEnv:
        """Where a recipe is executed: this federation, as this user."""
        return ProdEnv(str(self._kit(user, USERS)), login_timeout=START_SECONDS, username=user)

    def execute(self, recipe: Recipe, results: Path, timeout: float = JOB_SECONDS) -> Path:
        """Submit the recipe's job as the lead, wait for its end and fetch it: :meth:`fetch`."""
        self._refuse_without_server()
        return self.fetch(recipe.execute(self.environment()).get_job_id(), results, timeout)

    def fetch(self, job: str, results: Path, timeout: float = JOB_SECONDS) -> Path:
        """Wait for the end of a job and fetch what the server kept of it into ``results/<job>``, for ``Run``. A ``CourseError`` if
        it did not end well (its results are fetched all the same), or not within ``timeout`` seconds: then it goes on if it runs,
        and is taken out of the queue if it has not started."""
        with self.session() as session:
            _about(session, job)
            try:  # FLARE takes 0 for no limit
                about = session.wait_for_job(job, max(timeout, POLL_SECONDS), poll_interval=POLL_SECONDS)
            except JobTimeout as error:
                raise self._overdue(session, job, timeout) from error
            place = Path(session.download_job_result(job, str(results)))
        # What each site answered when the job came to it: "OK", or why it does not take part.
        told = [line.partition(": ") for line in about.get("job_deploy_detail", ())]
        answers = {name: said.removeprefix("NVFLARE_ERROR: ") for name, _, said in told if said}
        refused = {name: said for name, said in answers.items() if said != "OK"}
        error = shortfall(place)
        if about["status"] != RunStatus.FINISHED_COMPLETED:
            reasons = [f"{name}: {said}" for name, said in refused.items()]
            reasons += [entry["reason"] for entry in read_record(place) if entry["event"] == "run stopped"][:1]
            error = ". ".join([f"The job ended with {about['status']}", *reasons]) + "."
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
        """Wait for a line in a running job's record, for example ``wait_for(job, "round started", round=1)``, and return it; a
        ``CourseError`` as by :meth:`fetch` if it does not come within ``timeout`` seconds, or the job ends before."""
        deadline, wanted = time.monotonic() + timeout, f" without {event!r} with {values}"
        with self.session() as session:
            while True:
                status = _about(session, job)["status"]
                for entry in self.record(job):
                    if ({"event": event} | values).items() <= entry.items():
                        return entry
                if status.startswith("FINISHED"):
                    raise CourseError(f"Job {job} has ended with {status}{wanted}.\n{self.ends_of_logs()}")
                if time.monotonic() > deadline:
                    raise self._overdue(session, job, timeout, wanted)
                time.sleep(POLL_SECONDS)

    def _overdue(self, session: Session, job: str, timeout: float, wanted: str = "") -> CourseError:
        """What to say of a job that is late. If it has not started it is taken out of the queue: it would start by surprise."""
        about = _about(session, job)
        if about["status"] not in (RunStatus.SUBMITTED, RunStatus.DISPATCHED):
            said = f"Job {job} still runs after {timeout:.0f} s{wanted}. It goes on; to stop it: "
            stop = f"with hospitals.session() as session: session.abort_job({job!r})"
            return CourseError(f"{said}{stop}\n{self.ends_of_logs()}")
        session.abort_job(job)
        places = {place for places in about["deploy_map"].values() for place in places}
        asked = [one for one in self.sites if {one, ALL_SITES} & places]
        connected = {one.name for one in session.get_connected_client_list()}
        missing = [one for one in asked if one not in connected or not self.is_running(one)]
        there = f"{len(asked) - len(missing)} of {len(asked)} sites are there"
        there += f" (missing: {some_of(missing)})" if missing else ""
        last = (about.get("schedule_history") or ["nothing"])[-1]
        return CourseError(
            f"Job {job} not started: {there}; it needs {about.get('min_clients')}, and the scheduler said last: {last}. "
            f"After {timeout:.0f} s it was taken out of the queue; submit it again when they are there."
        )


def _about(session: Session, job: str) -> dict:
    try:
        return session.get_job_meta(job)
    except JobNotFound as error:
        there = some_of([one["job_id"] for one in session.list_jobs()]) or "none"
        raise CourseError(f"The server knows no job {job!r}. There are: {there}.") from error


def _variables(sites: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """A copy of all sites' variables."""
    try:
        return {site: {os.fspath(name): os.fspath(text) for name, text in own.items()} for site, own in sites.items()}
    except (AttributeError, TypeError) as error:  # these are no mappings, or no texts
        right = 'the environment variables of each site, as {"north": {"COURSE_DATA": "/a"}, "south": {}}'
        raise CourseError(f"sites is {sites!r}. Give {right}.") from error


def _wait(process: subprocess.Popen) -> None:
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise CourseError(f"Process {process.pid} does not end. End it by hand: kill -9 {process.pid}") from error
