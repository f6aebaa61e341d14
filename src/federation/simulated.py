"""FLARE's simulator with what the course mends and FLARE's own arguments; give ``-t`` as many threads as there are sites."""

import runpy

from src.federation.flare_2_9 import SIMULATOR, mend_simulator

# At import: where processes are spawned, as on macOS, FLARE runs the sites' threads in a child that imports this module again.
mend_simulator()
if __name__ == "__main__":
    runpy.run_module(SIMULATOR, run_name="__main__")
