"""Federated runs of the MedNIST job, as a reader starts them, with the faults that hospitals bring."""

import json
import re
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from src import mednist, phantoms, training
from src.errors import CourseError
from src.jobs import mednist_fedavg
from src.runs import Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """Eight images of each class, in a folder with a blank in its name."""
    folder = phantoms.make_mednist(tmp_path_factory.mktemp("data of the test") / "MedNIST", per_class=8, seed=1)
    return tuple(mednist.read_datalist(folder))


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch):
    """Run folders with a blank in their names."""
    folder = tmp_path / "my runs"
    monkeypatch.setenv("COURSE_RUNS", str(folder))
    return folder


def lines_of_our_making(run: Run) -> list[str]:
    """What a normal run must not log: errors, tracebacks and warnings, but for FLARE's own words at its regular end."""
    console = (run.folder / "console.log").read_text()
    bad = [line for line in console.splitlines() if re.search(r"ERROR|Traceback|WARNING|Warning", line)]
    return [line for line in bad if not re.search(r"(ask to stop job|request to stop the job).*END_RUN received", line)]


def processes_of(folder: Path) -> list[str]:
    """Command lines of all processes that still work in a run folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if str(folder) in command and process.is_running():
            found.append(command)
    return found


def test_one_site_equals_local_training(items):
    job = mednist_fedavg(sites=1, rounds=2, local_epochs=1, batch_size=8, items=items, seed=3)
    run = job.simulate()
    threads = torch.get_num_threads()
    torch.set_num_threads(job.about["threads"])
    try:
        model, history = training.train_locally(
            job.datalists["site-1"], epochs=2, batch_size=8, seed=3, keep_best=False
        )
    finally:
        torch.set_num_threads(threads)
    federated = run.weights(run.final_model)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(torch.as_tensor(federated[name]), tensor.cpu(), rtol=1e-4, atol=1e-5, msg=name)
    assert run.curve("train_loss")["site-1"].tolist() == pytest.approx([h["train_loss"] for h in history], rel=1e-4)
    # Round 0 validates the untrained model; after that, each received model is what the epoch before has made.
    assert run.curve("val_accuracy")["site-1"].tolist()[1:] == pytest.approx([h["accuracy"] for h in history])
    assert lines_of_our_making(run) == []


def test_two_runs_at_once_with_either_tracker_and_skewed_labels(items, runs_folder):
    """Two readers on one machine: neither meets the other, and both trackers hold the same kind of curves."""
    jobs = {
        tracker: mednist_fedavg(
            sites=2, rounds=1, batch_size=8, items=items, tracker=tracker, partition="dirichlet", alpha=0.3, seed=4
        )
        for tracker in ("tensorboard", "mlflow")
    }
    runs, errors = {}, []

    def simulate(tracker):
        try:
            runs[tracker] = jobs[tracker].simulate()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=simulate, args=(tracker,)) for tracker in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert runs["tensorboard"].folder != runs["mlflow"].folder
    for run in runs.values():
        assert run.contributions["accepted"].tolist() == [True, True]
        assert list(run.curve("val_accuracy").columns) == ["site-1", "site-2"]
        assert list(run.curve("val_accuracy").index) == [0, 1]
        assert list(run.curve("train_loss").index) == [0]
        assert lines_of_our_making(run) == []
    # The same seed and the same sites: the two runs are one and the same computation.
    for tag in ("train_loss", "val_accuracy"):
        np.testing.assert_allclose(runs["tensorboard"].curve(tag), runs["mlflow"].curve(tag), rtol=1e-3)
    assert runs["tensorboard"].tensorboard_folder.is_dir()
    assert not runs["mlflow"].tensorboard_folder.exists()


def test_sixteen_sites_one_with_one_image_and_most_without_some_class(items):
    counts = [1, *[3] * 14, len(items) - 43]
    job = mednist_fedavg(sites=16, rounds=1, batch_size=8, items=items, partition="counts", counts=counts, seed=5)
    assert len(job.datalists["site-1"]["training"]) == 1
    classes = {item["label"] for part in job.datalists["site-2"].values() for item in part}
    assert len(classes) < len(mednist.CLASSES), "site-2 has three images, so it lacks a class"

    run = job.simulate()
    assert run.contributions["accepted"].sum() == 16
    assert "site-1" not in run.curve("val_accuracy"), "a site with one image has nothing to validate on"
    assert np.isfinite(run.curve("train_loss").to_numpy()).all()
    assert all(np.isfinite(np.asarray(tensor)).all() for tensor in run.weights(run.best_model).values())
    assert lines_of_our_making(run) == []


def test_an_unreadable_image_stops_the_run_by_its_name(items, tmp_path):
    broken = tmp_path / "broken.jpeg"
    broken.write_bytes(Path(items[0]["image"]).read_bytes()[:200])
    job = mednist_fedavg(sites=2, rounds=1, batch_size=8, items=items, seed=6)
    site_2 = job.datalists["site-2"]
    site_2 = {**site_2, "training": [{**site_2["training"][0], "image": str(broken)}, *site_2["training"][1:]]}
    mednist.write_datalists(job.folder / "datalists", {**job.datalists, "site-2": site_2})
    with pytest.raises(CourseError, match=r"in round 1.*site-2: .*broken\.jpeg"):
        job.simulate()
    assert json.loads((job.folder / "run.json").read_text())["status"] == "failed"
    assert processes_of(job.folder) == []


def test_a_script_that_raises_in_round_2_is_named_with_its_site_round_and_line(items, tmp_path):
    script = tmp_path / "client.py"
    script.write_text(
        "import nvflare.client as flare\n"
        "from src import monai_mednist_train, training\n"
        "original, rounds = training.train_for, []\n"
        "def train_for(trainer, epochs):\n"
        "    rounds.append(1)\n"
        "    if len(rounds) == 2 and flare.get_site_name() == 'site-1':\n"
        "        raise ValueError('the scanner is on fire')\n"
        "    return original(trainer, epochs)\n"
        "training.train_for = train_for\n"
        "monai_mednist_train.main()\n"
    )
    job = mednist_fedavg(sites=2, rounds=3, batch_size=8, items=items, seed=7, client_script=script)
    with pytest.raises(
        CourseError, match=r"in round 2\. site-1: ValueError: the scanner is on fire \(client\.py, line 7\)"
    ):
        job.simulate()
    assert processes_of(job.folder) == []


def test_a_loss_that_becomes_nan_stops_the_run_before_it_is_averaged(items):
    job = mednist_fedavg(sites=2, rounds=2, batch_size=8, items=items, seed=8, learning_rate=1e30)
    with pytest.raises(
        CourseError, match=r"in round 1.*site-[12]: FloatingPointError: .*loss became (nan|inf).*learning"
    ):
        job.simulate()


def test_a_half_written_run_folder_is_no_run_and_the_next_run_is_fresh(items, runs_folder):
    half = runs_folder / "mednist_fedavg" / "20200101-000000-half"
    (half / "mednist_fedavg" / "server").mkdir(parents=True)
    with pytest.raises(CourseError, match=r"20200101-000000-half is not a finished run.*Run the job again"):
        Run(half)
    job = mednist_fedavg(sites=2, rounds=1, items=items)
    assert job.folder != half and not (job.folder / "run.json").exists()
    with pytest.raises(CourseError, match="Unknown tracker 'excel'"):
        mednist_fedavg(items=items, tracker="excel")
    with pytest.raises(CourseError, match="rounds is 0"):
        mednist_fedavg(items=items, rounds=0)
    with pytest.raises(CourseError, match="names that differ"):
        mednist_fedavg(items=items, sites=["a", "a"])
