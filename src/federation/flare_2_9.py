"""Everything private of FLARE 2.9's that the course touches: what each thing mends, and the symptom without it.

``tests/federation/test_flare_2_9.py`` fails when FLARE needs one no more. Every site imports this file, so it loads little."""

import sys
from pathlib import Path

from nvflare.apis.job_def import ALL_SITES, SERVER_SITE_NAME
from nvflare.fuel.utils.constants import FrameworkType

SCRIPT_SECONDS = 0.02  # between two looks for a task or an answer
DAY = 24 * 3600

# -- recipes and jobs: a recipe has no public way to what it has put together ------------------------------------------


def job_of(recipe):
    return recipe._job


def server_of(recipe):  # with its workflows and components
    return recipe._job._deploy_map["server"].app_config


def named_sites(recipe) -> list[str]:
    """The sites that the job names; none where it is for whoever is there."""
    return [name for name in recipe._job._deploy_map if name not in (SERVER_SITE_NAME, ALL_SITES)]


def add_to_sites(recipe, component, name: str) -> None:
    recipe._add_to_client_apps(component, id=name)


def look_often(recipe) -> None:
    """Let the server look for answers more often. FLARE looks twice a second, a sixth of a short round."""
    for workflow in server_of(recipe).workflows:
        workflow.controller._task_check_period = SCRIPT_SECONDS


def go_on_without(recipe, least: int) -> None:
    """Let a round go on without a site that fails. FLARE ends the run, or, for FedOpt, does not wait for more than ``least``."""
    controller = server_of(recipe).workflows[0].controller
    if hasattr(controller, "_min_clients"):  # FedOpt's
        controller.ignore_result_error, controller._min_clients = True, least
        controller._wait_time_after_min_received = DAY
    else:
        controller._ignore_result_error = True


def forget_script_folder(recipe) -> None:
    """Let a site look for its script in the job, by name. FLARE writes the whole path into the job, and a site looks there."""
    recipe._ensure_client_apps_prepared()
    for app in recipe._job._deploy_map.values():
        for entry in getattr(app.app_config, "executors", ()):
            if script := getattr(entry.executor, "_task_script_path", None):
                entry.executor._task_script_path = Path(script).name


def know_the_parts(recipe, key_metric: str) -> None:
    """Tell FLARE what its recipes for SCAFFOLD and FedOpt leave open; else it does not evaluate them, and takes another metric."""
    recipe.framework = FrameworkType.PYTORCH
    components = server_of(recipe).components
    recipe._job.comp_ids |= {f"{part}_id": part for part in ("persistor", "locator") if part in components}
    components["model_selector"].key_metric = key_metric


# -- processes ---------------------------------------------------------------------------------------------------------

PROGRAMS = {
    "nvflare.private.fed.app.simulator.simulator_worker": "simulated site",
    "nvflare.private.fed.app.client.worker_process": "site",
    "nvflare.private.fed.app.server.runner_process": "server",
    "nvflare.private.fed.app.simulator.simulator": "server",
}


def process_kind() -> str:
    """Which of a job's processes this is, else nothing. FLARE tells a script nowhere; the command line does."""
    return next(filter(None, map(PROGRAMS.get, sys.orig_argv)), "")


def answer_quickly() -> None:
    """In the simulator, look for a task and for its answer more often: FLARE's 0.5 s, twice, is a sixth of a short round."""
    if process_kind() == "simulated site":
        from nvflare.app_common.executors.client_api import in_process_backend
        from nvflare.client.api_spec import CLIENT_API_KEY
        from nvflare.fuel.data_event.data_bus import DataBus

        in_process_backend._RESULT_POLL_INTERVAL = SCRIPT_SECONDS
        DataBus().get_data(CLIENT_API_KEY).result_check_interval = SCRIPT_SECONDS


# -- sites that come back: what the server and a job's process, which loads more, both must know; see deploy/flare_2_9.py -

SITE_IS_BACK = "course.site_is_back"  # the command by which the server has a job's process look who its sites are now
LOSS_IS_NOTED = "loss is noted"  # a key of the answer
