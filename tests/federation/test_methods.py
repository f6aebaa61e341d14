"""Federated methods: each is exactly FedAvg where it has to be, and what it says it is where not."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AlgorithmConstants
from nvflare.app_common.workflows.scaffold import scaffold_aggregate_fn
from nvflare.app_opt.pt.fedopt import PTFedOptModelShareableGenerator
from nvflare.app_opt.pt.recipes import FedAvgRecipe
from nvflare.recipe.utils import add_cross_site_evaluation

from benchmarks.warm import warm_python
from data_scripts.mednist_sites import share_out
from src.common.engine import make_trainer
from src.common.errors import CourseError
from src.federation import at_site as client_methods
from src.federation import methods
from src.federation.at_site import PERSONAL, at_site, batchnorm_tensors
from src.federation.methods import METHODS, Method
from src.federation.run import Run
from src.federation.server import add_everything
from src.federation.simulator import CourseSimEnv
from src.mednist.card import Settings
from src.mednist.recipe import recipe
from src.mednist.training import new_model
from src.prostate.card import Settings as ProstateSettings
from src.prostate.recipe import recipe as prostate_recipe
from tests.runs_support import CLIENT, complaints, drawings

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


# -- a site without FLARE ----------------------------------------------------------------------------------------------


def network(seed: int = 0) -> torch.nn.Module:
    """A network with a BatchNorm, whose first weights depend on the seed alone."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 5, bias=False), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))


class Site:
    """A hospital with 12 items of its own and one method's part in a federation."""

    def __init__(self, folder, method: str, number: int = 1, rounds: int = 3):
        rng = np.random.default_rng(number)
        images = torch.tensor(rng.normal(size=(3, 4, 3)), dtype=torch.float32)
        labels = torch.tensor(rng.integers(0, 2, size=(3, 4)))
        self.batches = [{"image": x, "label": y} for x, y in zip(images, labels, strict=True)]
        self.model, self.rounds = network(), rounds
        settings = SimpleNamespace(method=method, local_epochs=2)
        self.method = at_site(settings, self._trainer(self.model), lambda: self._trainer(network()), folder)

    def _trainer(self, model):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        return make_trainer(model, self.batches, optimizer, torch.nn.CrossEntropyLoss(), CPU, epochs=2 * self.rounds)

    def round(self, weights: dict, **meta) -> FLModel:
        """What the site sends back after it has received these weights."""
        received = FLModel(params=weights, meta=meta, current_round=0)
        self.method.receive(received)
        self.method.train(received)
        trained = {name: value.clone() for name, value in self.model.state_dict().items()}
        return FLModel(params=trained, meta={"NUM_STEPS_CURRENT_ROUND": 12, **self.method.extra()}, current_round=0)


def weights_of(model: torch.nn.Module) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])), name


def distance(one: dict, other: dict) -> float:
    """Largest difference of two models' trained weights."""
    names = [name for name, _ in network().named_parameters()]
    return max(float((one[name] - other[name]).abs().max()) for name in names)


def zeros() -> dict:
    return {name: torch.zeros_like(value).numpy() for name, value in network().named_parameters()}


@pytest.fixture
def fedavg(tmp_path) -> dict:
    """What a site sends back in FedAvg's first round."""
    return Site(tmp_path, "fedavg").round(weights_of(network(7))).params


def test_fedprox_with_weight_zero_is_fedavg(tmp_path, fedavg, monkeypatch):
    monkeypatch.setattr(client_methods, "get_fedprox_mu", lambda model: 0.0)  # FLARE's own refuses to call that FedProx
    assert_same(Site(tmp_path, "fedprox").round(weights_of(network(7))).params, fedavg)


def test_fedprox_takes_its_weight_from_the_server_and_holds_the_site_there(tmp_path, fedavg):
    start = weights_of(network(7))
    mild, strong = (Site(tmp_path, "fedprox").round(start, fedprox_mu=mu).params for mu in (0.01, 50.0))
    assert 0 < distance(mild, fedavg) < 0.2 * distance(strong, fedavg)
    assert distance(strong, start) < 0.5 * distance(fedavg, start)
    with pytest.raises(ValueError, match="fedprox_mu"):
        Site(tmp_path, "fedprox").round(start)


