"""One planner, one seed or none, and workers, of one measurement."""

import time
from dataclasses import dataclass
from pathlib import Path

from memory import Warm
from network import PLANNER_HOST, Node
from processes import Process, Worker, until

PLANNER_PORT = 1223
PROGRESS_MS = 50


@dataclass(frozen=True)
class Place:
    """What fleets are made of."""

    rfork: Path
    model: Path
    # The seed's, then the workers'; None: all are on loopback.
    nodes: list[Node] | None
    # How long a model takes over a link; memory is freed for workers within it. None: they take it as it comes.
    warm_sec: float | None = None
    # What an engine sends at most, in GiB/s.
    rate: float | None = None
    # Whether workers compute SHA-256 of all that they hold before they say that they are loaded.
    has_digests: bool = False
    # Storage of a given rate: the library that workers read through, and the rate. Then there is no seed.
    slow_storage: tuple[Path, float] | None = None


class Fleet:
    """Begins with a seed that serves, if there is one; `start` starts `count` workers. Ends with the `with` block."""

    def __init__(self, place: Place, home: Path, count: int, *, capacity=1, is_on=True):
        self._place, self._home, self._count = place, home, count
        rfork, nodes = place.rfork, place.nodes
        self._host = PLANNER_HOST if nodes else "127.0.0.1"
        self.seed: Worker | None = None
        self.workers: list[Worker] = []
        self._warm: Warm | None = None
        home.mkdir(parents=True)
        self._planner = Process(
            "planner",
            [str(rfork), *_logging("info"), "planner", "--host", self._host, "--port", str(PLANNER_PORT)]
            + ["--database-url", f"sqlite:{home / 'planner.db'}", "--fork-while-loading", "on" if is_on else "off"]
            + ["--default-resource-points", str(capacity)],
            home,
        )
        try:
            self._planner.wait_for("the planner listens")
            if not place.slow_storage:
                self.seed = self._worker("seed", nodes and nodes[0])
                self.seed_identity = self.seed.wait_for("serving")["identity"]
            if place.warm_sec:
                self._warm = Warm(count * place.model.stat().st_size, place.warm_sec)
        except BaseException:
            self.close()
            raise

    def start(self, pause_sec: float = 0.0) -> None:
        """Starts the workers, one each `pause_sec`."""
        nodes = self._place.nodes
        if self._warm:
            self._warm.release()
        begun = time.monotonic()
        for at in range(self._count):
            time.sleep(max(0.0, begun + at * pause_sec - time.monotonic()))
            node = nodes and nodes[1 + len(self.workers)]
            self.workers.append(self._worker(f"worker-{len(self.workers)}", node))

    def _worker(self, name: str, node: Node | None) -> Worker:
        place = self._place
        command = [str(place.rfork), *_logging("info,rfork_loader=debug"), "worker", "--model", str(place.model)]
        command += ["--model-url", "m", "--model-deploy-strategy-name", "s"]
        command += ["--digest"] if place.has_digests else []
        command += ["--progress-interval-ms", str(PROGRESS_MS)]
        command += ["--rfork-scheduler-url", f"http://{self._host}:{PLANNER_PORT}"]
        command += ["--rfork-seed-bind-host", node.host if node else "127.0.0.1"]
        command += ["--rfork-seed-max-gib-per-sec", str(place.rate)] if place.rate else []
        environment = None
        if place.slow_storage:
            library, bytes_per_sec = place.slow_storage
            environment = {"LD_PRELOAD": str(library), "RFORK_TEST_STORAGE_BYTES_PER_SEC": str(bytes_per_sec)}
        return Worker(name, node.inside(*command) if node else command, self._home, environment)

    def chain(self) -> list[Worker]:
        """The workers in the order in which bytes go through them, once that is known."""
        until("every worker has a source", lambda: all(worker.source() for worker in self.workers), self.workers)
        ordered, source = [], self.seed_identity
        while reader := next((worker for worker in self.workers if worker.source() == source), None):
            ordered.append(reader)
            source = reader.listens_as()
        return ordered

    def node_of(self, worker: Worker) -> Node:
        return self._place.nodes[1 + self.workers.index(worker)]

    def wait_until_loaded(self, workers: list[Worker]) -> None:
        until("every worker is loaded", lambda: all(worker.loaded_at() for worker in workers), workers)
        contents = {worker.content() for worker in [*([self.seed] if self.seed else []), *workers]}
        if len(contents) != 1:
            raise AssertionError(f"bytes differ, which must never be: {contents}")
        strays = [worker.name for worker in workers if worker.storage_bytes() > 0]
        if self.seed and strays:
            raise AssertionError(f"storage was read, though the seed lives: {', '.join(strays)}")

    def last_sec(self, workers: list[Worker]) -> float:
        """From the first start to the last of these that is loaded."""
        first = min(worker.begun for worker in self.workers)
        return max(worker.begun + worker.load_sec() for worker in workers) - first

    def close(self) -> None:
        for process in [*self.workers, self.seed, self._planner]:
            if process:
                process.kill()
        if self._warm:
            self._warm.close()

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _logging(level: str) -> list[str]:
    return ["--log-format", "json", "--log", level]
