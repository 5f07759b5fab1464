"""Memory that a virtual machine has of its host already.

A guest that gives free memory back has to ask for each page anew, which takes its processors seconds a GiB. One worker
on a machine of its own has time for that while it waits for its link. Many on one machine measure their host then.
"""

import mmap
import threading

SLICE_BYTES = 2 << 20
# What is free before it is needed, in shares of all.
LEAD = 0.15
STEP_SEC = 0.02


class Warm:
    """Takes so much memory, and from `release` on gives it back to the system bit by bit, within `over_sec`."""

    def __init__(self, size_bytes: int, over_sec: float):
        self._size = size_bytes - size_bytes % SLICE_BYTES
        self._over_sec = over_sec
        self._memory = mmap.mmap(-1, self._size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, self._size, mmap.PAGESIZE):
            self._memory[at] = 1
        self._ended = threading.Event()
        self._giving = threading.Thread(target=self._give)

    def release(self) -> None:
        self._giving.start()

    def _give(self) -> None:
        given, steps = 0, max(1, round(self._over_sec / STEP_SEC))
        for step in range(steps + 1):
            due = int(self._size * min(1.0, LEAD + step / steps))
            due -= due % SLICE_BYTES
            if due > given:
                self._memory.madvise(mmap.MADV_DONTNEED, given, due - given)
            given = due
            if self._ended.wait(STEP_SEC):
                break
        self._memory.close()

    def close(self) -> None:
        self._ended.set()
        if self._giving.is_alive():
            self._giving.join()
