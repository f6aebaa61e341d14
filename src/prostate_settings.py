"""The settings of the prostate training: one JSON file, ``src/config/config_train.json``, read and checked in one place."""

import dataclasses
import difflib
import json
import math
from dataclasses import dataclass
from pathlib import Path

from src.errors import CourseError
from src.paths import data_root

CONFIG_FILE = Path(__file__).with_name("config") / "config_train.json"
LOSSES = ("dice_ce", "dice_focal", "dice")
SCHEDULES = ("cosine", "constant")
STRIDE = 16
"""The U-Net halves a patch four times, so that each side is a multiple of this."""


@dataclass(frozen=True)
class TrainSettings:
    """What a site needs to know to train. Every field is a key of ``config_train.json``; a key left out takes its default.

    Attributes:
        dataset_base_dir: folder that the paths in the datalists start from; a relative one starts from ``COURSE_DATA``. The
            default is that of the drawings; a job sets this and the next one for the data that it runs on.
        datalist_json_path: folder with ``<site>.json``, or one such file; a relative one starts from ``COURSE_DATA``.
        cache_dataset: keep the resampled and normalised volumes on disk, so that a second run need not make them again.
        cache_dir: where; a relative folder starts from ``COURSE_DATA``.
        learning_rate: of AdamW, at the start.
        lr_schedule: ``cosine`` falls to zero over all rounds together, ``constant`` stays.
        weight_decay: of AdamW.
        fedproxloss_mu: weight of FedProx's proximal term, which keeps sites that start from random weights in step with one
            another; 0 is plain FedAvg.
        loss: ``dice_ce``, ``dice_focal`` or ``dice``.
        batch_size: patches a step.
        voxel_spacing: size in mm (x, y, z) of the voxels that the network sees.
        field_of_view: size in mm (x, y) of the box around the image's centre that is kept; 0 keeps all of that axis.
        patch_size: voxels (x, y, z) of a training patch and of the sliding window; multiples of 16.
        augmentation: random flips, scale, rotation, bias field, contrast, blur and noise in training.
        amp: mixed precision on a GPU; a CPU always computes in single precision.
        seed: of the order of the cases and of the augmentation. The first model is made by the job.
        threads: CPU threads of a site; 0 leaves PyTorch's choice.
    """

    dataset_base_dir: str = "generated/prostate_t2"
    datalist_json_path: str = "generated/prostate_datalists"
    cache_dataset: bool = True
    cache_dir: str = "cache/prostate"
    learning_rate: float = 3e-3
    lr_schedule: str = "cosine"
    weight_decay: float = 1e-4
    fedproxloss_mu: float = 0.1
    loss: str = "dice_ce"
    batch_size: int = 2
    voxel_spacing: tuple[float, float, float] = (2.0, 2.0, 3.0)
    field_of_view: tuple[float, float] = (128.0, 128.0)
    patch_size: tuple[int, int, int] = (64, 64, 16)
    augmentation: bool = True
    amp: bool = True
    seed: int = 0
    threads: int = 0

    @property
    def dataset_folder(self) -> Path:
        """``dataset_base_dir`` as an absolute path."""
        return data_root() / Path(self.dataset_base_dir).expanduser()

    @property
    def cache_folder(self) -> Path | None:
        """``cache_dir`` as an absolute path; None if nothing is to be cached."""
        return data_root() / Path(self.cache_dir).expanduser() if self.cache_dataset else None

    def datalist_file(self, site: str) -> Path:
        """The datalist of a site."""
        path = data_root() / Path(self.datalist_json_path).expanduser()
        return path if path.suffix == ".json" else path / f"{site}.json"


