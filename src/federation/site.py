"""A site's own side: what it decides for itself, and what leaves it when it fails: a few words.

Its messages, file names and tracebacks stay in its own log.
"""

import gc
import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import nvflare.client as flare
import torch
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable
from nvflare.app_common.executors.client_api import in_process_backend
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from src.common.datalists import cache_folder, read_site
from src.common.errors import CourseError
from src.common.files import read_json
from src.common.lean import is_simulated
from src.common.paths import sites_folder
from src.common.settings import Checked, Count, StudySettings

SCRIPT_SECONDS = 0.02
"""In the simulator, how often a script looks for a task, and FLARE for the script's answer: FLARE's 0.5 s, twice, is a sixth of a
short round, and nothing in a hospital's."""

REASON = "course_reason"
"""Where a failed answer says why: a key of an ``FLModel``'s ``meta``, or a header of a ``Shareable``."""


class SiteOptions(Checked):
    """What a site decides for itself: ``options.json`` in its folder, where there is one.

    Attributes:
        threads: CPU threads; 0 leaves PyTorch's choice, which follows ``OMP_NUM_THREADS``.
        cache: keep prepared volumes in the site's folder, so that a second run need not make them again.
        batch_size: items a step, instead of the study's, for a GPU with little memory.
    """

    threads: int = 0
    cache: bool = True
    batch_size: Count | None = None


Study = TypeVar("Study", bound=StudySettings)


def open_site(site: str, settings: Study) -> tuple[dict[str, list[dict]], Study, Path | None]:
    """What a site needs to take part: its datalist, the study's settings with its own options, and its folder for a cache or None.

    Raises:
        CourseError: if the datalist or the options cannot be used.
    """
    folder = sites_folder(settings.data) / site
    file = folder / "options.json"
    chosen = read_json(file) if file.exists() else {}
    if chosen is None:
        raise CourseError(
            f"{file} cannot be read as a JSON object. Mend it, or delete it.", "its settings cannot be read"
        )
    options = SiteOptions.checked(chosen, f"{file}")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.batch_size:
        settings = settings.changed(batch_size=options.batch_size)
    # FLARE collects garbage after each round. What has been imported by now stays anyway, and to look at half a million of
    # Python's objects takes as long as some training steps.
    gc.freeze()
    return read_site(settings.data, site), settings, cache_folder(settings.data, site) if options.cache else None


def short_reason(error: BaseException) -> str:
    """What of an error may leave a site: its kind, never its message, which may name files, cases or folders."""
    if isinstance(error, CourseError):
        return error.kind
    if isinstance(error, FloatingPointError):
        return "its loss or its weights became NaN or infinite"
    if isinstance(error, MemoryError):
        return "it ran out of memory"
    return f"its software raised {type(error).__name__}"


def said_reason(answer: Shareable | None) -> str:
    """The short reason that an answer gives which was not accepted, else what FLARE says of it."""
    if answer is None:
        return "it sent nothing"
    if said := answer.get_header(REASON):
        return said
    try:
        return FLModelUtils.from_shareable(answer).meta[REASON]
    except (KeyError, ValueError):  # no reason, or, in an answer with an error code, no model
        code = answer.get_return_code()
        return "it sent nothing that can be averaged" if code == ReturnCode.OK else f"it answered with {code}"


def run_site(main: Callable[[], None]) -> None:
    """Run a Client API script's ``main``; when it fails, write the error to the site's log and tell the server the kind alone.

    FLARE would end the script, and the server would only know that it ended. Here the site goes on to answer: to each task that
    comes, without weights and with the reason, so that the server's record can say who is missing and why.
    """
    context = flare.init()
    if is_simulated():
        in_process_backend._RESULT_POLL_INTERVAL = context.api.result_check_interval = SCRIPT_SECONDS
    try:
        main()
    except Exception as error:
        # As one text: inside of a script FLARE takes over print(), by which logging would write the traceback.
        told = "".join(traceback.format_exception(error))
        logging.getLogger(__name__).error("this site cannot take part any more: %s", told)
        while flare.is_running():
            flare.receive()
            flare.send(flare.FLModel(metrics={}, meta={REASON: short_reason(error)}))
