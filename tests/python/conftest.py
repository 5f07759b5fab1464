"""Real planners for the tests of the Python package."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DEADLINE_SEC = 60

# What a shell does not wait for ignores Ctrl-C, and so does all that such a process starts: tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Planner:
    """A planner process on a free port. It ends with this process, whatever happens to it."""

    def __init__(self, directory: Path, *flags: str) -> None:
        command = [os.environ["RFORK_BIN"], "--log-format", "json", "--end-with-stdin", "planner", "--host", "127.0.0.1"]
        command += ["--port", "0", "--drain-sec", "0", "--database-url", f"sqlite://{directory}/planner.db", *flags]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            told = json.loads(line)
            if told["message"] == "the planner listens":
                self.url = f"http://{told['address']}"
                return
        raise AssertionError(f"the planner ended with {self.process.wait()}")

    def stop(self) -> None:
        """Stops it and waits for its end."""
        self.process.terminate()
        self.process.communicate(timeout=DEADLINE_SEC)

    def config(self, **more: Any) -> dict[str, Any]:
        """A worker's settings."""
        config = {"model_url": "/models/m", "model_deploy_strategy_name": "test", "rfork_scheduler_url": self.url}
        return config | {"rfork_seed_bind_host": "127.0.0.1"} | more


@pytest.fixture
def planner(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Planner]:
    """A planner; flags come as the fixture's parameter."""
    planner = Planner(tmp_path, *getattr(request, "param", ()))
    yield planner
    planner.stop()


@pytest.fixture
def python(planner: Planner) -> Callable[..., subprocess.Popen[str]]:
    """Starts another Python, which has `config`, `numpy` and `rfork`."""

    def start(program: str, **options: Any) -> subprocess.Popen[str]:
        head = f"import numpy, os, rfork, sys\nconfig = {planner.config()!r}\n"
        command = [sys.executable, "-c", head + textwrap.dedent(program)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, **(pipes | options))

    return start
