"""Loading from seeds and fallbacks, and serving."""

import re
import socket
import threading
from pathlib import Path

import numpy
import pytest
import rfork

RANK_0 = {"tp_rank": 0}


def weights(fill: int | None = None) -> dict[str, numpy.ndarray]:
    """Tensors of several chunks; those of a `fill` have its bytes."""
    random = numpy.random.default_rng(fill or 0)
    shapes = {"layers.0.w": (700, 300), "layers.1.w": (3, 50_000), "norm": (7,)}
    return {
        name: random.random(shape, numpy.float32) if fill is not None else numpy.zeros(shape, numpy.float32)
        for name, shape in shapes.items()
    }


def assert_equal(some: dict[str, numpy.ndarray], others: dict[str, numpy.ndarray]) -> None:
    for name, tensor in some.items():
        assert tensor.tobytes() == others[name].tobytes(), name


def filling(tensors: dict[str, numpy.ndarray], fill: int):
    """An engine's own loader."""

    def load() -> None:
        for name, tensor in weights(fill).items():
            tensors[name][:] = tensor

    return load


def safetensors(path: Path, tensors: dict[str, numpy.ndarray]) -> Path:
    """Writes them as the format's description has it."""
    import json

    header, at = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(t.tobytes() for t in tensors.values()))
    return path


def test_a_worker_forks_what_an_engine_s_own_loader_loaded(planner):
    first, second = weights(), weights()
    with rfork.Session(planner.config(), identity=RANK_0) as seed, rfork.Session(planner.config(), identity=RANK_0) as worker:
        report = seed.load(first, fallback=filling(first, 1))
        assert not report.forked and report.bytes_from_seeds == 0 and report.content_id
        serving = seed.serve()
        told = list(rfork.PlannerClient(planner.url).seeds())
        assert [one["seed"] for one in told] == [serving.identity]
        assert told[0]["seed_key"] == rfork.seed_key(planner.config(), RANK_0)
        forked = worker.load(second)
        assert forked.forked and forked.seed == serving.identity
        assert forked.bytes_from_seeds == forked.total_bytes == sum(tensor.nbytes for tensor in first.values())
        assert forked.content_id == report.content_id
        assert_equal(second, weights(1))
    assert not [one for one in rfork.PlannerClient(planner.url).seeds() if one["state"] == "live"]


def test_storage_is_the_fallback(planner, tmp_path):
    path = safetensors(tmp_path / "model.safetensors", weights(2))
    tensors, again = weights(), weights()
    with rfork.Session(planner.config(), identity=RANK_0) as session:
        report = session.load(tensors, fallback=path)
        assert report.seed is None and [share.seed for share in report.shares] == [None]
        assert_equal(tensors, weights(2))
        session.serve()
        # What came from storage, and what an engine loads, are one content if the bytes are.
        with rfork.Session(planner.config(), identity=RANK_0) as other:
            assert other.load(again, fallback=str(path)).content_id == report.content_id


def test_storage_with_other_tensors_is_refused_by_name(planner, tmp_path):
    path = safetensors(tmp_path / "model.safetensors", {"other": weights(2)["norm"]})
    with rfork.Session(planner.config(), identity=RANK_0) as session:
        with pytest.raises(rfork.LoadError, match="'layers.0.w' is missing in storage"):
            session.load(weights(), fallback=path)
        with pytest.raises(rfork.LoadError, match="nowhere"):
            session.load(weights(), fallback=tmp_path / "nowhere")


def test_without_seed_and_fallback_the_tensors_are_the_caller_s_again(planner):
    tensors = weights()
    with rfork.Session(planner.config(), identity=RANK_0) as session:
        with pytest.raises(rfork.LoadError, match="no seed gave them, and no fallback was given"):
            session.load(tensors)
    filling(tensors, 3)()
    assert_equal(tensors, weights(3))


def test_a_dead_planner_costs_only_the_fork(planner):
    config = planner.config(rfork_request_timeout_sec=2)
    planner.stop()
    tensors = weights()
    with rfork.Session(config, identity=RANK_0) as session:
        assert not session.load(tensors, fallback=filling(tensors, 4)).forked
        assert_equal(tensors, weights(4))
        session.serve()


def test_a_seed_that_died_costs_only_the_fork(planner, python):
    seed = python(
        """
        w = {"w": numpy.full(100_000, 7, numpy.float32)}
        session = rfork.Session(config, identity={})
        session.load(w, fallback=lambda: None)
        session.serve()
        print("serving", flush=True)
        sys.stdin.read()
        """
    )
    assert seed.stdout.readline() == "serving\n", seed.communicate()
    seed.kill()
    seed.communicate()
    tensors = {"w": numpy.zeros(100_000, numpy.float32)}
    with rfork.Session(planner.config(), identity={}) as session:
        report = session.load(tensors, fallback=lambda: tensors["w"].fill(8))
    assert not report.forked and (tensors["w"] == 8).all()


