"""What the command lines share. ``_run.sh`` calls this file with NAME [ARGUMENT...], and it runs the module NAME beside it."""

import argparse
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from src.common.errors import CourseError

ENVIRONMENT = """\
COURSE_DATA is the data folder (default: data/ in the checkout, from where a relative one starts, too),
COURSE_DATA_SOURCE is generated (default) or real, PYTHON is the Python to run.
Exit status: 0 done or nothing to do, 2 bad input."""


def parser(name: str, text: str) -> argparse.ArgumentParser:
    """Argument parser of ``data_scripts/NAME.sh``; ``text`` is shown by ``--help`` as it is."""
    lines = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"{name}.sh", description=text, epilog=ENVIRONMENT, formatter_class=lines)


def folder(text: str) -> Path:
    """An argument that names a folder; ``~`` may come from a configuration file, where no shell expands it."""
    return Path(text).expanduser()


def run(main: Callable[[], object]) -> None:
    """Call ``main`` and leave with 0, or with 2 and one message when there is something to mend."""
    leave = argparse.ArgumentParser().exit  # says its message on stderr
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a file's name may not be text in the terminal's encoding
    try:
        main()
    except CourseError as error:
        leave(2, f"error: {error}\n")
    except ModuleNotFoundError as missing:
        ways = f"Run 'make course' first, or '{sys.executable} -m pip install -r requirements.txt', or set PYTHON."
        leave(2, f"error: {sys.executable} has no module {missing.name!r}. {ways}\n")
    except KeyboardInterrupt:
        leave(128 + signal.SIGINT, "\nStopped, and nothing half was left. The same command starts again.\n")
    except BrokenPipeError:  # `... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    # As `python -m` does, but the current folder, which may hold another `src`, is not searched; what lacks is said in a line.
    run(lambda: runpy.run_module(f"data_scripts.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True))
