"""A real federation on this machine: FLARE's server and its sites as processes of their own, with certificates and mutual TLS.

The simulator's sites are children of one process and share its environment. Here each starts from its own start-up kit, as a
hospital starts it, with an environment of its own: what one site needs to find its data, nobody else is told.

    with Federation(folder, {"north": {"COURSE_DATA": "/a"}, "south": {"COURSE_DATA": "/b"}}) as hospitals:
        hospitals.start()
        run = hospitals.execute(recipe)

FLARE's proof of concept (``nvflare poc``, ``PocEnv``) does nearly this, but on a fixed port, with one environment for all, and it
leaves its processes when the caller is killed. On several machines, everybody starts their own kit; see ``docs/deploy.md``.
Kits: https://nvflare.readthedocs.io/en/main/programming_guide/provisioning_system.html
"""

import contextlib
import datetime
import json
import logging
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from nvflare.apis.fl_exception import FLCommunicationError
from nvflare.apis.job_def import RunStatus
from nvflare.fuel.flare_api.api_spec import JobTimeout
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session
from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.utils import load_crt, load_crt_bytes, load_private_key, serialize_cert, update_storage_locations
from nvflare.recipe import ProdEnv
from nvflare.recipe.spec import Recipe

from deploy.guard import __file__ as guard
from src.common.datalists import site_names
from src.common.errors import CourseError
from src.common.files import write_file, write_json
from src.federation.processes import end_processes_below, processes_below
from src.federation.run import RUN, read_record, shortfall
from src.federation.simulator import PLAIN, plain_paths

SERVER, ADMIN, LEAD, MEMBER = "server", "admin@example.org", "lead@example.org", "member@example.org"
USERS = {ADMIN: "project_admin", LEAD: "lead", MEMBER: "member"}
"""Who may log in, and the role that their certificate gives them: a lead, a researcher, submits jobs; a member only looks."""

REVIEWED = (
    "src.",
    "nvflare.app_common.executors.learner_executor.LearnerExecutor",
    "nvflare.app_opt.pt.file_model_persistor.PTFileModelPersistor",
)
"""What the prostate learner's job names beside FLARE's default list, where the course is installed: see :func:`set_up_site`."""

RIGHTS = ("view", "operate", "manage_job", "submit_job", "clone_job", "download_job", "byoc", "shell_commands")
"""What FLARE's rules grant or refuse; a role with a list of rights has no other."""

CONSOLE = "console.log"
START_SECONDS = 120.0
POLL_SECONDS = 0.3
JOB_SECONDS = 600.0
ORDER_SECONDS = 60.0
"""FLARE's value is 10, which a busy machine may miss."""

ROOT_DAYS = 1825
"""How long a project's root holds. FLARE's value is 360, and no certificate holds longer than its root."""

SILENCE_SECONDS = 25.0
"""After so long without a heartbeat the server takes a site for lost. FLARE's value is 600, right for long lines."""


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def project(
    sites: Sequence[str], port: int, host: str = "localhost", users: Mapping[str, str] = USERS, name: str = "course"
) -> dict:
    """What ``nvflare provision`` reads as ``project.yml``: who takes part, and how the kits are made.

    Args:
        sites: their names.
        port: of the server, for the sites and the users alike.
        host: name or address by which the server is called; its certificate holds for it.
        users: address → role: ``project_admin``, ``org_admin``, ``lead`` or ``member``.
        name: of the project. Kits of two projects do not know each other, whatever their names.
    """
    server = {"name": SERVER, "type": "server", "org": "school", "fed_learn_port": port, "default_host": host}
    hospitals = [
        {"name": site, "type": "client", "org": f"hospital_{site}".replace("-", "_")} for site in site_names(sites)
    ]
    people = [{"name": user, "type": "admin", "org": "school", "role": role} for user, role in users.items()]
    steps = (
        "workspace.WorkspaceBuilder",
        "static_file.StaticFileBuilder",
        "cert.CertBuilder",
        "signature.SignatureBuilder",
    )
    builders = [{"path": f"nvflare.lighter.impl.{step}", "args": {}} for step in steps]
    builders[1]["args"] = {"config_folder": "config"}
    builders[2]["args"] = {"root_valid_days": ROOT_DAYS}
    return {
        "api_version": 3,
        "name": name,
        "description": "server and sites of the course",
        # By default every site streams its error log to the server, with all file names that are in it. FLARE 2.9 heeds this
        # switch here and in a site's own local/resources.json; as a property of a participant it does not.
        "allow_log_streaming": False,
        "participants": [server, *hospitals, *people],
        "builders": builders,
    }


