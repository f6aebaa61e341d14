"""What all drawings have in common: the tables that they are made from, and what they say about themselves."""

from pathlib import Path

import yaml

from src.common.errors import CourseError

# The tables of what the drawings are composed of; each says what its numbers mean.
ANATOMY = yaml.safe_load(Path(__file__).with_name("anatomy.yaml").read_text(encoding="utf-8"))


def described(generator: str, version: int, **numbers: int) -> dict:
    """What drawings depend on, as JSON holds it, after a check of the numbers that were asked for. ``numbers`` say how many
    drawings, at least 1, and their ``seed``, at least 0; ``generator`` is the module that draws. A ``CourseError`` for anything
    else than such whole numbers."""
    for name, number in numbers.items():
        lowest = 0 if name == "seed" else 1
        if not isinstance(number, int) or number < lowest:
            message = f"Cannot draw with {name}={number!r}: it is a whole number from {lowest}."
            raise CourseError(message, kind="drawings were asked for that are not possible")
    note = "These are drawings, not patients. Do not judge a method for the clinic by them."
    return {"note": note, "generator": generator, "version": version, **numbers}
