"""Federated methods: each is exactly FedAvg where it has to be, and what it says it is where not."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AlgorithmConstants

from data_scripts.mednist_sites import share_out
from src.federation import methods
from src.federation.methods import METHODS, PERSONAL, Method, at_site, batchnorm_tensors
from src.federation.recipes import client_recipe
from src.federation.run import Run
from src.federation.site import Site
from src.mednist.card import Settings
from src.mednist.training import TASK
from tests.runs_support import complaints, drawings
from tests.training_support import LINE, LineSettings, line_batches, line_trainer

pytestmark = pytest.mark.usefixtures("one_thread")


# -- a site without FLARE ----------------------------------------------------------------------------------------------


def network(seed: int = 0) -> torch.nn.Module:
    """A network with a BatchNorm, whose first weights depend on the seed alone."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 5, bias=False), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 1))


def adam(model, batches, settings, device):
    return line_trainer(batches, 0.05, torch.optim.Adam, settings.epochs, model)


NORMALISED = replace(LINE, networks={"Line": network}, make_trainer=adam)


class Hospital:
    """A site with three batches of its own and one method's part in a federation."""

    def __init__(self, folder, method: str):
        settings = LineSettings(method=method, local_epochs=2, fedproxloss_mu=float(method == "fedprox"))
        self.site = Site(NORMALISED, settings, {"training": line_batches(3), "validation": []}, "north")
        self.model, self.method = self.site.model, at_site(self.site, folder)

    def round(self, weights: dict, **meta) -> FLModel:
        """What the site sends back after it has received these weights."""
        received = FLModel(params=weights, meta=meta, current_round=0)
        self.method.receive(received)
        self.method.train(received)
        return FLModel(params=self.method.trained, meta=self.method.meta(), current_round=0)


def assert_same(one: dict, other: dict) -> None:
    torch.testing.assert_close(dict(one), dict(other), rtol=0, atol=0)


def distance(one: dict, other: dict) -> float:
    """Largest difference of two models' trained weights."""
    return max(float((one[name] - other[name]).abs().max()) for name, _ in network().named_parameters())


@pytest.fixture
def start() -> dict:
    return network(7).state_dict()


@pytest.fixture
def fedavg(tmp_path, start) -> dict:
    """What a site sends back in FedAvg's first round."""
    answer = Hospital(tmp_path, "fedavg").round(start)
    assert answer.meta == {"NUM_STEPS_CURRENT_ROUND": 3}, "what the mean weighs by: the training items"
    return answer.params


def test_fedprox_with_weight_zero_is_fedavg(tmp_path, start, fedavg, monkeypatch):
    monkeypatch.setattr(methods, "get_fedprox_mu", lambda model: 0.0)  # FLARE's own refuses to call that FedProx
    assert_same(Hospital(tmp_path, "fedprox").round(start).params, fedavg)


def test_fedprox_takes_its_weight_from_the_server_and_holds_the_site_there(tmp_path, start, fedavg):
    mild, strong = (Hospital(tmp_path, "fedprox").round(start, fedprox_mu=mu).params for mu in (0.01, 50.0))
    assert 0 < distance(mild, fedavg) < 0.2 * distance(strong, fedavg)
    assert distance(strong, start) < 0.5 * distance(fedavg, start)
    with pytest.raises(ValueError, match="fedprox_mu"):
        Hospital(tmp_path, "fedprox").round(start)


def test_scaffolds_first_round_is_fedavgs_and_its_control_is_the_mean_step_and_corrects_the_next(
    tmp_path, start, fedavg
):
    plain, second = Hospital(tmp_path, "fedavg"), {}
    zeros = {name: torch.zeros_like(value).numpy() for name, value in network().named_parameters()}
    for told in ("its own", "none"):
        site = Hospital(tmp_path, "scaffold")
        answer = site.round(start, scaffold_c_global=zeros)
        assert_same(answer.params, fedavg)
        control, way = answer.meta[AlgorithmConstants.SCAFFOLD_CTRL_DIFF], sum(site.method.rates)
        assert control.keys() == zeros.keys() and len(site.method.rates) == 2 * len(site.site.training)
        for name, value in control.items():
            np.testing.assert_allclose(value, (start[name] - answer.params[name]).numpy() / way, rtol=1e-4, atol=1e-5)
        everybodys = control if told == "its own" else zeros
        second[told] = site.round(answer.params, scaffold_c_global=everybodys).params
    by_fedavg = plain.round(plain.round(start).params).params
    assert distance(second["its own"], by_fedavg) < 1e-6, "where all go one way, there is nothing to correct"
    assert distance(second["none"], by_fedavg) > 0.01, "the others, who do not move, hold the site back"


