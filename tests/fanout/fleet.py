"""One planner, one seed and workers, of one measurement."""

import time
from dataclasses import dataclass
from pathlib import Path

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
    # What an engine sends at most, in GiB/s.
    rate: float | None = None
    # Whether workers compute SHA-256 of all that they hold before they say that they are loaded.
    has_digests: bool = False


class Fleet:
    """Starts with a seed that serves; `workers` are started by the cases. Ends with the `with` block."""

    def __init__(self, place: Place, home: Path, *, capacity=1, is_on=True):
        self._place, self._home = place, home
        rfork, nodes = place.rfork, place.nodes
        self._host = PLANNER_HOST if nodes else "127.0.0.1"
        self.workers: list[Worker] = []
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
            self.seed = self._worker("seed", nodes and nodes[0])
            self.seed_identity = self.seed.wait_for("serving")["identity"]
        except BaseException:
            self.close()
            raise

    def start(self, count: int, pause_sec: float = 0.0) -> None:
        """Starts so many workers, one each `pause_sec`."""
        begun, nodes = time.monotonic(), self._place.nodes
        for at in range(count):
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
        return Worker(name, node.inside(*command) if node else command, self._home)

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
        contents = {worker.content() for worker in [self.seed, *workers]}
        if len(contents) != 1:
            raise AssertionError(f"bytes differ, which must never be: {contents}")
        strays = [worker.name for worker in workers if worker.read_storage()]
        if strays:
            raise AssertionError(f"storage was read, though the seed lives: {', '.join(strays)}")

    def last_sec(self, workers: list[Worker]) -> float:
        """From the first start to the last of these that is loaded."""
        return max(worker.begun + worker.load_sec() for worker in workers) - min(worker.begun for worker in self.workers)

    def close(self) -> None:
        for process in [*self.workers, getattr(self, "seed", None), self._planner]:
            if process:
                process.kill()

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _logging(level: str) -> list[str]:
    return ["--log-format", "json", "--log", level]
