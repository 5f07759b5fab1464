"""Contracts with YuanRong's library: its unmodified packages, over fakes of AscendCL and of its point-to-point library.

Each runs with each package, and through both entrances: `native` (`rfork worker`, without Python) and `embedded` (the
package `rfork`). What is proved is how the library is used; nothing is said of an NPU.

`RFORK_TEST_YUANRONG` names the directory that `tests/run` has installed the packages into, each in one of its version.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy
import pytest
import rfork

ROOT = Path(__file__).parents[1]
DEADLINE_SEC = 120
VERSIONS = {"0.1.0": "openyuanrong-transfer-engine", "0.8.1": "openyuanrong-datasystem"}
ENTRANCES = ["native", "embedded"]
# What peers of generation C make their keys of.
FINGERPRINT, STRUCTURE = "f00", "beef"
HUNG_EXIT_CODE, INTERRUPTED = 70, 130

with_packages = pytest.mark.skipif(
    "RFORK_TEST_YUANRONG" not in os.environ, reason="YuanRong's packages are not here: they are for x86-64, Python 3.11"
)


@pytest.fixture(scope="session")
def fakes(tmp_path_factory):
    """The directory of the fake libraries."""
    directory = tmp_path_factory.mktemp("fakes")
    for name, libraries in (("ascendcl", []), ("p2ptransfer", ["-lascendcl"])):
        command = ["cc", "-std=gnu11", "-O2", "-fPIC", "-shared", "-pthread", str(ROOT / f"fakes/lib{name}.c")]
        command += [f"-Wl,-soname,lib{name}.so,-rpath,$ORIGIN", "-o", str(directory / f"lib{name}.so")]
        subprocess.run([*command, "-L", str(directory), *libraries], check=True, timeout=DEADLINE_SEC)
    return directory


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A small model, with tensors that end anywhere."""
    shapes = [(700, 512), (1,), (4_097,), (3, 524_289), (1_000_003,)]
    return write_model(tmp_path_factory.mktemp("model"), shapes, 1)


@pytest.fixture(scope="session")
def large_model(tmp_path_factory):
    """1 GiB, and a few bytes."""
    return write_model(tmp_path_factory.mktemp("large"), [(1 << 26,)] * 15 + [(5,), ((1 << 26) - 5,)], 2)


def write_model(directory, shapes, seed):
    random, header, at = numpy.random.default_rng(seed), {}, 0
    for number, shape in enumerate(shapes):
        size = int(numpy.prod(shape))
        header[f"layers.{number:02}.w"] = {"dtype": "U8", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path = directory / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes:
            file.write(random.bytes(int(numpy.prod(shape))))
    return path


class Worker:
    """A process that tells what it does as JSON lines, among others; all that it writes is kept."""

    def __init__(self, command, environment, tells_on):
        pipes = {tells_on: subprocess.PIPE, "stderr" if tells_on == "stdout" else "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True, **pipes)
        self.told, self.lines, self.changed = [], [], threading.Condition()
        self.threads = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (self.process.stdout, self.process.stderr)
        ]
        for thread in self.threads:
            thread.start()

    def _read(self, stream):
        for line in stream:
            with self.changed:
                self.lines.append(line)
                if line.startswith("{"):
                    self.told.append(json.loads(line))
                self.changed.notify_all()
        with self.changed:
            self.lines.append("")
            self.changed.notify_all()

    def wait_for(self, message, **fields):
        """What it tells under this message, with these fields."""

        def found():
            return [told for told in self.told if told["message"] == message and told.items() >= fields.items()]

        with self.changed:
            ended = lambda: self.lines.count("") == len(self.threads)
            assert self.changed.wait_for(lambda: found() or ended(), DEADLINE_SEC), self.text
            assert found(), f"it ended without {message}:\n{self.text}"
            return found()[0]

    def end(self, code=0):
        """Waits for its end, with this code."""
        assert self.process.wait(DEADLINE_SEC) == code, self.text
        for thread in self.threads:
            thread.join(DEADLINE_SEC)

    def stop(self, code=0):
        """Ends it as an orchestrator does."""
        self.process.send_signal(signal.SIGTERM)
        self.end(code)

    @property
    def text(self):
        return "".join(self.lines)


@pytest.fixture
def start(planner, fakes):
    """Starts workers, which end with the test whatever it does."""
    workers = []

    def environment(version):
        installed = version if os.path.isabs(version) else f"{os.environ['RFORK_TEST_YUANRONG']}/{version}"
        return os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [installed, os.environ.get("PYTHONPATH")])),
            "RFORK_YUANRONG_PATH": installed,
            "RFORK_ASCENDCL_PATH": str(fakes / "libascendcl.so"),
            "TRANSFER_ENGINE_P2P_SO_PATH": str(fakes / "libp2ptransfer.so"),
            "RFORK_LOG": "info",
        }

    def begin(command, version, tells_on):
        worker = Worker(command, environment(version), tells_on)
        workers.append(worker)
        return worker

    def start(entrance, version, model, npu, once=False, ready=False, **settings):
        """A worker of ours, with YuanRong's package of that version, or in that directory."""
        config = planner.config(**settings)
        if entrance == "native":
            said = {name: str(value).lower() if isinstance(value, bool) else value for name, value in config.items()}
            flags = [f"--{name.replace('_', '-')}={value}" for name, value in said.items()]
            flags += [f"--compatibility-fingerprint={FINGERPRINT}", f"--structural-digest={STRUCTURE}"]
            flags += ["--once"] * once
            command = [os.environ["RFORK_BIN"], "--log-format", "json", "worker", "--engine", "yuanrong", "--digest"]
            return begin([*command, "--model", str(model), "--npu", str(npu), *flags], version, "stderr")
        identity = {"compatibility_fingerprint": FINGERPRINT, "structural_digest": STRUCTURE}
        wanted = {"model": str(model), "npu": npu, "config": config, "identity": identity, "once": once, "ready": ready}
        program = ROOT / "python/yuanrong_worker.py"
        return begin([sys.executable, str(program), json.dumps(wanted)], version, "stdout")

    def peer(version, model, *flags):
        """An unmodified worker of the field, which moves bytes with YuanRong."""
        config = planner.config()
        command = [sys.executable, "-B", str(ROOT / "peers/peer.py"), "--generation=C", "--planner", planner.url]
        command += ["--model", str(model.parent), "--engine=yuanrong", "--npu=3", "--model-url", config["model_url"]]
        command += ["--strategy", config["model_deploy_strategy_name"], *flags]
        return begin(command, version, "stderr")

    start.peer = peer
    yield start
    for worker in workers:
        worker.process.kill()
        worker.process.wait()


