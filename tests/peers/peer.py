"""A worker of one of the three generations in the field, written from the protocol's description alone.

Keys, planner calls, seed metadata and the order of work are that generation's. Workers in the field move bytes with
YuanRong, which reads by address; such a peer (--engine yuanrong) says exactly what they say, and its memory can be read
where it says; with --npu, it moves bytes with YuanRong's own library. With --engine tcp, the TCP engine's frames move bytes both ways; the peer adds to its key and its metadata
what those need.

    python3 peer.py --generation C --planner http://127.0.0.1:1223 --model DIRECTORY

It logs JSON lines to standard error, with the messages and fields of `rfork worker`, and ends on SIGTERM.
"""

import argparse
import json
import signal
import sys
import threading

import frames
from generations import GENERATIONS, Refused
from planner_client import Planner, Renewal, is_passing
from seed_service import HEALTH_PATH, INFO_PATH, SHAPES_PATH, Service, ask
from weights import Weights, disagreeing
from yuanrong import Engine, Failed

HOST = "127.0.0.1"
HEARTBEAT_SEC = 30
writing = threading.Lock()
stop = threading.Event()


def log(message, **fields):
    with writing:
        print(json.dumps({"message": message} | fields), file=sys.stderr, flush=True)


def released(planner, lease, retry_sec):
    """Gives a lease back, again and again: whether that was acknowledged. 404 is as good: the planner does not know it."""
    while is_passing(status := planner.put_seed(lease)):
        log("released", status=status)
        if stop.wait(retry_sec):
            return False
    log("released", status=status)
    return status in (200, 404)


def fork(planner, generation, key, weights, yuanrong, lease):
    """Takes the weights from a leased seed: the seed and its extension, or None if it fails."""
    try:
        address = f"{lease.ip}:{lease.port}"
        status, answer = ask(address, INFO_PATH, key)
        if status != 200:
            raise Refused(f"status {status}")
        session, theirs = generation.understand(answer, lambda: ask(address, SHAPES_PATH, key)[1])
        generation.agree(weights.tensors, theirs)
        extension = answer.get("rfork_rs")
        log("reading", seed=lease.identity)
        if yuanrong is not None:
            yuanrong.read(session, theirs, weights.tensors)
            return lease.identity, None
        if extension is None:
            raise Refused("a seed without the TCP engine")
        with Renewal(planner, lease, log):
            frames.read_all(session, bytes.fromhex(extension["content_id"]), weights)
        return lease.identity, {name: extension[name] for name in extension if name != "dtypes"}
    except (Refused, Failed, frames.Broken, OSError, KeyError, ValueError) as error:
        log("the seed failed", seed=lease.identity, error=f"{type(error).__name__}: {error}")
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generation", choices=GENERATIONS, required=True)
    parser.add_argument("--planner", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--engine", choices=["tcp", "yuanrong"], default="tcp")
    parser.add_argument("--npu", type=int, help="with --engine yuanrong: read and serve with its library, on this NPU")
    parser.add_argument("--read-on-another-thread", action="store_true", help="with --npu: on one without a device")
    parser.add_argument("--model-url", default="m")
    parser.add_argument("--strategy", default="s")
    parser.add_argument("--hide", type=int, help="let nobody read the tensor of this number")
    parser.add_argument("--session", help="say that the engine listens here, host:port")
    parser.add_argument("--no-extension", action="store_true", help="leave the TCP engine out of the metadata")
    parser.add_argument("--disagree", help="serve metadata of another model, which differs in this")
    parser.add_argument("--release-retry-sec", type=float, default=30, help="between two tries to release a lease")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    generation = GENERATIONS[options.generation]
    planner = Planner(options.planner, generation)
    key = generation.key(options.model_url, options.strategy, options.engine)
    weights = Weights(options.model)
    yuanrong = None if options.npu is None else Engine(HOST, options.npu, options.read_on_another_thread)
    # Without its library, what would be read with YuanRong comes from storage.
    reads = options.engine == "tcp" or yuanrong is not None
    lease = planner.get_seed(key) if reads else None
    if lease is None:
        log("no seed")
    forked = fork(planner, generation, key, weights, yuanrong, lease) if lease else None
    if forked is None:
        weights.fill_from_storage()
        source, extension = "storage", weights.extension()
    else:
        source, extension = "seed", forked[1] or weights.extension()
    size = len(weights.memory)
    log(
        "loaded",
        source=source,
        seed=forked and forked[0],
        digest=weights.sha256(),
        bytes_from_seeds=size if forked else 0,
        content_id=extension["content_id"],
    )

    # It is a seed only once nobody can take its own seed for leased: its readers would be two at a time.
    if lease and not released(planner, lease, options.release_retry_sec):
        log("not advertised")
        stop.wait()
        return
    if yuanrong is None:
        engine = frames.Server(HOST, weights, bytes.fromhex(extension["content_id"]), log)
    else:
        yuanrong.register([t for at, t in enumerate(weights.tensors) if at != options.hide])
        engine = yuanrong
    tensors = disagreeing(weights.tensors, options.disagree) if options.disagree else weights.tensors
    says_more = options.engine == "tcp" and not options.no_extension
    info = generation.info(options.session or engine.session, tensors, extension if says_more else None)
    service = Service(HOST, generation, key, info, {t.name: list(t.shape) for t in tensors})
    if ask(f"{HOST}:{service.port}", HEALTH_PATH, key)[0] != 200:
        sys.exit("the seed service does not answer its own health check")
    # 200 is accepted, 408, 429 and 5xx are tried again; anything else ends the seed service.
    status = planner.add_seed(key, HOST, service.port)
    log("serving", identity=f"{HOST}:{service.port}:0", url=f"http://{HOST}:{service.port}", key=key, status=status)
    while not stop.wait(HEARTBEAT_SEC):
        status = planner.add_seed(key, HOST, service.port)
        if status not in (200, 408, 429) and status < 500:
            sys.exit(f"a heartbeat was answered with status {status}")
    if generation.removes:
        log("removed", status=planner.remove_seed(key, HOST, service.port))


if __name__ == "__main__":
    main()
