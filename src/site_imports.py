"""At a site, imports MONAI without the packages that a site does not use; anywhere else it does nothing.

MONAI loads every optional package that it finds installed. A notebook wants them; a site plots nothing and tracks nothing by
itself. Sites that start side by side on a few cores wait for one another, so what they leave out saves each run seconds,
and each site memory. Import this module before the first import of MONAI.
"""

import sys
from contextlib import contextmanager

NOT_AT_A_SITE = ("matplotlib", "mlflow", "pandas")


def is_site_process() -> bool:
    """True in a process that FLARE started for one site, in the simulator or in a real federation."""
    return any(word.endswith((".simulator_worker", ".client.worker_process")) for word in sys.orig_argv)


@contextmanager
def without(*packages: str):
    """Let imports inside the block find that ``packages`` are not installed; after it they are as before."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def import_monai(*also_without: str) -> None:
    """Import MONAI at a site without :data:`NOT_AT_A_SITE` and ``also_without``; a no-op anywhere else."""
    if is_site_process() and "monai" not in sys.modules:
        with without(*NOT_AT_A_SITE, *also_without):
            import monai  # noqa: F401