def test_scaffolds_first_round_is_fedavgs(tmp_path, fedavg):
    answer = Site(tmp_path, "scaffold").round(weights_of(network(7)), scaffold_c_global=zeros())
    assert_same(answer.params, fedavg)


def test_scaffolds_control_is_the_mean_step_and_corrects_the_next_round(tmp_path):
    start, plain, second = weights_of(network(7)), Site(tmp_path, "fedavg"), {}
    for told in ("its own", "none"):
        site = Site(tmp_path, "scaffold")
        answer = site.round(start, scaffold_c_global=zeros())
        control, way = answer.meta[AlgorithmConstants.SCAFFOLD_CTRL_DIFF], sum(site.method.rates)
        assert control.keys() == zeros().keys() and len(site.method.rates) == 2 * len(site.batches)
        for name, value in control.items():
            np.testing.assert_allclose(value, (start[name] - answer.params[name]).numpy() / way, rtol=1e-4, atol=1e-5)
        everybodys = control if told == "its own" else zeros()
        second[told] = site.round(answer.params, scaffold_c_global=everybodys).params
    by_fedavg = plain.round(plain.round(start).params).params
    assert distance(second["its own"], by_fedavg) < 1e-6, "where all go one way, there is nothing to correct"
    assert distance(second["none"], by_fedavg) > 0.01, "the others, who do not move, hold the site back"


def test_scaffolds_mean_is_fedavgs(tmp_path):
    answers = [Site(tmp_path, "scaffold", n).round(weights_of(network(7)), scaffold_c_global=zeros()) for n in (1, 2)]
    answers[1].meta["NUM_STEPS_CURRENT_ROUND"] = 36
    mean = scaffold_aggregate_fn(answers)
    for name, value in mean.params.items():
        expected = (answers[0].params[name].double() + 3 * answers[1].params[name].double()) / 4
        np.testing.assert_allclose(np.asarray(value, np.float64), expected.numpy(), rtol=1e-6, atol=1e-7)


def test_fedopt_with_plain_steps_of_length_one_is_fedavg(fedavg):
    server, start = PTFedOptModelShareableGenerator({"path": "torch.optim.SGD"}), network(7)
    server.model, server.optimizer, server.device = start, torch.optim.SGD(start.parameters(), lr=1.0), CPU
    change = {name: (fedavg[name] - value).numpy() for name, value in weights_of(start).items()}
    weights, updated = server.server_update(change)
    assert set(updated) == {name for name, _ in network().named_parameters()}
    for name in updated:
        torch.testing.assert_close(weights[name], fedavg[name], rtol=0, atol=1e-6)


def test_fedbn_keeps_its_normalisation_and_takes_the_rest(tmp_path):
    site, received = Site(tmp_path, "fedbn"), weights_of(network(7))
    own = batchnorm_tensors(site.model)
    assert sorted(own) == ["1.bias", "1.num_batches_tracked", "1.running_mean", "1.running_var", "1.weight"]
    received |= {name: torch.full_like(received[name], 9) for name in own}
    before = weights_of(site.model)
    site.method.receive(FLModel(params=received))
    for name, value in site.model.state_dict().items():
        assert torch.equal(value, (before if name in own else received)[name]), name
    # What the server holds back need not be there at all.
    trained = site.round({name: value for name, value in received.items() if name not in own}).params
    kept = torch.load(tmp_path / PERSONAL, weights_only=True)["model"]
    assert_same(kept, {name: trained[name] for name in own})


def test_dittos_global_model_is_fedavgs_and_its_own_one_lies_between(tmp_path, fedavg, monkeypatch):
    start, kept = weights_of(network(7)), {}
    for weight in (0.0, 0.1, 100.0):
        monkeypatch.setattr(client_methods.Ditto, "LAMBDA", weight)
        site = Site(tmp_path, "ditto")
        assert_same(site.round(start).params, fedavg)
        kept[weight] = torch.load(tmp_path / PERSONAL, weights_only=True)["model"]
    alone = Site(tmp_path, "fedavg").round(weights_of(network())).params
    assert_same(kept[0.0], alone)
    assert distance(kept[100.0], start) < distance(kept[0.1], start) < distance(kept[0.0], start)


