"""What more than one test of real runs needs: a client without images, and what may not be left or logged."""

import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from nvflare.app_opt.pt.recipes import FedAvgRecipe
from nvflare.recipe.spec import Recipe

from data_scripts.phantoms.mednist import write
from src.common.files import write_json
from src.federation.aggregation import SampleWeightedMean
from src.federation.recipes import add_everything
from src.federation.run import RUN
from tests.tests_support import ball_case, through_the_door

CLIENT = """
\"\"\"A client that needs neither MONAI nor images: what is tested with it is what goes on around it.\"\"\"
import time
import torch
import nvflare.client as flare
from src.federation.reasons import run_site


def main():
    flare.init()
    site, number = flare.get_site_name(), 0
    while flare.is_running():
        model = flare.receive()
        if flare.is_evaluate():
            flare.send(flare.FLModel(metrics={"val_accuracy": 0.5}))
            continue
        number += 1
        params = {name: value + 1 for name, value in model.params.items()}
        BODY
        flare.send(flare.FLModel(params=params, metrics={"val_accuracy": 0.5}, meta={"NUM_STEPS_CURRENT_ROUND": 1}))


run_site(main)
"""


def drawings(root: Path, per_class: int, seed: int = 0) -> Path:
    """Few drawings of MedNIST in a folder below ``root``."""
    folder = root / "MedNIST"
    folder.mkdir()
    write(folder, per_class=per_class, seed=seed)
    return folder


def volumes(folder: Path, number: int = 1) -> None:
    """Tiny volumes of a site with this number: two cases for training, one each for validation and testing."""
    entries = []
    for n in range(4):
        centre = 2.0 * n, -3.0 * number, 1.5
        ball_case(folder / "images", f"c{n}", centre=centre, scale=10.0**n, seed=10 * number + n)
        entries.append({"image": f"images/c{n}.nii.gz", "label": f"images/c{n}_mask.nii.gz"})
    write_json(folder / "datalist.json", {"training": entries[:2], "validation": entries[2:3], "testing": entries[3:]})
    through_the_door(folder)


def toy_recipe(folder: Path, sites: int, rounds: int, body="pass", initial: Path | None = None, **options) -> Recipe:
    """FedAvg of a model with six numbers, each of which a site raises by one in each round; ``folder`` gets the client script.

    ``body`` are Python statements of the client between training and sending, with ``site``, ``number`` (of the round, from 1) and
    ``params``; ``options`` those of :func:`src.federation.recipes.add_everything`.
    """
    script = folder / "toy_client.py"
    script.write_text(CLIENT.replace("BODY", body.strip().replace("\n", "\n        ")))
    model = {"class_path": "torch.nn.Linear", "args": {"in_features": 2, "out_features": 2}}
    made = FedAvgRecipe(
        **{"name": "toy", "min_clients": sites, "num_rounds": rounds, "train_script": str(script), "model": model},
        initial_ckpt=initial and os.path.relpath(initial),
        key_metric="val_accuracy",
        aggregator=SampleWeightedMean(),
    )
    return add_everything(made, **options)


def configuration(made: Recipe, folder: Path, side: str = "server") -> dict:
    """What the job of a recipe, exported into a folder, says to the server or the clients."""
    made.export(job_dir=str(folder))
    (file,) = folder.glob(f"*/app/config/config_fed_{side}.json")
    return json.loads(file.read_text())


def complaints(folder: Path) -> list[str]:
    """What a normal run must not log anywhere: errors, tracebacks and warnings, but for FLARE's own warnings at its regular end."""
    logs = [log for log in (folder / "console.log", *folder.rglob("log.txt")) if log.is_file()]
    lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
    found = [line for line in lines if re.search("ERROR|Traceback|WARNING|Warning", line)]
    # The server says that the run is over, and the site is about to ask for work.
    at_the_end = "END_RUN received|Failed to get_task from server|Receiving unknown req_id"
    return [line for line in found if not re.search(at_the_end, line)]


def finished_runs(root: Path) -> set[Path]:
    """Run folders of the simulator that have come to their end."""
    return {file.parent for file in root.glob(f"*/*/{RUN}")}


def noisy(runs: set[Path]) -> dict[str, list[str]]:
    """Run folder → its :func:`complaints`, for those that have some."""
    return {str(folder): found for folder in sorted(runs) if (found := complaints(folder))}


def processes_of(folder: Path) -> list[str]:
    """Command lines of all processes that still work in a run folder of this process, by its own name or through a link."""
    places = (str(folder), folder.name, f"course-links-{os.getpid()}-")
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        words = " ".join([*(process.info["cmdline"] or ()), *(process.info["environ"] or {}).values()])
        if any(place in words for place in places) and process.is_running():
            found.append(" ".join(process.info["cmdline"] or ()))
    return found


def links(process: int = os.getpid()) -> set[str]:
    """Folders of links that a process, by default this one, has made in the temporary folder and not removed."""
    return {path.name for path in Path(tempfile.gettempdir()).glob(f"course-links-{process}-*")}


def wait_until(happened: Callable[[], bool], seconds: float = 90.0) -> None:
    """Ask again and again whether it has."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def holders(text: str, folder: Path) -> list[str]:
    """Files below a folder that have this text in their content or in their name from there on."""
    files = {file: str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    return [name for file, name in files.items() if text in name or text.encode() in file.read_bytes()]