def test_a_seed_with_other_tensors_gives_no_byte(planner):
    with rfork.Session(planner.config(), identity=RANK_0) as seed, rfork.Session(planner.config(), identity=RANK_0) as worker:
        other = {"layers.0.w": numpy.ones((700, 300), numpy.float64)}
        seed.load(other, fallback=lambda: None)
        seed.serve()
        tensors = weights()
        assert worker.load(tensors, fallback=filling(tensors, 5)).bytes_from_seeds == 0
        assert_equal(tensors, weights(5))


def test_what_a_fallback_raises_comes_through(planner):
    class Mine(Exception):
        pass

    def fail() -> None:
        raise Mine("no such model")

    with rfork.Session(planner.config(), identity=RANK_0) as session:
        with pytest.raises(Mine, match="no such model"):
            session.load(weights(), fallback=fail)
        with pytest.raises(rfork.SessionError, match="loads once"):
            session.load(weights(), fallback=fail)
        with pytest.raises(rfork.ServeError):
            session.serve()


def test_callbacks_are_called_where_load_was(planner):
    threads, seen = set(), []
    tensors = weights()

    def progress(now: rfork.Progress) -> None:
        threads.add(threading.get_ident())
        seen.append(now)

    def load() -> None:
        threads.add(threading.get_ident())
        filling(tensors, 6)()
        # Somebody else needs the interpreter meanwhile.
        threading.Event().wait(0.05)

    with rfork.Session(planner.config(rfork_seed_wait_sec=0.5, rfork_fork_while_loading=False), identity=RANK_0) as session:
        session.load(tensors, fallback=load, progress=progress)
    assert threads == {threading.get_ident()}
    assert seen and seen[0].total_bytes == sum(tensor.nbytes for tensor in tensors.values())


def test_what_progress_raises_ends_the_load(planner):
    def progress(now: rfork.Progress) -> None:
        raise RuntimeError("enough")

    with rfork.Session(planner.config(rfork_seed_wait_sec=30), identity=RANK_0) as session:
        with pytest.raises(RuntimeError, match="enough"):
            session.load(weights(), progress=progress)


def test_others_run_while_a_load_waits(planner):
    """A load that waits for a seed does not hold the interpreter: the thread that brings the seed runs meanwhile."""
    config = planner.config(rfork_seed_wait_sec=60, rfork_fork_while_loading=False)
    first, second = weights(), weights()
    seed = rfork.Session(planner.config(), identity=RANK_0)
    waiting = threading.Event()

    def serve() -> None:
        assert waiting.wait(60)
        seed.load(first, fallback=filling(first, 7))
        seed.serve()

    def progress(now: rfork.Progress) -> None:
        if now.phase == "asking":
            waiting.set()

    # The one that brings the seed would take itself for the waiter's if it asked for one, too.
    thread = threading.Thread(target=serve)
    thread.start()
    with rfork.Session(config, identity=RANK_0) as worker:
        report = worker.load(second, fallback=filling(second, 8), progress=progress)
    thread.join()
    seed.close()
    assert report.forked
    assert_equal(second, weights(7))


def test_what_is_loaded_already_is_adopted_and_served(planner):
    tensors, forked = weights(9), weights()
    with rfork.Session(planner.config(), identity=RANK_0) as seed, rfork.Session(planner.config(), identity=RANK_0) as worker:
        report = seed.adopt(tensors)
        assert not report.forked and report.total_bytes == sum(tensor.nbytes for tensor in tensors.values())
        seed.serve(verify=True)
        assert worker.load(forked).content_id == report.content_id
    assert_equal(forked, weights(9))


def test_a_worker_that_others_do_not_reach_says_what_to_set_and_keeps_its_weights(planner):
    tensors = weights()
    config = planner.config(rfork_seed_advertise_host="127.0.0.2", rfork_seed_timeout_sec=5)
    with rfork.Session(config, identity=RANK_0) as session:
        session.load(tensors, fallback=filling(tensors, 3))
        with pytest.raises(rfork.UnreachableError, match="rfork_seed_bind_host is 127.0.0.1"):
            session.serve()
        assert not session.closed
        assert list(rfork.PlannerClient(planner.url).seeds()) == []
    assert_equal(tensors, weights(3))


def test_weights_that_changed_after_the_load_are_not_served(planner):
    tensors = weights(9)
    with rfork.Session(planner.config(), identity=RANK_0) as session:
        session.adopt(tensors)
        tensors["norm"][3] += 1
        with pytest.raises(rfork.ServeError, match="have changed since they were loaded"):
            session.serve(verify=True)
    assert list(rfork.PlannerClient(planner.url).seeds()) == []


def test_a_fallback_knows_whether_a_seed_has_written(planner):
    touched = []
    with rfork.Session(planner.config(), identity=RANK_0) as session:
        session.load(weights(), fallback=lambda: touched.append(session.touched))
    assert touched == [False]


def test_a_session_is_used_by_one_at_a_time_and_closes_twice(planner):
    session = rfork.Session(planner.config(), identity=RANK_0)
    tensors = weights()

    def load() -> None:
        with pytest.raises(rfork.SessionError, match="another thread"):
            session.close()
        with pytest.raises(rfork.SessionError, match="another thread"):
            session.serve()

    session.load(tensors, fallback=load)
    assert not session.closed
    session.close()
    session.close()
    assert session.closed
    with pytest.raises(rfork.SessionError, match="closed"):
        session.serve()


