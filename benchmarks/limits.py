"""What a benchmark waits for ends, or is said: other processes may hang, and a machine stays on for a night."""

import contextlib
import queue
import subprocess
from collections.abc import Iterator

from src.common.errors import CourseError


@contextlib.contextmanager
def limited(what: str, seconds: float) -> Iterator[float]:
    """Yield a wait's limit in seconds; a ``CourseError`` says ``what`` was waited for, where that time was not enough."""
    try:
        yield seconds
    except (subprocess.TimeoutExpired, queue.Empty) as late:
        advice = "See with top what the machine does instead, and run this again."
        raise CourseError(f"Waited {seconds:g} s for {what}, in vain. {advice}") from late
