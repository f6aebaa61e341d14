"""Settings of a study: every wrong key and value is named, and nothing is lost on the way to a client script."""

import json
from typing import Literal

import pytest

from src.common.errors import CourseError
from src.common.settings import Count, DataName, NotNegative, Positive, StudySettings
from src.common.task import tasks


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


def test_rounds_and_epochs():
    assert Study().epochs == 6
    assert Study().changed(rounds=5).epochs == 10
    with pytest.raises(Exception, match="frozen"):
        Study().rounds = 5


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lerning_rate": 1}, "unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        ({"xyz": 1}, "unknown key 'xyz'; there are data, rounds,"),
        ({"rounds": 0}, "'rounds' is 0; it must be greater than or equal to 1"),
        ({"batch_size": 1.5}, "'batch_size' is 1.5; it must be a valid integer"),
        ({"batch_size": "many"}, "'batch_size' is 'many'; it must be a valid integer"),
        ({"learning_rate": 0}, "'learning_rate' is 0; it must be greater than 0"),
        ({"learning_rate": float("nan")}, "'learning_rate' is nan; it must be a finite number"),
        ({"learning_rate": None}, "'learning_rate' is None; it must be a valid number"),
        ({"weight": -1}, "'weight' is -1; it must be greater than or equal to 0"),
        ({"seed": -1}, "'seed' is -1; it must be greater than or equal to 0"),
        ({"loss": "dice_c"}, "'loss' is 'dice_c'; it must be 'dice' or 'dice_ce'"),
        ({"sides": [64, 64, "x"]}, "'sides[2]' is 'x'; it must be a valid integer"),
        ({"sides": [64]}, "'sides' is [64]; it must be a list of 3, like [64, 64, 16]"),
        ({"sides": [1, 2, 3, 4]}, "'sides' is [1, 2, 3, 4]; it must be a list of 3"),
        ({"sides": 64}, "'sides' is 64; it must be a list of 3"),
        ({"augmentation": 2}, "'augmentation' is 2; it must be a valid boolean"),
        ({"data": "my data"}, "'data' is 'my data'; it must match pattern"),
        ({"data": "../data"}, "'data' is '../data'; it must match pattern"),
        ({"data": 3}, "'data' is 3; it must be a valid string"),
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


def test_a_file_and_what_replaces_it(tmp_path):
    file = tmp_path / "settings.json"
    file.write_text('{"rounds": 7, "sides": [32, 32, 16]}', encoding="utf-8")
    settings = Study.read(file, sides=[48, 48, 16], data="mine")
    assert (settings.rounds, settings.sides, settings.data, settings.batch_size) == (7, (48, 48, 16), "mine", 4)


def test_a_command_line_carries_all_settings():
    settings = Study(data="1e5", learning_rate=3e-4, sides=(32, 32, 32), augmentation=False, loss="dice_ce")
    words = settings.words().split()
    assert words[:4] == ["--data", "1e5", "--rounds", "3"]
    assert Study.from_words(words) == settings
    assert Study.from_words([]) == Study()
    with pytest.raises(CourseError, match="the client's arguments cannot be used: 'rounds' is 0"):
        Study.from_words(["--rounds", "0"])
    with pytest.raises(SystemExit):
        Study.from_words(["--nonsense", "1"])


@pytest.mark.parametrize("name", tasks())
def test_every_task_has_settings_that_travel(name):
    settings = tasks()[name].room("card").Settings()
    assert settings.data == name
    assert type(settings).from_words(settings.words().split()) == settings
