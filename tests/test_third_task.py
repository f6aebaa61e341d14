"""Somebody who adds a third task copies one folder and its client, and edits nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.mednist.card import CARD
from tests.runs_support import drawings
from tests.test_repository import ROOT, repository_files

pytestmark = pytest.mark.slow

LABELS = ("Abdomen", "Breast", "Chest", "Thorax", "Fingers", "Skull")

PROGRAM = """
import json
import sys
from pathlib import Path
from data_scripts.sharing import partition, split, who_has_what, write_sites
from data_scripts.together import pooled, read_sites
from src.federation.recipes import client_recipe
from src.federation.run import Run
from deploy.simulator import CourseSimEnv
from src.tasks import tasks

raw, jobs = Path(sys.argv[1]), Path(sys.argv[2])
task = tasks()["xray"]
files = [(label, file) for label, name in enumerate(task.labels) for file in sorted((raw / name).iterdir())]
shares = partition([{"image": str(file), "label": label} for label, file in files], 2)
datalists = {site: split(items, task.validation, task.testing, site=site) for site, items in shares.items()}
settings = task.settings(rounds=1, batch_size=8, data=write_sites("xray", datalists, raw, {}, say=len))
recipe = client_recipe(task, 2, settings)
recipe.export(job_dir=str(jobs))
run = Run(recipe.execute(CourseSimEnv(2, task.name)).get_result())
model = task.load_model(run.weights(run.best_model(task.key_metric)))
cases = task.evaluate_cases(model, pooled(read_sites("xray"))["testing"], settings)
table = who_has_what(read_sites("xray"), task.labels).to_dict("index")["all sites"]
said = {"tasks": list(tasks()), "accepted": run.contributions["accepted"].tolist(), "table": table}
print(json.dumps({**said, "curve": run.curve(task.key_metric).shape, "cases": cases["case"].tolist()}))
"""
"""What is particular to it is where its raw images lie: everything else is found by looking."""


def third_task(checkout: Path) -> None:
    """A copy of this checkout with a third task, made by copying MedNIST's rooms and its client under another name."""
    for file in repository_files():
        target = checkout / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    src = checkout / "src"
    shutil.copytree(src / "mednist", src / "xray")
    shutil.copyfile(src / CARD.client, src / "monai_xray_train.py")
    new = {f'"{old}"': f'"{label}"' for old, label in zip(CARD.labels, LABELS, strict=True)}
    new |= {f'name="{CARD.name}"': 'name="xray"', f'title="{CARD.title}"': 'title="Radiographs"'}
    new |= {"src.mednist": "src.xray", CARD.client: "monai_xray_train.py"}
    copied = [*(src / "xray").glob("*.py"), src / "monai_xray_train.py"]
    for file in copied:
        for old, name in new.items():
            file.write_text(file.read_text(encoding="utf-8").replace(old, name), encoding="utf-8")
    assert sum(len(file.read_text().splitlines()) for file in copied) < 350


def run(checkout: Path, *command: str) -> str:
    """Run Python in the copy and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    environment |= {"COURSE_DATA": str(checkout / "data"), "COURSE_RUNS": str(checkout / "runs")}
    done = subprocess.run([sys.executable, *command], cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_a_copied_task_is_found_exported_and_trained_and_by_the_tests_of_all_tasks_too(tmp_path):
    checkout, raw = tmp_path / "third task" / "checkout", drawings(tmp_path, per_class=8, seed=4)
    third_task(checkout)
    for old, label in zip(CARD.labels, LABELS, strict=True):
        (raw / old).rename(raw / label)
    said = json.loads(run(checkout, "-c", PROGRAM, str(raw), str(tmp_path / "jobs")).splitlines()[-1])
    assert (said["tasks"], said["accepted"]) == (["mednist", "prostate", "xray"], [True, True])
    assert said["curve"] == [2, 2], "two sites, before the round and at the end"
    assert {label: said["table"][label] for label in LABELS} == dict.fromkeys(LABELS, 8)
    assert len(said["cases"]) == said["table"]["testing"]
    assert {case.split("/")[0] for case in said["cases"]} <= set(LABELS)
    job = tmp_path / "jobs" / "xray"
    assert len(list(job.rglob("monai_xray_train.py"))) == 1
    assert {file.name for file in job.glob("app/custom/src/xray/*")} == {"card.py", "training.py", "transforms.py"}
    assert not list(job.rglob("*mednist*"))
    told = run(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", "tests/common/test_task.py")
    assert "test_a_task_says_and_holds_what_all_need[xray]" in told
