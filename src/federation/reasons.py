"""What leaves a site that fails: a few words. Its messages, file names and tracebacks stay in its own log."""

import logging
import traceback
from collections.abc import Callable

import nvflare.client as flare
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from src.common.errors import CourseError
from src.federation.flare_2_9 import answer_quickly

REASON = "course_reason"  # where a failed answer says why: a key of an FLModel's meta, or a header of a Shareable
WITHOUT_STATE = (
    "started without its own state"  # what a site says beside its update that joins later, or lost what it kept
)


def short_reason(error: BaseException) -> str:
    """What of an error may leave a site: its kind, never its message, which may name files, cases or folders."""
    if isinstance(error, CourseError):
        return error.kind
    if isinstance(error, FloatingPointError):
        return "its loss or its weights became NaN or infinite"
    return "it ran out of memory" if isinstance(error, MemoryError) else f"its software raised {type(error).__name__}"


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


def run_site(main: Callable[..., None], *arguments: object) -> None:
    """Run a Client API script's ``main``. If it fails, the site's log gets the error, the server for each further task its kind."""
    answer_quickly()
    try:
        main(*arguments)
    except Exception as error:
        # As one text: inside of a script FLARE takes over print(), by which logging would write the traceback.
        told = "".join(traceback.format_exception(error))
        logging.getLogger(__name__).error("this site cannot take part any more: %s", told)
        while flare.is_running():
            flare.receive()
            flare.send(flare.FLModel(metrics={}, meta={REASON: short_reason(error)}))
