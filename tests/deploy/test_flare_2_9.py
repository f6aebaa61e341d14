"""What who runs a federation needs of FLARE's insides is needed, and still called so; see tests/federation/test_flare_2_9.py."""

import contextlib
import inspect
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from nvflare.app_common.widgets.component_path_authorizer import CLASS_ALLOW_LIST
from nvflare.fuel.f3.cellnet import connector_manager
from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.fuel.utils.network_utils import get_open_ports
from nvflare.private.fed import tbi
from nvflare.private.fed.app.deployer import simulator_deployer
from nvflare.private.fed.app.simulator import simulator_runner, simulator_worker
from nvflare.private.fed.client import client_runner
from nvflare.private.fed.server import fed_server
from nvflare.private.fed.server.admin import check_client_replies
from nvflare.private.fed.server.job_runner import JobRunner
from nvflare.private.fed.utils.fed_utils import extract_participants
from nvflare.recipe.sim_env import SimEnv
from nvflare.widgets import fed_event

from deploy import flare_2_9
from tests.tests_support import rows

SITES = ("site-1", "site-2", "site-3")


@rows(("by FLARE", simulator_runner.SimulatorClientRunner, 1), ("mended", flare_2_9._OwnContexts, 3))
def test_flare_alone_tells_some_sites_the_name_of_another(kind, names, monkeypatch, tmp_path):
    """All threads have written their site's name before the first one sends it."""
    told, written, lock = {}, threading.Barrier(len(SITES)), threading.Lock()

    def send(data):
        written.wait(timeout=30)
        told[data["deploy_args"].workspace.rpartition("/")[2]] = data["build_ctx"]["client_name"]

    connected = lambda runner, port, timeout=60.0: SimpleNamespace(send=send)  # noqa: E731
    monkeypatch.setattr(simulator_runner.SimulatorClientRunner, "_create_connection", connected)
    ended = SimpleNamespace(returncode=1, poll=lambda: 1)
    monkeypatch.setattr(simulator_runner.subprocess, "Popen", lambda command, **options: ended)
    for site in SITES:
        for folder in ("startup", "local"):  # FLARE looks whether they are there
            (tmp_path / site / folder).mkdir(parents=True)
    args = SimpleNamespace(workspace=str(tmp_path), set=[], log_config=None)
    cell = SimpleNamespace(get_root_url_for_child=lambda: "root", get_internal_listener_url=lambda: "parent")
    clients = [SimpleNamespace(client_name=site, token="token", cell=cell) for site in SITES]
    about = {"client_name": ""}
    runner = kind(str(tmp_path / "none"), args, clients, {}, args, about)
    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(lambda client: runner.do_one_task(client, len(SITES), None, lock), clients))
    assert set(told) == set(SITES) and len(set(told.values())) == names
    assert names == 1 or told == dict(zip(SITES, SITES, strict=True))


def offers(port: int) -> bool:
    """Whether the system lets somebody else have this port."""
    with contextlib.suppress(OSError), socket.socket() as other:
        other.bind(("", port))
        return True
    return False


def test_flare_alone_only_looks_for_a_port_and_the_mended_one_is_offered_to_nobody_else():
    assert simulator_runner.get_open_ports is simulator_deployer.get_open_ports is get_open_ports
    assert offers(get_open_ports(1)[0])
    port = flare_2_9.hold_open_ports(1)[0]
    assert not offers(port)
    with socket.create_server(("localhost", port)), socket.create_connection(("localhost", port)):
        assert not offers(port), "while its process listens and FLARE has connected"
    assert not offers(port), "also when the process has closed it again"
    assert port not in {found for _ in range(50) for found in get_open_ports(20)}


@rows(
    ("for the server's start, a thread, a site's port", simulator_runner, r"sleep\((1\.0|interval)\)", 3),
    ("for a task", simulator_worker, r"sleep\((0\.5|interval)\)", 2),
    ("before a site greets", client_runner, r"sleep\(0\.5\)", 1),
    ("for the last events, by half seconds", tbi, r"sleep\(check_interval\)", 1),
    ("for more events at the end", fed_event, r"sleep\(self\.grace_period\)", 1),
    ("for a listener", connector_manager, r"sleep\(0\.5\)", 1),
)
def test_flare_waits_in_long_steps(module, pause, count, monkeypatch):
    assert len(re.findall(rf"time\.{pause}", inspect.getsource(module))) >= count
    monkeypatch.setattr(module, "time", time)
    flare_2_9.hurry(module)
    started = time.perf_counter()
    module.time.sleep(30)
    assert time.perf_counter() - started < 15 and module.time.time() == pytest.approx(time.time(), abs=15)


def test_flare_waits_longer_than_the_course_for_a_run_to_end():
    events = inspect.signature(fed_event.ServerFedEventRunner).parameters["queue_empty_period"].default
    looks = inspect.signature(fed_server.FederatedServer).parameters["check_engine_frequency"].default
    ends = inspect.signature(MainProcessMonitor.run).parameters["shutdown_grace_time"].default
    assert (events, looks, ends) == (2.0, 3.0, 3) and fed_server.ServerFedEventRunner is fed_event.ServerFedEventRunner
    assert "Process(target=self.run_process" in inspect.getsource(simulator_runner.SimulatorRunner.run), "two more"


def test_an_environment_has_to_allow_the_usual_classes(tmp_path):
    """That the simulator is a program: see ``test_simulator.py``."""
    assert "_ensure_default_component_policy" in inspect.getsource(SimEnv.deploy), "which the course's replaces"
    flare_2_9.allow_usual_classes(str(tmp_path))
    (resources,) = (tmp_path / "local").iterdir()
    assert json.loads(resources.read_text())[CLASS_ALLOW_LIST]


def test_what_a_job_runner_does_at_a_jobs_start_has_no_public_name():
    """That FLARE does not do it by itself is proved in a real federation: tests/deploy/test_faults.py."""
    assert " ".join(inspect.signature(JobRunner._make_deploy_message).parameters) == "job app_data app_name fl_ctx"
    assert "self._pending_client_outcomes" in inspect.getsource(JobRunner.__init__)
    assert extract_participants(["site-1"]) == ["site-1"]
    assert {"strict"} <= set(inspect.signature(check_client_replies).parameters)
