"""The first scripts of notebook 02: the one without a federation, and what fifteen lines make of it."""

import difflib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from nvflare.app_opt.pt.recipes import FedAvgRecipe

from data_scripts.mednist_sites import share_out
from deploy.simulator import CourseSimEnv
from src.common.paths import sites_folder
from src.federation.recipes import add_record
from src.federation.run import Run
from tests.runs_support import drawings

STEPS = Path(__file__).parents[1] / "notebooks" / "first_steps"


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("first steps")
    folder = drawings(root, per_class=40, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_DATA", str(root / "data"))
        patch.setenv("COURSE_RUNS", str(root / "runs"))
        share_out(2, how="even", folder=folder, say=lambda line: None)
        patch.setenv("SITES_DATA", str(sites_folder("mednist")))
        yield


def test_fifteen_lines_make_the_difference():
    alone, federated = ((STEPS / name).read_text().splitlines()[1:] for name in ("alone.py", "federated.py"))
    changed = [line for line in difflib.ndiff(alone, federated) if line[0] in "+-"]
    assert 4 < sum(line[0] == "+" for line in changed) <= 15
    text = "\n".join(changed)
    assert all(call in text for call in ("flare.init", "flare.is_running", "flare.receive", "flare.send"))


def test_the_script_of_one_site_learns():
    command = [sys.executable, str(STEPS / "alone.py"), str(sites_folder("mednist") / "site-1")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    *_, last = done.stdout.splitlines()
    assert last.startswith("epoch 4: validation accuracy ") and float(last.split()[-1]) > 0.5


@pytest.mark.slow
def test_the_federated_script_runs_with_flares_own_recipe(monkeypatch):
    # FLARE keeps a relative path of a script as it is, as part of the module's name.
    monkeypatch.chdir(STEPS.parents[1])
    model = {"class_path": "notebooks.first_steps.federated.Net", "args": {}}
    options = {"train_script": "notebooks/first_steps/federated.py", "key_metric": "val_accuracy"}
    recipe = FedAvgRecipe(name="first", min_clients=2, num_rounds=5, model=model, **options)
    add_record(recipe)
    run = Run(recipe.execute(CourseSimEnv(2, "first")).get_result())
    assert run.contributions["accepted"].all()
    alone = runpy.run_path(str(STEPS / "alone.py"))
    model = alone["Net"]()
    model.load_state_dict(run.weights(run.final_model))
    images = [alone["read"](sites_folder("mednist") / site, "training") for site in run.sites]
    assert [len(labels) for _, labels in images] == [84, 84]
    assert all(alone["accuracy"](model, *one) > 0.4 for one in images)  # 0.17 is chance
