"""What leaves a hospital and what a server can read of it, and what a site enforces whatever a job says: in a real federation."""

import json
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import MetaKey
from nvflare.apis.job_def import JobMetaKey
from nvflare.client.config import TransferType
from nvflare.lighter.utils import load_private_key_file, sign_folders
from nvflare.recipe.utils import set_recipe_meta

from data_scripts.mednist_sites import share_out
from deploy.federation import Federation
from deploy.kits import LEAD, SERVER, audit, need_tenseal, project, provision, set_privacy
from deploy.privacy import decrypt, encrypted_bytes, hand_on_changed, he_recipe, keep_received, received
from src.common.datalists import DATALIST
from src.common.paths import sites_folder
from src.federation.recipes import client_recipe
from src.federation.run import Run
from src.federation.site import KEPT, STATE
from src.mednist.card import Settings
from src.mednist.training import TASK
from tests.runs_support import drawings
from tests.tests_support import course_error, rows

slow = pytest.mark.slow
SITES = {"site-1": 30, "site-2": 18}  # images of each; not equal, so that the mean weighs them
SETTINGS = Settings(rounds=2, batch_size=8, network="SmallNet")
FILTER = {
    "path": "nvflare.app_common.filters.percentile_privacy.PercentilePrivacy",
    "args": {"percentile": 90, "gamma": 10.0},
}
needs_tenseal = pytest.mark.skipif(not find_spec("tenseal"), reason="TenSEAL has no wheel for every platform")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[tuple[Federation, Path]]:
    """A federation of two sites with rules of their own, which know two scopes; the first filters in one of them."""
    root = tmp_path_factory.mktemp("privacy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_DATA", str(root / "data"))
        images = drawings(root, per_class=8)
        share_out(list(SITES), "counts", counts=list(SITES.values()), data=SETTINGS.data, folder=images)
        own = {"COURSE_DATA": str(root / "data")}
        with Federation(root / "federation", dict.fromkeys(SITES, own), he=bool(find_spec("tenseal"))) as hospitals:
            set_privacy(hospitals.kits["site-1"], {"open": [], "filtered": [FILTER]}, default="open")
            set_privacy(hospitals.kits["site-2"], {"open": [], "filtered": [], "another": []}, default="open")
            hospitals.start()
            yield hospitals, root / "results"


def execute(place, recipe, scope: str) -> Run:
    set_recipe_meta(recipe, JobMetaKey.SCOPE, scope)
    return Run(place[0].execute(recipe, place[1]))


@pytest.fixture(scope="module")
def encrypted(place) -> Run:
    """A run of FLARE's ``FedAvgRecipeWithHE``, of which the server kept what it received last."""
    recipe = he_recipe(TASK, len(SITES), SETTINGS)
    keep_received(recipe)
    return execute(place, recipe, "open")


@pytest.fixture(scope="module")
def filtered(place) -> Run:
    recipe = client_recipe(TASK, len(SITES), SETTINGS, transfer=TransferType.DIFF, final_evaluation=False)
    keep_received(recipe)
    return execute(place, recipe, "filtered")


def trained(place, run: Run) -> dict[str, dict[str, np.ndarray]]:
    """What each site itself kept of the weights that it sent last, flat."""
    files = {site: place[0].kits[site] / KEPT / run.folder.name / STATE for site in SITES}
    states = {site: torch.load(file, weights_only=True)["trained"] for site, file in files.items()}
    return {site: {name: one.numpy().ravel() for name, one in own.items()} for site, own in states.items()}


def samples(place) -> dict[str, int]:
    return {
        site: len(json.loads((sites_folder(SETTINGS.data) / site / DATALIST).read_text())["training"]) for site in SITES
    }


@slow
@needs_tenseal
def test_an_encrypted_run_ends_well_and_its_updates_have_the_size_that_was_computed(encrypted, record_property):
    assert encrypted.about["status"] == "finished" and len(encrypted.contributions) == 4
    assert encrypted.contributions["accepted"].all()
    model, found = TASK.new_model(network="SmallNet"), received(encrypted)
    plain = sum(value.nbytes for value in model.state_dict().values())
    assert found.keys() == SITES.keys() and 0.10e6 <= plain <= 0.11e6
    for site, answer in found.items():
        record_property(f"bytes of {site}", answer.bytes)
        assert answer.bytes == pytest.approx(encrypted_bytes(model), rel=0.01)
        assert 8e6 < answer.bytes < 10e6
        assert (answer.table["what"] == "ciphertext").all() and 0.99 < answer.table["bytes"].sum() / answer.bytes <= 1


