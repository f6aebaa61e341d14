"""Federated methods: each is exactly FedAvg where it has to be, and what it says it is where not."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import from_file
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AlgorithmConstants
from nvflare.recipe.utils import add_cross_site_evaluation

from data_scripts.mednist_sites import share_out
from deploy.simulator import CourseSimEnv
from src.federation import methods
from src.federation.methods import METHODS, at_site, batchnorm_tensors
from src.federation.reasons import REASON, WITHOUT_STATE
from src.federation.recipes import client_recipe
from src.federation.run import Run
from src.federation.site import STATE, Site
from src.mednist.card import Settings
from src.mednist.training import TASK
from tests.runs_support import complaints, drawings
from tests.tests_support import course_error
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

    def __init__(self, method: str, kept=None, seed: int = 0, rounds: int = 3):
        mu = float(method == "fedprox")
        settings = LineSettings(method=method, local_epochs=2, fedproxloss_mu=mu, rounds=rounds)
        parts = {"training": line_batches(3, seed), "validation": []}
        self.site = Site(NORMALISED, settings, parts, "north", kept=kept)
        self.model, self.method = self.site.model, at_site(self.site)

    def round(self, weights: dict, number: int = 0, **meta) -> FLModel:
        """What the site sends back after it has received these weights."""
        received = FLModel(params=weights, meta=meta, current_round=number)
        self.method.receive(received)
        self.method.train(received)
        return FLModel(params=self.method.trained, meta=self.method.meta(), current_round=number)


def assert_same(one: dict, other: dict) -> None:
    torch.testing.assert_close(dict(one), dict(other), rtol=0, atol=0)


def distance(one: dict, other: dict) -> float:
    """Largest difference of two models' trained weights."""
    return max(float((one[name] - other[name]).abs().max()) for name, _ in network().named_parameters())


@pytest.fixture
def start() -> dict:
    return network(7).state_dict()


@pytest.fixture
def fedavg(start) -> dict:
    """What a site sends back in FedAvg's first round."""
    answer = Hospital("fedavg").round(start)
    assert answer.meta == {"NUM_STEPS_CURRENT_ROUND": 3}, "what the mean weighs by: the training items"
    return answer.params


def test_fedprox_with_weight_zero_is_fedavg(start, fedavg, monkeypatch):
    monkeypatch.setattr(methods, "get_fedprox_mu", lambda model: 0.0)  # FLARE's own refuses to call that FedProx
    assert_same(Hospital("fedprox").round(start).params, fedavg)


def test_fedprox_takes_its_weight_from_the_server_and_holds_the_site_there(start, fedavg):
    mild, strong = (Hospital("fedprox").round(start, fedprox_mu=mu).params for mu in (0.01, 50.0))
    assert 0 < distance(mild, fedavg) < 0.2 * distance(strong, fedavg)
    assert distance(strong, start) < 0.5 * distance(fedavg, start)
    with pytest.raises(ValueError, match="fedprox_mu"):
        Hospital("fedprox").round(start)


def test_scaffolds_first_round_is_fedavgs_and_its_control_is_the_mean_step_and_corrects_the_next(start, fedavg):
    plain, second = Hospital("fedavg"), {}
    zeros = {name: torch.zeros_like(value).numpy() for name, value in network().named_parameters()}
    for told in ("its own", "none"):
        site = Hospital("scaffold")
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
    site = Hospital("fedbn", tmp_path)
    own = batchnorm_tensors(site.model)
    assert sorted(own) == ["1.bias", "1.num_batches_tracked", "1.running_mean", "1.running_var", "1.weight"]
    received = start | {name: torch.full_like(start[name], 9) for name in own}
    site.method.receive(FLModel(params=received))
    assert_same(site.model.state_dict(), received)  # of the first model, which may be a checkpoint, a site takes all
    # What the server holds back need not be there at all.
    trained = site.round({name: value for name, value in received.items() if name not in own}).params
    kept = torch.load(tmp_path / STATE, weights_only=True)["model"]
    assert_same(kept | trained, site.model.state_dict())
    site.method.receive(FLModel(params=start))
    assert_same(site.model.state_dict(), start | kept)
    other = Hospital("fedbn", seed=1)
    other.round(start)
    # Neither an update nor a submitted model has it: whoever tries another site's model does so with its own BatchNorm.
    sent = other.method.submit().params
    assert sent.keys() == trained.keys() == start.keys() - own
    site.method.receive(FLModel(params=sent))
    assert_same(site.model.state_dict(), other.model.state_dict() | kept)


def test_dittos_global_model_is_fedavgs_and_its_own_one_lies_between(tmp_path, start, fedavg, monkeypatch):
    kept = {}
    for weight in (0.0, 0.1, 100.0):
        monkeypatch.setitem(methods.DEFAULTS, "ditto", weight)
        assert_same(Hospital("ditto", tmp_path / str(weight)).round(start).params, fedavg)
        kept[weight] = torch.load(tmp_path / str(weight) / STATE, weights_only=True)["model"]
    assert_same(kept[0.0], fedavg)
    assert distance(kept[100.0], start) < distance(kept[0.1], start) < distance(kept[0.0], start)


# -- a site that comes back --------------------------------------------------------------------------------------------

ROUNDS, GONE_AFTER = 6, 3  # the last round of which it has an answer


