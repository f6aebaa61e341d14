"""The data of each task that the course can make or fetch: from nothing to the folders of the sites, and what they are.

A task of your own has its sites' folders already, under its name; see :mod:`src.common.datalists`."""

from collections.abc import Callable

from data_scripts import datalists_gen, mednist_sites, prostate_download
from data_scripts.together import sites_of

STEPS = {"mednist": mednist_sites.prepare, "prostate": datalists_gen.prepare}
SHARE_OUT = {"mednist": mednist_sites.share_out, "prostate": datalists_gen.share_out}
RAW = {"mednist": mednist_sites, "prostate": prostate_download}


def prepare(task: str, say: Callable[[str], None] = print) -> str:
    """Prepare a task's data with the notebook's settings, and return their name; a ``CourseError`` if that cannot be done."""
    if task in STEPS:
        return STEPS[task](say=say)
    sites_of(task)
    return task


def share_out(task: str, **options) -> str:
    """Share a task's data out in another way, by the arguments of its ``share_out``; a task of your own is shared out already."""
    return SHARE_OUT[task](**options) if task in SHARE_OUT else prepare(task)


def described(task: str) -> str:
    """What the raw data of a task are, without their place on this machine."""
    if task not in RAW:
        prepare(task)
        return "your own data"
    return RAW[task].describe(RAW[task].find_or_make()).split(" in ")[0].split(" (/")[0]