def test_fedbn_keeps_its_normalisation_and_takes_the_rest(tmp_path, start):
    site = Hospital(tmp_path, "fedbn")
    own = batchnorm_tensors(site.model)
    assert sorted(own) == ["1.bias", "1.num_batches_tracked", "1.running_mean", "1.running_var", "1.weight"]
    received = start | {name: torch.full_like(start[name], 9) for name in own}
    before = copy.deepcopy(site.model).state_dict()
    site.method.receive(FLModel(params=received))
    assert_same(site.model.state_dict(), received | {name: before[name] for name in own})
    # What the server holds back need not be there at all.
    trained = site.round({name: value for name, value in received.items() if name not in own}).params
    kept = torch.load(tmp_path / PERSONAL, weights_only=True)["model"]
    assert_same(kept, {name: trained[name] for name in own})


def test_dittos_global_model_is_fedavgs_and_its_own_one_lies_between(tmp_path, start, fedavg, monkeypatch):
    kept = {}
    for weight in (0.0, 0.1, 100.0):
        monkeypatch.setattr(methods.Ditto, "LAMBDA", weight)
        assert_same(Hospital(tmp_path, "ditto").round(start).params, fedavg)
        kept[weight] = torch.load(tmp_path / PERSONAL, weights_only=True)["model"]
    assert_same(kept[0.0], Hospital(tmp_path, "fedavg").round(network().state_dict()).params)
    assert distance(kept[100.0], start) < distance(kept[0.1], start) < distance(kept[0.0], start)


# -- real runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory, quick):
    """Name → a run at two sites of unequal size. Some at a time, for FLARE mostly waits when it starts and ends."""
    root = tmp_path_factory.mktemp("methods")
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setenv("COURSE_DATA", str(root / "data"))
        patch.setenv("COURSE_RUNS", str(root / "runs"))
        folder = drawings(root, per_class=8, seed=1)
        data = share_out(2, "counts", [32, 16], data="methods", folder=folder, say=lambda line: None)
        settings = Settings(data=data, rounds=2, batch_size=8, network="CompactDenseNet")

        def recipe(method: str):
            mu = 0.5 if method == "fedprox" else 0.0
            return client_recipe(TASK, 2, settings.changed(method=method, fedproxloss_mu=mu))

        made = {method: recipe(method) for method in METHODS}
        plain = {"optimizer_args": {"path": "torch.optim.SGD", "args": {"lr": 1.0}}}
        patch.setitem(METHODS, "fedavgm", Method("", "FedOptRecipe", arguments=lambda settings: plain))
        made["plain"] = recipe("fedavgm")
        started = {name: pool.submit(one.execute, quick(2, f"methods_{name}")) for name, one in made.items()}
        return {name: Run(one.result().get_result()) for name, one in started.items()}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_through(runs, method):
    run = runs[method]
    assert run.contributions["accepted"].all() and len(run.curve("val_accuracy")) == 3
    assert run.best_model("val_accuracy").exists()
    # FLARE's aggregator for FedOpt says it of every site that was given no extra weight beside its number of samples.
    assert [line for line in complaints(run.folder) if "Aggregation_weight missing" not in line] == []
    kept = sorted(file.relative_to(run.folder).parts[1] for file in run.folder.glob(f"*/*/**/{PERSONAL}"))
    assert kept == (["site-1", "site-2"] if METHODS[method].personal else [])


@pytest.mark.slow
def test_real_methods_differ_from_fedavg_and_dittos_global_model_does_not(runs):
    models = {method: runs[method].weights(runs[method].final_model) for method in METHODS}
    assert_same(models["ditto"], models["fedavg"])
    for method in set(METHODS) - {"ditto", "fedavg"}:
        assert any(not torch.equal(models[method][n], models["fedavg"][n]) for n in models["fedavg"]), method
    first = TASK.new_model(0, "CompactDenseNet")
    for name in batchnorm_tensors(first):
        assert torch.equal(models["fedbn"][name], first.state_dict()[name]), "a site's normalisation came to the server"


@pytest.mark.slow
def test_a_real_fedopt_with_plain_steps_of_length_one_is_fedavg(runs):
    plain, fedavg = (runs[name].weights(runs[name].final_model) for name in ("plain", "fedavg"))
    for name, value in fedavg.items():
        if value.is_floating_point():  # the two round BatchNorm's counters, which nothing uses, in other places
            torch.testing.assert_close(plain[name], value, rtol=1e-4, atol=1e-4)