both = pytest.mark.parametrize("entrance", ENTRANCES)


def each(test):
    """With each version."""
    return with_packages(pytest.mark.parametrize("version", VERSIONS)(test))



@both
@each
def test_one_gib_is_forked_byte_for_byte(start, large_model, entrance, version):
    seed = start(entrance, version, large_model, 0)
    stored = seed.wait_for("loaded")
    assert stored["source"] == "storage"
    identity = seed.wait_for("serving")["identity"]
    reader = start(entrance, version, large_model, 1, once=True)
    loaded = reader.wait_for("loaded")
    assert (loaded["source"], loaded["seed"], loaded["digest"]) == ("seed", identity, stored["digest"]), reader.text
    assert loaded["bytes_from_seeds"] >= 1 << 30
    reader.end()
    seed.stop()


@each
def test_one_entrance_reads_what_the_other_serves(start, model, version):
    for first, second in (ENTRANCES, ENTRANCES[::-1]):
        seed = start(first, version, model, 0)
        identity = seed.wait_for("serving")["identity"]
        reader = start(second, version, model, 1, once=True)
        loaded = reader.wait_for("loaded")
        assert (loaded["seed"], loaded["digest"]) == (identity, seed.wait_for("loaded")["digest"]), reader.text
        reader.end()
        seed.stop()


@each
def test_a_ready_engine_is_used_and_left_to_its_owner(start, model, version):
    seed = start("embedded", version, model, 0, ready=True)
    seed.wait_for("serving")
    reader = start("embedded", version, model, 1, once=True, ready=True)
    loaded = reader.wait_for("loaded")
    assert (loaded["source"], loaded["digest"]) == ("seed", seed.wait_for("loaded")["digest"])
    reader.end()
    seed.stop()


@both
@each
def test_workers_that_start_together_pass_on_what_they_hold_and_read_storage_once(start, large_model, entrance, version):
    chained = {"rfork_fork_while_loading": True}
    workers = [start(entrance, version, large_model, npu, **chained) for npu in range(3)]
    loaded = [worker.wait_for("loaded") for worker in workers]
    assert len({one["digest"] for one in loaded}) == 1
    assert sorted(one["source"] for one in loaded) == ["seed", "seed", "storage"], loaded
    said = "\n".join(worker.text for worker in workers)
    assert said.count("this worker reads storage, and others wait for what it reads") == 1, said
    for worker in workers:
        worker.wait_for("serving")
    # They are seeds like any other then.
    reader = start(entrance, version, large_model, 3, once=True, **chained)
    again = reader.wait_for("loaded")
    assert (again["source"], again["digest"]) == ("seed", loaded[0]["digest"]), reader.text
    reader.end()
    for worker in workers:
        worker.stop()


