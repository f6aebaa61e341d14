"""The prostate's loss, optimiser and metrics, and predictions on a case's own grid."""

import copy
import math

import nibabel as nib
import numpy as np
import pytest
import torch

from src.common.engine import train_for
from src.federation.local import train_each_site_alone, train_locally
from src.prostate.card import CARD, Settings
from src.prostate.training import (
    Loss,
    dice,
    evaluate,
    evaluate_cases,
    gland_probability,
    hausdorff95,
    load_model,
    make_trainer,
    new_model,
    predict,
    to_device,
)
from src.prostate.transforms import batches, prepare
from tests.tests_support import ball_case

CPU = torch.device("cpu")
TINY = Settings(voxel_spacing=(2, 2, 3), field_of_view=(64, 64), patch_size=(32, 32, 16), rounds=2, local_epochs=1)


pytestmark = pytest.mark.usefixtures("one_thread")


class Bright(torch.nn.Module):
    """Calls a voxel gland if it is bright: right for the ball, whatever the grid."""

    def forward(self, image):
        return 20 * (image - 1.0)


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny data")
    cases = [
        ball_case(folder, f"c{i}", centre=(2.0 * i, -3.0, 1.5), scale=10.0**i, seed=i, site="site-1") for i in (0, 1, 3)
    ]
    return {"training": cases[:2], "validation": cases[2:], "testing": []}


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dice_ce", "dice_focal", "dice"])
def test_every_loss_prefers_the_right_mask_and_is_finite_without_a_gland(kind):
    loss = Loss(kind)
    label = torch.zeros(1, 1, 8, 8, 8)
    label[..., 2:6, 2:6, 2:6] = 1
    assert loss(20 * label - 10, label) < loss(10 - 20 * label, label)
    for logits in (torch.full_like(label, -10), torch.full_like(label, 10)):
        assert torch.isfinite(loss(logits, torch.zeros_like(label)))
    assert loss((20 * label - 10).half(), label.byte()).dtype == torch.float32


def test_the_head_takes_larger_steps_and_both_follow_the_schedule(items):
    loader = batches(prepare(items["training"], TINY), TINY, train=True)
    trainer = make_trainer(new_model(0), loader, TINY, CPU)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([0.003, 0.03])
    assert sum(value.numel() for value in trainer.optimizer.param_groups[1]["params"]) == 28
    in_groups = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert in_groups == len(list(trainer.network.parameters()))
    assert trainer.optimizer.param_groups[0]["weight_decay"] == TINY.weight_decay
    train_for(trainer, 2)
    small, large = (group["lr"] for group in trainer.optimizer.param_groups)
    assert (small, large) == pytest.approx((0.5 * 0.003, 0.5 * 0.03))


def test_a_whole_training_moves_every_weight_and_validates_every_round(items):
    trained = train_locally(CARD, items, TINY, "site-1")
    assert (trained.epochs, trained.steps) == (2, 2)
    assert [set(entry) for entry in trained.history] == [{"epoch", "train_loss", "val_dice"}] * 2
    fresh = new_model(TINY.seed).state_dict()
    for name, value in trained.model.state_dict().items():
        assert torch.isfinite(value).all()
        assert value.numel() < 2 or not torch.equal(value, fresh[name]), name


def test_sites_alone_side_by_side_come_out_as_one_by_one(items):
    lists = {name: {**items, "validation": []} for name in ("site-1", "site-2")}
    settings = TINY.changed(rounds=1)
    torch.set_num_threads(2)  # two sites at a time
    together = train_each_site_alone(CARD, lists, settings, side_by_side=True)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    for name, trained in together.items():
        alone = train_locally(CARD, lists[name], settings, name)
        assert trained.history[0]["train_loss"] == pytest.approx(alone.history[0]["train_loss"], rel=1e-3)
    assert together["site-1"].history != together["site-2"].history


def test_first_weights_depend_on_the_seed_alone():
    one, again = new_model(3).state_dict(), to_device(new_model(3), CPU).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    model = load_model(one)
    assert not model.training
    assert all(torch.equal(value, one[name]) for name, value in model.state_dict().items())


# -- evaluation --------------------------------------------------------------------------------------------------------


def test_the_metric_is_the_mean_dice_of_the_cases(tmp_path):
    prepared = prepare([ball_case(tmp_path, "a"), ball_case(tmp_path, "b", radius=8.0)], TINY)
    scores = [dice(gland_probability(Bright(), case, TINY, CPU) > 0.5, case["label"] > 0) for case in prepared]
    assert scores[0] > 0.9
    assert evaluate(Bright(), prepared, TINY, CPU) == {CARD.key_metric: pytest.approx(np.mean(scores))}
    assert evaluate(Bright(), [], TINY, CPU) == {}
    asked = iter([False, True])
    assert evaluate(Bright(), prepared, TINY, CPU, lambda: next(asked)) == {CARD.key_metric: pytest.approx(scores[0])}