def provision(folder: Path, about: dict) -> dict[str, Path]:
    """Make a start-up kit for each participant, as ``nvflare provision -p project.yml`` does, and return the kits' folders by name.

    Args:
        folder: gets ``project.yml`` and the kits.
        about: of :func:`project`.
    """
    file = write_file(folder / "project.yml", yaml.safe_dump(about, sort_keys=False))
    read = yaml.safe_load(file.read_text())  # FLARE empties what it is given
    provisioner = Provisioner(str(folder), prepare_builders(read))
    made = provisioner.provision(prepare_project(read), logger=logging.getLogger(__name__))
    if made.get("build_error") or "current_prod_dir" not in made:
        raise CourseError(f"FLARE could not provision {folder / 'project.yml'}; what it printed says why.")
    return {one["name"]: Path(made["current_prod_dir"]) / one["name"] for one in about["participants"]}


def set_up_server(kit: Path, silence: float = SILENCE_SECONDS, storage: str | None = ".") -> None:
    """Write a server's ``local/resources.json``: what its owner decides, on top of FLARE's defaults.

    * Jobs and their results lie in the kit, and not in one fixed folder of the machine, where another server would find them.
    * A site is lost after ``silence`` seconds without a heartbeat.
    * A site has ``ORDER_SECONDS`` to answer an order of the server, such as to take a job.
    * A site that comes back takes part again in the jobs that run; see :mod:`deploy.returning`.

    Args:
        kit: of the server. Writes the file anew, so :func:`set_up_site` comes after it.
        silence: seconds.
        storage: folder for jobs and results, from the kit's folder on. None leaves them where the kit has them, for a kit that
            ``nvflare deploy prepare`` has made: there that is a path inside the container, or on the cluster.
    """
    file = kit / "local" / "resources.json"
    if storage is None:
        resources = json.loads(Path(f"{file}.default").read_text())
    else:
        update_storage_locations(str(kit / "local"), str(kit.absolute() / storage))
        resources = json.loads(file.read_text())
    resources["servers"][0] |= {"heart_beat_timeout": silence, "admin_timeout": ORDER_SECONDS}
    resources["components"].append({"id": "returning_sites", "path": "deploy.returning.ReturningSites", "args": {}})
    write_json(file, resources)


def set_up_site(kit: Path, classes: Sequence[str] = (), brings_code: bool = True) -> None:
    """Write down what a site, or the server, allows jobs and users to do, on top of FLARE's defaults, from its next start on.

    FLARE lets a lead's job bring its own code along (*bring your own code*, BYOC), and otherwise builds only classes of a list of
    FLARE's own. A site that reviews and installs code forbids the first and adds the package that it has installed to the second.

    FLARE also lets the project's administrator, and users of the site's own organisation, read files of the site from afar, with
    ``ls``, ``cat``, ``head``, ``tail`` and ``grep``: logs with the names of cases, and what else the site's account may read. This
    is switched off here, always and for everybody.

    Args:
        kit: of a site or the server, in ``local/`` of which the two files come.
        classes: names or, with a dot at the end, packages whose classes a job without code of its own may name.
        brings_code: whether a job may bring code along; False forbids it to every role.
    """
    resources, rules = kit / "local" / "resources.json", kit / "local" / "authorization.json"
    default = json.loads((resources if resources.exists() else Path(f"{resources}.default")).read_text())
    default["class_allow_list"] += [name for name in classes if name not in default["class_allow_list"]]
    write_json(resources, default)
    rights = json.loads(Path(f"{rules}.default").read_text())
    for role, allowed in rights["permissions"].items():
        if isinstance(allowed, str):  # one word for all rights: "any", the administrator's, would cover the two below
            allowed = dict.fromkeys(RIGHTS, allowed)
        rights["permissions"][role] = allowed | {"shell_commands": "none"} | ({} if brings_code else {"byoc": "none"})
    write_json(rules, rights)


