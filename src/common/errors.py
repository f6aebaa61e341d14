"""The one exception that the course raises for something a reader can mend."""


class CourseError(RuntimeError):
    """Bad input or a failed step: ``message`` says to the person at this machine what was wrong, where, and what to do about it. It
    may name files and cases. What of it may leave a site is ``kind``: a few words without a file, a case or a path."""

    def __init__(self, message: str, kind: str = "something is wrong with its settings or its data"):
        super().__init__(message)
        self.kind = kind


def all_of(what: str, problems: list[str], kind: str = "several things are wrong with its data") -> CourseError:
    """One error that lists all problems, on one line for one problem and as a list for more."""
    many = f"{what}, {len(problems)} problems:\n" + "\n".join(f"  - {one}" for one in problems)
    return CourseError(f"{what}: {problems[0]}" if len(problems) == 1 else many, kind)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, short enough for a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def some_of(names: list[str], most: int = 20) -> str:
    """The first of many names, for a sentence."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
