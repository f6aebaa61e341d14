"""Somebody who adds a third task copies one folder and its client, and edits nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_scripts.phantoms.mednist import write
from src.mednist.card import CARD
from tests.test_repository import ROOT, repository_files

pytestmark = pytest.mark.slow

LABELS = ("Abdomen", "Breast", "Chest", "Thorax", "Fingers", "Skull")

PROGRAM = """
import json
import sys
from pathlib import Path
from src.common.datalists import pooled, read_sites, who_has_what
from src.common.task import tasks
from src.federation.simulator import CourseSimEnv
from src.federation.run import Run

raw, jobs = Path(sys.argv[1]), Path(sys.argv[2])
card = tasks()["xray"]
settings = card.room("card").Settings(rounds=1, batch_size=8)
card.room("data").share_out(2, "even", folder=raw, say=lambda line: None)
card.room("recipe").recipe(2, settings).export(job_dir=str(jobs))
run = Run(CourseSimEnv(2, card.name).run_exported(jobs / card.name))
datalists = read_sites(settings.data)
model = card.room("training").load_model(run.weights(run.best_model(card.key_metric)))
cases = card.room("training").evaluate_cases(model, pooled(datalists)["testing"], settings)
print(json.dumps({
    "tasks": list(tasks()),
    "about": card.room("data").describe(raw),
    "accepted": run.contributions["accepted"].tolist(),
    "curve": run.curve(card.key_metric).shape,
    "table": who_has_what(datalists, card.labels).to_dict("index")["all sites"],
    "cases": cases["case"].tolist(),
}))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of this checkout with a third task, made by copying MedNIST's rooms and its client under another name."""
    copy = tmp_path_factory.mktemp("third task") / "checkout"
    for file in repository_files():
        target = copy / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    src = copy / "src"
    shutil.copytree(src / "mednist", src / "xray")
    shutil.copyfile(src / CARD.client, src / "monai_xray_train.py")
    new = {
        "src.mednist": "src.xray",
        CARD.client: "monai_xray_train.py",
        f'name="{CARD.name}"': 'name="xray"',
        f'title="{CARD.title}"': 'title="Radiographs"',
        **{f'"{old}"': f'"{label}"' for old, label in zip(CARD.labels, LABELS, strict=True)},
    }
    for file in (*(src / "xray").glob("*.py"), src / "monai_xray_train.py"):
        text = file.read_text(encoding="utf-8")
        for old, name in new.items():
            text = text.replace(old, name)
        file.write_text(text, encoding="utf-8")
    return copy


def run(checkout: Path, *command: str) -> str:
    """Run Python in the copy and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    environment |= {"COURSE_DATA": str(checkout / "data"), "COURSE_RUNS": str(checkout / "runs")}
    done = subprocess.run([sys.executable, *command], cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_a_copied_task_is_found_exported_and_trained(checkout, tmp_path):
    drawn, raw = tmp_path / "drawn", tmp_path / "Radiographs"
    for folder in (drawn, raw):
        folder.mkdir()
    write(drawn, per_class=8, seed=4)
    for old, label in zip(CARD.labels, LABELS, strict=True):
        (drawn / old).rename(raw / label)

    said = json.loads(run(checkout, "-c", PROGRAM, str(raw), str(tmp_path / "jobs")).splitlines()[-1])

    assert said["tasks"] == ["mednist", "prostate", "xray"]
    assert "Fingers 8, Skull 8" in said["about"]
    assert said["accepted"] == [True, True]
    assert said["curve"] == [2, 2], "two sites, before the round and at the end"
    assert {label: said["table"][label] for label in LABELS} == dict.fromkeys(LABELS, 8)
    assert len(said["cases"]) == said["table"]["testing"]
    assert {case.split("/")[0] for case in said["cases"]} <= set(LABELS)
    job = tmp_path / "jobs" / "xray"
    assert len(list(job.rglob("monai_xray_train.py"))) == 1
    assert {file.name for file in job.glob("app/custom/src/xray/*")} == {"card.py", "training.py", "transforms.py"}
    assert not list(job.rglob("*mednist*"))


def test_the_tests_of_all_tasks_find_the_copy_by_themselves(checkout):
    told = run(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", "tests/common/test_task.py")
    assert "test_a_card_fits_its_task[xray]" in told
