"""`rfork` as processes, whose logs are read as they grow."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

LOOK_SEC = 0.01
# For what hangs.
DEADLINE_SEC = 240


class Hangs(Exception):
    """Something did not happen in time."""


class Process:
    """A process that logs JSON to a file."""

    def __init__(self, name: str, command: list[str], logs: Path, environment: dict[str, str] | None = None):
        self.name = name
        self._path = logs / f"{name}.log"
        self.begun = time.time()
        with self._path.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | (environment or {})
            )
        self._file = self._path.open()
        self._rest = ""
        self._lines: list[dict] = []

    def lines(self) -> list[dict]:
        """What it has said until now."""
        *whole, self._rest = (self._rest + self._file.read()).split("\n")
        self._lines += [json.loads(line) for line in whole if line.startswith("{")]
        return self._lines

    def said(self, message: str) -> dict | None:
        """The first line with this message."""
        return next((line for line in self.lines() if line.get("message") == message), None)

    def wait_for(self, message: str) -> dict:
        return until(f"{self.name} says '{message}'", lambda: self.said(message), [self])

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Worker(Process):
    """A worker; its times count from when it was started."""

    def listens_as(self) -> str | None:
        """Under which identity others read from it while it loads."""
        line = self.said("this worker serves what it holds while it loads")
        return line and line["identity"]

    def source(self) -> str | None:
        """Whom it was sent to first."""
        line = self.said("the planner granted a seed")
        return line and line["seed"]

    def held_share(self) -> float:
        progress = [line for line in self.lines() if line.get("message") == "progress"]
        return progress[-1]["held_bytes"] / progress[-1]["total_bytes"] if progress else 0.0

    def loaded_at(self) -> float | None:
        line = self.said("loaded")
        return line and datetime.fromisoformat(line["timestamp"]).timestamp()

    def content(self) -> tuple[str, str | None]:
        """What its bytes are: the name made of its chunks' digests, and SHA-256 over all, if that was asked for."""
        line = self.wait_for("loaded")
        return line["content_id"], line.get("digest")

    def storage_bytes(self) -> int:
        line = self.wait_for("loaded")
        return line["bytes"] - line["bytes_from_seeds"]

    def load_sec(self) -> float:
        at = self.loaded_at()
        if at is None:
            raise Hangs(f"{self.name} is not loaded")
        return at - self.begun


def until(what: str, found: Callable[[], T | None], processes: Iterable[Process] = ()) -> T:
    deadline = time.monotonic() + DEADLINE_SEC
    while True:
        if result := found():
            return result
        for process in processes:
            if process.has_ended() and not found():
                raise Hangs(f"{process.name} has ended: {what}")
        if time.monotonic() > deadline:
            raise Hangs(f"within {DEADLINE_SEC} s it was not so: {what}")
        time.sleep(LOOK_SEC)
