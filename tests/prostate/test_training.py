"""The prostate's loss, optimiser and metrics, and predictions on a case's own grid."""

import math

import nibabel as nib
import numpy as np
import pytest
import torch

from data_scripts.nifti import one_geometry
from src.federation.engine import train_for
from src.prostate.evaluation import TASK, evaluate_cases, predict, surfaces
from src.prostate.training import dice, evaluate, gland_probability, make_loss, make_trainer
from src.prostate.transforms import batches, prepare
from tests.tests_support import ball_case
from tests.training_support import CPU, same

SIZES = {"voxel_spacing": (2, 2, 3), "field_of_view": (64, 64), "patch_size": (32, 32, 16)}
TINY = TASK.settings(**SIZES, rounds=2, local_epochs=1)

pytestmark = pytest.mark.usefixtures("one_thread")


class Bright(torch.nn.Module):
    """Calls a voxel gland if it is bright: right for the ball, whatever the grid."""

    def forward(self, image):
        return 20 * (image - 1.0)


@pytest.mark.parametrize("kind", ["dice_ce", "dice_focal", "dice"])
def test_every_loss_prefers_the_right_mask_and_is_finite_without_a_gland(kind):
    loss, label = make_loss(kind), torch.zeros(1, 1, 8, 8, 8)
    label[..., 2:6, 2:6, 2:6] = 1
    assert loss(20 * label - 10, label) < loss(10 - 20 * label, label)
    for logits in (torch.full_like(label, -10), torch.full_like(label, 10)):
        assert torch.isfinite(loss(logits, torch.zeros_like(label)))
    assert loss((20 * label - 10).half(), label.byte()).dtype == torch.float32


def test_the_head_takes_larger_steps_and_both_follow_the_schedule(tmp_path):
    loader = batches(prepare([ball_case(tmp_path)], TINY), TINY, train=True)
    trainer = make_trainer(TASK.new_model(0), loader, TINY, CPU)
    groups = trainer.optimizer.param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.003, 0.03])
    assert sum(value.numel() for value in groups[1]["params"]) == 28
    assert sum(len(group["params"]) for group in groups) == len(list(trainer.network.parameters()))
    assert groups[0]["weight_decay"] == TINY.weight_decay
    train_for(trainer, 2)
    assert [group["lr"] for group in groups] == pytest.approx([0.5 * 0.003, 0.5 * 0.03])


def test_the_metric_is_the_mean_dice_of_the_cases_also_with_an_empty_mask_and_changes_nothing(tmp_path):
    with pytest.warns(UserWarning, match="the mask of without is empty"):
        prepared = prepare([ball_case(tmp_path, "with"), ball_case(tmp_path, "without", radius=0)], TINY)
    kept, model = [case["image"].clone() for case in prepared], TASK.new_model(0)
    scores = [dice(gland_probability(Bright(), case, TINY, CPU) > 0.5, case["label"] > 0) for case in prepared]
    assert scores[0] > 0.9 and scores[1] in (0, 1)
    assert evaluate(Bright(), prepared, TINY, CPU) == {TASK.key_metric: pytest.approx(np.mean(scores))}
    assert evaluate(Bright(), [], TINY, CPU) == {}
    asked = iter([False, True])
    assert evaluate(Bright(), prepared, TINY, CPU, lambda: next(asked)) == {TASK.key_metric: pytest.approx(scores[0])}
    evaluate(model, prepared, TINY, CPU)
    assert same(model, TASK.new_model(0))
    assert all(torch.equal(case["image"], image) for case, image in zip(prepared, kept, strict=True))


def test_cases_are_judged_on_their_own_grid(tmp_path):
    """Here one that is turned and finer than the network's."""
    item = ball_case(tmp_path, codes="PIL", spacing=(0.8, 0.8, 2), shape=(96, 96, 32))
    (mask,) = predict(Bright(), [{"image": item["image"]}], TINY, CPU)  # a prediction needs no mask
    label = nib.load(item["label"])
    assert mask.shape == label.shape and mask.dtype == np.uint8
    table = evaluate_cases(Bright(), [item], TINY, CPU)
    assert list(table.columns) == ["case", "site", "dice", "hd95_mm", "surface_dice_3mm", "missed"]
    (row,) = table.to_dict("records")
    assert (row["case"], row["site"], row["missed"]) == ("case", "site-x", False)
    truth = np.asarray(label.dataobj) > 0
    assert row["dice"] == pytest.approx(2 * (mask & truth).sum() / (mask.sum() + truth.sum()), abs=1e-6)
    assert row["dice"] > 0.93 and row["hd95_mm"] <= 3.0 and row["surface_dice_3mm"] > 0.95
    assert list(evaluate_cases(Bright(), [], TINY, CPU).columns) == list(table.columns)


def test_of_a_prediction_the_largest_piece_is_kept_and_none_is_an_empty_mask_at_no_distance(tmp_path):
    """A second, smaller ball as bright as the gland lies in the same field of view."""
    both = ball_case(tmp_path), ball_case(tmp_path, "stray", centre=(-20.0, 20.0, -15.0), radius=7.0)
    first, second = (nib.load(one["image"]) for one in both)
    brighter = np.maximum(first.get_fdata(), second.get_fdata()).astype(np.float32)
    nib.save(one_geometry(brighter, first.affine), both[0]["image"])
    (mask,) = predict(Bright(), both[:1], TINY, CPU)
    ball, other = (np.asarray(nib.load(one["label"]).dataobj) > 0 for one in both)
    assert mask[ball].mean() > 0.9 and mask[other].sum() == 0
    item, nothing = ball_case(tmp_path), torch.nn.Threshold(1e9, -100.0)
    assert predict(nothing, [item], TINY, CPU)[0].sum() == 0
    (row,) = evaluate_cases(nothing, [item], TINY, CPU).to_dict("records")
    assert (row["dice"], row["surface_dice_3mm"], row["missed"]) == (0, 0, True) and math.isnan(row["hd95_mm"])


def test_masks_have_a_score_and_a_distance_in_millimetres():
    one, other, empty = torch.zeros(3, 1, 20, 20, 10)
    one[:, 5:10, 5:10, 3] = other[:, 5:10, 5:10, 5] = 1
    assert surfaces(one, other, (0.5, 0.5, 4.0)) == pytest.approx((8.0, 0.0))
    other[:, 5:10, 5:10, 3] = 1  # of two parallel planes one is the other mask's, too
    assert surfaces(one, other, (0.5, 0.5, 4.0)) == pytest.approx((8.0, 2 / 3))
    assert surfaces(one, other, (0.5, 0.5, 1.5)) == pytest.approx((3.0, 1.0))
    assert surfaces(empty, empty, (1, 1, 1)) == (0, 1)
    assert [str(one) for one in surfaces(one, empty, (1, 1, 1))] == ["nan", "0.0"]
    assert (dice(empty, empty), dice(one, empty), dice(empty, one), dice(one, one)) == (1, 0, 0, 1)
