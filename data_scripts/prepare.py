"""All steps from nothing to the folders of the sites, for each task whose data the course can make or fetch."""

from collections.abc import Callable

from data_scripts import datalists_gen, mednist_sites
from src.common.datalists import sites_of

STEPS = {"mednist": mednist_sites.prepare, "prostate": datalists_gen.prepare}


def prepare(task: str, say: Callable[[str], None] = print) -> str:
    """Prepare the data of a task with the notebook's settings, and return their name.

    A task of your own has its sites' folders already, under its name; see :mod:`src.common.datalists`.

    Raises:
        CourseError: if they are not there, or cannot be made.
    """
    if task in STEPS:
        return STEPS[task](say=say)
    sites_of(task)
    return task
