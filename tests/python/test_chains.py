"""Workers that serve while they load, in Python: their tensors are theirs again when ``load`` returns."""

import threading
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import rfork

SHAPE = (1 << 22,)
ON = ("--fork-while-loading", "on")


def pattern() -> dict[str, numpy.ndarray]:
    return {"w": numpy.arange(SHAPE[0], dtype=numpy.float32)}


def together(count: int, worker: Callable[[int], Any]) -> list[Any]:
    """Runs workers at the same time, each on a thread of its own."""
    results: list[Any] = [None] * count

    def run(number: int) -> None:
        try:
            results[number] = worker(number)
        except BaseException as error:  # noqa: BLE001
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [result for result in results if isinstance(result, BaseException)]
    if failed:
        raise failed[0]
    return results


@pytest.mark.parametrize("planner", [ON], indirect=True)
def test_of_workers_that_start_together_one_has_its_own_loader_read(planner):
    reads: list[int] = []

    def worker(number: int) -> tuple[rfork.Session, dict[str, numpy.ndarray], rfork.LoadReport]:
        tensors = {"w": numpy.zeros(SHAPE, numpy.float32)}
        session = rfork.Session(planner.config(), identity={})

        def own() -> None:
            reads.append(number)
            tensors["w"][:] = pattern()["w"]

        report = session.load(tensors, fallback=own)
        session.serve(verify=True)
        return session, tensors, report

    loaded = together(3, worker)
    assert len(reads) == 1, "the others wait for what it will serve"
    for session, tensors, report in loaded:
        assert (tensors["w"] == pattern()["w"]).all()
        assert len({report.content_id for _, _, report in loaded}) == 1
        session.close()


@pytest.mark.parametrize("planner", [ON], indirect=True)
def test_whoever_changes_its_tensors_after_the_load_has_passed_them_on_before(planner):
    seed = rfork.Session(planner.config(rfork_seed_max_gib_per_sec=0.02), identity={})
    seed.adopt(pattern())
    seed.serve()

    def worker(number: int) -> rfork.LoadReport:
        tensors = {"w": numpy.zeros(SHAPE, numpy.float32)}
        with rfork.Session(planner.config(), identity={}) as session:
            report = session.load(tensors)
            loaded = (tensors["w"] == pattern()["w"]).all()
            # As an inference engine does that transforms weights in place. Whoever still read here would see it.
            tensors["w"][:] = -1
            assert loaded
            with pytest.raises(rfork.RForkError):
                session.serve(verify=True)
        return report

    reports = together(3, worker)
    seeds = {share.seed for report in reports for share in report.shares}
    assert len(seeds) > 1, f"somebody read from a worker that loaded: {seeds}"
    seed.close()