@slow
@needs_tenseal
def test_the_mean_of_ciphertexts_is_the_mean_of_the_weights(place, encrypted, record_property):
    assert [encrypted.contributions["accepted"].all(), *samples(place).values()] == [True, 21, 13]
    own, counts = trained(place, encrypted), samples(place)
    checkpoint = Run.weights(encrypted.final_model)
    assert checkpoint.keys() == own["site-1"].keys() and all(type(value) is bytes for value in checkpoint.values())
    means = decrypt(checkpoint, place[0].kits["site-1"])
    differences = {}
    for name, mean in means.items():
        weighted = sum(counts[site] * own[site][name].astype(np.float64) for site in SITES) / sum(counts.values())
        assert np.abs(own["site-1"][name] - own["site-2"][name]).max() > 1e-4, "equal weights would prove nothing"
        differences[name] = np.abs(mean - weighted).max()
    record_property("largest difference", float(max(differences.values())))
    assert max(differences.values()) <= 1e-6


@slow
@needs_tenseal
def test_the_server_holds_no_secret_key_and_each_site_holds_that_of_all(place, encrypted):
    import tenseal

    kits, own = place[0].kits, trained(place, encrypted)
    for site, other in (("site-1", "site-2"), ("site-2", "site-1")):
        read = decrypt(received(encrypted)[other].tensors, kits[site])
        for name, value in read.items():  # the update is weighed before it is encrypted
            np.testing.assert_allclose(value / samples(place)[other], own[other][name], atol=1e-6)
    for name, kit in kits.items():
        files = list(kit.rglob("*.tenseal"))
        assert [file.name for file in files] == {SERVER: ["server_context.tenseal"]}.get(
            name, ["client_context.tenseal"] * (name in SITES)
        )
        for file in files:
            context = tenseal.context_from(file.read_bytes())
            assert context.has_secret_key() == (name in SITES)
            assert name == SERVER or file.stat().st_mode & 0o077 == 0, "only its owner reads a key"
    course_error("holds no secret key", decrypt, Run.weights(encrypted.final_model), kits[SERVER])
    course_error("holds no secret key", decrypt, Run.weights(encrypted.final_model), kits[LEAD])


@slow
@needs_tenseal
def test_counts_and_metrics_are_sent_in_the_clear_all_the_same(place, encrypted):
    for site, answer in received(encrypted).items():
        assert answer.meta[MetaKey.NUM_STEPS_CURRENT_ROUND] == samples(place)[site]
        assert answer.meta[MetaKey.INITIAL_METRICS].keys() == {"val_accuracy", "val_loss"}


@slow
def test_a_filter_of_the_site_empties_its_update_and_leaves_the_others(filtered):
    found = received(filtered)
    zeros = {}
    for site, answer in found.items():
        values = np.concatenate([value.ravel() for value in answer.tensors.values()])
        zeros[site] = (values == 0).mean()
        assert len(values) == sum(value.numel() for value in TASK.new_model(network="SmallNet").state_dict().values())
        assert answer.table["bytes"].sum() == values.nbytes and 0.10e6 < answer.bytes < 0.12e6
        assert (
            answer.headers["__task_name__"] == "train" and answer.headers["__peer_props__"]["__identity_name__"] == site
        )
    assert zeros["site-1"] == pytest.approx(0.9, abs=0.001) and zeros["site-2"] < 0.001
    assert "filter_history" not in found["site-2"].meta
    # The server is told by which filter, and nothing of the image files.
    assert found["site-1"].meta["filter_history"] == ["PercentilePrivacy"]


@slow
def test_a_job_with_a_scope_that_a_site_does_not_list_is_refused_there(place):
    recipe = client_recipe(TASK, len(SITES), SETTINGS)
    set_recipe_meta(recipe, JobMetaKey.SCOPE, "another")
    course_error("site-1: privacy scope 'another' is not allowed", place[0].execute, recipe, place[1])


def sign_again(store: Path, folder: Path, kit: Path | None) -> None:
    """Replace the signatures of the changed app by those of a kit that is no user's, or by none."""
    with zipfile.ZipFile(store / "data") as stored:
        stored.extractall(folder)
    (app,) = folder.glob("*/changed")
    for file in app.rglob(".__nvfl*"):
        file.unlink()
    if kit:
        (key,), (certificate,) = ((kit / "startup").glob(f"*.{end}") for end in ("key", "crt"))
        sign_folders(str(app), load_private_key_file(str(key)), str(certificate))
    with zipfile.ZipFile(store / "data", "w") as stored:
        for file in folder.rglob("*"):
            stored.write(file, file.relative_to(folder))


