"""FLARE's simulator with what the course mends and FLARE's own arguments; give ``-t`` as many threads as there are sites."""

from src.federation.flare_2_9 import mend_simulator, run_simulator

# At import: where processes are spawned, as on macOS, FLARE runs the sites' threads in a child that imports this module again.
mend_simulator()
if __name__ == "__main__":
    run_simulator()
