"""At a site, imports MONAI without the packages that a site does not use; anywhere else it does nothing.

MONAI loads every optional package that it finds installed. A notebook wants them; a site plots nothing and tracks nothing by
itself. Sites that start side by side on a few cores wait for one another, so what they leave out saves each run seconds,
and each site memory.
"""

import sys

NOT_AT_A_SITE = ("matplotlib", "mlflow", "pandas")
NOT_AT_THE_SERVER = (*NOT_AT_A_SITE, "ignite")  # it makes the first model, and trains nothing
_FLARE = "nvflare.private.fed.app"
_SIMULATED_SITE = f"{_FLARE}.simulator.simulator_worker"
_SITE = (_SIMULATED_SITE, f"{_FLARE}.client.worker_process")
_SERVER = ("src.federation.simulated", f"{_FLARE}.server.runner_process")


def _runs(programs: tuple[str, ...]) -> bool:
    """True in a process that FLARE started with one of these programs, in the simulator or in a real federation."""
    return any(word in programs for word in sys.orig_argv)


def is_simulated() -> bool:
    """True at a site of FLARE's simulator."""
    return _SIMULATED_SITE in sys.orig_argv


def import_monai() -> None:
    """Import MONAI, in FLARE's processes without what they do not use. Call it before anything else imports MONAI."""
    if "monai" in sys.modules:
        return
    unused = NOT_AT_A_SITE if _runs(_SITE) else NOT_AT_THE_SERVER if _runs(_SERVER) else ()
    hidden = [name for name in unused if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # an import of them now fails as if they were not installed
    try:
        import monai  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]
