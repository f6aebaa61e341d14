"""``monai``, in FLARE's processes without the packages that they do not use; import it from here where a site meets it first.

MONAI loads every optional package that it finds. A notebook wants them; a site plots nothing, and saves seconds and memory."""

import sys

from src.federation.flare_2_9 import process_kind

AT_A_SITE = ("gdown", "jsonschema", "matplotlib", "mlflow", "pandas", "sklearn", "tensorboard")
UNUSED = {"site": AT_A_SITE, "simulated site": AT_A_SITE, "server": (*AT_A_SITE, "ignite")}  # a server trains nothing

hidden = [name for name in UNUSED.get(process_kind(), ()) if name not in sys.modules]
sys.modules.update(dict.fromkeys(hidden))  # an import of them now fails as if they were not installed
try:
    import monai as monai
finally:
    for name in hidden:
        del sys.modules[name]
