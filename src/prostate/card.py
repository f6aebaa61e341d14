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
    channels=("T2", "ADC"),
    key_metric="val_dice",
    client="monai_prostate_train.py",
    validation=0.22,
    testing=0.33,
    source="Antonelli et al., Nature Communications 2022, doi:10.1038/s41467-022-30695-9; http://medicaldecathlon.com",
    licence="CC BY-SA 4.0",
)

CONFIG_FILE = Path(__file__).parents[1] / "config" / "config_train.json"
"""The settings of the notebook's study, to read with ``Settings.read(CONFIG_FILE)``, to copy and to change."""

STRIDE = 16
"""The U-Net halves a patch four times, so that each side is a multiple of this."""

Side = Annotated[int, Field(ge=STRIDE, multiple_of=STRIDE)]


class Settings(StudySettings):
    """Settings of the prostate study; see :class:`src.common.settings.StudySettings` for the others.

    Attributes:
        weight_decay: of AdamW.
        loss: ``dice_ce``, ``dice_focal`` or ``dice``.
        voxel_spacing: size in mm (x, y, z) of the voxels that the network sees.
        field_of_view: size in mm (x, y) of the box around the image's centre that is kept; 0 keeps all of that axis.
        coil_correction: standard deviation in mm of the blur that takes a coil's falloff out of an image; 0 leaves it in.
        patch_size: voxels (x, y, z) of a training patch and of the sliding window: multiples of 16, one of them 32 or more.
        augmentation: random flips, scale, rotation, bias field, contrast, blur and noise in training.
        amp: mixed precision on a GPU; a CPU always computes in single precision.
    """

    data: DataName = CARD.name
    # The more often models are averaged, the less they walk apart: see notebook 04 and `python -m benchmarks.methods 'prostate-*'`.
    rounds: Count = 30
    local_epochs: Count = 2
    batch_size: Count = 2
    learning_rate: Positive = 3e-3
    network: Literal["UNet"] = "UNet"
    weight_decay: NotNegative = 1e-4
    loss: Literal["dice_ce", "dice_focal", "dice"] = "dice_ce"
    voxel_spacing: tuple[Positive, Positive, Positive] = (2.0, 2.0, 3.0)
    field_of_view: tuple[NotNegative, NotNegative] = (128.0, 128.0)
    coil_correction: NotNegative = 0.0
    patch_size: tuple[Side, Side, Side] = (64, 64, 16)
    augmentation: bool = True
    amp: bool = True

    @field_validator("patch_size")
    @classmethod
    def _more_than_one_voxel_at_the_bottom(cls, sides: tuple[int, int, int]) -> tuple[int, int, int]:
        if max(sides) < 2 * STRIDE:
            raise ValueError(f"be three sides of which at least one is {2 * STRIDE} or more")
        return sides