@both
@each
def test_unmodified_workers_read_and_are_read(start, model, entrance, version):
    theirs = start.peer(version, model)
    identity = theirs.wait_for("serving")["identity"]
    ours = start(entrance, version, model, 0)
    loaded = ours.wait_for("loaded")
    assert (loaded.get("seed"), loaded["digest"]) == (identity, theirs.wait_for("loaded")["digest"]), ours.text
    assert "does not tell its engine's version" in ours.text
    theirs.stop()
    ours.wait_for("serving")
    again = start.peer(version, model)
    loaded = again.wait_for("loaded")
    assert (loaded["source"], loaded["digest"]) == ("seed", theirs.wait_for("loaded")["digest"]), again.text
    again.stop()
    ours.stop()


@both
@each
def test_a_range_that_is_not_registered_is_refused_and_storage_gives_the_weights(start, model, entrance, version):
    seed = start.peer(version, model, "--hide=3")
    seed.wait_for("serving")
    reader = start(entrance, version, model, 0, once=True)
    loaded = reader.wait_for("loaded")
    assert (loaded["source"], loaded["digest"]) == ("storage", seed.wait_for("loaded")["digest"])
    assert "(code 9)" in reader.text and "refused" in reader.text
    reader.end()


@both
@each
def test_a_dead_peer_is_passed_over(start, model, entrance, version):
    with socket.socket() as nobody:
        # Bound, so that nobody else gets the port, and not listened on.
        nobody.bind(("127.0.0.1", 0))
        seed = start.peer(version, model, f"--session=127.0.0.1:{nobody.getsockname()[1]}")
        seed.wait_for("serving")
        reader = start(entrance, version, model, 0, once=True)
        loaded = reader.wait_for("loaded")
        assert (loaded["source"], loaded["digest"]) == ("storage", seed.wait_for("loaded")["digest"])
        assert "(code 5)" in reader.text
        reader.end()


@pytest.fixture
def silent():
    """The address of somebody who takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@each
def test_with_a_silent_peer_the_native_entrance_loads_into_other_memory(start, model, silent, version):
    seed = start.peer(version, model, f"--session={silent}")
    seed.wait_for("serving")
    reader = start("native", version, model, 0, rfork_transfer_timeout_sec=1)
    loaded = reader.wait_for("loaded")
    assert (loaded["source"], loaded["digest"]) == ("storage", seed.wait_for("loaded")["digest"])
    assert "hangs since" in reader.text and "will not be a seed" in reader.text
    reader.stop()


@each
def test_a_worker_that_is_stopped_does_not_wait_for_a_silent_peer(start, model, silent, version):
    seed = start.peer(version, model, f"--session={silent}")
    seed.wait_for("serving")
    reader = start("native", version, model, 0, rfork_transfer_timeout_sec=1_000)
    reader.wait_for("progress", phase=f"loading from seed {seed.wait_for('serving')['identity']}")
    reader.stop(INTERRUPTED)


@each
def test_with_a_silent_peer_the_embedded_entrance_ends_the_process(start, model, silent, version):
    seed = start.peer(version, model, f"--session={silent}")
    seed.wait_for("serving")
    reader = start("embedded", version, model, 0, rfork_transfer_timeout_sec=1)
    reader.end(HUNG_EXIT_CODE)
    assert "rfork: a call of YuanRong's TransferEngine has not returned" in reader.text
    assert not reader.told


@each
@pytest.mark.parametrize("planner", [("--lease-ttl-sec", "1")], indirect=True)
def test_a_lease_is_renewed_while_the_library_holds_the_gil(start, planner, model, silent, version):
    start.peer(version, model, f"--session={silent}").wait_for("serving")
    reader = start("embedded", version, model, 0, rfork_transfer_timeout_sec=1_000)
    client, age_ms = rfork.PlannerClient(planner.url), 0
    # A lease that is not renewed is gone after a second; nothing else of the reader runs meanwhile.
    while age_ms < 5_000:
        assert reader.process.poll() is None and not list(client.ended_leases()), reader.text
        age_ms = max((lease["age_ms"] for lease in client.leases()), default=0)


@both
@each
def test_a_seed_that_ends_while_it_is_read_leaves_no_wrong_weights(start, large_model, entrance, version):
    seed = start(entrance, version, large_model, 0)
    seed.wait_for("serving")
    reader = start(entrance, version, large_model, 1, once=True)
    while "granted a seed" not in reader.text:
        with reader.changed:
            assert reader.changed.wait(DEADLINE_SEC), reader.text
    seed.stop()
    assert reader.wait_for("loaded")["digest"] == seed.wait_for("loaded")["digest"]
    reader.end()


@with_packages
@both
def test_two_versions_do_not_read_from_each_other(start, model, entrance):
    seed = start(entrance, "0.1.0", model, 0)
    seed.wait_for("serving")
    reader = start(entrance, "0.8.1", model, 1, once=True)
    loaded = reader.wait_for("loaded")
    assert (loaded["source"], loaded["digest"]) == ("storage", seed.wait_for("loaded")["digest"])
    theirs, ours = (f"{VERSIONS[version]} {version}" for version in ("0.1.0", "0.8.1"))
    assert f"its engine is version {theirs}, this worker's is {ours}" in reader.text
    reader.end()
    seed.stop()


@each
def test_a_thread_without_a_device_cannot_read(start, model, version):
    """What the engine's own thread is for: the library fails on others."""
    seed = start.peer(version, model)
    seed.wait_for("serving")
    reader = start.peer(version, model, "--read-on-another-thread")
    loaded = reader.wait_for("loaded")
    assert loaded["source"] == "storage"
    assert "code=5" in reader.wait_for("the seed failed")["error"]
    reader.stop()


