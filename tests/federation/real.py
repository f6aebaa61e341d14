"""A real federation on this machine: FLARE's server and sites as processes of their own, with certificates and mutual TLS.

The simulator's sites are children of one process and share its environment. Here each is started from its own startup kit, as a
hospital would start it, with an environment of its own: what a site needs to find its data, nobody else is told.

    with federation(folder, {"north": {"COURSE_DATA": "/a"}, "south": {"COURSE_DATA": "/b"}}) as hospitals:
        run = Run(hospitals.execute(recipe))

FLARE's own proof of concept (``nvflare poc``, ``PocEnv``) does nearly this, but on fixed ports, in one fixed folder and with one
environment for all. https://nvflare.readthedocs.io/en/main/programming_guide/provisioning_system.html
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
from nvflare.fuel.flare_api.flare_api import new_secure_session
from nvflare.lighter.entity import Project
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.impl.signature import SignatureBuilder
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.utils import update_storage_locations
from nvflare.recipe import ProdEnv
from nvflare.recipe.spec import Recipe

SERVER, LEAD = "server", "lead@example.org"


@dataclass(frozen=True)
class Federation:
    """Startup kits of a federation whose server and sites run.

    Attributes:
        kits: name of each participant (``server``, the sites, the lead) → its folder; a site's log is ``<folder>/log.txt``.
    """

    kits: Mapping[str, Path]

    def execute(self, recipe: Recipe, timeout: float = 300.0) -> Path:
        """Submit the recipe's job as the lead, wait for its end, and fetch what the server kept of it.

        Raises:
            RuntimeError: if the job did not end well within ``timeout`` seconds; names its status and the server's log.
        """
        run = recipe.execute(ProdEnv(str(self.kits[LEAD]), login_timeout=30.0, username=LEAD))
        result = run.get_result(timeout)
        if run.get_status() != "FINISHED:COMPLETED" or result is None:
            raise RuntimeError(f"The job is {run.get_status()!r}; see {self.kits[SERVER] / 'log.txt'}.")
        return Path(result)


@contextlib.contextmanager
def federation(folder: Path, sites: Mapping[str, Mapping[str, str]], patience: float = 60.0) -> Iterator[Federation]:
    """Provision, start and, at the end, whatever happens, stop and remove a federation.

    Args:
        folder: does not exist yet; everything is below it: certificates, kits, logs, jobs, results.
        sites: name → the environment variables that this site's process has beyond those that all have.
        patience: seconds within which all sites must have registered at the server.

    Raises:
        RuntimeError: if a process ends early, or sites have not registered in time; names them.
    """
    kits = _provision(folder, list(sites))
    started: dict[str, subprocess.Popen] = {}
    try:
        for name in (SERVER, *sites):
            started[name] = _start(kits[name], sites.get(name, {}))
        _wait_for(started, kits, patience)
        yield Federation(kits)
    finally:
        _end(kits)
        for process in started.values():
            process.wait()
        shutil.rmtree(folder)


def _provision(folder: Path, sites: list[str]) -> dict[str, Path]:
    """Make the startup kits: one certificate authority, and for each participant a certificate, configuration and start script."""
    project = Project("course", "server and sites on one machine")
    # Certificates hold for the name by which the server is called. One port serves sites and lead.
    project.set_server(SERVER, "school", {"default_host": "localhost", "fed_learn_port": _free_port()})
    for site in sites:
        project.add_client(site, site, {})
    # FLARE's default policy lets a lead submit jobs that bring code of their own ("byoc") to any site. Each site can
    # forbid it in its local/authorization.json; then the code must have been installed there before.
    project.add_admin(LEAD, "school", {"role": "lead"})
    builders = [WorkspaceBuilder(), StaticFileBuilder(config_folder="config"), CertBuilder(), SignatureBuilder()]
    made = Provisioner(str(folder), builders).provision(project)
    kits = {name: Path(made["current_prod_dir"]) / name for name in (SERVER, *sites, LEAD)}
    # The server of a kit keeps its jobs in one fixed folder of the machine; two servers would run each other's.
    update_storage_locations(str(kits[SERVER] / "local"), str(kits[SERVER]))
    return kits


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _start(kit: Path, variables: Mapping[str, str]) -> subprocess.Popen:
    """Run a kit's own start script, in the foreground, with these variables, this Python and nothing else of this process's."""
    python = Path(sys.executable).parent
    environment = {"PATH": f"{python}{os.pathsep}{os.environ['PATH']}", "HOME": str(kit), "OMP_NUM_THREADS": "1"}
    with (kit / "console.log").open("w") as console:
        return subprocess.Popen(
            [kit / "startup" / "sub_start.sh", "--once"],
            cwd=kit,
            env={**environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
        )


def _wait_for(started: Mapping[str, subprocess.Popen], kits: Mapping[str, Path], patience: float) -> None:
    deadline, missing = time.monotonic() + patience, set(started)
    while missing:
        time.sleep(0.5)
        ended = [name for name, process in started.items() if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            logs = ", ".join(str(kits[name] / "console.log") for name in ended or sorted(missing))
            raise RuntimeError(f"{'Ended early' if ended else 'Not there in time'}: {logs}")
        with contextlib.suppress(Exception):
            session = new_secure_session(LEAD, str(kits[LEAD]), timeout=5.0)
            try:
                missing = set(started) - {SERVER} - {client.name for client in session.get_system_info().client_info}
            finally:
                session.close()


def _end(kits: Mapping[str, Path], patience: float = 5.0) -> None:
    """End server and sites and the processes that they started for a job, which have their kit's folder in their command lines."""
    family = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(kit) in (process.info["cmdline"] or ()) for kit in kits.values())
    ]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    for member in psutil.wait_procs(family, timeout=patience)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
