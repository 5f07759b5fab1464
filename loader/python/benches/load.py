"""How fast `rfork.Session.load` is, as a ratio to the same load by the command `rfork worker`.

    python loader/python/benches/load.py target/release/rfork [--gib 1] [--runs 5]

Needs the package and numpy, both built for release, and three times the model's size in memory. A seed holds a model of
so many GiB; in turn, a process of the command and a process of Python fork it over loopback, each into memory that
nobody has touched: Python once into one allocation, as the command does, and once into one for each tensor, which
has fewer large pages. What is compared is the time in which bytes flow, as both report it. A report: it fails nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TENSOR_BYTES = 16 << 20
BAR = 0.95

READER = """
import json, sys, numpy, rfork
config, count = json.loads(sys.argv[1]), int(sys.argv[2])
each = %d // 4
if sys.argv[3] == "one":
    memory = numpy.empty(count * each, numpy.float32)
    tensors = {f"layers.{at}.w": memory[at * each : (at + 1) * each] for at in range(count)}
else:
    tensors = {f"layers.{at}.w": numpy.empty(each, numpy.float32) for at in range(count)}
with rfork.Session(config, identity={}) as session:
    report = session.load(tensors)
    assert report.forked
    print(sum(share.seconds for share in report.shares))
""" % TENSOR_BYTES


def write_model(path: Path, count: int) -> None:
    """Random bytes, as the format's description has them."""
    entries = {
        f"layers.{at}.w": {
            "dtype": "F32",
            "shape": [TENSOR_BYTES // 4],
            "data_offsets": [at * TENSOR_BYTES, (at + 1) * TENSOR_BYTES],
        }
        for at in range(count)
    }
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(count):
            file.write(os.urandom(TENSOR_BYTES))


def start(command: list[str], until: str) -> tuple[subprocess.Popen[str], dict[str, object]]:
    """Starts a process and waits for that message; it ends with this one's end."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        told = json.loads(line)
        if told.get("message") == until:
            return process, told
    raise SystemExit(f"{command[-1]} ended with {process.wait()}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rfork")
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    count = int(options.gib * (1 << 30)) // TENSOR_BYTES
    gib = count * TENSOR_BYTES / (1 << 30)
    rfork = [options.rfork, "--log-format", "json", "--end-with-stdin"]
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "model.safetensors"
        write_model(model, count)
        planner = [*rfork, "planner", "--host", "127.0.0.1", "--port", "0", "--drain-sec", "0"]
        planner, told = start([*planner, "--database-url", f"sqlite://{directory}/p.db"], "the planner listens")
        config = {
            "model_url": "m",
            "model_deploy_strategy_name": "bench",
            "rfork_scheduler_url": f"http://{told['address']}",
            "rfork_seed_bind_host": "127.0.0.1",
        }
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in config.items()]
        worker = [*rfork, "worker", "--model", str(model), *flags]
        seed, _ = start(worker, "serving")

        def by_command() -> float:
            reader, told = start([*worker, "--once"], "loaded")
            reader.communicate()
            assert told["source"] == "seed", told
            return float(told["seconds"])

        def by_python(allocation: str) -> float:
            command = [sys.executable, "-c", READER, json.dumps(config), str(count), allocation]
            return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

        each_its_own = "Python, an allocation a tensor"
        rates: dict[str, list[float]] = {"rfork worker": [], "Python": [], each_its_own: []}
        for _ in range(options.runs):
            rates["rfork worker"].append(gib / by_command())
            rates["Python"].append(gib / by_python("one"))
            rates[each_its_own].append(gib / by_python("many"))
        for process in (seed, planner):
            process.terminate()
            process.communicate()
    print(f"{gib:g} GiB over loopback, {options.runs} runs in turn, GiB/s")
    for name, measured in rates.items():
        print(f"  {name:<30} median {statistics.median(measured):.2f} ({min(measured):.2f} to {max(measured):.2f})")
    base = statistics.median(rates.pop("rfork worker"))
    for name, measured in rates.items():
        ratio = statistics.median(measured) / base
        print(f"  ratio of {name}: {ratio:.2f}, at least {BAR}: {'met' if ratio >= BAR else 'MISSED'}")


if __name__ == "__main__":
    main()
