"""Real vLLM servers over a real planner: who loads from where, and whether all say the same.

Prints how long each took to load, and ends with 1 if anything is not as it should be.
"""

import contextlib
import ctypes
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rfork

# For what hangs: on two slow cores a server takes minutes to come up, beside another one more.
READY_SEC = 1800
HIDDEN_SIZE = 1024
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "RFORK_LOG": "info",
}
# What is said by random weights is dull; how probable each token was tells one set of weights from another.
PROMPT = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0.0, "logprobs": 1}


class Process:
    """A process of a group of its own, whose output is gathered. It ends with the block."""

    def __init__(self, command: list[str], directory: Path, name: str) -> None:
        self.name = name
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def find(self, pattern: str) -> re.Match[str] | None:
        """The first line with it."""
        return next((found for line in list(self.lines) if (found := re.search(pattern, line))), None)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Waits until a line has it."""
        deadline = time.monotonic() + READY_SEC
        while (found := self.find(pattern)) is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.fail(f"never said {pattern!r}")
            time.sleep(0.1)
        return found

    def fail(self, why: str) -> None:
        told = [line for line in self.lines if "rfork" in line or line in self.lines[-30:]]
        raise SystemExit("\n".join([*told, f"{self.name} {why}"]))

    def kill(self) -> None:
        """At once, with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()