def sign_anew(project_folder: Path, kit: Path, until: datetime.datetime) -> None:
    """Give a site's kit a certificate that ends at another time, for the same key, signed by the project's own root.

    Args:
        project_folder: of the provisioned project, whose ``state/cert.json`` holds the root's key: the one file to guard most.
        kit: of a site; its ``startup/client.crt`` is replaced.
        until: with time zone; in the past for a certificate that has expired.
    """
    state = json.loads((project_folder / "state" / "cert.json").read_text())
    root = load_crt_bytes(state["root_cert"].encode())
    old = load_crt(str(kit / "startup" / "client.crt"))
    builder = x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(root.not_valid_before_utc - datetime.timedelta(days=2)).not_valid_after(until)
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    new = builder.sign(load_private_key(state["root_pri_key"]), hashes.SHA256())
    (kit / "startup" / "client.crt").write_bytes(serialize_cert(new))


def knock(kit: Path) -> str | None:
    """Shake hands with the server as a site would, with the certificate of its kit, and say nothing more.

    Whether the names are right, of the site and of the server, FLARE looks only afterwards, when the site registers.

    FLARE 2.9 looks at a site's own certificate before it dials, and where that is wrong, the site stays silent, without a line in
    its log. This says what the server would say; ``nvflare preflight-check`` looks at no certificate: it tries
    the port, and starts the kit for some seconds.

    Args:
        kit: of a site; its ``fed_client.json`` says where the server is.

    Returns:
        None if the two trust each other, else who refused and why, in TLS's words.
    """
    startup = kit / "startup"
    host, port = json.loads((startup / "fed_client.json").read_text())["servers"][0]["service"]["target"].rsplit(":", 1)
    context = ssl.create_default_context(cafile=startup / "rootCA.pem")
    context.load_cert_chain(startup / "client.crt", startup / "client.key")
    context.check_hostname = False  # as FLARE: it compares the name of the participant, and not that of the machine
    # By TLS 1.3 a site would learn whether it was let in only from the answer to its first words.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        with socket.create_connection((host, int(port)), 10.0) as line, context.wrap_socket(line, server_hostname=host):
            return None
    except ssl.SSLCertVerificationError as error:
        return f"the site refuses the server: {error.verify_message}"
    except ssl.SSLError as error:
        return f"the server refuses the site: {(error.reason or str(error)).lower().replace('_', ' ')}"
    except OSError as error:
        return f"no connection: {error.strerror or error}"


