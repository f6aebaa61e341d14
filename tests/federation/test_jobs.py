"""Real federated runs in FLARE's simulator: equal to what they should equal, movable, and what happens when hospitals fail."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.local import train_locally
from data_scripts.mednist_sites import share_out
from data_scripts.together import read_sites
from deploy.processes import plain_paths
from deploy.simulator import CourseSimEnv
from src.common.datalists import sites_folder
from src.common.errors import CourseError
from src.common.files import write_json
from src.federation.recipes import client_recipe
from src.federation.record import read_record
from src.federation.run import Run
from src.federation.server import LOST
from src.learners.recipe import learner_recipe
from src.mednist.card import Settings
from src.mednist.training import TASK
from src.prostate.card import Settings as ProstateSettings
from src.prostate.training import TASK as PROSTATE
from tests.runs_support import complaints, drawings, holders, links, processes_of, toy_recipe, volumes
from tests.tests_support import course_error

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATIENT = "SURNAME_FIRSTNAME_1950"
SMALL = "CompactDenseNet"
FEW = Settings(data="failing", rounds=3, batch_size=8)
IN_CODE = "SURNAME{}_FIRSTNAME_1950"  # with an argument that makes nothing: a job's code is no place for a name
ODD = 'my #1 run\'s "best" $HOME & ü'
COARSE = {"voxel_spacing": (2, 2, 3), "field_of_view": (64, 64), "patch_size": (32, 32, 16)}
TINY = ProstateSettings(rounds=1, local_epochs=1, **COARSE)


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """A data folder with few drawings, and a folder for runs with a blank; one thread everywhere, so that numbers repeat."""
    root = tmp_path_factory.mktemp("jobs")
    drawings(root, per_class=8, seed=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_DATA", str(root / "the data"))
        patch.setenv("COURSE_RUNS", str(root / "my runs"))
        patch.setattr("deploy.simulator.cores", lambda: 1)
        yield root
    torch.set_num_threads(threads)


def share(place: Path, data: str, sites, **how) -> dict[str, dict]:
    """Share the drawings out; returns the sites' datalists."""
    share_out(sites, **{"how": "even", **how}, data=data, folder=place / "MedNIST", say=lambda line: None)
    return read_sites(data)


def spoil(folder: Path) -> None:
    """Give the first training image of a site a patient's name, and cut it off."""
    content = json.loads((folder / "datalist.json").read_text())
    old = folder / content["training"][0]["image"]
    new = old.with_name(PATIENT + old.suffix)
    new.write_bytes(old.read_bytes()[:300])
    content["training"][0]["image"] = new.relative_to(folder).as_posix()
    write_json(folder / "datalist.json", content)


ONLY_THE_JOBS_CODE = """
import sys
from importlib.machinery import PathFinder


class OnlyOfTheJob:  # the course is found in the folder of a job's own code and nowhere else
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "src":
            return None
        found = PathFinder.find_spec(name, [place for place in sys.path if place.rstrip("/").endswith("/custom")])
        if found is None:
            raise ModuleNotFoundError("the course is not installed here", name=name)
        return found


sys.path[:] = [place for place in sys.path if "__editable__" not in place and place != CHECKOUT]
sys.meta_path.insert(0, OnlyOfTheJob)
"""


