"""What of FLARE 2.9's insides those need who run a federation: its simulator, and a *server* that takes a site back.

The rest is in :mod:`src.federation.flare_2_9`. A test fails when FLARE needs it no more: tests/deploy/test_flare_2_9.py, and
``test_flare_by_itself_does_not_take_a_site_back`` in tests/deploy/test_faults.py."""

import argparse
import copy
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType, SimpleNamespace

from nvflare.apis.job_def import ALL_SITES
from nvflare.apis.job_scheduler_spec import DispatchInfo
from nvflare.fuel.f3.cellnet import connector_manager
from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.private.fed import tbi
from nvflare.private.fed.app.deployer import simulator_deployer
from nvflare.private.fed.app.simulator import simulator, simulator_runner, simulator_worker
from nvflare.private.fed.client import client_runner
from nvflare.private.fed.server import fed_server
from nvflare.private.fed.server.admin import check_client_replies
from nvflare.private.fed.utils.fed_utils import extract_participants
from nvflare.widgets import fed_event

# -- the simulator -----------------------------------------------------------------------------------------------------

SIMULATOR, WORKER = simulator.__name__, simulator_worker.__name__  # the programs of which FLARE's simulator is made
PAUSE, LAST_EVENTS, END_SECONDS = 0.05, 0.5, 6.0
# What a site of the course loads, beside the course, which loads anew: a process that has it all forks in milliseconds.
EVERYTHING = (
    "nvflare.app_common.executors.client_api_executor",
    "nvflare.app_common.workflows.fedavg",
    "nvflare.app_opt.pt.file_model_persistor",
    "nvflare.client.tracking",
    "torch._dynamo",  # which PyTorch loads when the first optimiser is made
    "ignite.engine",
    "nibabel",
)
_held: list[socket.socket] = []


def hold_open_ports(number: int) -> list[int]:
    """Find free ports that the system gives to nobody else: a socket holds each, bound, and a listener may reuse its address."""
    holders = [socket.socket() for _ in range(number)]
    for holder in holders:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
    _held.extend(holders)
    return [holder.getsockname()[1] for holder in holders]


def hurry(*modules: ModuleType) -> None:
    """Let these modules of FLARE sleep for ``PAUSE`` at most. Between machines they wait half a second to three for an answer, a
    listener or a last event; in the simulator, where that takes milliseconds, such pauses are a third of a short run."""
    for module in modules:
        module.time = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: time.sleep(min(seconds, PAUSE))})


def run_simulator(arguments: Sequence[str], start_site: Callable[..., object]) -> int:
    """Run FLARE's simulator in this process; ``start_site(command, env=, **)`` stands in for ``subprocess.Popen``.

    FLARE's own has two more processes, for the exit status alone. And it starts each site in a thread. Each looks for a free port
    that its process opens seconds later: two may find the same, and train on each other's data. And all write their site's name
    into one dictionary before they send it, where it may be overwritten. Here a port is held until the run ends, and every thread
    has its own dictionary."""
    parser = argparse.ArgumentParser()
    simulator.define_simulator_parser(parser)
    options = vars(parser.parse_args(arguments))
    simulator_runner.get_open_ports = simulator_deployer.get_open_ports = hold_open_ports
    simulator_runner.subprocess = SimpleNamespace(Popen=start_site, TimeoutExpired=subprocess.TimeoutExpired)
    simulator_runner.SimulatorClientRunner = _OwnContexts
    fed_server.ServerFedEventRunner = partial(fed_server.ServerFedEventRunner, queue_empty_period=LAST_EVENTS)
    runner = _QuickRunner(**options)
    return _run(runner.simulator_run_main, runner.workspace)


def run_site(arguments: Sequence[str]) -> None:
    """Be the process of a simulated site."""
    sys.argv[1:] = arguments
    options = simulator_worker.parse_arguments()
    _run(simulator_worker.main, options.workspace, args=options)


def _run(program: Callable, folder: str, **options) -> int:
    hurry(simulator_runner, simulator_worker, client_runner, tbi, fed_event, connector_manager)
    how = {"shutdown_grace_time": PAUSE, "cleanup_grace_time": END_SECONDS}
    return MainProcessMonitor.run(main_func=program, run_dir=folder, **how, **options)


class _OwnContexts(simulator_runner.SimulatorClientRunner):
    def do_one_task(self, *args, **options):
        own = copy.copy(self)
        own.build_ctx = dict(self.build_ctx)
        return super(_OwnContexts, own).do_one_task(*args, **options)


class _QuickRunner(simulator_runner.SimulatorRunner):
    def create_clients(self):
        self.server.check_engine_frequency = 5 * PAUSE  # whether the run has ended; it also sends itself a heartbeat
        super().create_clients()


def allow_usual_classes(workspace: str) -> None:
    """Write FLARE's default list of classes that a job may name into a simulator's workspace, as ``SimEnv.deploy`` does."""
    from nvflare.recipe.sim_env import SimEnv

    SimEnv._ensure_default_component_policy(workspace)


# -- a server that takes a site back -----------------------------------------------------------------------------------
#
# A site that registers anew gets a new token, and its jobs neither start there again nor hear of it: a round without a time limit
# waits for ever. The two functions do what the job runner does for a site at a job's start.


def deploy_again(engine, job, client, fl_ctx) -> DispatchInfo:
    """Send the job to the site and reserve what it needs there. Raises RuntimeError if the site does not agree."""
    deployment = [(app, extract_participants(places)) for app, places in job.get_deployment().items()]
    app = next(app for app, names in deployment if {client.name, ALL_SITES} & set(names))
    message = engine.job_runner._make_deploy_message(job, job.get_application(app, fl_ctx), app, fl_ctx)
    admin = engine.server.admin_server
    _all_well(admin.send_requests({client.token: message}, fl_ctx, timeout_secs=admin.timeout), client.name, "deploy")
    needs = job.get_resource_requirements().get(client.name, {})
    enough, reserved = engine.check_client_resources(job, {client.name: needs}, fl_ctx)[client.name]
    if not enough:
        raise RuntimeError(f"it lacks resources: {reserved}")
    return DispatchInfo(app, needs, reserved)


def start_again(engine, job, site: str, dispatch: DispatchInfo, fl_ctx) -> None:
    """Start the job's process at the site; the job's end then waits for its last word too. Raises RuntimeError too."""
    with engine.job_runner.lock:
        engine.job_runner._pending_client_outcomes.setdefault(job.job_id, set()).add(site)
    _all_well(engine.start_client_job(job, {site: dispatch}, fl_ctx), site, "start")


def _all_well(replies: list, site: str, what: str) -> None:
    if check_client_replies(replies, [site], what, strict=True):
        raise RuntimeError(f"it did not answer to: {what}")
