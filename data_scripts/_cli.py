"""What the command lines share: how they end, and how they name their defaults."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path


def parser(name: str, text: str) -> argparse.ArgumentParser:
    """Argument parser of ``data_scripts/NAME.sh``; ``text`` is shown by ``--help`` as it is."""
    environment = (
        "COURSE_DATA is the data folder (default: data/ in the checkout, from where a relative one starts, too),\n"
        "COURSE_DATA_SOURCE is generated (default) or real, PYTHON is the Python to run.\n"
        "Exit status: 0 done or nothing to do, 2 bad input."
    )
    return argparse.ArgumentParser(
        prog=f"{name}.sh",
        description=text,
        epilog=environment,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def folder(text: str) -> Path:
    """An argument that names a folder; ``~`` may come from a configuration file, where no shell expands it."""
    return Path(text).expanduser()


def run(main: Callable[[], None]):
    """Call ``main`` and leave with 0, or with 2 and one message when there is something to mend."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a file's name may not be text in the terminal's encoding
    try:
        main()
    except CourseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nStopped, and nothing half was left. The same command starts again.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # `... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


try:
    import data_scripts.mednist
    import data_scripts.prostate  # noqa: F401
    from src.common.errors import CourseError
except ModuleNotFoundError as missing:
    print(
        f"error: {sys.executable} has no module {missing.name!r}. Run 'make course' first, "
        f"or '{sys.executable} -m pip install -r requirements.txt', or set PYTHON.",
        file=sys.stderr,
    )
    sys.exit(2)
except RuntimeError as error:  # a CourseError: this system cannot run the course
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