# -- the recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["mednist", "prostate"])
@pytest.mark.parametrize("method", METHODS)
def test_one_setting_changes_the_method_of_either_task(tmp_path, task, method):
    make, settings = {"mednist": (recipe, Settings()), "prostate": (prostate_recipe, ProstateSettings())}[task]
    settings = settings.changed(method=method, rounds=7, fedproxloss_mu=0.25)
    if (task, method) == ("prostate", "fedbn"):
        with pytest.raises(CourseError, match="UNet has no BatchNorm"):
            make(3, settings)
        return
    made = make(3, settings)
    assert type(made) is METHODS[method].recipe
    made.export(str(tmp_path))
    app = tmp_path / task / "app" / "config"
    server, client = (json.loads((app / f"config_fed_{side}.json").read_text()) for side in ("server", "client"))
    paths = {part["id"]: part["path"].rsplit(".", 1)[1] for part in server["components"]}
    workflows = [part["path"].rsplit(".", 1)[1] for part in server["workflows"]]
    controller = {"scaffold": "RecordedScaffold", "fedadam": "ScatterAndGather", "fedavgm": "ScatterAndGather"}
    assert workflows == [controller.get(method, "FedAvg"), "CrossSiteModelEval"]
    if method in ("fedadam", "fedavgm"):
        assert paths["shareable_generator"] == "PTFedOptModelShareableGenerator"
    first = server["workflows"][0]["args"]
    assert first["num_rounds"] == settings.rounds
    assert first.get("fedprox_mu") == (0.25 if method == "fedprox" else None)
    selector = next(part for part in server["components"] if part["id"] == "model_selector")
    assert selector["args"].get("key_metric", "val_accuracy") == ("val_accuracy" if task == "mednist" else "val_dice")
    words = client["executors"][0]["executor"]["args"]["task_script_args"].split()
    told = type(settings).from_words(words)
    assert told == settings.changed(fedproxloss_mu=0.0) if method == "fedprox" else told == settings
    held_back = [name for part in client["task_result_filters"] for name in part["filters"][0]["args"]["exclude_vars"]]
    assert held_back == (batchnorm_tensors(new_model(0)) if method == "fedbn" else [])


def test_fedopt_with_fewer_than_all_sites_is_refused():
    with pytest.raises(CourseError, match="FedOpt, Adam needs every site in each round"):
        recipe(2, Settings(method="fedadam"), at_least=1)


def test_fedprox_without_a_weight_is_refused():
    with pytest.raises(CourseError, match="fedproxloss_mu=0 is FedAvg"):
        recipe(2, Settings(method="fedprox"))


