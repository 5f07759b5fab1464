"""Runs the cases and prints the table. Started by `tests/fanout/run`, in namespaces that end with it."""

import argparse
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import model
import network
import table
from cases import CASES, UNITS, Bench, Result
from fleet import Place
from processes import Hangs

MIB = 1 << 20
# 20 MiB/s.
LOOPBACK_GIB_PER_SEC = 20 / 1024
MOST_WORKERS = 16


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/fanout/run", description=__doc__)
    parser.add_argument("--rfork", type=Path, required=True, help=argparse.SUPPRESS)
    names = [case.name for case in CASES]
    parser.add_argument("--case", action="append", choices=names, help="this one alone; may be repeated")
    parser.add_argument("--times", type=int, default=3, help="of which the median counts [3]")
    parser.add_argument("--mib", type=int, default=256, help="the model's size [256]")
    parser.add_argument("--large-mib", type=int, default=1024, help="the model's size with a slow link [1024]")
    parser.add_argument("--mbit", type=float, default=400.0, help="a link's rate, each way [400]")
    parser.add_argument(
        "--warm",
        action="store_true",
        help="give workers memory that was used before: for virtual machines that return free memory to their host",
    )
    parser.add_argument("--digest", action="store_true", help="compare SHA-256 of all bytes, too, whose time counts")
    parser.add_argument("--logs", type=Path, help="keep the processes' logs in this new directory")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    work = Path(tempfile.mkdtemp(prefix="rfork-fanout-"))
    nodes: list[network.Node] = []
    try:
        network.make_switch()
        nodes += [network.Node(number, options.mbit) for number in range(1 + MOST_WORKERS)]
        return measure(options, bench(options, work, nodes), options.logs or work / "logs")
    finally:
        for node in nodes:
            node.close()
        shutil.rmtree(work)


def bench(options: argparse.Namespace, work: Path, nodes: list[network.Node]) -> Bench:
    sizes = {work / f"{mib}.safetensors": mib * MIB for mib in (options.mib, options.large_mib)}
    for path, size_bytes in sizes.items():
        model.write(path, size_bytes)
    usual, large = (work / f"{mib}.safetensors" for mib in (options.mib, options.large_mib))

    def place(path: Path, bytes_per_sec: float, **where) -> Place:
        warm_sec = sizes[path] / bytes_per_sec if options.warm else None
        return Place(options.rfork, path, warm_sec=warm_sec, has_digests=options.digest, **where)

    link = options.mbit * 1e6 / 8
    # It takes a C compiler.
    is_cold = not options.case or any(case.unit == "one-cold" and case.name in options.case for case in CASES)
    library = slow_storage(work) if is_cold else None
    return Bench(
        shaped=place(usual, link, nodes=nodes),
        large=place(large, link, nodes=nodes),
        cold=place(usual, link, nodes=nodes, slow_storage=(library, link)),
        loopback=place(usual, LOOPBACK_GIB_PER_SEC * 2**30, nodes=None, rate=LOOPBACK_GIB_PER_SEC),
        mbit=options.mbit,
        model_bytes=sizes,
    )


def slow_storage(work: Path) -> Path:
    """Compiles the library through which workers read from storage of a given rate."""
    library = work / "libslowstorage.so"
    source = Path(__file__).parent.parent / "fakes" / "libslowstorage.c"
    subprocess.run(["cc", "-O2", "-fPIC", "-shared", "-pthread", str(source), "-o", str(library), "-ldl"], check=True)
    return library


def measure(options: argparse.Namespace, bench: Bench, logs: Path) -> int:
    cases = [case for case in CASES if not options.case or case.name in options.case]
    units: dict[str, float] = {}
    rows, all_hold = [], True
    for unit in ["one", *(case.unit for case in cases)]:
        if unit not in units:
            result = repeated(unit, UNITS[unit], bench, options.times, logs)
            if result is None:
                return 1
            units[unit] = result.sec
            say(f"{unit}: T1 = {result.sec:.2f} s")
        bench.t1_sec = units["one"]
    for case in cases:
        result = repeated(case.name, case.run, bench, options.times, logs)
        rows.append(table.row(case, result, units[case.unit]))
        all_hold &= result is not None and table.holds(case, result, units[case.unit])
        say(rows[-1])
    print(table.HEAD, *rows, sep="\n")
    return 0 if all_hold else 1


def repeated(name: str, run, bench: Bench, times: int, logs: Path) -> Result | None:
    """The medians; None, and a line, if one of them failed."""
    results = []
    for at in range(times):
        try:
            results.append(run(bench, logs / f"{name}-{at}"))
        except (AssertionError, Hangs) as error:
            say(f"{name}: {error}")
            return None
    say(f"{name}: " + ", ".join(f"{result.sec:.2f} s ({result.busy:.0%} busy)" for result in results))
    copies = [result.copies for result in results if result.copies is not None]
    return Result(
        statistics.median(result.sec for result in results),
        statistics.median(copies) if copies else None,
        statistics.median(result.busy for result in results),
    )


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
