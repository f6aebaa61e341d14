"""Each site's process is told its own name, however the threads that start them run."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from nvflare.fuel.utils.network_utils import get_open_ports
from nvflare.private.fed.app.deployer import simulator_deployer
from nvflare.private.fed.app.simulator import simulator_runner

from src.federation import simulated as simulator

SITES = ("site-1", "site-2", "site-3")


class Process:
    """A site's process that has ended."""

    returncode = 1

    def __init__(self, command, **options):
        self.command = command

    def poll(self):
        return self.returncode


def named(monkeypatch, tmp_path, start) -> dict[str, str]:
    """Site → the name that its process is told, if all threads have written a name before the first one sends it."""
    told, written = {}, threading.Barrier(len(SITES))

    class Connection:
        def send(self, data):
            written.wait(timeout=30)
            told[data["deploy_args"].workspace.rpartition("/")[2]] = data["build_ctx"]["client_name"]

    class Runner(simulator_runner.SimulatorClientRunner):
        def _create_connection(self, port, timeout=60.0):
            return Connection()

    monkeypatch.setattr(simulator_runner.subprocess, "Popen", Process)
    for site in SITES:
        for folder in ("startup", "local"):  # FLARE looks whether they are there
            (tmp_path / site / folder).mkdir(parents=True)
    args = SimpleNamespace(workspace=str(tmp_path), set=[], log_config=None)
    cell = SimpleNamespace(get_root_url_for_child=lambda: "root", get_internal_listener_url=lambda: "parent")
    clients = [SimpleNamespace(client_name=site, token="token", cell=cell) for site in SITES]
    runner = Runner(str(tmp_path / "none"), args, clients, {}, args, {"client_name": ""})
    lock = threading.Lock()
    with ThreadPoolExecutor(len(SITES)) as pool:
        list(pool.map(lambda client: start(runner, client, len(SITES), None, lock), clients))
    return told


def test_every_site_is_told_its_own_name(monkeypatch, tmp_path):
    told = named(monkeypatch, tmp_path, simulator_runner.SimulatorClientRunner.do_one_task)
    assert told == dict(zip(SITES, SITES, strict=True))


def test_flare_alone_tells_some_the_name_of_another(monkeypatch, tmp_path):
    """When this fails, FLARE has mended it, and ``src.federation.simulated`` can go."""
    flares = simulator.SimulatorClientRunner.do_one_task.__wrapped__
    assert len(set(named(monkeypatch, tmp_path, flares).values())) == 1


def offers(port: int) -> bool:
    """Whether the system lets somebody else have this port."""
    with socket.socket() as other:
        try:
            other.bind(("", port))
        except OSError:
            return False
    return True


def test_a_port_that_a_site_was_promised_is_offered_to_nobody_else():
    assert offers(get_open_ports(1)[0]), "FLARE alone only looks"
    for place in (simulator_runner, simulator_deployer):
        port = place.get_open_ports(1)[0]
        assert not offers(port)
        with socket.create_server(("localhost", port)), socket.create_connection(("localhost", port)):
            assert not offers(port), "while its process listens and FLARE has connected"
        assert not offers(port), "also when the process has closed it again"
        assert port not in {found for _ in range(50) for found in get_open_ports(20)}
