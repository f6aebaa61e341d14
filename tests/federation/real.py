"""A real federation on this machine: FLARE's server and its sites as processes of their own, with certificates and mutual TLS.

The simulator's sites are children of one process and share its environment. Here each is started from its own startup kit, as a
hospital starts it, with an environment of its own: what one site needs to find its data, nobody else is told.

    with federation(folder, {"north": {"COURSE_DATA": "/a"}, "south": {"COURSE_DATA": "/b"}}) as hospitals:
        result = hospitals.execute(recipe)

FLARE's own proof of concept (``nvflare poc``, ``PocEnv``) does nearly this, but on fixed ports, in a fixed folder, and with one
environment for all. Kits: https://nvflare.readthedocs.io/en/main/programming_guide/provisioning_system.html
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from nvflare.fuel.flare_api.flare_api import NoConnection, new_secure_session
from nvflare.lighter.entity import Project
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.impl.signature import SignatureBuilder
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.utils import update_storage_locations
from nvflare.recipe import ProdEnv
from nvflare.recipe.spec import Recipe

from src.federation.environments import plain_paths

SERVER, LEAD = "server", "lead@example.org"
START, CONSOLE = "startup/sub_start.sh", "console.log"
START_SECONDS = 60.0
JOB_SECONDS = 240.0


@dataclass(frozen=True)
class Federation:
    """A federation whose server and sites are running.

    Attributes:
        kits: participant (``server``, each site, the lead) → the folder of its startup kit, which also keeps its logs.
    """

    kits: Mapping[str, Path]

    def execute(self, recipe: Recipe, timeout: float = JOB_SECONDS) -> Path:
        """Submit the recipe's job as the lead, wait for its end, and fetch what the server kept of it into the lead's kit.

        Raises:
            RuntimeError: if the job did not end well within ``timeout`` seconds; gives its status.
        """
        run = recipe.execute(ProdEnv(str(self.kits[LEAD]), login_timeout=30.0, username=LEAD))
        # FLARE hands out the result of a failed job like any other, and None where it could not be fetched.
        result = run.get_result(timeout)
        if result is None or run.get_status() != "FINISHED:COMPLETED":
            raise RuntimeError(f"The job did not end well: {run.get_status()}.\n{_ends_of_logs(self.kits)}")
        return Path(result)


@contextlib.contextmanager
def federation(folder: Path, sites: Mapping[str, Mapping[str, str]]) -> Iterator[Federation]:
    """Provision and start a federation; at the end, whatever happened, stop all its processes and remove its folder.

    Args:
        folder: is made, and holds everything. Its path has no blanks: FLARE splits the command line of a job's process there.
        sites: name → environment variables of this site's process alone.

    Raises:
        FileExistsError: if the folder is there already.
        RuntimeError: if a process ends early, or not all sites have registered within ``START_SECONDS``; quotes their logs.
    """
    folder.mkdir()
    kits: dict[str, Path] = {}
    try:
        kits |= _provision(folder, list(sites))
        # The Python, too, is named in the command line of a job's process.
        with plain_paths(Path(sys.executable), folder) as (python, _):
            started = {name: _start(kits[name], python, sites.get(name, {})) for name in (SERVER, *sites)}
            _wait_until_registered(started, kits)
            yield Federation(kits)
    finally:
        _end_processes_of(kits)
        shutil.rmtree(folder)


def _provision(folder: Path, sites: list[str]) -> dict[str, Path]:
    """Make a startup kit for each participant: its certificate and key, whom to call, its rules, its start script."""
    # By default every site streams its error log to the server, with all file names that are in it. FLARE 2.9 heeds this switch
    # in the project, and in a site's own local/resources.json; as a property of a participant it does not.
    project = Project("course", "server and sites on one machine", props={"allow_log_streaming": False})
    # The server's certificate holds for the name by which it is called. One port serves the sites and the lead.
    project.set_server(SERVER, "school", {"default_host": "localhost", "fed_learn_port": _free_port()})
    for site in sites:
        project.add_client(site, "hospital", {})
    # A job that brings its own code ("byoc") runs at a site only as far as the site's policy goes. FLARE's default, in each
    # kit's local/authorization.json.default, allows it to a lead; a site may forbid it in local/authorization.json.
    project.add_admin(LEAD, "school", {"role": "lead"})
    builders = [WorkspaceBuilder(), StaticFileBuilder(config_folder="config"), CertBuilder(), SignatureBuilder()]
    made = Provisioner(str(folder), builders).provision(project)
    kits = {name: Path(made["current_prod_dir"]) / name for name in (SERVER, *sites, LEAD)}
    # A server keeps its jobs in one fixed folder of the machine, where the next one would find and run them.
    update_storage_locations(str(kits[SERVER] / "local"), str(kits[SERVER]))
    return kits


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _start(kit: Path, python: str, variables: Mapping[str, str]) -> subprocess.Popen:
    """Run a kit's own start script with a Python and these variables, and nothing else of this process's environment."""
    path = os.pathsep.join([str(Path(python).parent), os.environ["PATH"]])
    common = {"PATH": path, "HOME": str(kit), "TMPDIR": str(kit), "OMP_NUM_THREADS": "1"}
    with (kit / CONSOLE).open("w") as console:
        return subprocess.Popen(
            [kit / START, "--once"],  # not in a loop that starts the process again when it ends
            cwd=kit,
            env={**common, **variables},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
        )


def _wait_until_registered(started: Mapping[str, subprocess.Popen], kits: Mapping[str, Path]) -> None:
    deadline = time.monotonic() + START_SECONDS
    missing = set(started)
    while missing:
        ended = [name for name, process in started.items() if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            raise RuntimeError(f"Ended early: {ended}; not registered: {sorted(missing)}.\n{_ends_of_logs(kits)}")
        with contextlib.suppress(NoConnection):
            session = new_secure_session(LEAD, str(kits[LEAD]), timeout=5.0)
            try:
                missing = started.keys() - {SERVER, *(client.name for client in session.get_system_info().client_info)}
            finally:
                session.close()
        time.sleep(0.5)


def _ends_of_logs(kits: Mapping[str, Path]) -> str:
    """What each process last said, and those that it started for a job."""
    logs = [kit / CONSOLE for kit in kits.values() if (kit / CONSOLE).is_file()]
    return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)


def _end_processes_of(kits: Mapping[str, Path]) -> None:
    """End server, sites and what they started for a job: a word of their command lines is their kit, or its start script."""
    words = {str(path) for kit in kits.values() for path in (kit, kit / START)}
    # Again until none is left: a site may just have started a job's process.
    while family := [p for p in psutil.process_iter(["cmdline"]) if words & set(p.info["cmdline"] or ())]:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(family, timeout=5)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
