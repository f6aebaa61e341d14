"""How a recipe of the course is written into its job: by the settings, the same for every task, and nothing is passed over."""

import json
from pathlib import Path
from typing import get_args

import pytest
from nvflare.client.config import TransferType

from src.common.errors import CourseError
from src.common.settings import CONFIG, StudySettings
from src.federation import flare_2_9, recipes
from src.federation.methods import METHODS, batchnorm_tensors
from src.federation.recipes import add_record, client_recipe
from src.learners.recipe import learner_recipe
from src.mednist.card import Settings
from src.prostate.card import Settings as ProstateSettings
from src.tasks import tasks
from tests.runs_support import configuration, toy_recipe

TASKS = tasks()
MEDNIST, PROSTATE = TASKS["mednist"], TASKS["prostate"]
MOST_LINES = 1800


def arguments(config: dict, name: str) -> dict:
    """Arguments of the component or workflow of this class."""
    (found,) = [one for one in config["components"] + config["workflows"] if one["path"].endswith(f".{name}")]
    return found["args"]


def by(method: str) -> dict:
    return {"method": method, "fedproxloss_mu": 0.25 if method == "fedprox" else 0.0}


# -- what the settings change ------------------------------------------------------------------------------------------


def test_settings_know_the_methods_of_the_table_and_no_other():
    assert get_args(StudySettings.model_fields["method"].annotation) == tuple(METHODS)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_one_setting_changes_the_method_of_every_task(tmp_path, task, method):
    settings = task.settings(data="shared-out", rounds=7, learning_rate=0.25, **by(method))
    if (task.name, method) == ("prostate", "fedbn"):
        with pytest.raises(CourseError, match="UNet has no BatchNorm"):
            client_recipe(task, 3, settings)
        return
    made = client_recipe(task, 3, settings)
    assert type(made).__name__ == METHODS[method].recipe
    server, client = (configuration(made, tmp_path, side) for side in ("server", "client"))
    workflows = [part["path"].rsplit(".", 1)[1] for part in server["workflows"]]
    controller = {"scaffold": "RecordedScaffold", "fedadam": "ScatterAndGather", "fedavgm": "ScatterAndGather"}
    assert workflows == [controller.get(method, "FedAvg"), "CrossSiteModelEval"]
    first = server["workflows"][0]["args"]
    assert (first["num_rounds"], first.get("fedprox_mu")) == (7, 0.25 if method == "fedprox" else None)
    assert arguments(server, "IntimeModelSelector").get("key_metric", "val_accuracy") == task.key_metric
    held_back = [name for part in client["task_result_filters"] for name in part["filters"][0]["args"]["exclude_vars"]]
    assert held_back == (batchnorm_tensors(task.new_model()) if method == "fedbn" else [])
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


@pytest.mark.parametrize(
    ("given", "minimum", "goes_on", "recorder"),
    [
        pytest.param({}, 3, None, {"min_clients": 3}, id="all by default"),
        pytest.param({"min_clients": 3}, 3, None, {"min_clients": 3}, id="all"),
        pytest.param({"min_clients": 1}, 1, True, {"min_clients": 1}, id="one"),
        pytest.param(
            {"round_timeout": 90.5}, 3, None, {"min_clients": 3, "round_timeout": 90.5}, id="all, within a time"
        ),
    ],
)
def test_how_many_sites_a_round_needs_and_for_how_long_it_waits(tmp_path, given, minimum, goes_on, recorder):
    config = configuration(client_recipe(MEDNIST, 3, **given), tmp_path)
    assert arguments(config, "RunRecorder") == recorder
    assert arguments(config, "FedAvg").get("ignore_result_error") is goes_on
    assert json.loads((tmp_path / "mednist" / "meta.json").read_text())["min_clients"] == minimum
    assert arguments(config, "CrossSiteModelEval").get("validation_timeout") == (
        91 if "round_timeout" in given else None
    )


# -- what is not heeded is refused -------------------------------------------------------------------------------------