@pytest.mark.parametrize(
    ("change", "arguments", "text"),
    [
        ({"rfork_scheduler_url": ""}, {"identity": {}}, "rfork_scheduler_url must be"),
        ({"rfork_scheduler_url": "planner"}, {"identity": {}}, "rfork_scheduler_url must be the URL of a planner"),
        ({"rfork_heartbeat_interval_sec": 0}, {"identity": {}}, "rfork_heartbeat_interval_sec must be"),
        ({"rfork_lease_release_max_attempts": None}, {"identity": {}}, "rfork_lease_release_max_attempts must be"),
        ({"rfork_model_identity_headers": "1"}, {"identity": {}}, "must be 0, 1, true or false, got"),
        ({"model_url": object()}, {"identity": {}}, "config must be a mapping that JSON can express"),
        ({}, {}, "give either seed_key or identity"),
        ({}, {"identity": {}, "seed_key": "k"}, "give either seed_key or identity"),
        ({}, {"identity": {"tp": 1}}, "identity: unknown field `tp`"),
        ({}, {"seed_key": ""}, "seed key"),
        ({}, {"identity": {}, "engine": "rdma"}, "engine must be 'auto', 'tcp' or 'yuanrong'"),
    ],
)
def test_settings_that_cannot_be_are_named(planner, monkeypatch, change, arguments, text):
    monkeypatch.delenv("RFORK_SCHEDULER_URL", raising=False)
    with pytest.raises(rfork.ConfigError) as raised:
        rfork.Session(planner.config() | change, **arguments)
    assert text in str(raised.value)


def test_variables_are_behind_the_settings_and_empty_ones_are_none(planner, monkeypatch):
    monkeypatch.setenv("MODEL_URL", "")
    monkeypatch.setenv("RFORK_SEED_KEY_SEPARATOR", "")
    assert rfork.seed_key(planner.config(), {}) == "/models/m$test$kv_both$0$0$tcp"
    config = planner.config()
    del config["model_url"]
    with pytest.raises(rfork.ConfigError, match="model_url is required: set it, or MODEL_URL in the environment"):
        rfork.seed_key(config, {})
    monkeypatch.setenv("MODEL_URL", "/other")
    monkeypatch.setenv("RFORK_MODEL_IDENTITY_HEADERS", "yes")
    with pytest.raises(rfork.ConfigError, match="^RFORK_MODEL_IDENTITY_HEADERS in the environment"):
        rfork.seed_key(config, {})


def test_a_fixed_port_counts_the_rank_among_all(planner):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = planner.config() | {"rfork_seed_port_base": port - 6}
    with rfork.Session(config, identity={"tp_rank": 1}, global_rank=3) as session:
        session.adopt(weights(1))
        assert session.serve().identity.endswith(f":{port}:1")


def test_keys_name_their_engine_unless_it_is_yuanrong(planner):
    config = planner.config()
    assert rfork.seed_key(config, {"tp_rank": 3}) == "/models/m$test$kv_both$0$3$tcp"
    assert rfork.seed_key(config, {"tp_rank": 3}, engine="yuanrong") == "/models/m$test$kv_both$0$3"
    assert len(rfork.seed_key(config, {"compatibility_fingerprint": "f", "structural_digest": "d"})) == 64


def npu(number: int) -> rfork.Tensor:
    return rfork.Tensor(4096, 5, 4, (5,), "float32", f"npu:{number}")


@pytest.mark.parametrize(
    ("engine", "tensors", "error", "text"),
    [
        ("auto", {"a": npu(0)}, rfork.EngineUnavailableError, "install the package openyuanrong-datasystem"),
        ("yuanrong", {"a": npu(0)}, rfork.EngineUnavailableError, "yr.datasystem.TransferEngine"),
        ("yuanrong", {"a": npu(0), **weights()}, rfork.TensorError, "tensor 'layers.0.w' is in host memory"),
        ("auto", {"a": npu(0), **weights()}, rfork.TensorError, "tensor 'layers.0.w' is in host memory"),
        ("auto", {"a": npu(0), "b": npu(1)}, rfork.TensorError, "tensor 'b' is on npu:1, others on npu:0"),
        ("tcp", {"a": npu(0)}, rfork.TensorError, "tensor 'a' is on npu:0: the engine 'tcp' moves host memory only"),
    ],
)
def test_an_engine_that_does_not_reach_the_tensors_says_so(planner, engine, tensors, error, text):
    with rfork.Session(planner.config(), identity={}, engine=engine) as session:
        with pytest.raises(error, match=re.escape(text)):
            session.load(tensors)


def test_a_ready_engine_is_yuanrong_s(planner):
    with pytest.raises(rfork.ConfigError, match="transfer_engine is YuanRong's"):
        rfork.Session(planner.config(), identity={}, engine="tcp", transfer_engine=object())
