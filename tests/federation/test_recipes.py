"""How a recipe of the course is written into its job: by the settings, the same for every task, and nothing is passed over."""

import json
from typing import get_args

import pytest

from src.common.settings import CONFIG, StudySettings
from src.federation import flare_2_9, recipes
from src.federation.methods import METHODS, batchnorm_tensors
from src.federation.recipes import add_record, client_recipe
from src.learners.recipe import learner_recipe
from src.mednist.card import Settings
from src.prostate.card import Settings as ProstateSettings
from src.tasks import tasks
from tests.runs_support import configuration, toy_recipe
from tests.tests_support import course_error, rows

TASKS = tasks()
MEDNIST, PROSTATE = TASKS["mednist"], TASKS["prostate"]
MOST_LINES = 1900


def arguments(config: dict, name: str) -> dict:
    """Arguments of the component or workflow of this class."""
    (found,) = [one for one in config["components"] + config["workflows"] if one["path"].endswith(f".{name}")]
    return found["args"]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("method", get_args(StudySettings.model_fields["method"].annotation))
def test_one_setting_changes_the_method_of_every_task(tmp_path, task, method):
    mu = 0.25 if method == "fedprox" else None
    settings = task.settings(data="shared-out", rounds=7, learning_rate=0.25, method=method, fedproxloss_mu=mu or 0)
    if (task.name, method) == ("prostate", "fedbn"):
        course_error("UNet has no BatchNorm", client_recipe, task, 3, settings)
        return
    made = client_recipe(task, 3, settings)
    assert type(made).__name__ == METHODS[method].recipe
    server, client = (configuration(made, tmp_path, side) for side in ("server", "client"))
    workflows = [part["path"].rsplit(".", 1)[1] for part in server["workflows"]]
    controller = {"scaffold": "RecordedScaffold", "fedadam": "ScatterAndGather", "fedavgm": "ScatterAndGather"}
    assert workflows == [controller.get(method, "FedAvg"), "CrossSiteModelEval"]
    first = server["workflows"][0]["args"]
    assert (first["num_rounds"], first.get("fedprox_mu")) == (7, mu)
    assert arguments(server, "IntimeModelSelector").get("key_metric", "val_accuracy") == task.key_metric
    held_back = [
        (sorted(one["tasks"]), one["filters"][0]["args"]["exclude_vars"]) for one in client["task_result_filters"]
    ]
    fedbns = [(["submit_model", "train"], batchnorm_tensors(task.new_model()))] if method == "fedbn" else []
    assert held_back == fedbns
    (executor,) = [one["executor"]["args"] for one in client["executors"]]
    assert executor["task_script_path"] == task.client
    (script,) = (tmp_path / task.name).rglob(task.client)
    assert task.settings.read(script.parent / CONFIG) == settings


def test_a_recipe_has_all_that_the_course_adds_and_the_learners_job_has_the_same_server(tmp_path):
    settings = ProstateSettings(rounds=6)
    script = configuration(client_recipe(PROSTATE, 4, settings), tmp_path / "script")
    learner = configuration(learner_recipe(tmp_path / "config", 4, settings), tmp_path / "learner")
    for name in ("FedAvg", "CrossSiteModelEval", "RunRecorder", "IntimeModelSelector", "TBAnalyticsReceiver"):
        one, other = ({**arguments(config, name), "aggregation_weights": None} for config in (script, learner))
        assert one == other, name
    fedavg = arguments(script, "FedAvg")
    assert (fedavg["num_clients"], fedavg["task_check_period"]) == (4, flare_2_9.SCRIPT_SECONDS)
    assert fedavg["aggregator"]["path"] == "src.federation.aggregation.SampleWeightedMean"
    assert arguments(script, "IntimeModelSelector")["weigh_by_local_iter"] is True
    assert script["server"]["task_request_interval"] == recipes.ASK_SECONDS
    assert script["dead_client_grace_period"] == 1.0


@rows(
    ("all by default", {}, {"min_clients": 3}),
    ("all", {"min_clients": 3}, {"min_clients": 3}),
    ("one", {"min_clients": 1}, {"min_clients": 1}),
    ("all, within a time", {"round_timeout": 90.5}, {"min_clients": 3, "round_timeout": 90.5}),
)
def test_how_many_sites_a_round_needs_and_for_how_long_it_waits(given, recorder, tmp_path):
    config = configuration(client_recipe(MEDNIST, 3, **given), tmp_path)
    needs, waits = recorder["min_clients"], 91 if "round_timeout" in given else None
    assert arguments(config, "RunRecorder") == recorder
    assert arguments(config, "FedAvg").get("ignore_result_error") is (True if needs < 3 else None)
    assert json.loads((tmp_path / "mednist" / "meta.json").read_text())["min_clients"] == needs
    assert arguments(config, "CrossSiteModelEval").get("validation_timeout") == waits


def test_a_refused_record_has_changed_nothing_and_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    made = client_recipe(MEDNIST, 3, Settings(method="fedadam"))
    course_error("FedOptRecipe has a record", add_record, made)
    assert flare_2_9.server_of(made).components.pop("recorder").min_clients == 3
    course_error("the job asks 3 site", add_record, made, min_clients=4)
    assert flare_2_9.job_of(made).job.min_clients == 3 and "recorder" not in flare_2_9.server_of(made).components
    monkeypatch.setattr(recipes.importlib.util, "find_spec", lambda name: None)
    course_error("pip install mlflow", toy_recipe, tmp_path, 1, 1, tracker="mlflow")


COMMON = ("datalists", "errors", "files", "paths", "seeds", "settings", "task")
FEDERATION = ("aggregation", "engine", "flare_2_9", "lean", "private", "reasons", "server", "site")
EVERYWHERE = {*(f"common/{name}.py" for name in COMMON), *(f"federation/{name}.py" for name in FEDERATION)}
MEDNISTS, PROSTATES = ({f"{one}/{name}.py" for name in ("card", "training", "transforms")} for one in TASKS)
LEARNERS = {f"learners/{name}.py" for name in ("supervised_learner", "supervised_monai_prostate_learner")}
METHOD = "federation/methods.py"


@rows(
    ("mednist", lambda folder: client_recipe(MEDNIST, 2), {MEDNIST.client, METHOD, "densenet.py", *MEDNISTS}),
    ("prostate", lambda folder: client_recipe(PROSTATE, 2), {PROSTATE.client, METHOD, "unet.py", *PROSTATES}),
    ("learner", lambda folder: learner_recipe(folder, 2), {"unet.py", *LEARNERS, *PROSTATES}),
)
def test_a_job_carries_these_files_and_so_many_lines(make, own, tmp_path):
    make(tmp_path / "config").export(job_dir=str(tmp_path / "jobs"))
    (src,) = (tmp_path / "jobs").glob("*/app/custom/src")
    code = {file.relative_to(src).as_posix(): len(file.read_text().splitlines()) for file in src.rglob("*.py")}
    assert set(code) == EVERYWHERE | own
    assert not [file for file in src.parent.rglob("*.py") if not file.is_relative_to(src)]
    assert sum(code.values()) <= MOST_LINES, code
