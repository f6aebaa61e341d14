"""The settings of the prostate study: one file and one class that agree, and a word for every mistake."""

import json

import pytest

from src.common.errors import CourseError
from src.prostate.card import CONFIG_FILE, Settings


def test_the_file_holds_exactly_the_defaults():
    written = json.loads(CONFIG_FILE.read_text(encoding="utf-8"))
    assert written == json.loads(Settings().model_dump_json())
    assert Settings.read(CONFIG_FILE) == Settings()
    assert (CONFIG_FILE.parent.name, CONFIG_FILE.name) == ("config", "config_train.json")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"voxel_size": [1, 1, 1]}, "did you mean 'voxel_spacing'?"),
        ({"dataset_base_dir": "/data"}, "unknown key 'dataset_base_dir'"),
        ({"voxel_spacing": [2, 2]}, "it must be a list of 3, like [2.0, 2.0, 3.0]"),
        ({"voxel_spacing": [2, 0, 3]}, "'voxel_spacing[1]' is 0; it must be greater than 0"),
        ({"voxel_spacing": [2, 2, float("inf")]}, "'voxel_spacing[2]' is inf; it must be a finite number"),
        ({"field_of_view": [128, -1]}, "'field_of_view[1]' is -1; it must be greater than or equal to 0"),
        ({"patch_size": [64, 64, 20]}, "'patch_size[2]' is 20; it must be a multiple of 16"),
        ({"patch_size": [64, 64, 0]}, "'patch_size[2]' is 0; it must be greater than or equal to 16"),
        ({"patch_size": [16, 16, 16]}, "it must be three sides of which at least one is 32 or more"),
        ({"loss": "dice_c"}, "'loss' is 'dice_c'; it must be 'dice_ce', 'dice_focal' or 'dice'"),
        ({"network": "DenseNet121"}, "'network' is 'DenseNet121'; it must be 'UNet'"),
        ({"data": "a b"}, "'data' is 'a b'; it must match"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(tmp_path, values, said):
    file = tmp_path / "config_train.json"
    file.write_text(json.dumps(values))
    with pytest.raises(CourseError) as caught:
        Settings.read(file)
    assert said in str(caught.value) and str(file) in str(caught.value)
