"""Settings of a study: one class a task, checked by pydantic, written once as JSON or as the words of a command line.

They travel with the job, so they hold no path. What a site decides for itself (threads, cache) is read at the site.
"""

import argparse
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

from src.common.errors import CourseError, all_of

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
DataName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Name of shared-out data: a folder's name, and one word of a command line."""


class Checked(BaseModel):
    """A pydantic model whose complaints are a ``CourseError``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    @classmethod
    def checked(cls, values: dict, where: str = "") -> Self:
        """Settings from a dictionary.

        Raises:
            CourseError: lists every key that is unknown or has a wrong value, and says what it may be.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = list(dict.fromkeys(cls._problem(one) for one in error.errors()))
        raise all_of(
            f"The settings{f' in {where}' if where else ''} cannot be used", problems, "its settings are wrong"
        )

    @classmethod
    def _problem(cls, error: dict) -> str:
        key = str(error["loc"][0]) if error["loc"] else ""
        if error["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, cls.model_fields, n=1)
            return f"unknown key {key!r}; " + (
                f"did you mean {near[0]!r}?" if near else f"there are {', '.join(cls.model_fields)}"
            )
        default = cls.model_fields[key].default if key else None
        if isinstance(default, tuple) and error["type"] in ("missing", "too_long", "tuple_type"):
            return f"{key!r} is {error['input']!r}; it must be a list of {len(default)}, like {list(default)}"
        place = key + "".join(f"[{index}]" for index in error["loc"][1:])
        said = error["msg"].removeprefix("Input should ").removeprefix("String should ").removeprefix("Value error, ")
        return f"{place!r} is {error['input']!r}; it must {said}"


class StudySettings(Checked):
    """What every task of the course has in common.

    Attributes:
        data: name of the shared-out data; each site looks for its own part at ``$COURSE_DATA/sites/<data>/<site>``.
        rounds: how often the models are averaged; the learning rate falls over all rounds together.
        local_epochs: passes over its own training items that a site makes in each round.
        batch_size: items a step.
        learning_rate: at the start, from which it falls along half a cosine to 0.
        network: class of the network, one of the task's.
        method: how models of sites that differ become one, or stay several; see :mod:`src.federation.methods`.
        fedproxloss_mu: weight of FedProx's proximal term; 0 is plain FedAvg.
        seed: of the first model, the order of the items and the augmentation.
    """

    data: DataName
    rounds: Count
    local_epochs: Count
    batch_size: Count
    learning_rate: Positive
    network: str
    method: Literal["fedavg", "fedprox", "scaffold", "fedadam", "fedavgm", "fedbn", "ditto"] = "fedavg"
    fedproxloss_mu: NotNegative = 0.0
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def epochs(self) -> int:
        """Passes over the training items in all rounds together."""
        return self.rounds * self.local_epochs

    @classmethod
    def read(cls, file: Path | str, **overrides) -> Self:
        """Settings from a JSON file.

        Args:
            file: a JSON object whose keys are this class's attributes; one that is left out takes its default.
            **overrides: keys that replace what the file says.

        Raises:
            CourseError: for a file that cannot be read and for wrong keys and values; names them all.
        """
        try:
            values = json.loads(Path(file).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise CourseError(
                f"Cannot read the settings {file}: {getattr(error, 'strerror', None) or error}. "
                "They must be one JSON object in UTF-8.",
                "its settings cannot be read",
            ) from error
        if not isinstance(values, dict):
            raise CourseError(f"{file} must hold one JSON object with the settings, not a {type(values).__name__}.")
        return cls.checked({**values, **overrides}, str(file))

    def changed(self, **overrides) -> Self:
        """The same settings but for some keys; checked like all others."""
        return self.checked({**self.model_dump(), **overrides})

    def words(self) -> str:
        """As one line for a command: ``--data mednist --rounds 5 …``; no value has a blank, for FLARE splits at blanks."""
        values = json.loads(self.model_dump_json())
        return " ".join(
            f"--{key} {v if isinstance(v, str) else json.dumps(v, separators=(',', ':'))}" for key, v in values.items()
        )

    @classmethod
    def from_words(cls, words: Sequence[str]) -> Self:
        """Settings from the words of a command line, ``sys.argv[1:]`` in a client script.

        Raises:
            CourseError: names all wrong values. A word that is no setting ends the program with a usage message.
        """
        parser = argparse.ArgumentParser(description=cls.__doc__)
        for name, field in cls.model_fields.items():
            kind = str if field.annotation is str else _value  # a name may look like a number
            parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS)
        return cls.checked(vars(parser.parse_args(words)), "the client's arguments")


def _value(word: str) -> object:
    try:
        return json.loads(word)
    except ValueError:
        return word
