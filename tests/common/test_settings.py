"""Settings of a study: one file and one class that agree, every wrong key and value is named, and nothing is lost on the way."""

import json
from typing import Literal

import pytest

from src.common.errors import CourseError
from src.common.settings import Count, DataName, NotNegative, Positive, StudySettings
from src.prostate.card import CONFIG_FILE, Settings


class Study(StudySettings):
    data: DataName = "toy"
    rounds: Count = 3
    local_epochs: Count = 2
    batch_size: Count = 4
    learning_rate: Positive = 1e-3
    network: str = "Net"
    loss: Literal["dice", "dice_ce"] = "dice"
    sides: tuple[int, int, int] = (64, 64, 16)
    weight: NotNegative = 0.0
    augmentation: bool = True


def test_the_prostate_s_file_holds_exactly_its_defaults():
    assert json.loads(CONFIG_FILE.read_text(encoding="utf-8")) == json.loads(Settings().model_dump_json())
    assert Settings.read(CONFIG_FILE) == Settings()
    assert (CONFIG_FILE.parent.name, CONFIG_FILE.name) == ("config", "config_train.json")


@pytest.mark.parametrize(
    ("study", "values", "said"),
    [
        (Study, {"rounds": 0}, "'rounds' is 0; it must be greater than or equal to 1"),
        (Study, {"learning_rate": float("nan")}, "'learning_rate' is nan; it must be a finite number"),
        (Study, {"loss": "dice_c"}, "'loss' is 'dice_c'; it must be 'dice' or 'dice_ce'"),
        (Study, {"sides": [64, 64, "x"]}, "'sides[2]' is 'x'; it must be a valid integer"),
        (Study, {"sides": [64]}, "'sides' is [64]; it must be a list of 3, like [64, 64, 16]"),
        (Study, {"sides": [1, 2, 3, 4]}, "'sides' is [1, 2, 3, 4]; it must be a list of 3"),
        (Study, {"sides": 64}, "'sides' is 64; it must be a list of 3"),
        (Study, {"data": "../data"}, "'data' is '../data'; it must match pattern"),
        (Study, {"method": "fedsgd"}, "'method' is 'fedsgd'; it must be 'fedavg', 'fedprox',"),
        (Study, {"fedproxloss_mu": 0.5}, "method='fedavg' does not heed fedproxloss_mu=0.5; set it to 0, or method='fedprox'"),
        (Study, {"method": "ditto", "fedproxloss_mu": 1}, "method='ditto' does not heed fedproxloss_mu=1; set it to 0"),
        (Study, {"method": "fedprox"}, "FedProx with fedproxloss_mu=0 is FedAvg; give it a weight, for example 0.01"),
        (Settings, {"voxel_size": [1, 1, 1]}, "did you mean 'voxel_spacing'?"),
        (Settings, {"voxel_spacing": [2, 0, 3]}, "'voxel_spacing[1]' is 0; it must be greater than 0"),
        (Settings, {"voxel_spacing": [2, 2, float("inf")]}, "'voxel_spacing[2]' is inf; it must be a finite number"),
        (Settings, {"field_of_view": [128, -1]}, "'field_of_view[1]' is -1; it must be greater than or equal to 0"),
        (Settings, {"patch_size": [64, 64, 20]}, "'patch_size[2]' is 20; it must be a multiple of 16"),
        (Settings, {"patch_size": [64, 64, 0]}, "'patch_size[2]' is 0; it must be greater than or equal to 16"),
        (Settings, {"patch_size": [16, 16, 16]}, "it must be three sides of which at least one is 32 or more"),
        (Settings, {"loss": "dice_c"}, "'loss' is 'dice_c'; it must be 'dice_ce', 'dice_focal' or 'dice'"),
        (Settings, {"network": "DenseNet121"}, "'network' is 'DenseNet121'; it must be 'UNet'"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_is_named_with_what_may_be(study, values, said):
    with pytest.raises(CourseError) as caught:
        study(**values)
    assert said in str(caught.value) and "problems" not in str(caught.value)
    assert caught.value.kind == "its settings are wrong"


def test_all_that_is_wrong_is_listed_at_once_with_its_file(tmp_path):
    file = tmp_path / "my settings.json"
    file.write_text(json.dumps({"rounds": 0, "bach_size": 2, "loss": "dice"}))
    with pytest.raises(CourseError) as caught:
        Study.read(file, seed=-1)
    for said in (f"{file} cannot be used, 3 problems:\n  - ", "\n  - 'rounds' is 0", "'batch_size'?", "'seed'"):
        assert said in str(caught.value)


def test_settings_travel_as_a_file_and_some_can_be_replaced(tmp_path):
    settings = Study(data="1e5", learning_rate=3e-4, sides=(32, 32, 32), augmentation=False, loss="dice_ce")
    file = settings.write(tmp_path / "new folder" / "settings.json")
    assert Study.read(file) == settings and settings.epochs == 6
    assert Study.read(file, sides=[48, 48, 16], rounds=5) == settings.changed(sides=(48, 48, 16), rounds=5)
    (tmp_path / "short.json").write_text('{"rounds": 7}', encoding="utf-8")
    assert Study.read(tmp_path / "short.json") == Study(rounds=7)