class Federation:
    """A provisioned server and its sites on this machine; a context manager that leaves nothing running and no kit behind.

    In a notebook, where a ``with`` block cannot span cells, call :meth:`close` at the end. Should the notebook not get there, a
    guard, a process of its own, does the same as soon as this process is gone (:mod:`deploy.guard`).

    Args:
        folder: is made, and holds kits, logs and jobs. FLARE splits the command line of a job's process as a shell does; where this
            path holds a blank or the like, they lie in a new folder among the system's temporary ones instead.
        sites: name → environment variables of this site's process alone.
        host: name or address by which the server is called.
        silence: of :func:`set_up_server`.

    Attributes:
        folder: that which is used.
        kits: participant (``server``, each site, each user) → the folder of its start-up kit.

    Raises:
        CourseError: if the folder is there already.
    """

    def __init__(
        self,
        folder: Path,
        sites: Mapping[str, Mapping[str, str]],
        host: str = "localhost",
        silence: float = SILENCE_SECONDS,
    ):
        self.sites, self.port = dict(sites), free_port()
        about = project(list(sites), self.port, host)
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
                [sys.executable, guard, str(self.folder), *links],
                stdin=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in a terminal is for its owner
                env={"PATH": os.environ.get("PATH", os.defpath)},
                cwd="/",
            )
            self.kits = provision(self.folder, about)
            set_up_server(self.kits[SERVER], silence)
            for participant in (SERVER, *self.sites):
                set_up_site(self.kits[participant])
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

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
            self._running[name] = self.start_kit(self.kits[name], self.sites.get(name, {}))
        if wait:
            self._wait_until_registered([name for name in names if name != SERVER], since)

    def start_kit(self, kit: Path, variables: Mapping[str, str] | None = None) -> subprocess.Popen:
        """Run a kit's own start script with this Python, these variables, and nothing else of this process's environment."""
        path = os.pathsep.join([str(self._python.parent), os.environ.get("PATH", os.defpath)])
        common = {"PATH": path, "HOME": str(kit), "TMPDIR": str(kit), "OMP_NUM_THREADS": "1"}
        # All processes of a job start at once on this one machine; FLARE gives a site 60 s to meet the server's.
        common["NVFLARE_MAX_RUNNER_SYNC_TIMEOUT"] = str(JOB_SECONDS)
        with (kit / CONSOLE).open("a") as console:
            return subprocess.Popen(
                # Once: not in a loop that starts the process again when it ends.
                [kit / "startup" / "sub_start.sh", "--once"],
                cwd=kit,
                env={**common, **(variables or {})},
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

        def still(session: Session | None) -> bool:
            ended = [name for name, process in self._running.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise CourseError(f"Ended early: {ended}; not registered: {sorted(missing)}.\n{self.ends_of_logs()}")
            if session:
                there = session.get_system_info().client_info
                missing.difference_update(site.name for site in there if site.last_connect_time >= since)
            return bool(missing)

        # A session that is opened too early and gives up can hang: FLARE 2.9 then waits for its own connection to end.
        while not self._listens():
            still(None)
            time.sleep(POLL_SECONDS)
        with self.session(ADMIN, timeout=START_SECONDS) as session:
            while still(session):
                time.sleep(POLL_SECONDS)

    def _listens(self) -> bool:
        """Whether the server takes calls."""
        with contextlib.suppress(OSError), socket.create_connection(("localhost", self.port), 1.0):
            return True
        return False

    def ends_of_logs(self) -> str:
        """What each process last said, and those that it started for a job."""
        logs = [kit / CONSOLE for kit in self.kits.values() if (kit / CONSOLE).is_file()]
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)

    # -- what users do -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def session(self, user: str = LEAD, timeout: float = START_SECONDS) -> Iterator[Session]:
        """FLARE's session API for a user, closed at the end of the block."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                session = new_secure_session(user, str(self.kits[user]), timeout=timeout)
                break
            except FLCommunicationError:  # a busy server did not answer in the moment that FLARE gives it
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)
        try:
            yield session
        finally:
            session.close()

    def environment(self, user: str = LEAD) -> ProdEnv:
        """Where a recipe is executed: this federation, as this user."""
        return ProdEnv(str(self.kits[user]), login_timeout=START_SECONDS, username=user)

    def execute(self, recipe: Recipe, results: Path, timeout: float = JOB_SECONDS) -> Path:
        """Submit the recipe's job as the lead, wait for its end and fetch it: :meth:`fetch`."""
        return self.fetch(recipe.execute(self.environment()).get_job_id(), results, timeout)

    def fetch(self, job: str, results: Path, timeout: float = JOB_SECONDS) -> Path:
        """Wait for the end of a job and fetch what the server kept of it, for :class:`src.federation.run.Run`.

        Args:
            job: its id.
            results: gets a folder with the id as its name.
            timeout: seconds to wait.

        Raises:
            CourseError: if the job did not end well, or not within ``timeout``; its results are fetched all the same.
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
        write_json(
            place / RUN,
            {
                "status": "failed" if error else "finished",
                "job": about["name"],
                "sites": sorted(answers.keys() - {SERVER}),
                "refused": refused,
                "seconds": _seconds(about["duration"]),
            },
        )
        if error:
            raise CourseError(f"{error} Its results are in {place}.\n{self.ends_of_logs()}")
        return place

    def record(self, job: str) -> list[dict]:
        """The record of a job that runs, from the server's folder; see :func:`src.federation.server.add_record`.

        Where the server is another machine, its owner can look there, and nobody else.
        """
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
                raise CourseError(f"Job {job} ended before {event!r} with {values}.\n{self.ends_of_logs()}")
            began = folder.is_dir()
            time.sleep(POLL_SECONDS)
        raise CourseError(
            f"No {event!r} with {values} in the record of {job} within {timeout:.0f} s.\n{self.ends_of_logs()}"
        )


def _plain_folder(folder: Path) -> Path:
    """Make a new folder whose real path FLARE can write into a command line."""
    if folder.exists():
        raise CourseError(f"{folder} is there already. Each federation needs a new folder.")
    if PLAIN.fullmatch(str(folder.resolve())):
        folder.mkdir(parents=True)
        return folder.resolve()
    place = Path(tempfile.gettempdir()).resolve()
    if not PLAIN.fullmatch(str(place)):
        raise CourseError(
            f"FLARE needs a folder with a plain path, without blanks; {place} is none. Set TMPDIR to one."
        )
    return Path(tempfile.mkdtemp(prefix="course-federation-", dir=place))


def _seconds(duration: str) -> float:
    """FLARE's ``0:01:02.5`` as seconds; ``N/A`` for a job that never ran."""
    parts = [float(part) for part in duration.split(":")] if ":" in duration else [0.0]
    return sum(part * 60**place for place, part in enumerate(reversed(parts)))
