"""MedNIST: six classes of grey 64×64 pictures, one folder of JPEG files a class."""

from typing import Literal

from src.common.settings import Count, DataName, Positive, StudySettings
from src.common.task import Card

CARD = Card(
    name="mednist",
    title="MedNIST",
    labels=("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT"),
    key_metric="val_accuracy",
    client="monai_mednist_train.py",
    validation=0.1,
    testing=0.2,
    source="Dr. Bradley J. Erickson, Mayo Clinic; https://docs.monai.io/en/stable/apps.html#monai.apps.MedNISTDataset",
    licence="CC BY-SA 4.0",
)

SIZE = 64  # pixels along a side


class Settings(StudySettings):
    """Settings of the MedNIST study; see :class:`src.common.settings.StudySettings` for their meaning."""

    data: DataName = CARD.name
    rounds: Count = 5
    local_epochs: Count = 1
    batch_size: Count = 16
    learning_rate: Positive = 1e-3
    network: Literal["DenseNet121", "CompactDenseNet", "SmallNet"] = "DenseNet121"  # or few weights, for many runs
