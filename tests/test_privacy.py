"""Attacks and defences: each attack on a few images, and what the stored reports of the grid must hold."""

import functools

import numpy as np
import pytest
import torch
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy

from benchmarks import attacks, privacy
from benchmarks.attacks import Imprint, invert, label_of, membership, read_imprint, recovered, sgd_change, shrunken
from benchmarks.defences import DEFENCES, PLAIN, TrimmedMean, clipped_mean, filtered, sent
from benchmarks.privacy import RESULTS, SEEDS, TUNING_SEED, Cell, grid, read, table
from data_scripts.phantoms import mednist as phantoms
from src.densenet import DenseNet121, SmallNet
from src.federation.aggregation import SampleWeightedMean
from src.mednist.transforms import prepare
from tests.tests_support import REFERENCE

pytestmark = pytest.mark.usefixtures("one_thread")

ONE_STEP = PLAIN.changed(rounds=100, batch_size=32)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Some drawings of each class, ``(48, 1, 64, 64)``, and their labels, in an order by chance."""
    folder = tmp_path_factory.mktemp("pictures")
    phantoms.write(folder, 8, 17)
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    items = [{"image": str(file), "label": k} for k, path in enumerate(classes) for file in sorted(path.glob("*.jpeg"))]
    images, labels = privacy.tensors(prepare(items, PLAIN))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    return images[order], labels[order]


# -- live --------------------------------------------------------------------------------------------------------------


def test_what_an_attacker_imitates_is_what_the_sites_own_trainer_sends(pictures):
    images, labels = (one[:8] for one in pictures)
    settings = ONE_STEP.changed(batch_size=4, rounds=10**6)  # the rate hardly falls
    arrived = sent(SmallNet(0), images[:1], labels[:1], settings.changed(local_epochs=3))
    own = sgd_change(SmallNet(0), images[:1], labels[:1], settings.learning_rate, steps=3)
    assert all(torch.allclose(arrived[name], own[name], atol=1e-6) for name in arrived)
    arrived, own = (
        sent(SmallNet(0), images, labels, settings),
        sgd_change(SmallNet(0), images, labels, settings.learning_rate, 2, batch=4),
    )
    assert all(torch.allclose(arrived[name], own[name], atol=1e-6) for name in arrived)


def test_one_image_and_its_label_are_read_from_a_change_and_not_from_a_private_one(pictures):
    image, label = (one[:1] for one in pictures)
    change = sent(SmallNet(0), image, label, ONE_STEP)
    assert label_of(change) == label.item()
    assert recovered(invert(SmallNet(0), change, label), image).item() >= 0.7
    private = sent(SmallNet(0), image, label, ONE_STEP.changed(dp_clip=1.0, dp_noise=1.0))
    assert recovered(invert(SmallNet(0), private, label, steps=100), image).item() <= 0.1


def test_who_knows_where_a_change_is_cut_off_reads_it_all_the_same(pictures):
    image, label = (one[:1] for one in pictures)
    clip, change = DEFENCES["clip"], sent(SmallNet(0), image, label, ONE_STEP)
    arrived = filtered(clip.filter(), change, 1)
    knowing = recovered(invert(SmallNet(0), arrived, label, functools.partial(clip.knows, arrived)), image)
    assert knowing.item() > 0.6 and knowing > 0.2 + recovered(invert(SmallNet(0), arrived, label), image)


def test_flares_filter_is_applied_as_flare_applies_it(pictures):
    change = sent(SmallNet(0), pictures[0][:1], pictures[1][:1], ONE_STEP)
    left = filtered(PercentilePrivacy(90, gamma=1.0), change, 1)
    zeros = np.mean(np.concatenate([(one == 0).flatten() for one in left.values()]))
    kept = {name: value != 0 for name, value in left.items()}
    assert zeros == pytest.approx(0.9, abs=0.01)
    assert all(torch.allclose(left[name][kept[name]], change[name][kept[name]]) for name in change)
    assert filtered(DEFENCES["first"].filter(), change, 1).keys() == change.keys() - {"0.weight", "0.bias"}


@pytest.mark.parametrize(("kind", "by", "least"), [(torch.optim.SGD, 1.0, 8), (torch.optim.Adam, 1e-7, 7)])
def test_an_imprint_reads_a_batch(pictures, kind, by, least):
    images, labels = pictures
    model = Imprint(DenseNet121(seed=0), images[8:].mean(dim=(1, 2, 3)), bins=1024)
    shrunken(model.network, "class_layers.out", by)
    settings = ONE_STEP.changed(batch_size=8, rounds=1, learning_rate=1e-3)
    read = read_imprint(sent(model, images[:8], labels[:8], settings, kind)).clamp(0, 1)
    assert len(read) >= 8 and int((recovered(read, images[:8]) >= 0.99).sum()) >= least


def test_membership_is_the_area_under_its_own_curve():
    found = membership([0.1, 0.2, 0.9], [0.3, 1.0, 2.0])
    assert found["auc"] == pytest.approx(8 / 9) == pytest.approx(np.trapezoid(found["true"], found["false"]))
    assert membership([1, 2], [1, 2])["auc"] == pytest.approx(0.5)


def test_similarity_is_one_for_the_same_image_and_images_may_come_in_any_order(pictures):
    images, labels = (one[:4] for one in pictures)
    assert recovered(images.flip(0), images).tolist() == pytest.approx([1.0] * 4)
    known = attacks.baselines(images[:1], images, images[labels == labels[0]])
    assert known["nearest public"] == pytest.approx(1.0) and known["class mean"] <= 1


def test_robust_rules_are_what_they_are_called():
    rows = np.array([[1.0, 2, 3], [2, 3, 4], [3, 4, 5], [100, -100, 0]])
    assert TrimmedMean()._combine(rows).tolist() == [2.5, 2.5, 3.5]
    first = {name: value.numpy() for name, value in SmallNet(0).state_dict().items()}
    rule, size = clipped_mean(0)(), np.sqrt(sum(value.size for value in first.values()))
    for step in (1e-4, 2e-4, 1e3):
        params = {name: value + np.float32(step) for name, value in first.items()}
        rule.accept_model(FLModel(params=params, meta={FLMetaKey.NUM_STEPS_CURRENT_ROUND: 1, "client_name": str(step)}))
    change = np.sqrt(sum(np.square(value - first[name]).sum() for name, value in rule.aggregate_model().params.items()))
    assert isinstance(rule, SampleWeightedMean) and change == pytest.approx((1e-4 + 2e-4 + 2e-4) / 3 * size, rel=0.01)


def test_the_grid_has_each_cell_once_and_none_that_settings_were_chosen_on():
    cells = [*map(str, grid())]
    assert len({*cells}) == len(cells) and TUNING_SEED not in SEEDS and str(Cell("inversion", "one", 0)) in cells


# -- stored ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored():
    """``stored(part, case, row)``: numbers of all seeds."""
    results = read(RESULTS)
    missing = {str(cell) for cell in grid()} - {path.stem for path in RESULTS.glob("*.json")}
    assert not missing, f"python -m benchmarks.privacy {' '.join(sorted(missing)[:3])} …"
    assert not table(results).isna().any(axis=None)

    def numbers(part, case, row="accuracy"):
        return results.query("part == @part and case == @case and row == @row")["value"].to_numpy()

    return numbers


def test_one_image_is_read_and_a_private_one_is_not(stored):
    found = stored("inversion", "one", "found").reshape(len(SEEDS), 10)
    assert ((found >= 0.7).sum(axis=1) >= 9).all() and (np.median(found, axis=1) >= 0.9).all()
    assert stored("defence", "epsilon8", "naive").max() <= 0.1


def test_an_imprint_reads_batches_and_a_shrunken_layer_undoes_adam(stored):
    by_seed = {
        case: (stored("imprint", case, "found") >= 0.99).reshape(len(SEEDS), -1).sum(axis=1)
        for case in privacy.IMPRINTS
    }
    assert (by_seed["sgd8"] == 8).all() and (by_seed["sgd32"] >= 24).all()
    assert (by_seed["adam16"] == 0).all() and (by_seed["shrunken16"] >= 14).all()


def test_who_knows_the_clip_gets_around_it(stored):
    naive, knowing = stored("defence", "clip", "naive"), stored("defence", "clip", "knowing")
    assert np.median(knowing) > 0.6 > 0.5 > np.median(naive)


def test_the_price_of_privacy_is_bounded(stored):
    assert stored("defence", "none").mean() - stored("defence", "epsilon8").mean() <= 0.08
    assert stored("defence", "epsilon3").mean() < stored("defence", "epsilon8").mean()


def test_unusual_patients_are_recognised_unless_training_was_private(stored):
    assert stored("membership", "plain-wrong", "auc, unusual").min() >= 0.9
    assert stored("membership", "epsilon8-wrong", "auc, unusual").max() <= 0.7


def test_one_site_breaks_the_mean_and_not_the_median(stored):
    assert stored("malicious", "scaled-mean").max() <= 0.3 and stored("malicious", "scaled-median").min() >= 0.85
    for rule in ("trimmed", "clipped"):
        assert stored("malicious", f"scaled-{rule}").min() > stored("malicious", "scaled-mean").max()


@pytest.mark.skipif(not (REFERENCE / "mednist_600").is_dir(), reason="the sample of real images is not here")
def test_real_images_are_read_too():
    found = read(RESULTS / "real").query("part == 'inversion' and case == 'one' and row == 'found'")
    assert (found.groupby("seed")["value"].agg(lambda one: (one >= 0.7).sum()) >= 9).all() and found[
        "value"
    ].median() >= 0.9
