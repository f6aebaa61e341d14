"""The one exception that the course raises for something a reader can mend."""


class CourseError(RuntimeError):
    """Bad input or a failed step. The message says what was wrong, where, and what to do about it."""
