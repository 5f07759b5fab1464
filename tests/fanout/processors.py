"""How busy the processors are: where they have nothing left, they are measured, and not the links."""

from pathlib import Path


class Busy:
    """The share of all processors' time that was used since this was made, by anybody on this machine."""

    def __init__(self) -> None:
        self._idle, self._all = _ticks()

    def share(self) -> float:
        idle, total = _ticks()
        return 1 - (idle - self._idle) / max(1, total - self._all)


def _ticks() -> tuple[int, int]:
    """Idle, and all."""
    user, nice, system, idle, waits, *others = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return idle + waits, user + nice + system + idle + waits + sum(others)
