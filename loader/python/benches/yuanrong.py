"""What a session adds to YuanRong's own batched read of the same plan.

    python loader/python/benches/yuanrong.py target/release/rfork YR DIRECTORY [--gib 1] [--tensors 200] [--runs 15]

`YR` is where YuanRong's package is installed, `DIRECTORY` where the fake AscendCL and point-to-point libraries are
(`docs/npu.md` says how to make them). A worker serves so many GiB. Processes read them in turn, each once into memory
that it has read into before: with the library's own `batch_transfer_sync_read`, in the batches that a session makes, on
the main thread and on a new one, as a session has it; and with `Session.load` over the same engine, timed from its call
to its return, with the question to the planner. The medians' ratio is compared with the bar. A report: it fails
nothing, and says nothing of an NPU.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BAR = 1.05
WAYS = {"main": "the library, main thread", "new": "the library, new thread", "session": "Session.load"}

COMMON = """
import ctypes, json, os, socket, sys, threading, time, urllib.request, rfork
from yr.datasystem import TransferEngine
config, count, size, npu = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
acl = ctypes.CDLL(os.environ["RFORK_ASCENDCL_PATH"])
acl.aclInit(None)
assert acl.aclrtSetDevice(npu) == 0
def allocate():
    address = ctypes.c_void_p()
    assert acl.aclrtMalloc(ctypes.byref(address), ctypes.c_size_t(size), 0) == 0
    ctypes.memset(address.value, npu + 1, size)
    return rfork.Tensor(address.value, size, 1, (size,), "uint8", f"npu:{npu}")
tensors = {f"layers.{at:04}.w": allocate() for at in range(count)}
def engine():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    made = TransferEngine()
    assert not made.initialize(f"127.0.0.1:{port}", "ascend", f"npu:{npu}").is_error()
    return made
"""

SEED = COMMON + """
with rfork.Session(config, identity={}, engine="yuanrong") as session:
    session.adopt(tensors)
    print(session.serve().url, flush=True)
    sys.stdin.read()
"""

READER = COMMON + """
url, way = sys.argv[5], sys.argv[6]
key = rfork.seed_key(config, {}, engine="yuanrong")
with urllib.request.urlopen(f"{url}/get_rfork_transfer_engine_info?seed_key={urllib.parse.quote(key)}") as answer:
    peer, theirs = json.load(answer)["rfork_transfer_engine_info"]
ours, own = engine(), [tensors[name] for name in theirs]
batches, batch, room = [], [], 0
for at, name in enumerate(theirs):
    if batch and (room + size > 1 << 30 or len(batch) == 512):
        batches.append(batch)
        batch, room = [], 0
    batch.append((own[at].address, theirs[name][0], size))
    room += size
batches.append(batch)
def by_library():
    begun = time.perf_counter()
    for batch in batches:
        result = ours.batch_transfer_sync_read(peer, *map(list, zip(*batch)))
        assert not result.is_error(), result.to_string()
    return time.perf_counter() - begun
def on_a_new_thread():
    took = []
    def read():
        assert acl.aclrtSetDevice(npu) == 0
        took.append(by_library())
    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    return took[0]
def by_session():
    with rfork.Session(config, identity={}, engine="yuanrong", transfer_engine=ours) as session:
        begun = time.perf_counter()
        report = session.load(tensors)
        took = time.perf_counter() - begun
    assert report.forked and report.bytes_from_seeds == count * size
    return took
by_library()
print(json.dumps({"main": by_library, "new": on_a_new_thread, "session": by_session}[way]()))
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rfork")
    parser.add_argument("yr")
    parser.add_argument("fakes", type=Path)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--tensors", type=int, default=200)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    size = int(options.gib * (1 << 30)) // options.tensors
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [options.yr, os.environ.get("PYTHONPATH")])),
        "RFORK_ASCENDCL_PATH": str(options.fakes / "libascendcl.so"),
        "TRANSFER_ENGINE_P2P_SO_PATH": str(options.fakes / "libp2ptransfer.so"),
    }
    with tempfile.TemporaryDirectory() as directory:
        command = [options.rfork, "--log-format", "json", "--end-with-stdin", "planner", "--host", "127.0.0.1"]
        command += ["--port", "0", "--drain-sec", "0", "--database-url", f"sqlite://{directory}/p.db"]
        planner = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        told = next(told for told in map(json.loads, planner.stderr) if told["message"] == "the planner listens")
        config = {
            "model_url": "m",
            "model_deploy_strategy_name": "bench",
            "rfork_scheduler_url": f"http://{told['address']}",
            "rfork_seed_bind_host": "127.0.0.1",
        }
        given = [json.dumps(config), str(options.tensors), str(size)]
        seed = subprocess.Popen(
            [sys.executable, "-c", SEED, *given, "0"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        url = seed.stdout.readline().strip()
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(options.runs):
            for at in range(turn, turn + len(WAYS)):
                way = list(WAYS)[at % len(WAYS)]
                command = [sys.executable, "-c", READER, *given, "1", url, way]
                reader = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
                times[way].append(float(reader.stdout.splitlines()[-1]))
        seed.communicate()
        planner.terminate()
        planner.communicate()
    gib = options.tensors * size / (1 << 30)
    print(f"{gib:.2f} GiB in {options.tensors} tensors, {options.runs} turns, seconds")
    medians = {way: statistics.median(measured) for way, measured in times.items()}
    for way, measured in times.items():
        print(f"  {WAYS[way]:<26} median {medians[way]:.3f} ({min(measured):.3f} to {max(measured):.3f})")
    print(f"  ratio to a new thread {medians['session'] / medians['new']:.3f}")
    ratio = medians["session"] / medians["main"]
    print(f"  ratio to the main thread {ratio:.3f}, at most {BAR}: {'met' if ratio <= BAR else 'MISSED'}")


if __name__ == "__main__":
    main()
