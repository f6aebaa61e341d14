"""Prostate: T2 volumes of the Medical Segmentation Decathlon with an outline of the whole gland."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from src.common.settings import Count, DataName, NotNegative, Positive, StudySettings
from src.common.task import Card

CARD = Card(
    name="prostate",
    title="Prostate MRI",
    labels=("prostate",),
    key_metric="val_dice",
    client="monai_prostate_train.py",
    validation=0.22,
    testing=0.33,
    source="Antonelli et al., Nature Communications 2022, doi:10.1038/s41467-022-30695-9; http://medicaldecathlon.com",
    licence="CC BY-SA 4.0",
    outlines=True,
)

CONFIG_FILE = Path(__file__).parents[1] / "config" / "config_train.json"  # the notebook's study, to copy and to change

STRIDE = 16  # the U-Net halves a patch four times, so that each side is a multiple of this
Side = Annotated[int, Field(ge=STRIDE, multiple_of=STRIDE, strict=True)]


class Settings(StudySettings):
    """Settings of the prostate study; see :class:`src.common.settings.StudySettings` for the first ones' meaning."""

    data: DataName = CARD.name
    # The more often models are averaged, the less they walk apart, the more is sent: `python -m benchmarks.prostates`.
    rounds: Count = 30
    local_epochs: Count = 2
    batch_size: Count = 2
    learning_rate: Positive = 3e-3
    network: Literal["UNet"] = "UNet"
    weight_decay: NotNegative = 1e-4  # of AdamW
    loss: Literal["dice_ce", "dice_focal", "dice"] = "dice_ce"
    voxel_spacing: tuple[Positive, Positive, Positive] = (2.0, 2.0, 3.0)  # mm (x, y, z) that the network sees
    field_of_view: tuple[NotNegative, NotNegative] = (128.0, 128.0)  # mm (x, y) kept around the image's centre; 0: all
    patch_size: tuple[Side, Side, Side] = (64, 64, 16)  # voxels of a training patch and of the sliding window
    augmentation: bool = True  # random flips, scale, rotation, bias field, contrast, blur and noise in training
    amp: bool = True  # mixed precision on a GPU; a CPU always computes in single precision

    @field_validator("patch_size")
    @classmethod
    def _more_than_one_voxel_at_the_bottom(cls, sides: tuple[int, int, int]) -> tuple[int, int, int]:
        if max(sides) < 2 * STRIDE:
            raise ValueError(f"be three sides of which at least one is {2 * STRIDE} or more")
        return sides