class Server(Process):
    """A vLLM server."""

    def __init__(self, name: str, model: Path, load_format: str, extra: dict[str, Any] | None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--enforce-eager", "--dtype", "bfloat16"]
        command += ["--max-model-len", "256", "--max-num-seqs", "4", "--load-format", load_format]
        if extra is not None:
            command += ["--model-loader-extra-config", json.dumps(extra)]
        super().__init__(command, model.parent, name)

    def completion(self) -> tuple[str, list[float]]:
        """What it says, once it is ready, and how probable it held each token."""
        deadline = time.monotonic() + READY_SEC
        while True:
            if self.process.poll() is not None:
                self.fail("ended")
            try:
                body = json.dumps(PROMPT | {"model": self._model()}).encode()
                headers = {"Content-Type": "application/json"}
                request = urllib.request.Request(self._url("/v1/completions"), body, headers)
                with urllib.request.urlopen(request, timeout=READY_SEC) as answer:
                    choice = json.load(answer)["choices"][0]
                    return choice["text"], choice["logprobs"]["token_logprobs"]
            except urllib.error.HTTPError as error:
                self.fail(f"answered {error.code}: {error.read()!r}")
            except OSError:
                if time.monotonic() > deadline:
                    self.fail("was not ready in time")
                time.sleep(0.5)

    def _model(self) -> str:
        with urllib.request.urlopen(self._url("/v1/models"), timeout=READY_SEC) as answer:
            return json.load(answer)["data"][0]["id"]

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@contextlib.contextmanager
def planner(binary: str, directory: Path) -> Iterator[str]:
    """A planner, by its URL."""
    command = [binary, "--log-format", "json", "--end-with-stdin", "planner", "--host", "127.0.0.1", "--port", "0"]
    command += ["--drain-sec", "0", "--heartbeat-ttl-sec", "600", "--database-url", f"sqlite://{directory}/planner.db"]
    with Process(command, directory, "the planner") as process:
        address = process.wait_for(r'"the planner listens".*?"address":"([^"]+)"')[1]
        yield f"http://{address}"


class CorruptSeed:
    """Forks what a seed has, serves it on, and then has a bit of every tensor flip in its memory."""

    def __init__(self, settings: dict[str, Any], identity: str) -> None:
        seeds = rfork.PlannerClient(settings["rfork_scheduler_url"]).seeds()
        [seed] = [seed for seed in seeds if seed["seed"] == identity]
        host, port, _ = seed["seed"].rsplit(":", 2)
        query = urllib.parse.urlencode({"seed_key": seed["seed_key"]})
        with urllib.request.urlopen(f"http://{host}:{port}/get_rfork_transfer_engine_info?{query}") as answer:
            _, tensors = json.load(answer)["rfork_transfer_engine_info"]
        self.session = rfork.Session(settings, seed_key=seed["seed_key"])
        # Tensors by address do not keep their memory.
        memory = {name: ctypes.create_string_buffer(count * size) for name, (_, count, size, *_) in tensors.items()}
        self.memory = memory
        described = {
            name: rfork.Tensor(ctypes.addressof(memory[name]), count, size, tuple(shape), dtype)
            for name, (_, count, size, shape, dtype) in tensors.items()
        }
        assert self.session.load(described).forked
        self.session.serve()
        for one in memory.values():
            one[0] = one.raw[0] ^ 1

    def __enter__(self) -> "CorruptSeed":
        return self

    def __exit__(self, *_: Any) -> None:
        self.session.close()


def main(binary: str, model: Path) -> None:
    if not (model / "model.safetensors").exists():
        maker = Path(__file__).with_name("make_model.py")
        subprocess.run([sys.executable, maker, model, str(HIDDEN_SIZE)], check=True, env=os.environ | ENVIRONMENT)
    size = (model / "model.safetensors").stat().st_size
    print(f"the model has {size / (1 << 20):.0f} MiB; prompt {PROMPT['prompt']!r}")
    times: list[tuple[str, str]] = []

    def settings(url: str) -> dict[str, Any]:
        return {
            "model_url": "tiny-llama",
            "model_deploy_strategy_name": "check",
            "rfork_scheduler_url": url,
            "rfork_seed_bind_host": "127.0.0.1",
            "rfork_request_timeout_sec": 3,
        }

    def loaded(server: Server, how: str) -> str:
        """That it loaded this way and says what all say; gives the line that tells it."""
        said = server.completion()
        if said != expected:
            server.fail(f"says {said!r}, others {expected!r}")
        line = server.wait_for(how)[0]
        took = server.find(r"Loading weights took ([\d.]+) seconds") or server.find(r" in ([\d.]+) seconds \(")
        whole = server.find(r"Model loading took .*?([\d.]+) seconds")
        told = [f"weights {took[1]} s" if took else "", f"model {whole[1]} s" if whole else ""]
        times.append((server.name, ", ".join(part for part in told if part)))
        print(f"{server.name}: {line}")
        return line

    forked, from_storage = r"rfork: forked .*", r"rfork: no seed gave the weights.*"
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        url = stack.enter_context(planner(binary, Path(scratch)))
        with Server("vLLM's own loader (auto)", model, "auto", None) as auto:
            expected = auto.completion()
            took = auto.find(r"Loading weights took ([\d.]+) seconds")
            times.append((auto.name, f"weights {took[1]} s" if took else ""))
            print(f"expected: {expected[0]!r}, log probabilities {expected[1][:4]} …")
        first = stack.enter_context(Server("first, from storage", model, "rfork", settings(url)))
        loaded(first, from_storage)
        first.wait_for(r"rfork: serving these weights as (\S+)")
        second = stack.enter_context(Server("second, forks from the first", model, "rfork", settings(url)))
        loaded(second, forked)
        seed = second.wait_for(r"rfork: serving these weights as (\S+)")[1]
        first.kill()
        print("the first was killed")
        with Server("third, forks from the second", model, "rfork", settings(url)) as third:
            line = loaded(third, forked)
            if seed not in line:
                third.fail(f"forked from another than {seed}")
        with CorruptSeed(settings(url), seed):
            second.kill()
            with Server("fourth, from a seed whose memory is corrupt", model, "rfork", settings(url)) as fourth:
                loaded(fourth, r"rfork: a seed failed on the way.*")
                fourth.wait_for(r"chunk \d+ from \S+ is corrupt")
                fourth.wait_for(r"rfork: serving these weights as")
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        url = stack.enter_context(planner(binary, Path(scratch)))
        names = [f"{number} of three at once" for number in ("one", "two", "three")]
        servers = [stack.enter_context(Server(name, model, "rfork", settings(url))) for name in names]
        lines = [loaded(server, f"{forked}|{from_storage}") for server in servers]
        reads = [line for line in lines if "forked" not in line]
        if len(reads) != 1:
            servers[0].fail(f"was one of {len(reads)} that read storage")
        for server in servers:
            server.wait_for(r"rfork: serving these weights as")
    with Server("fifth, no planner", model, "rfork_rs", settings(url)) as fifth:
        loaded(fifth, from_storage)
    width = max(len(name) for name, _ in times)
    print("\nhow long loading took")
    for name, told in times:
        print(f"  {name:<{width}}  {told}")
    print("all said the same")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
