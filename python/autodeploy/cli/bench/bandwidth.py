"""How fast this machine reads memory, by the same number of threads as the engines use."""

from __future__ import annotations

import threading
import time

_CHUNK_BYTES = 1 << 20


def read_bandwidth(num_bytes: int, threads: int, seconds: float = 1.0) -> float:
    """Bytes per second at which `threads` threads together read a buffer of num_bytes, over and over.

    The best of several passes, each thread reading its own part with a vectorised reduction: what a decode step could
    do at most if reading its weights were all it did.
    """
    import numpy as np

    count = max(threads, num_bytes // 4)
    buffer = np.ones(count, dtype=np.float32)
    parts = np.array_split(buffer, threads)
    best = 0.0
    deadline = time.monotonic() + seconds
    while best == 0.0 or time.monotonic() < deadline:
        elapsed = _one_pass(parts)
        best = max(best, buffer.nbytes / elapsed)
    return best


def _one_pass(parts: list) -> float:
    """Seconds in which every thread reads its part once."""
    import numpy as np

    barrier = threading.Barrier(len(parts) + 1)
    step = _CHUNK_BYTES // 4

    def read(part: np.ndarray) -> None:
        barrier.wait()
        for begin in range(0, part.size, step):
            np.maximum.reduce(part[begin : begin + step])
        barrier.wait()

    workers = [threading.Thread(target=read, args=[part]) for part in parts]
    for worker in workers:
        worker.start()
    barrier.wait()
    begin = time.perf_counter()
    barrier.wait()
    elapsed = time.perf_counter() - begin
    for worker in workers:
        worker.join()
    return elapsed