@slow
@rows(
    ("as it is", "lead", "app changed does not pass signature verification"),
    ("unsigned", None, "unsigned job rejected - signed deploy is required"),
    ("signed by the server", SERVER, "BYOC not permitted"),
    ("signed by a site", "site-2", "BYOC not permitted"),
)
def test_a_job_that_the_server_changes_after_it_was_signed_is_refused_by_all_sites(
    signer, says, place, filtered, tmp_path
):
    (hospitals, results), original = place, filtered.folder.name
    server, script = hospitals.kits[SERVER], "custom/src/monai_mednist_train.py"
    course_error("has no file 'custom/other.py'", hand_on_changed, server, original, "custom/other.py", b"")
    hand_on_changed(server, original, script, b"\nprint('changed')\n")
    if signer != "lead":
        sign_again(server / "jobs-storage" / original, tmp_path, signer and hospitals.kits[signer])
    with hospitals.session() as session:
        job = session.clone_job(original)
        # The scope is no part of what is signed: FLARE's server leaves it out of the copy of a job.
        assert "scope" not in session.get_job_meta(job)
    course_error("The job ended with FINISHED:FAILED_TO_RUN", hospitals.fetch, job, results)
    refused = json.loads((results / job / "run.json").read_text())["refused"]
    assert {site: refused[site] for site in SITES} == dict.fromkeys(SITES, says)
    for site in SITES:
        assert not list((hospitals.kits[site] / job).rglob("*.py")), "nothing of it stays there"


@slow
def test_the_audit_logs_say_who_and_when_and_that_a_filter_was_applied(place, filtered):
    kits, job = place[0].kits, filtered.folder.name
    server = audit(kits[SERVER])
    submitted = server[server["action"].str.contains("submit_job")]
    assert set(submitted["user"]) == {LEAD} and submitted["time"].is_monotonic_increasing
    came = audit(kits["site-1"]).query("action == 'train.deploy'")
    # Jobs that were refused came too: the log does not say which.
    assert len(came) > 1 and (came["user"] == LEAD).all() and (came["said"] == "").all()
    for site in SITES:
        own = audit(kits[site], job)
        assert set(own["job"]) == {job} and set(own["scope"]) == {"filtered"}
        applied = own["said"].str.contains("applied filter: PercentilePrivacy@site on task_result").sum()
        assert applied == (SETTINGS.rounds if site == "site-1" else 0)
        assert own["said"].str.contains("submit result OK").sum() == SETTINGS.rounds
    assert audit(filtered.server)["said"].str.contains("received result from client 'site-1'").any()


def test_scopes_are_checked_before_they_are_written(tmp_path):
    kit = provision(tmp_path, project(["site-1"], 8002))["site-1"]
    course_error("give the filters of each scope", set_privacy, kit, {})
    course_error("give the filters of each scope", set_privacy, kit, [FILTER])
    course_error("The default scope 'b' is not listed. There are: a", set_privacy, kit, {"a": []}, default="b")
    course_error("is not the kit", set_privacy, kit.parent, {"a": []})
    assert not (kit / "local" / "privacy.json").exists()
    set_privacy(kit, {"a": [FILTER], "b": []}, default="b")
    written = json.loads((kit / "local" / "privacy.json").read_text())
    assert written["default_scope"] == "b"
    assert written["scopes"][0] == {"name": "a", "task_result_filters": [FILTER]}
    assert [rule["name"] for rule in written["scopes"]] == ["a", "b"]


@needs_tenseal
def test_each_provisioning_makes_another_key_and_without_it_there_is_none(tmp_path):
    about, keys = project(["site-1"], 8002, he=True), []
    for _ in range(2):
        kits = provision(tmp_path, about)
        keys.append((kits["site-1"] / "startup" / "client_context.tenseal").read_bytes())
    assert keys[0] != keys[1]
    state = (tmp_path / "course" / "state" / "cert.json").read_text()
    assert "root_pri_key" in state and "tenseal" not in state
    (tmp_path / "without").mkdir()
    assert not list(provision(tmp_path / "without", project(["site-1"], 8002))["site-1"].rglob("*.tenseal"))


@needs_tenseal
def test_a_network_that_would_be_too_large_encrypted_is_refused_with_its_size():
    said = r"An encrypted update of DenseNet121 would have 1,0\d\d MB instead of 28 MB"
    course_error(said, he_recipe, TASK, 2, Settings(network="DenseNet121"))
    course_error(
        "FedProx is not made for encrypted", he_recipe, TASK, 2, SETTINGS.changed(method="fedprox", fedproxloss_mu=0.1)
    )
    course_error("is not made for encrypted", he_recipe, TASK, 2, SETTINGS.changed(method="ditto"))


def test_without_tenseal_the_error_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for call, arguments in [
        (need_tenseal, ()),
        (he_recipe, (TASK, 2, SETTINGS)),
        (encrypted_bytes, (TASK.new_model(network="SmallNet"),)),
        (decrypt, ({}, tmp_path)),
    ]:
        course_error("needs the package TenSEAL.*pip install tenseal", call, *arguments)
    course_error("needs the package TenSEAL", Federation, tmp_path / "new", {"site-1": {}}, he=True)
    assert not (tmp_path / "new").exists()