def test_an_empty_validation_mask_does_not_poison_the_mean(tmp_path):
    cases = [ball_case(tmp_path, "with"), ball_case(tmp_path, "without", radius=0)]
    with pytest.warns(UserWarning, match="the mask of without is empty"):
        prepared = prepare(cases, TINY)
    both = evaluate(Bright(), prepared, TINY, CPU)["val_dice"]
    first = evaluate(Bright(), prepared[:1], TINY, CPU)["val_dice"]
    assert both in (pytest.approx(first / 2), pytest.approx((first + 1) / 2))


def test_evaluation_changes_nothing(items):
    model = new_model(0)
    before = copy.deepcopy(model.state_dict())
    prepared = prepare(items["validation"], TINY)
    kept = prepared[0]["image"].clone()
    evaluate(model, prepared, TINY, CPU)
    assert torch.equal(prepared[0]["image"], kept)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("codes", "spacing", "shape"), [("RAS", (1, 1, 3), (80, 80, 20)), ("PIL", (0.8, 0.8, 2), (96, 96, 32))]
)
def test_cases_are_judged_on_their_own_grid(tmp_path, codes, spacing, shape):
    item = ball_case(tmp_path, codes=codes, spacing=spacing, shape=shape)
    mask = predict(Bright(), [item], TINY, CPU)[0]
    label = nib.load(item["label"])
    assert mask.shape == label.shape and mask.dtype == np.uint8
    table = evaluate_cases(Bright(), [item], TINY, CPU)
    assert list(table.columns) == ["case", "site", "dice", "hd95_mm", "missed"]
    assert table.loc[0, "case"] == "case" and table.loc[0, "site"] == "site-x"
    truth = np.asarray(label.dataobj) > 0
    assert table.loc[0, "dice"] == pytest.approx(2 * (mask & truth).sum() / (mask.sum() + truth.sum()), abs=1e-6)
    assert table.loc[0, "dice"] > 0.93
    assert table.loc[0, "hd95_mm"] <= 3.0 and not table.loc[0, "missed"]


def test_no_cases_give_an_empty_table_with_its_columns():
    table = evaluate_cases(Bright(), [], TINY, CPU)
    assert table.empty and list(table.columns) == ["case", "site", "dice", "hd95_mm", "missed"]


def test_a_prediction_needs_no_mask(tmp_path):
    item = ball_case(tmp_path)
    with_mask = predict(Bright(), [item], TINY, CPU)[0]
    np.testing.assert_array_equal(predict(Bright(), [{"image": item["image"]}], TINY, CPU)[0], with_mask)


def test_of_a_prediction_the_largest_piece_is_kept(tmp_path):
    """A second, smaller ball as bright as the gland lies in the same field of view."""
    item, stray = ball_case(tmp_path), ball_case(tmp_path, "stray", centre=(-20.0, 20.0, -15.0), radius=7.0)
    first, second = (nib.load(one["image"]) for one in (item, stray))
    nib.save(
        nib.Nifti1Image(
            np.maximum(first.get_fdata(), second.get_fdata()).astype(np.float32), first.affine, first.header
        ),
        item["image"],
    )
    mask, ball, other = (
        predict(Bright(), [item], TINY, CPU)[0],
        *(np.asarray(nib.load(one["label"]).dataobj) > 0 for one in (item, stray)),
    )
    assert mask[ball].mean() > 0.9
    assert mask[other].sum() == 0


def test_no_gland_found_is_an_empty_mask_and_costs_the_longest_distance(tmp_path):
    class Nothing(torch.nn.Module):
        def forward(self, image):
            return image - 100

    item = ball_case(tmp_path)  # of 80 × 80 × 20 voxels of 1 × 1 × 3 mm
    assert predict(Nothing(), [item], TINY, CPU)[0].sum() == 0
    (row,) = evaluate_cases(Nothing(), [item], TINY, CPU).to_dict("records")
    assert (row["dice"], row["missed"]) == (0, True)
    assert row["hd95_mm"] == pytest.approx((80**2 + 80**2 + 60**2) ** 0.5)


def test_distance_is_in_millimetres_of_the_grid():
    one, other = torch.zeros(1, 20, 20, 10), torch.zeros(1, 20, 20, 10)
    one[:, 5:10, 5:10, 3] = 1
    other[:, 5:10, 5:10, 5] = 1
    assert hausdorff95(one, other, (0.5, 0.5, 4.0)) == pytest.approx(8.0)


def test_empty_masks_have_a_score():
    empty, full = torch.zeros(1, 8, 8, 8), torch.ones(1, 8, 8, 8)
    assert (dice(empty, empty), dice(full, empty), dice(empty, full), dice(full, full)) == (1, 0, 0, 1)
    assert hausdorff95(empty, empty, (1, 1, 1)) == 0
    assert math.isnan(hausdorff95(full, empty, (1, 1, 1)))
