"""Each site's process is told its own name, however the threads that start them run."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from nvflare.private.fed.app.simulator import simulator_runner

from src.federation import simulator

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
    """When this fails, FLARE has mended it, and ``src.federation.simulator`` can go."""
    flares = simulator.SimulatorClientRunner.do_one_task.__wrapped__
    assert len(set(named(monkeypatch, tmp_path, flares).values())) == 1


def test_no_two_sites_get_the_same_port():
    offered = iter([[5001], [5002], [5001], [5002], [5003]])
    ports = simulator.none_twice(lambda number: next(offered))
    assert [ports(1) for _ in SITES] == [[5001], [5002], [5003]]
    assert len({simulator.simulator_runner.get_open_ports(1)[0] for _ in range(300)}) == 300