def read_settings(file: Path | str = CONFIG_FILE, **overrides) -> TrainSettings:
    """Read and check a training configuration.

    Args:
        file: JSON object with keys of :class:`TrainSettings`.
        **overrides: keys that replace what the file says.

    Raises:
        CourseError: for a file that cannot be read and for a key that is unknown or has a wrong value; names file and key.
    """
    file = Path(file)
    try:
        values = json.loads(file.read_text())
    except OSError as error:
        raise CourseError(f"Cannot read the training configuration {file}: {error.strerror}.") from error
    except json.JSONDecodeError as error:
        raise CourseError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise CourseError(
            f"{file} must hold one JSON object with the training settings, not a {type(values).__name__}."
        )
    settings = {key: _checked(key, value, f"in {file}") for key, value in values.items()}
    settings |= {key: _checked(key, value, "among the overrides") for key, value in overrides.items()}
    return TrainSettings(**settings)


def write_settings(file: Path, settings: TrainSettings) -> Path:
    """Write settings as JSON that :func:`read_settings` reads back, and return the path."""
    file.write_text(json.dumps(dataclasses.asdict(settings), indent=2) + "\n")
    return file


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainSettings)}
_CHOICES = {"loss": LOSSES, "lr_schedule": SCHEDULES}
_AT_LEAST = {"learning_rate": 0, "weight_decay": 0, "fedproxloss_mu": 0, "batch_size": 1, "seed": 0, "threads": 0}
_AT_LEAST |= {"voxel_spacing": 0, "field_of_view": 0, "patch_size": STRIDE}
_MORE_THAN_ZERO = ("learning_rate", "voxel_spacing")


def _checked(key: str, value, where: str):
    """The value of a key in the type of its default; a CourseError that says what is wrong with it otherwise."""
    if key not in _DEFAULTS:
        near = difflib.get_close_matches(key, _DEFAULTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(_DEFAULTS)}."
        raise CourseError(f"Unknown key {key!r} {where}; {hint}")
    default = _DEFAULTS[key]
    wanted = _describe(default)
    if isinstance(default, tuple):
        kind = type(default[0])
        if not isinstance(value, list | tuple) or len(value) != len(default):
            raise CourseError(f"{key!r} {where} is {value!r}; it must be {wanted}.")
        value = tuple(_scalar(key, one, kind, where, wanted) for one in value)
    else:
        value = _scalar(key, value, type(default), where, wanted)
    if key in _CHOICES and value not in _CHOICES[key]:
        near = difflib.get_close_matches(value, _CHOICES[key], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CourseError(f"{key!r} {where} is {value!r}; choose one of {', '.join(_CHOICES[key])}{hint}")
    numbers = value if isinstance(value, tuple) else (value,)
    if key in _AT_LEAST and any(one < _AT_LEAST[key] for one in numbers):
        raise CourseError(f"{key!r} {where} is {value!r}; it must be at least {_AT_LEAST[key]}.")
    if key in _MORE_THAN_ZERO and any(one <= 0 for one in numbers):
        raise CourseError(f"{key!r} {where} is {value!r}; it must be more than 0.")
    if key == "patch_size" and any(one % STRIDE for one in numbers):
        raise CourseError(f"{key!r} {where} is {value!r}; the U-Net needs multiples of {STRIDE}.")
    if key == "patch_size" and math.prod(numbers) == STRIDE**3:
        raise CourseError(f"{key!r} {where} is {value!r}; one side must be at least {2 * STRIDE}.")
    return value


def _scalar(key: str, value, kind: type, where: str, wanted: str):
    # JSON has one kind of number, and Python calls True an int: say exactly what passes.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number and math.isfinite(value):
        return float(value)
    if kind is int and number and float(value).is_integer():
        return int(value)
    if kind is bool and (isinstance(value, bool) or (number and value in (0, 1))):
        return bool(value)
    if kind is str and isinstance(value, str | Path) and str(value):
        return str(value)
    raise CourseError(f"{key!r} {where} is {value!r}; it must be {wanted}.")


def _describe(default) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    if isinstance(default, tuple):
        plural = "whole numbers" if isinstance(default[0], int) else "numbers"
        return f"a list of {len(default)} {plural}, like {list(default)}"
    return f"{names[type(default)]}, like {json.dumps(default)}"
