"""Private training: what it promises is what it computes, and it is the course's training all the same."""

import math
import sys
import warnings

import numpy as np
import pytest
import torch
from ignite.engine import Events
from scipy.optimize import brentq
from scipy.stats import norm

from benchmarks.federate import federate
from data_scripts.mednist_sites import share_out
from data_scripts.together import read_sites
from deploy.simulator import CourseSimEnv
from src.federation.engine import cosine, train_for
from src.federation.private import DELTA, make_private, spent
from src.federation.recipes import client_recipe
from src.federation.run import Run
from src.federation.site import STATE, Site
from src.mednist.card import Settings
from src.mednist.training import TASK
from src.prostate.card import Settings as ProstateSettings
from src.prostate.training import TASK as PROSTATE
from tests.runs_support import drawings
from tests.tests_support import ball_case, course_error

pytest.importorskip("opacus", reason="an extra of the course: pip install opacus")
pytestmark = pytest.mark.usefixtures("one_thread")

PRIVATE = Settings(network="SmallNet", rounds=2, batch_size=4, dp_clip=1.0, dp_noise=1.0, data="private")
TINY = {
    "voxel_spacing": (2, 2, 3),
    "field_of_view": (64, 64),
    "patch_size": (32, 32, 16),
    "rounds": 1,
    "local_epochs": 1,
}


@pytest.fixture(scope="module")
def datalists(tmp_path_factory):
    root = tmp_path_factory.mktemp("private")
    drawings(root, per_class=4, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_DATA", str(root))
        share_out(["site-1", "site-2"], data="private", folder=root / "MedNIST", how="even", say=lambda line: None)
        yield read_sites("private")


# -- ε -----------------------------------------------------------------------------------------------------------------


class Ledger:  # what the accountant of some steps holds
    def __new__(cls, *history):
        from opacus.accountants import PRVAccountant

        made = PRVAccountant()
        made.history = [*history]
        return made


def exact(noise: float, steps: int) -> float:
    """ε of ``steps`` releases of a whole sum with Gaussian noise: Balle and Wang, ICML 2018, equation 6."""
    mu = math.sqrt(steps) / noise
    delta = lambda e: norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu)  # noqa: E731
    return brentq(lambda e: delta(e) - DELTA, 1e-9, 90)


def by_fourier(noise: float, rate: float, steps: int) -> float:
    """ε of ``steps`` releases of a sum over a Poisson sample: the loss of one step on a grid, convolved with itself."""
    width, half = 1e-4, 2**19
    x = np.linspace(-12 * noise, 12 * noise + 1, 2_000_001)
    without = norm.pdf(x, 0, noise)
    with_it = (1 - rate) * without + rate * norm.pdf(x, 1, noise)
    loss = np.log1p(rate * np.expm1((2 * x - 1) / (2 * noise**2)))
    found = []
    for density, one in ((with_it, loss), (without, -loss)):
        cells = np.clip(np.rint(one / width).astype(int) + half, 0, 2 * half - 1)
        mass = np.bincount(cells, density / density.sum(), 2 * half)
        total = np.fft.fftshift(np.fft.ifft(np.fft.fft(np.fft.ifftshift(mass)) ** steps).real)
        values = (np.arange(2 * half) - half) * width
        delta = lambda e, v=values, t=total: t[v > e] @ -np.expm1(e - v[v > e])  # noqa: E731
        found.append(brentq(lambda e, of=delta: of(e) - DELTA, 0, values[-1]))
    return max(found)


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (2.0, 10), (5.0, 100), (20.0, 4)])
def test_epsilon_is_that_of_the_exact_formula_where_every_image_is_in_every_step(noise, steps):
    assert spent(Ledger((noise, 1.0, steps))) == pytest.approx(exact(noise, steps), rel=0.01)


@pytest.mark.parametrize(
    ("noise", "rate", "steps"), [(1.0, 0.05, 400), (0.8, 0.02, 1000), (3.0, 0.05, 20), (1.5, 0.25, 60)]
)
def test_epsilon_is_that_of_an_own_convolution_where_images_are_sampled(noise, rate, steps):
    assert spent(Ledger((noise, rate, steps))) == pytest.approx(by_fourier(noise, rate, steps), rel=0.02)


def test_without_noise_nothing_is_promised_and_much_spent_is_a_bound_without_a_warning():
    assert spent(Ledger()) == 0 and spent(Ledger((0.0, 0.5, 3))) == math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 1000 < spent(Ledger((0.01, 1.0, 1))) < math.inf
        assert spent(Ledger((1.0, 1.0, 1))) < spent(Ledger((1.0, 1.0, 2)))


# -- steps -------------------------------------------------------------------------------------------------------------


