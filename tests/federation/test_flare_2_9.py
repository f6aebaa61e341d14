"""What the course touches of FLARE's insides is needed and is still called so: a test fails on the day when that changes."""

import inspect
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from nvflare.app_common.executors.client_api import in_process_backend
from nvflare.app_opt.pt.recipes import FedAvgRecipe, FedOptRecipe, ScaffoldRecipe
from nvflare.app_opt.statistics.df.df_core_statistics import DFStatisticsCore
from nvflare.client.api_spec import CLIENT_API_KEY
from nvflare.client.in_process.api import InProcessClientAPI
from nvflare.fuel.data_event.data_bus import DataBus
from nvflare.job_config.api import FedJob
from nvflare.recipe.fedstats import FedStatsRecipe
from nvflare.recipe.utils import add_final_global_evaluation

from src.federation import flare_2_9
from src.federation.reasons import LastWords
from tests.runs_support import configuration
from tests.test_repository import ROOT, repository_files
from tests.tests_support import rows

SITES = ("site-1", "site-2", "site-3")


@pytest.fixture
def made(tmp_path):
    """``made(kind)``: FLARE's recipe of that kind, as a reader at home would make it."""
    (tmp_path / "client.py").touch()
    line = {"class_path": "torch.nn.Linear", "args": {"in_features": 2, "out_features": 2}}
    return lambda kind=FedAvgRecipe: kind(
        name="toy", min_clients=2, num_rounds=1, model=line, train_script=str(tmp_path / "client.py")
    )


def test_a_recipe_has_no_public_way_to_its_job_nor_to_its_sites_nor_to_their_components(made, tmp_path):
    one = made()
    public = [getattr(one, name) for name in dir(one) if not name.startswith("_")]
    assert isinstance(flare_2_9.job_of(one), FedJob) and not any(isinstance(value, FedJob) for value in public)
    assert [type(workflow.controller).__name__ for workflow in flare_2_9.server_of(one).workflows] == ["FedAvg"]
    counts = FedStatsRecipe("toy", "toy.json", list(SITES), {"count": {}}, DFStatisticsCore())
    assert flare_2_9.named_sites(counts) == [*SITES] and flare_2_9.named_sites(made()) == []
    assert counts.configured_sites() == [], "which would be the public way"
    assert not [name for name in dir(counts) if "component" in name and not name.startswith("_")]
    flare_2_9.add_to_sites(one, LastWords(), "last_words")
    assert "last_words" in [part["id"] for part in configuration(one, tmp_path, "client")["components"]]


@rows(
    ("looks often", flare_2_9.look_often, "task_check_period", 0.02),
    ("goes on without a site", lambda recipe: flare_2_9.go_on_without(recipe, 1), "ignore_result_error", True),
)
@pytest.mark.parametrize("kind", [FedAvgRecipe, ScaffoldRecipe, FedOptRecipe])
def test_a_recipe_has_no_argument_for_what_its_controller_can(change, argument, value, kind, made, tmp_path):
    assert argument not in inspect.signature(kind).parameters
    one = made(kind)
    assert argument not in configuration(one, tmp_path / "before")["workflows"][0]["args"]
    change(one)
    assert configuration(one, tmp_path / "after")["workflows"][0]["args"][argument] == value


def test_a_recipe_writes_the_scripts_folder_into_the_job(made, tmp_path):
    one = made()
    for folder, script in {"before": str(tmp_path / "client.py"), "after": "client.py"}.items():
        (executor,) = configuration(one, tmp_path / folder, "client")["executors"]
        assert executor["executor"]["args"]["task_script_path"] == script
        flare_2_9.forget_script_folder(one)


@pytest.mark.parametrize("kind", [ScaffoldRecipe, FedOptRecipe])
def test_flare_does_not_know_the_parts_of_its_own_recipes(made, kind):
    assert "key_metric" not in inspect.signature(kind).parameters
    with pytest.raises(ValueError, match="PyTorch recipes only"):
        add_final_global_evaluation(made(kind))
    one = made(kind)
    flare_2_9.know_the_parts(one, "val_dice")
    add_final_global_evaluation(one)
    assert flare_2_9.server_of(one).components["model_selector"].key_metric == "val_dice"


def test_programs_are_known_by_name_and_in_the_simulator_a_script_and_flare_look_for_each_other_more_often(monkeypatch):
    for program, kind in flare_2_9.PROGRAMS.items():
        monkeypatch.setattr(sys, "orig_argv", ["python", "-m", program])
        assert find_spec(program) and flare_2_9.process_kind() == kind
    monkeypatch.undo()
    api = InProcessClientAPI({})
    monkeypatch.setattr(in_process_backend, "_RESULT_POLL_INTERVAL", in_process_backend._RESULT_POLL_INTERVAL)
    DataBus().put_data(CLIENT_API_KEY, api)
    flare_2_9.answer_quickly()
    assert min(api.result_check_interval, in_process_backend._RESULT_POLL_INTERVAL) > 10 * flare_2_9.SCRIPT_SECONDS
    monkeypatch.setattr(flare_2_9, "process_kind", lambda: "simulated site")
    flare_2_9.answer_quickly()
    assert api.result_check_interval == in_process_backend._RESULT_POLL_INTERVAL == flare_2_9.SCRIPT_SECONDS


def test_nothing_else_in_the_project_touches_a_private_name_of_flares():
    """As ruff sees it, in notebooks too; and by the names of modules, and of attributes in strings."""
    of_others = (
        "lint.flake8-self.ignore-names = ['_foreach_sub', '_foreach_add_', '_cleanup_kernel', '_repr_html_', '_fields']"
    )
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=SLF001", "--output-format=json"]
    code = [file for file in repository_files() if file.suffix in (".py", ".ipynb")]
    ours = [file for file in code if not file.is_relative_to(ROOT / "tests")]
    seen = subprocess.run([*command, "--config", of_others, *map(str, ours)], capture_output=True, text=True).stdout
    found = {Path(one["filename"]) for one in json.loads(seen)}
    in_words = re.compile(r"nvflare\.private|attr\([^()]*, *\W+_[a-z]")
    found |= {file for file in ours if in_words.search(file.read_text(encoding="utf-8"))}
    assert found == {ROOT / "src/federation/flare_2_9.py", ROOT / "deploy/flare_2_9.py"}
