"""Settings of a study: every wrong key and value is named, and nothing is lost on the way to a client script."""

import json
from typing import Literal

import pytest

from src.common.errors import CourseError
from src.common.settings import Count, DataName, NotNegative, Positive, StudySettings


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


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lerning_rate": 1}, "unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        ({"xyz": 1}, "unknown key 'xyz'; there are data, rounds,"),
        ({"rounds": 0}, "'rounds' is 0; it must be greater than or equal to 1"),
        ({"batch_size": 1.5}, "'batch_size' is 1.5; it must be a valid integer"),
        ({"learning_rate": float("nan")}, "'learning_rate' is nan; it must be a finite number"),
        ({"learning_rate": 0}, "'learning_rate' is 0; it must be greater than 0"),
        ({"weight": -1}, "'weight' is -1; it must be greater than or equal to 0"),
        ({"loss": "dice_c"}, "'loss' is 'dice_c'; it must be 'dice' or 'dice_ce'"),
        ({"sides": [64, 64, "x"]}, "'sides[2]' is 'x'; it must be a valid integer"),
        ({"sides": [64]}, "'sides' is [64]; it must be a list of 3, like [64, 64, 16]"),
        ({"sides": [1, 2, 3, 4]}, "'sides' is [1, 2, 3, 4]; it must be a list of 3"),
        ({"sides": 64}, "'sides' is 64; it must be a list of 3"),
        ({"augmentation": 2}, "'augmentation' is 2; it must be a valid boolean"),
        ({"data": "../data"}, "'data' is '../data'; it must match pattern"),
        ({"method": "fedsgd"}, "'method' is 'fedsgd'; it must be 'fedavg', 'fedprox',"),
        ({"fedproxloss_mu": 0.5}, "method='fedavg' does not heed fedproxloss_mu=0.5; set it to 0, or method='fedprox'"),
        ({"method": "ditto", "fedproxloss_mu": 1}, "method='ditto' does not heed fedproxloss_mu=1; set it to 0"),
        ({"method": "fedprox"}, "FedProx with fedproxloss_mu=0 is FedAvg; give it a weight, for example 0.01"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_may_be(values, said):
    with pytest.raises(CourseError) as caught:
        Study.checked(values)
    assert said in str(caught.value) and "problems" not in str(caught.value)
    assert caught.value.kind == "its settings are wrong"


def test_all_that_is_wrong_is_named_at_once_with_its_file(tmp_path):
    file = tmp_path / "my settings.json"
    file.write_text(json.dumps({"rounds": 0, "bach_size": 2, "loss": "dice"}))
    with pytest.raises(CourseError) as caught:
        Study.read(file, seed=-1)
    for said in (str(file), "3 problems", "'rounds'", "'batch_size'?", "'seed'"):
        assert said in str(caught.value)


def test_settings_travel_as_a_file_and_some_can_be_replaced(tmp_path):
    settings = Study(data="1e5", learning_rate=3e-4, sides=(32, 32, 32), augmentation=False, loss="dice_ce")
    file = settings.write(tmp_path / "new folder" / "settings.json")
    assert Study.read(file) == settings and settings.epochs == 6
    assert Study.read(file, sides=[48, 48, 16], rounds=5) == settings.changed(sides=(48, 48, 16), rounds=5)
    (tmp_path / "short.json").write_text('{"rounds": 7}', encoding="utf-8")
    assert Study.read(tmp_path / "short.json") == Study(rounds=7)