@pytest.fixture(scope="module")
def elsewhere(place):
    """``elsewhere(job, data, sites)`` moves a job to other folders, where a Python that does not know the course runs it.

    By FLARE's own command, which can give two sites the same port: with few sites that hardly ever happens.
    """
    other = place / "another_machine"
    for name in ("python", "home"):
        (other / name).mkdir(parents=True)
    (other / "python" / "sitecustomize.py").write_text(ONLY_THE_JOBS_CODE.replace("CHECKOUT", repr(str(ROOT))))
    environment = {"PATH": os.environ["PATH"], "HOME": str(other / "home"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(other / "python")
    look = [sys.executable, "-c", "import src.common.paths"]
    assert b"not installed here" in subprocess.run(look, cwd=other, env=environment, capture_output=True).stderr

    def run(job: Path, data: Path, sites: list[str]) -> Run:
        folder = Path(tempfile.mkdtemp(dir=other))
        simulator, count = "nvflare.private.fed.app.simulator.simulator", str(len(sites))
        command = [python, "-m", simulator, shutil.move(job, folder / "received_job"), "-w", str(folder / "workspace")]
        command += ["-c", ",".join(sites), "-n", count, "-t", count]
        with (folder / "console.log").open("w") as console:
            how = {"env": {**environment, "COURSE_DATA": str(data)}, "stdout": console, "stderr": subprocess.STDOUT}
            done = subprocess.run(command, cwd=folder, timeout=300, **how)
        assert done.returncode == 0, (folder / "console.log").read_text()[-3000:]
        return Run(folder)

    # FLARE splits the command lines of its sites, so that this Python has to have a plain path, wherever the course lies.
    with plain_paths(Path(sys.executable), other) as (python, _):
        yield run


def exported(made, place: Path) -> Path:
    """The job's folder, after a look into all its files for what belongs to this machine alone."""
    folder = Path(tempfile.mkdtemp(dir=place)) / "jobs"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("USER", "LOGNAME", "USERNAME"):  # getpass looks here before it asks the system
            patch.setenv(name, "jane_doe_of_radiology")
        made.export(job_dir=str(folder))
    (job,) = folder.iterdir()
    places = (ROOT, place, Path.home(), tempfile.gettempdir(), sys.prefix)
    for known in ("jane_doe_of_radiology", *(f"{str(path).rstrip('/')}/" for path in places)):
        assert holders(known, job) == []
    return job


@pytest.fixture(scope="module")
def moved(place, elsewhere):
    """All jobs of the course, exported, moved with their data, and run there at the same time.

    MedNIST at one site, and what the same training gives without FLARE; the prostate at two, as a script and as a learner.
    """
    one = Settings(data="one", rounds=2, batch_size=8, seed=3)
    alone = train_locally(TASK, share(place, "one", 1)["site-1"], one, "site-1")
    two, hospitals = TINY.changed(data="volumes"), ["BIDMC", "HK"]
    for number, site in enumerate(hospitals):
        volumes(sites_folder(two.data) / site, number)
    jobs = {
        "mednist": (client_recipe(TASK, 1, one), ["site-1"]),
        "script": (client_recipe(PROSTATE, 2, two, tracker="tensorboard"), hospitals),
        "learner": (learner_recipe(place / "config", 2, two, tracker="mlflow"), hospitals),
    }
    jobs, data = {name: (exported(made, place), sites) for name, (made, sites) in jobs.items()}, place / "other data"
    data.mkdir()
    shutil.move(Path(os.environ["COURSE_DATA"]) / "sites", data / "sites")
    with ThreadPoolExecutor(len(jobs)) as pool:
        started = {name: pool.submit(elsewhere, job, data, sites) for name, (job, sites) in jobs.items()}
        return {name: run.result() for name, run in started.items()}, alone


def test_every_job_runs_on_another_machine_and_fedavg_of_one_site_is_that_sites_own_training(moved):
    runs, alone = moved
    for job, run in runs.items():
        assert run.sites == (["site-1"] if job == "mednist" else ["BIDMC", "HK"])
        assert run.contributions["accepted"].all() and len(run.contributions) == 2 and run.final_model.is_file()
        assert complaints(run.folder) == []
    run = runs["mednist"]
    trained = dict(alone.model.state_dict())
    torch.testing.assert_close(run.weights(run.final_model), trained, rtol=1e-4, atol=1e-5)
    losses = [entry["train_loss"] for entry in alone.history]
    assert run.curve("train_loss")["site-1"].tolist() == pytest.approx(losses, rel=1e-4)
    # Round 0 validates the untrained model; after that, each received model is what the epoch before has made.
    for metric in ("val_accuracy", "val_loss"):
        validated = [entry[metric] for entry in alone.history]
        assert run.curve(metric)["site-1"].tolist()[1:] == pytest.approx(validated, rel=1e-4)


def test_script_and_learner_give_the_same_weights_and_both_trackers_the_same_curves(moved):
    script, learner = moved[0]["script"], moved[0]["learner"]
    weights = script.weights(script.final_model)
    torch.testing.assert_close(weights, learner.weights(learner.final_model), rtol=1e-5, atol=1e-6)
    fresh = PROSTATE.new_model(TINY.seed).state_dict()
    assert all(value.numel() < 2 or not torch.equal(value, fresh[name]) for name, value in weights.items())
    assert script.tensorboard_folder.is_dir() and not learner.tensorboard_folder.exists()
    for tag, rounds in {"train_loss": [0], "val_dice": [0, 1]}.items():
        curves = [run.curve(tag) for run in (script, learner)]
        assert all(list(curve.columns) == ["BIDMC", "HK"] and list(curve.index) == rounds for curve in curves)
        np.testing.assert_allclose(*curves, rtol=1e-3, atol=1e-4)
    course_error(r"No site streamed 'val_accuracy'; there are .*'train_loss', 'val_dice'", script.curve, "val_accuracy")
    assert {"seconds_training", "seconds_validation"} <= set(script.metrics.tag) == set(learner.metrics.tag)


FAILING = """
\"\"\"The course's client at hospitals of which most fail, each in its own way; the name of the site says how.\"\"\"
import os
import signal
from pathlib import Path
import src.monai_mednist_train as client
from src.common.paths import data_root
from src.federation.reasons import run_site
from src.federation.site import Site

train, rounds = Site.train, []


def train_or_fail(site, *rest):
    rounds.append(1)
    if len(rounds) == 2 and site.name == "killed":
        (data_root() / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if len(rounds) == 2 and site.name == "raises":
        raise ValueError("IN_CODE".format("") + f" in {data_root()}")
    if site.name == "nan":
        next(site.model.parameters()).data.fill_(float("nan"))
    return train(site, *rest)


Site.train = train_or_fail
run_site(client.main, Path(__file__).parent)
"""


def seconds_since_the_kill(until: float) -> float:
    return until - (Path(os.environ["COURSE_DATA"]) / "killed").stat().st_mtime


@pytest.fixture(scope="module")
def hospitals(place):
    """A run that goes on with whoever is left, of five hospitals of which one stays, in a folder with an odd name."""
    counts = {"healthy": 12, "killed": 7, "nan": 14, "raises": 7, "unreadable": 8}
    share(place, "failing", list(counts), how="counts", counts=list(counts.values()))
    spoil(sites_folder("failing") / "unreadable")
    (place / "failing_client.py").write_text(FAILING.replace("IN_CODE", IN_CODE))
    made = client_recipe(TASK, 5, FEW, client=place / "failing_client.py", min_clients=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_RUNS", str(place / ODD))
        before = links()
        with pytest.warns(UserWarning, match=r"2 of 5 sites left out: nan: .*; unreadable: an image cannot be read"):
            executed = made.execute(CourseSimEnv(list(counts)))
        assert links() == before
    run = Run(executed.get_result())
    assert run.about["status"] == "finished"
    return run


def test_the_others_finish_a_killed_site_is_missed_within_seconds_and_the_table_says_who_did_not_and_why(hospitals):
    nan, unreadable = "its loss or its weights became NaN or infinite", "an image cannot be read"
    expected = {
        "healthy": ([True, True, True], set()),
        "killed": ([True, False, False], {LOST}),
        "nan": ([False, False, False], {nan}),
        "raises": ([True, False, False], {"its software raised ValueError"}),
        "unreadable": ([False, False, False], {unreadable}),
    }
    by_site = hospitals.contributions.groupby("site")
    assert {s: (rows["accepted"].tolist(), set(rows["reason"].dropna())) for s, rows in by_site} == expected
    assert "10 of 15 updates are missing, see contributions" in repr(hospitals)
    assert hospitals.left_out == {"nan": nan, "unreadable": unreadable}
    assert hospitals.curve("train_loss")["healthy"].notna().all() and processes_of(hospitals.folder) == []
    (lost,) = [entry for entry in hospitals.record if entry["event"] == "site lost"]
    assert (lost["site"], lost["round"]) == ("killed", 1)
    saved = [entry["time"] for entry in hospitals.record if entry["event"] == "model saved"]
    assert seconds_since_the_kill(saved[1]) < 30
    assert all(torch.isfinite(value).all() for value in hospitals.weights(hospitals.final_model).values())
    assert list(hospitals.final_validation[hospitals.final_model.name]) == ["healthy"]


def held_by_the_server(run_folder: Path, sites) -> Path:
    """A copy of all of a run folder but the sites' own folders: what is seen away from the sites."""
    held = run_folder.with_name(run_folder.name + "-held")
    own = lambda folder, _: [*sites] if Path(folder).parent == run_folder else []  # noqa: E731
    return shutil.copytree(run_folder, held, symlinks=True, ignore=own)


def test_neither_a_name_nor_a_path_has_left_a_site(hospitals):
    """In the record, the server's logs, events of trackers, models, the job, ``run.json``, the console: nothing."""
    held = held_by_the_server(hospitals.folder, hospitals.sites)
    for kept in ("course_record.jsonl", "*.pt", "events.out*", "server/log.txt", "run.json", "console.log"):
        assert list(held.rglob(kept)), kept
    for secret in (PATIENT, os.environ["COURSE_DATA"]):
        assert holders(secret, held) == []
    assert PATIENT not in repr(hospitals) + hospitals.contributions.to_string()
    for site in ("unreadable", "raises"):
        log = (hospitals.folder / "mednist" / site / "log.txt").read_text()
        assert PATIENT in log and os.environ["COURSE_DATA"] in log and "Traceback" in log, "the site's own says all"


def test_where_all_are_needed_a_killed_site_ends_the_run_within_30_seconds(hospitals, place, capfd):
    env = CourseSimEnv(["healthy", "killed"])
    with pytest.raises(CourseError) as caught:
        client_recipe(TASK, 2, FEW, client=place / "failing_client.py").execute(env)
    assert seconds_since_the_kill(time.time()) < 30
    own = env.run_folder / "mednist" / "killed" / "log.txt"
    said = "The run failed in round 2 of 3. killed: its process has ended; often a lack of memory."
    assert str(caught.value) == f"{said} More is in the log of its own: {own}."
    assert own.is_file() and Run(env.run_folder).about["status"] == "failed" and processes_of(env.run_folder) == []
    # And in a log a round is one line.
    assert [line for line in capfd.readouterr().out.splitlines() if "round" in line] == ["round 1 of 3", "round 2 of 3"]


# Two send what no average may hold, from the start and before anybody else answers; one raises in round 2.
TOO_FEW = f"""
from pathlib import Path
markers = [Path("FOLDER") / name for name in ("misshapen", "poisons")]
if site == "misshapen":
    params["more"] = torch.zeros(1)
elif site == "poisons":
    params["bias"] = params["bias"] * float("nan")
elif site == "raises" and number == 2:
    raise ValueError("{IN_CODE}".format(""))
else:
    while not all(marker.exists() for marker in markers):
        time.sleep(0.1)
    time.sleep(1.5)
if site in ("misshapen", "poisons"):
    (markers[0].parent / site).touch()
"""


@pytest.fixture(scope="module")
def started(place):
    """Runs at the same time, for FLARE mostly waits: name → environment and what will be the run or its error."""
    few, late = (Path(tempfile.mkdtemp(dir=place)) for _ in range(2))
    share(place, "sixteen", 16, how="counts", counts=[1, *[3] * 14, 5], seed=5)
    torch.save({"model": TASK.new_model(9, SMALL).state_dict()}, place / "first model.pt")
    # So small a step moves no weight, and it shows from where the run started.
    still = Settings(data="sixteen", rounds=1, batch_size=8, learning_rate=1e-30, network=SMALL)
    body, four = TOO_FEW.replace("FOLDER", str(place)), ["fine", "misshapen", "poisons", "raises"]
    asleep = toy_recipe(late, 2, 2, "time.sleep(600)", min_clients=1, round_timeout=3)
    runs = {
        "too few": (toy_recipe(few, 4, 3, body, min_clients=2), four),
        "late": (asleep, ["asleep", "dozing"]),
        "sixteen": (client_recipe(TASK, 16, still, initial=place / "first model.pt"), 16),
    }
    with ThreadPoolExecutor(len(runs)) as pool:
        envs = {name: CourseSimEnv(sites, name) for name, (_, sites) in runs.items()}
        yield {name: (envs[name], pool.submit(made.execute, envs[name])) for name, (made, _) in runs.items()}


def test_too_few_are_left_and_the_error_names_them_all_and_the_argument_where_every_site_is_late(started):
    env, run = started["too few"]
    with pytest.raises(CourseError, match=r"^The run failed in round 2 of 3\. ") as caught:
        run.result()
    log, said = env.run_folder / "toy" / "raises" / "log.txt", str(caught.value)
    assert "poisons: 1 of 2 tensors hold NaN or infinity, the first is 'bias'" in said
    odd = "misshapen: 1 of its tensors are not those of the global model, the first is 'more': (1,) instead of none"
    assert odd in said and "raises: its software raised ValueError" in said and str(log) in said
    answers = [entry for entry in read_record(env.run_folder) if entry["event"] == "answer"]
    assert {entry["site"] for entry in answers[:2]} == {"misshapen", "poisons"}, "judged by the global model"
    assert [entry["accepted"] for entry in answers[:4]] == [False, False, True, True]
    assert PATIENT in log.read_text() and PATIENT not in said
    assert holders(PATIENT, held_by_the_server(env.run_folder, env.clients)) == []
    late = "it did not answer within round_timeout, 3 s"
    said = re.escape(f"The run failed in round 1 of 2. asleep: {late}; dozing: {late}.")
    course_error(said, started["late"][1].result)


def test_sixteen_sites_one_with_one_image_and_one_without_some_class(started):
    run, datalists = Run(started["sixteen"][1].result().get_result()), read_sites("sixteen")
    assert len(datalists["site-1"]["training"]) == 1 and not datalists["site-1"]["validation"]
    classes = {item["label"] for part in datalists["site-2"].values() for item in part}
    assert len(classes) < len(TASK.labels), "site-2 has three images, so it lacks a class"
    assert len(run.contributions) == run.contributions["accepted"].sum() == 16
    samples = {entry["site"]: entry["samples"] for entry in run.record if entry["event"] == "answer"}
    assert samples == {site: len(parts["training"]) for site, parts in datalists.items()}
    assert "site-1" not in run.curve("val_accuracy"), "a site with one image has nothing to validate on"
    assert np.isfinite(run.curve("train_loss").to_numpy()).all()
    weights, first = run.weights(run.best_model(TASK.key_metric)), TASK.new_model(9, SMALL)
    for name, value in first.named_parameters():
        torch.testing.assert_close(weights[name], value.detach())
    moved = [name for name, value in first.named_buffers() if not torch.equal(weights[name], value)]
    assert moved, "the statistics of batch normalisation are those of the sites"
    assert complaints(run.folder) == []
    wait([future for _, future in started.values()])
    assert processes_of(run.folder) == [], "and nothing of the others"