def refused(method: str = "fedavg", **options):
    return lambda folder: client_recipe(MEDNIST, 3, Settings(**by(method)), **options)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(refused(tracker="excel"), "Unknown tracker 'excel'; choose tensorboard or mlflow.", id="a tracker"),
        *(
            pytest.param(refused(min_clients=n), f"min_clients is {n}; the job asks 3 site(s)", id=f"{words} sites")
            for n, words in ((0, "no"), (-1, "less than no"), (4, "more than all"))
        ),
        *(
            pytest.param(refused(round_timeout=t), f"round_timeout is {t}; give a number of seconds above 0", id=words)
            for t, words in ((0, "no time"), (-1, "less than no time"), (float("nan"), "a time that is no number"))
        ),
        *(
            pytest.param(refused(method, min_clients=2), f"{kind} needs every site in each round", id=f"some of {method}")
            for method, kind in (("fedadam", "FedOptRecipe"), ("fedavgm", "FedOptRecipe"), ("scaffold", "ScaffoldRecipe"))
        ),
        *(
            pytest.param(
                refused(method, transfer=TransferType.FULL),
                f"{METHODS[method].title} decides itself what a site sends; leave transfer out.",
                id=f"what {method} sends",
            )
            for method in ("fedbn", "fedadam", "fedavgm")
        ),
        pytest.param(
            lambda folder: learner_recipe(folder, 3, ProstateSettings(method="scaffold")),
            "The learner knows fedavg and fedprox, not method='scaffold'.",
            id="a method of which the learner knows nothing",
        ),
    ],
)  # fmt: skip
def test_what_a_path_does_not_heed_is_refused_by_name(tmp_path, make, says):
    with pytest.raises(CourseError) as caught:
        make(tmp_path)
    assert says in str(caught.value)


def test_what_flares_own_recipe_does_not_heed_is_refused_too(tmp_path):
    """As a reader at home would add the record to it; and nothing has been changed by then."""
    made = recipes.recipes.FedOptRecipe(
        name="home",
        min_clients=3,
        num_rounds=1,
        model={"class_path": "torch.nn.Linear", "args": {"in_features": 2, "out_features": 2}},
        train_script=str(Path(__file__)),
    )
    with pytest.raises(CourseError, match="FedOptRecipe needs every site"):
        add_record(made, min_clients=1)
    assert flare_2_9.job_of(made).job.min_clients == 3
    assert "recorder" not in flare_2_9.server_of(made).components


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CourseError, match="pip install mlflow"):
        toy_recipe(tmp_path, 1, 1, tracker="mlflow")


# -- what a hospital reviews -------------------------------------------------------------------------------------------


def files(folder: str, *names: str) -> set[str]:
    return {f"{folder}/{name}.py" for name in names}


EVERYWHERE = {
    *files("common", "datalists", "engine", "errors", "files", "lean", "paths", "seeds", "settings", "task"),
    *files("federation", "aggregation", "flare_2_9", "reasons", "server", "site"),
}
OF_PROSTATE = {"unet.py", *files("prostate", "card", "training", "transforms")}
OF_MEDNIST = {"densenet.py", "common/pictures.py", *files("mednist", "card", "training", "transforms")}
BY_SCRIPT = files("federation", "methods")
BY_LEARNER = files("learners", "supervised_learner", "supervised_monai_prostate_learner")


@pytest.mark.parametrize(
    ("make", "own"),
    [
        pytest.param(
            lambda folder: client_recipe(MEDNIST, 2),
            {MEDNIST.client, "federation/methods.py", *OF_MEDNIST},
            id="mednist",
        ),
        pytest.param(
            lambda folder: client_recipe(PROSTATE, 2),
            {PROSTATE.client, "federation/methods.py", *OF_PROSTATE},
            id="prostate",
        ),
        pytest.param(lambda folder: learner_recipe(folder, 2), BY_LEARNER | OF_PROSTATE, id="learner"),
    ],
)
def test_a_job_carries_these_files_and_so_many_lines(tmp_path, make, own):
    make(tmp_path / "config").export(job_dir=str(tmp_path / "jobs"))
    (src,) = (tmp_path / "jobs").glob("*/app/custom/src")
    code = {file.relative_to(src).as_posix(): len(file.read_text().splitlines()) for file in src.rglob("*.py")}
    assert set(code) == EVERYWHERE | own
    assert not [file for file in src.parent.rglob("*.py") if not file.is_relative_to(src)]
    assert sum(code.values()) <= MOST_LINES, code
