"""A worker of one of the three generations in the field, written from the protocol's description alone.

Keys, planner calls, seed metadata and the order of work are that generation's. Workers in the field move bytes with
YuanRong, which reads by address; such a peer (--engine yuanrong) says exactly what they say, and its memory can be read
where it says. With --engine tcp, the TCP engine's frames move bytes both ways; the peer adds to its key and its metadata
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
from planner_client import Planner, Renewal
from seed_service import HEALTH_PATH, INFO_PATH, SHAPES_PATH, Service, ask
from weights import Weights, disagreeing

HOST = "127.0.0.1"
HEARTBEAT_SEC = 30
writing = threading.Lock()


def log(message, **fields):
    with writing:
        print(json.dumps({"message": message} | fields), file=sys.stderr, flush=True)


def fork(planner, generation, key, weights):
    """Takes the weights from a seed: the seed and its extension, or None if there is no seed or it fails."""
    lease = planner.get_seed(key)
    if lease is None:
        log("no seed")
        return None
    try:
        address = f"{lease.ip}:{lease.port}"
        status, answer = ask(address, INFO_PATH, key)
        if status != 200:
            raise Refused(f"status {status}")
        session, theirs = generation.understand(answer, lambda: ask(address, SHAPES_PATH, key)[1])
        generation.agree(weights.tensors, theirs)
        extension = answer.get("rfork_rs")
        if extension is None:
            raise Refused("a seed without the TCP engine")
        log("reading", seed=lease.identity)
        with Renewal(planner, lease, log):
            frames.read_all(session, bytes.fromhex(extension["content_id"]), weights)
        return lease.identity, {name: extension[name] for name in extension if name != "dtypes"}
    except (Refused, frames.Broken, OSError, KeyError, ValueError) as error:
        log("the seed failed", seed=lease.identity, error=f"{type(error).__name__}: {error}")
        return None
    finally:
        log("released", status=planner.put_seed(lease))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generation", choices=GENERATIONS, required=True)
    parser.add_argument("--planner", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--engine", choices=["tcp", "yuanrong"], default="tcp")
    parser.add_argument("--no-extension", action="store_true", help="leave the TCP engine out of the metadata")
    parser.add_argument("--disagree", help="serve metadata of another model, which differs in this")
    options = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    generation = GENERATIONS[options.generation]
    planner = Planner(options.planner, generation)
    key = generation.key("m", "s", options.engine)
    weights = Weights(options.model)
    # YuanRong itself is not here, so what would be read with it comes from storage.
    forked = fork(planner, generation, key, weights) if options.engine == "tcp" else None
    if forked is None:
        weights.fill_from_storage()
        source, extension = "storage", weights.extension()
    else:
        source, extension = "seed", forked[1]
    size = len(weights.memory)
    log(
        "loaded",
        source=source,
        seed=forked and forked[0],
        digest=weights.sha256(),
        bytes_from_seeds=size if forked else 0,
        content_id=extension["content_id"],
    )

    engine = frames.Server(HOST, weights, bytes.fromhex(extension["content_id"]), log)
    tensors = disagreeing(weights.tensors, options.disagree) if options.disagree else weights.tensors
    says_more = options.engine == "tcp" and not options.no_extension
    info = generation.info(engine.session, tensors, extension if says_more else None)
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
