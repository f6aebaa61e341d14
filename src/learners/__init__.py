"""Learners: the FLARE side of training at one site."""

import sys
from contextlib import contextmanager

# MONAI loads every optional package that it finds. A site plots nothing, tracks nothing by itself and brings its own loop.
NOT_AT_A_SITE = ("ignite", "matplotlib", "mlflow")


@contextmanager
def _without(*packages: str):
    """Let imports inside the block find that ``packages`` are not installed; after it they are as before."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _is_site_process() -> bool:
    """True in a process that FLARE started for one site; a notebook or a test keeps all of MONAI."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return bool(spec) and spec.name.startswith("nvflare.private.fed.app")


if _is_site_process() and "monai" not in sys.modules:
    # Four sites that start side by side on two cores wait for one another: this takes seconds off every run.
    with _without(*NOT_AT_A_SITE):
        import monai  # noqa: F401
