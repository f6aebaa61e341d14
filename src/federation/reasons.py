"""What leaves a site that fails: a few words. Its messages, file names and tracebacks stay in its own log."""

import logging
import traceback
from collections.abc import Callable

import nvflare.client as flare
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode, SiteType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.widgets.widget import Widget

from src.common.errors import CourseError
from src.federation.flare_2_9 import answer_quickly

REASON = "course_reason"  # where a failed answer says why: a key of an FLModel's meta, or a header of a Shareable
LAST_WORDS = "course.last_words"  # the topic under which a site that ends its job says why, before it ends
WITHOUT_STATE = "started without its own state"  # said beside a good update


def short_reason(error: BaseException) -> str:
    """What of an error may leave a site: its kind, never its message, which may name files, cases or folders."""
    if isinstance(error, CourseError):
        return error.kind
    if isinstance(error, FloatingPointError):
        return "its loss or its weights became NaN or infinite"
    return "it ran out of memory" if isinstance(error, MemoryError) else f"its software raised {type(error).__name__}"


def meta_of(answer: Shareable) -> dict:
    """What an answer says beside its weights and metrics."""
    try:
        return FLModelUtils.from_shareable(answer).meta
    except ValueError:  # in an answer with an error code is no model
        return {}


def given_reason(answer: Shareable) -> str | None:
    """The short reason in an answer: of a failure, or beside a good update; None if it holds none."""
    return answer.get_header(REASON) or meta_of(answer).get(REASON)


def said_reason(answer: Shareable | None) -> str:
    """The short reason that an answer gives which was not accepted, else what FLARE says of it."""
    if answer is None:
        return "it sent nothing"
    code = answer.get_return_code()
    flares = "it sent nothing that can be averaged" if code == ReturnCode.OK else f"it answered with {code}"
    return given_reason(answer) or flares


class LastWords(Widget):
    """Tells the server why a component of a site ends its job: FLARE's process would go without a word."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.FATAL_SYSTEM_ERROR:
            error, said = fl_ctx.get_prop(FLContextKey.EVENT_DATA), Shareable()
            said[REASON] = short_reason(error) if isinstance(error, BaseException) else "its software ended the job"
            fl_ctx.get_engine().send_aux_request([SiteType.SERVER], LAST_WORDS, said, timeout=5.0, fl_ctx=fl_ctx)


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