def test_each_image_counts_for_no_more_than_the_clip_and_the_noise_is_what_was_asked_for(datalists):
    one = {"training": datalists["site-1"]["training"][:1], "validation": []}
    settings = PRIVATE.changed(dp_noise=0.0, dp_clip=0.01, batch_size=1)

    def change(settings):
        site = Site(TASK, settings, one, "site-1")
        site.trainer.optimizer.original_optimizer = torch.optim.SGD(site.model.parameters(), lr=1.0)
        flat = lambda: torch.cat([one.detach().flatten() for one in site.model.parameters()])  # noqa: E731
        before = flat()
        site.train()
        return flat() - before

    assert change(settings).norm() == pytest.approx(0.01, rel=1e-3)
    noise = change(settings.changed(dp_noise=50.0)), change(settings.changed(dp_noise=50.0))
    assert noise[0].std() == pytest.approx(0.5, rel=0.02)
    assert (
        abs(torch.corrcoef(torch.stack(noise))[0, 1]) < 0.03
    )  # the study's seed, which the server knows, gives it nothing


def test_an_empty_batch_is_a_step_of_noise_and_never_a_nan_not_even_as_the_first_one(datalists):
    few = {"training": datalists["site-1"]["training"][:3], "validation": []}
    for seed in range(4):
        site = Site(TASK, PRIVATE.changed(batch_size=1, rounds=10, seed=seed), few, "site-1")
        sizes = []
        site.trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine, to=sizes: to.append(len(engine.state.batch["label"]))
        )
        assert all(math.isfinite(site.train()) for _ in range(10))
        assert 0 in sizes and len(sizes) == 30 == site.accountant.history[0][2]
    assert all(torch.isfinite(value).all() for value in site.model.state_dict().values())


def test_a_private_unet_gives_each_patch_the_gradient_that_it_has_alone(tmp_path):
    settings = ProstateSettings(**TINY, dp_clip=1.0, augmentation=False)
    cases = [ball_case(tmp_path, "one"), ball_case(tmp_path, "two", radius=8.0)]
    site = Site(PROSTATE, settings, {"training": cases, "validation": []}, "site-1")
    names = list(PROSTATE.new_model(0).state_dict())
    assert list(site.model.state_dict()) == names
    loader = PROSTATE.batches(site.training, settings.changed(dp_clip=0.0), train=True)
    batch = next(iter(loader))

    def gradients(which):
        site.trainer.optimizer.zero_grad()
        loss = site.trainer.loss_function(site.model.train()(batch["image"][which]), batch["label"][which])
        loss.backward()
        return torch.cat([one.grad_sample.flatten(1) for one in site.model.parameters()], dim=1)

    together, alone = gradients(slice(2)), torch.cat([gradients(slice(1)), gradients(slice(1, 2))])
    assert torch.allclose(together, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))
    assert math.isfinite(site.train())


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedadam"])
def test_the_trainer_stays_the_courses_own_with_its_names_and_its_falling_rate(datalists, method):
    settings = PRIVATE.changed(method=method)
    trained = federate(TASK, datalists, settings)
    assert list(trained.model.state_dict()) == list(TASK.new_model(0, "SmallNet").state_dict())
    site = Site(TASK, settings, datalists["site-1"], "site-1")
    train_for(site.trainer, 1, done=1)
    steps = site.trainer.state.epoch_length
    due = settings.learning_rate * cosine((2 * steps - 1) / (2 * steps))
    assert site.trainer.optimizer.param_groups[0]["lr"] == pytest.approx(due)
    assert site.evaluate().keys() == {"val_accuracy", "val_loss"}


def test_what_cannot_be_private_is_refused_with_a_sentence(datalists, monkeypatch):
    course_error("dp_noise=1 hides nothing without a dp_clip", Settings, dp_noise=1.0)
    course_error("ditto adds its pull to the gradient that dp_clip replaces", Settings, dp_clip=1.0, method="ditto")
    course_error(
        "121 of its layers, such as BatchNorm, mix",
        Site,
        TASK,
        PRIVATE.changed(network="DenseNet121"),
        datalists["site-1"],
        "s",
    )
    monkeypatch.setitem(sys.modules, "opacus", None)
    monkeypatch.delitem(sys.modules, "opacus")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    course_error("pip install opacus", make_private, None, PRIVATE)


def test_what_was_spent_outlives_the_process(datalists, tmp_path):
    parts, settings = datalists["site-1"], PRIVATE.changed(rounds=3)
    site = Site(TASK, settings, parts, "site-1", kept=tmp_path)
    site.train(0)
    site.remember(0)
    again = Site(TASK, settings, parts, "site-1", kept=tmp_path)
    again.recall()
    assert (tmp_path / STATE).is_file() and again.accountant.history == site.accountant.history != []
    again.train(1)
    again.remember(1)
    assert again.meta()["epsilon"] > site.meta()["epsilon"] > 0


@pytest.mark.slow
def test_a_private_run_of_flare_tells_the_server_what_each_site_has_spent(datalists, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
    run = Run(client_recipe(TASK, 2, PRIVATE).execute(CourseSimEnv(["site-1", "site-2"])).get_result())
    curve = run.curve("epsilon")
    assert curve.shape == (2, 2) and (curve.iloc[1] > curve.iloc[0]).all() and (curve > 0).all(axis=None)
