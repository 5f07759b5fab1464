"""What is measured: each case starts a fleet and tells how long it took."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fleet import Fleet, Place
from processes import until
from processors import Busy


@dataclass(frozen=True)
class Result:
    """One measurement. `sec`: until the last worker was loaded. `copies`: what left the seed, or was read from storage
    where there is none, in models. `busy`: the share of the processors' time that was used meanwhile."""

    sec: float
    copies: float | None
    busy: float


@dataclass(frozen=True)
class Case:
    """`bar`: of `sec` in shares of `unit`; `grace_sec` is added to it. `most_copies`: the bar of `copies`."""

    name: str
    what: str
    run: Callable[["Bench", Path], Result]
    bar: float
    most_copies: float | None = None
    grace_sec: float = 0.0
    # Of what the time is a share, by its name in UNITS.
    unit: str = "one"


@dataclass
class Bench:
    """Where cases are run. `t1_sec` is what one worker took, once that is measured."""

    shaped: Place
    large: Place
    loopback: Place
    # Workers behind links, whose storage gives each as much as a link does.
    cold: Place
    mbit: float
    model_bytes: dict[Path, int]
    t1_sec: float = 0.0

    def watch(self, place: Place) -> "Watch":
        return Watch(place, self.model_bytes[place.model])


class Watch:
    """What leaves the seed, and how busy processors are, from when a case starts its workers."""

    def __init__(self, place: Place, model_bytes: int):
        self._seed, self._model_bytes = place.nodes and place.nodes[0], model_bytes
        self._before = self._seed.sent_bytes() if self._seed else 0
        self._busy = Busy()

    def result(self, sec: float) -> Result:
        busy = self._busy.share()
        copies = (self._seed.sent_bytes() - self._before) / self._model_bytes if self._seed else None
        return Result(sec, copies, busy)


def one(place_of: Callable[[Bench], Place], is_on: bool = True):
    def run(bench: Bench, home: Path) -> Result:
        with Fleet(place_of(bench), home, 1, is_on=is_on) as fleet:
            watch = bench.watch(place_of(bench))
            fleet.start()
            fleet.wait_until_loaded(fleet.workers)
            return watch.result(fleet.last_sec(fleet.workers))

    return run


def together(count: int, capacity: int = 1):
    def run(bench: Bench, home: Path) -> Result:
        with Fleet(bench.shaped, home, count, capacity=capacity) as fleet:
            watch = bench.watch(bench.shaped)
            fleet.start()
            fleet.wait_until_loaded(fleet.workers)
            return watch.result(fleet.last_sec(fleet.workers))

    return run


def relay_hit(count: int, number: int):
    """The relay in the middle gets this signal when it has a third; everybody else counts."""

    def run(bench: Bench, home: Path) -> Result:
        with Fleet(bench.shaped, home, count) as fleet:
            watch = bench.watch(bench.shaped)
            fleet.start()
            relay = fleet.chain()[count // 2]
            until(f"{relay.name} has a third", lambda: relay.held_share() >= 1 / 3, fleet.workers)
            relay.signal(number)
            others = [worker for worker in fleet.workers if worker is not relay]
            fleet.wait_until_loaded(others)
            return watch.result(fleet.last_sec(others))

    return run


def cold(count: int):
    """Nobody has the weights."""

    def run(bench: Bench, home: Path) -> Result:
        with Fleet(bench.cold, home, count) as fleet:
            watch = bench.watch(bench.cold)
            fleet.start()
            fleet.wait_until_loaded(fleet.workers)
            read = sum(worker.storage_bytes() for worker in fleet.workers)
            return replace(watch.result(fleet.last_sec(fleet.workers)), copies=read / bench.model_bytes[bench.cold.model])

    return run


def joiners(count: int, pause: float):
    """One worker each `pause` T1; the time is that of the one that took longest, each from its own start."""

    def run(bench: Bench, home: Path) -> Result:
        with Fleet(bench.shaped, home, count) as fleet:
            watch = bench.watch(bench.shaped)
            fleet.start(pause * bench.t1_sec)
            fleet.wait_until_loaded(fleet.workers)
            return watch.result(max(worker.load_sec() for worker in fleet.workers))

    return run


def slow_link(count: int, *, down: float = 1.0, up: float = 1.0):
    """The middle worker's link is so much of the others', from when it has a place; everybody else counts."""

    def run(bench: Bench, home: Path) -> Result:
        with Fleet(bench.large, home, count) as fleet:
            watch = bench.watch(bench.large)
            fleet.start()
            slow = fleet.chain()[count // 2]
            node = fleet.node_of(slow)
            node.shape(down_mbit=bench.mbit * down, up_mbit=bench.mbit * up)
            try:
                others = [worker for worker in fleet.workers if worker is not slow]
                fleet.wait_until_loaded(others)
                return watch.result(fleet.last_sec(others))
            finally:
                node.shape(down_mbit=bench.mbit, up_mbit=bench.mbit)

    return run


def over_loopback(count: int):
    def run(bench: Bench, home: Path) -> Result:
        with Fleet(bench.loopback, home, count) as fleet:
            watch = bench.watch(bench.loopback)
            fleet.start()
            fleet.wait_until_loaded(fleet.workers)
            return watch.result(fleet.last_sec(fleet.workers))

    return run


# What others are measured by.
LARGE = "one-large"
UNITS = {
    "one": one(lambda bench: bench.shaped),
    "one-off": one(lambda bench: bench.shaped, is_on=False),
    LARGE: one(lambda bench: bench.large),
    "one-loopback": one(lambda bench: bench.loopback),
    "one-cold": cold(1),
}

CASES = [
    Case("8", "8 workers", together(8), 1.04, 1.02),
    Case("16", "16 workers", together(16), 1.08, 1.02),
    Case("capacity", "16 workers, capacity 8", together(16, capacity=8), 1.10, 1.1),
    Case("killed", "16, a relay in the middle killed at a third", relay_hit(16, signal.SIGKILL), 1.15),
    Case("stopped", "16, the same relay stopped", relay_hit(16, signal.SIGSTOP), 1.0, grace_sec=6.0),
    Case("joiners", "8 joiners, one every T1/16, each from its start", joiners(8, 1 / 16), 1.06),
    Case("slow-down", "8, the middle's downlink at a quarter: the others", slow_link(8, down=0.25), 1.30, unit=LARGE),
    Case("slow-up", "8, the middle's uplink at a quarter: the others", slow_link(8, up=0.25), 1.40, unit=LARGE),
    Case("loopback", "32 over loopback, engines at 20 MiB/s", over_loopback(32), 1.15, unit="one-loopback"),
    Case("cold", "8 that start with nothing, storage as fast as a link", cold(8), 1.10, 1.0, unit="one-cold"),
    # At least 0.98 of the throughput.
    Case("alone", "one alone, over one without", UNITS["one"], 1 / 0.98, unit="one-off"),
]