NEWER = """
import enum
import os


class Code(enum.IntEnum):
    OK = 0
    NOT_READY = 8


class Result:
    def __init__(self, code):
        self.code = code

    def is_error(self):
        return self.code != Code.OK

    def get_code(self):
        return self.code

    def get_msg(self):
        return "peers still read"


class MemoryRegistration:
    def __init__(self, start, size, backing_start, backing_size):
        self.told = [start, size, backing_start, backing_size]


class TransferEngine:
    too_early = 2

    def initialize(self, address, protocol, device):
        print("initialized", address, protocol, device, os.environ.get("YR_TE_HIXL_RDMA_TC"), flush=True)
        return Result(Code.OK)

    def get_rpc_port(self):
        return 4711

    def get_route_policy(self):
        return os.environ.get("YR_TE_HIXL_ROUTE", "roce")

    def batch_register_memory_ex(self, registrations):
        assert 0 < len(registrations) <= 4096
        print("registered", [one.told for one in registrations], flush=True)
        return Result(Code.OK)

    def batch_unregister_memory(self, starts):
        print("unregistered", starts, flush=True)
        return Result(Code.OK)

    def finalize(self):
        self.too_early -= 1
        print("finalize", self.too_early, flush=True)
        return Result(Code.NOT_READY if self.too_early >= 0 else Code.OK)
"""


@pytest.fixture
def newer(tmp_path):
    """A double of a newer version, written from what is known of those, of which no package can be had."""
    package = tmp_path / "yr/datasystem"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(NEWER)
    return str(tmp_path)


def test_newer_versions_choose_their_port_and_are_told_allocations(start, model, newer, monkeypatch):
    monkeypatch.setenv("YR_TE_HIXL_RDMA_TC", "132")
    worker = start("embedded", newer, model, 0, once=True)
    assert worker.wait_for("loaded")["source"] == "storage"
    worker.end()
    # Once; and what the environment says reaches them.
    initialized = [line for line in worker.lines if line.startswith("initialized")]
    assert initialized == ["initialized 127.0.0.1:0 ascend npu:0 132\n"]
    registered = json.loads(next(line for line in worker.lines if line.startswith("registered")).partition(" ")[2])
    # Each tensor has an allocation of its own here.
    assert len(registered) == 5 and all(one[:2] == one[2:] for one in registered)
    # Asked again until nobody reads.
    assert [line for line in worker.lines if line.startswith("finalize")] == ["finalize 1\n", "finalize 0\n", "finalize -1\n"]


@pytest.mark.parametrize("route", ["auto", "hccs"])
def test_an_allocation_that_a_route_cannot_read_is_named_before_it_is_registered(start, model, newer, monkeypatch, route):
    monkeypatch.setenv("YR_TE_HIXL_ROUTE", route)
    worker = start("embedded", newer, model, 0, once=True)
    assert worker.wait_for("loaded")["source"] == "storage"
    worker.end()
    assert "YR_TE_HIXL_ROUTE=roce" in worker.text and "2 MiB" in worker.text and f"'{route}'" in worker.text
    assert not any(line.startswith("registered") for line in worker.lines)
