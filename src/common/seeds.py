"""Chance that can be repeated: first weights that depend on a seed alone, and a stream of its own for every site."""

import contextlib
import threading
import zlib
from collections.abc import Iterator

import torch

_global_state = threading.Lock()  # PyTorch's initialisers draw from one state for all threads


def site_seed(seed: int, site: str) -> int:
    """A seed of its own for every site, the same in each run: else all sites would draw the same augmentation."""
    return seed + zlib.crc32(site.encode()) % 100_000


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw first weights from ``seed`` inside the block, and leave PyTorch's state as it was; ``None`` does nothing."""
    if seed is None:
        yield
        return
    with _global_state, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