def federated(method: str, seed: int, folder, how: str) -> tuple[dict, list, list[float]]:
    """The last global model of two hospitals; what the second said in each round, at which learning rate.

    It ``stayed``, or came ``back``, or lost its ``disk``.
    """
    sites = [Hospital(method, folder / how / str(number), 10 * seed + number, ROUNDS) for number in range(2)]
    weights, said, rates = network(seed).state_dict(), [], []
    control = {name: torch.zeros_like(value) for name, value in network().named_parameters()}
    for number in range(ROUNDS):
        if number == GONE_AFTER and how != "stayed":
            kept = folder / how / "1"
            sites[1] = Hospital(method, kept if how == "back" else folder / "new disk", 10 * seed + 1, ROUNDS)
        about = {"scaffold_c_global": {name: value.numpy() for name, value in control.items()}, "fedprox_mu": 0.1}
        answers = [site.round(weights, number, **about) for site in sites]
        weights |= {name: (value + answers[1].params[name]) / 2 for name, value in answers[0].params.items()}
        for name in control if method == "scaffold" else ():
            control[name] += (
                sum(torch.as_tensor(a.meta[AlgorithmConstants.SCAFFOLD_CTRL_DIFF][name]) for a in answers) / 2
            )
        said.append(answers[1].meta.get(REASON))
        rates.append(sites[1].site.trainer.optimizer.param_groups[0]["lr"])
    return weights, said, rates


@pytest.mark.parametrize("seed", [0, 1, 2], ids=["seed 0", "seed 1", "seed 2"])
@pytest.mark.parametrize("method", METHODS)
def test_a_site_that_comes_back_goes_on_as_if_it_had_stayed(method, seed, tmp_path):
    stayed, back, lost = (federated(method, seed, tmp_path, how) for how in ("stayed", "back", "disk"))
    assert_same(back[0], stayed[0])
    assert stayed[1] == back[1] == [None] * ROUNDS
    assert lost[1] == [WITHOUT_STATE if number == GONE_AFTER else None for number in range(ROUNDS)]
    assert stayed[2] == back[2] == lost[2] == sorted(stayed[2], reverse=True), "the rate is that of the round"
    assert distance(lost[0], stayed[0]) > 0


def test_a_state_that_cannot_be_read_is_none(tmp_path, start, caplog):
    first = Hospital("scaffold", tmp_path)
    first.round(start, scaffold_c_global={name: value.numpy() for name, value in start.items()})
    whole = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(whole[: len(whole) // 2])
    again = Hospital("scaffold", tmp_path)
    assert not again.site.has_state and "cannot read" in caplog.text
    course_error("north has no model of its own: it has not trained", again.method.submit)


# -- real runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Name → a run at two sites of unequal size. Some at a time, for FLARE mostly waits when it starts and ends."""
    root = tmp_path_factory.mktemp("methods")
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setenv("COURSE_DATA", str(root / "data"))
        patch.setenv("COURSE_RUNS", str(root / "runs"))
        folder = drawings(root, per_class=8, seed=1)
        data = share_out(2, "counts", [32, 16], data="methods", folder=folder, say=lambda line: None)
        settings = Settings(data=data, rounds=2, batch_size=8, network="CompactDenseNet")

        def recipe(method: str):
            mu, bare = 0.5 if method == "fedprox" else 0.0, {"final_evaluation": method != "fedbn"}
            return client_recipe(TASK, 2, settings.changed(method=method, fedproxloss_mu=mu), **bare)

        made = {method: recipe(method) for method in METHODS}
        add_cross_site_evaluation(made["fedbn"])
        patch.setitem(methods.DEFAULTS, "fedavgm", {"path": "torch.optim.SGD", "args": {"lr": 1.0}})
        made["plain"] = recipe("fedavgm")
        started = {name: pool.submit(one.execute, CourseSimEnv(2, f"methods_{name}")) for name, one in made.items()}
        return {name: Run(one.result().get_result()) for name, one in started.items()}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_through(runs, method):
    run = runs[method]
    assert run.contributions["accepted"].all() and len(run.curve("val_accuracy")) == 3
    assert run.best_model("val_accuracy").exists()
    # FLARE's aggregator for FedOpt says it of every site that was given no extra weight beside its number of samples.
    assert [line for line in complaints(run.folder) if "Aggregation_weight missing" not in line] == []
    kept = sorted(file.relative_to(run.folder).parts[1] for file in run.folder.glob(f"*/*/**/{STATE}"))
    assert kept == (["site-1", "site-2"] if METHODS[method].personal else [])


@pytest.mark.slow
def test_real_methods_differ_from_fedavg_and_dittos_global_model_does_not(runs):
    models = {method: runs[method].weights(runs[method].final_model) for method in METHODS}
    assert_same(models["ditto"], models["fedavg"])
    for method in set(METHODS) - {"ditto", "fedavg"}:
        assert any(not torch.equal(models[method][n], models["fedavg"][n]) for n in models["fedavg"]), method
    first, run = TASK.new_model(0, "CompactDenseNet"), runs["fedbn"]
    for name in batchnorm_tensors(first):
        assert torch.equal(models["fedbn"][name], first.state_dict()[name]), "a site's normalisation came to the server"
    submitted = [from_file(str(file)).data for file in run.server.rglob("model_shareables/site-*")]
    assert [models["fedbn"].keys() - sent.keys() for sent in submitted] == 2 * [{*batchnorm_tensors(first)}]
    assert run.cross_site("val_accuracy").notna().all(axis=None), "and yet each site has tried each site's model"


@pytest.mark.slow
def test_a_real_fedopt_with_plain_steps_of_length_one_is_fedavg(runs):
    plain, fedavg = (runs[name].weights(runs[name].final_model) for name in ("plain", "fedavg"))
    for name, value in fedavg.items():
        if value.is_floating_point():  # the two round BatchNorm's counters, which nothing uses, in other places
            torch.testing.assert_close(plain[name], value, rtol=1e-4, atol=1e-4)