# -- real runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python():
    with warm_python() as program:
        yield program


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two sites of unequal size with few drawings."""
    root = tmp_path_factory.mktemp("methods")
    folder = drawings(root, per_class=8, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_DATA", str(root / "data"))
        patch.setenv("COURSE_RUNS", str(root / "runs"))
        quiet = {"say": lambda line: None}
        yield share_out(2, "counts", [32, 16], data="methods", folder=folder, **quiet)


@pytest.fixture(scope="module")
def run_of(data, python):
    """Method → its run on these data, made once."""
    runs = {}

    def run(method: str) -> Run:
        if method not in runs:
            settings = Settings(data=data, rounds=2, batch_size=8, network="CompactDenseNet", method=method)
            simulator = CourseSimEnv(2, f"methods_{method}")
            simulator.python = python
            mu = {"fedproxloss_mu": 0.5} if method == "fedprox" else {}
            runs[method] = Run(recipe(2, settings.changed(**mu)).execute(simulator).get_result())
        return runs[method]

    return run


def final(run: Run) -> dict:
    return run.weights(run.final_model)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_through(run_of, method):
    run = run_of(method)
    assert run.contributions["accepted"].all() and len(run.curve("val_accuracy")) == 3
    assert run.best_model("val_accuracy").exists()
    # FLARE's aggregator for FedOpt says it of every site that was given no extra weight beside its number of samples.
    assert [line for line in complaints(run.folder) if "Aggregation_weight missing" not in line] == []
    kept = sorted(file.relative_to(run.folder).parts[1] for file in run.folder.glob(f"*/*/**/{PERSONAL}"))
    assert kept == (["site-1", "site-2"] if METHODS[method].personal else [])


@pytest.mark.slow
def test_real_methods_differ_from_fedavg_and_dittos_global_model_does_not(run_of):
    models = {method: final(run_of(method)) for method in METHODS}
    assert_same(models["ditto"], models["fedavg"])
    for method in set(METHODS) - {"ditto", "fedavg"}:
        assert any(not torch.equal(models[method][n], models["fedavg"][n]) for n in models["fedavg"]), method
    first = new_model(0, "CompactDenseNet").state_dict()
    for name in batchnorm_tensors(new_model(0, "CompactDenseNet")):
        assert torch.equal(models["fedbn"][name], first[name]), "a site's normalisation came to the server"


@pytest.mark.slow
def test_every_site_tries_every_sites_model(data, python, run_of):
    settings = Settings(data=data, rounds=2, batch_size=8, network="CompactDenseNet")
    crossed = recipe(2, settings, final_evaluation=False)
    add_cross_site_evaluation(crossed)
    simulator = CourseSimEnv(2, "methods_crossed")
    simulator.python = python
    run = Run(crossed.execute(simulator).get_result())
    assert_same(final(run), final(run_of("fedavg")))
    table = run.cross_site("val_accuracy")
    assert list(table.index) == ["site-1", "site-2", "all"] and list(table.columns) == ["site-1", "site-2"]
    assert table.notna().all(axis=None)
    last = run_of("fedavg").curve("val_accuracy").iloc[-1]
    assert table.loc["all"].to_dict() == pytest.approx(last.to_dict())
    assert not complaints(run.folder)


@pytest.mark.slow
def test_a_real_fedopt_with_plain_steps_of_length_one_is_fedavg(run_of, data, python, monkeypatch):
    plain = {"optimizer_args": {"path": "torch.optim.SGD", "args": {"lr": 1.0}}}
    monkeypatch.setitem(methods.METHODS, "fedavgm", Method("", METHODS["fedavgm"].recipe, plain))
    simulator = CourseSimEnv(2, "methods_plain")
    simulator.python = python
    settings = Settings(data=data, rounds=2, batch_size=8, network="CompactDenseNet", method="fedavgm")
    models = final(Run(recipe(2, settings).execute(simulator).get_result())), final(run_of("fedavg"))
    for name, value in models[1].items():
        if value.is_floating_point():  # the two round BatchNorm's counters, which nothing uses, in other places
            torch.testing.assert_close(models[0][name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_flares_mean_is_the_weighted_mean_of_what_the_sites_returned(tmp_path, python):
    script = tmp_path / "toy_client.py"
    body = """
        torch.manual_seed(int(site[-1]))
        params = {name: torch.randn(value.shape) for name, value in model.params.items()}
        torch.save(params, __file__ + ".returned")
    """
    sized = CLIENT.replace('{"NUM_STEPS_CURRENT_ROUND": 1}', '{"NUM_STEPS_CURRENT_ROUND": 10 ** int(site[-1])}')
    script.write_text(sized.replace("BODY", body.strip()))
    made = FedAvgRecipe(
        name="toy",
        min_clients=3,
        num_rounds=1,
        model={"class_path": "torch.nn.Linear", "args": {"in_features": 40, "out_features": 50}},
        train_script=str(script),
        key_metric="val_accuracy",
    )
    simulator = CourseSimEnv(3, folder=tmp_path / "run")
    simulator.python = python
    run = Run(add_everything(made).execute(simulator).get_result())
    returned = {site: torch.load(next(run.folder.glob(f"*/{site}/**/*.returned"))) for site in run.sites}
    for name, value in final(run).items():
        expected = sum(10.0 ** int(site[-1]) * returned[site][name].double() for site in run.sites) / 1110
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
