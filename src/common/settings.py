"""Settings of a study: one class a task, checked by pydantic, kept and sent as one JSON file; so they hold no path."""

import difflib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from src.common.errors import CourseError, all_of
from src.common.files import load_json, write_json, writing

CONFIG = "config/config_train.json"  # from a client script's folder on: in the course, and in a job that brings others

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]  # strict: True is no 1
Number = Annotated[int, Field(ge=0, strict=True)]
DataName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # of shared-out data: a folder's name


class Checked(BaseModel):
    """A pydantic model whose complaints are a ``CourseError``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, /, **values):
        """A ``CourseError`` lists every key that is unknown or has a wrong value."""
        try:
            return super().__init__(**values)
        except ValidationError as error:
            problems = list(dict.fromkeys(map(self._problem, error.errors())))
        raise all_of("The settings cannot be used", problems, "its settings are wrong")

    @classmethod
    def checked(cls, values: dict, where: str) -> Self:
        """Settings from a dictionary; the ``CourseError`` says ``where`` the wrong ones are."""
        try:
            return cls(**values)
        except CourseError as error:
            raise CourseError(str(error).replace("settings", f"settings in {where}", 1), error.kind) from None

    @classmethod
    def read(cls, file: Path | str, **overrides) -> Self:
        """Settings from a file's JSON object, defaults and ``overrides``; a ``CourseError`` names all that is wrong."""
        values = load_json(file, "settings", "They must be one JSON object in UTF-8.", "its settings cannot be read")
        if not isinstance(values, dict):
            raise CourseError(f"{file} must hold one JSON object with the settings, not a {type(values).__name__}.")
        return cls.checked({**values, **overrides}, str(file))

    @classmethod
    def _problem(cls, error: dict) -> str:
        said = error["msg"].removeprefix("Input should ").removeprefix("String should ").removeprefix("Value error, ")
        if not error["loc"]:  # of several keys together
            return said
        key = str(error["loc"][0])
        if error["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, cls.model_fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(cls.model_fields)}"
            return f"unknown key {key!r}; {hint}"
        default = cls.model_fields[key].default
        if isinstance(default, tuple) and error["type"] in ("missing", "too_long", "tuple_type"):
            return f"{key!r} is {error['input']!r}; it must be a list of {len(default)}, like {list(default)}"
        place = key + "".join(f"[{index}]" for index in error["loc"][1:])
        return f"{place!r} is {error['input']!r}; it must {said}"


class StudySettings(Checked):
    """What every task of the course has in common."""

    data: DataName  # each site looks for its own part at $COURSE_DATA/sites/<data>/<site>
    rounds: Count  # how often the models are averaged; the learning rate falls over all rounds together
    local_epochs: Count  # passes over its own training items that a site makes in each round
    batch_size: Count  # items a step
    learning_rate: Positive  # at the start, from which it falls along half a cosine to 0
    network: str  # class of the network, one of the task's
    # How models of sites that differ become one, or stay several: src/federation/methods.py.
    method: Literal["fedavg", "fedprox", "scaffold", "fedadam", "fedavgm", "fedbn", "ditto"] = "fedavg"
    fedproxloss_mu: NotNegative = 0.0  # weight of FedProx's proximal term, and of no other method's
    seed: Annotated[Number, Field(lt=2**63)] = 0  # of the first model, the order of the items, and the augmentation
    # Differential privacy, src/federation/private.py: the largest norm of an image's gradient, 0 for none; noise in units of it.
    dp_clip: NotNegative = 0.0
    dp_noise: NotNegative = 0.0

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.method == "fedprox" and not self.fedproxloss_mu:
            raise ValueError("FedProx with fedproxloss_mu=0 is FedAvg; give it a weight, for example 0.01")
        if self.method != "fedprox" and self.fedproxloss_mu:
            said = f"method={self.method!r} does not heed fedproxloss_mu={self.fedproxloss_mu:g}"
            raise ValueError(f"{said}; set it to 0, or method='fedprox'")
        if self.dp_noise and not self.dp_clip:
            raise ValueError(f"dp_noise={self.dp_noise:g} hides nothing without a dp_clip, for example 1.0")
        if self.dp_clip and self.method in ("fedprox", "ditto"):
            raise ValueError(f"{self.method} adds its pull to the gradient that dp_clip replaces; choose fedavg")
        return self

    @property
    def epochs(self) -> int:
        """Passes over the training items in all rounds together."""
        return self.rounds * self.local_epochs

    def write(self, file: Path) -> str:
        """Write them as JSON, for a job to carry to the sites; returns the file's path."""
        with writing(file):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        return str(write_json(file, self.model_dump(mode="json")))

    def changed(self, **overrides) -> Self:
        """The same settings but for some keys; checked like all others."""
        return type(self)(**{**self.model_dump(), **overrides})
