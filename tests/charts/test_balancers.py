"""Planners are reached as the rendered Ingress and HTTPRoute say, through a real nginx."""

import http.client
import os
import re
import socketserver
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from balancing import ingress_server, nginx, route_server
from rendering import merged, mode, notes, objects, only
from running import SEED, Answer, Container, ask, lease, loopback, postgres, running, until


def server(name: str) -> list[str]:
    """nginx's server for a mode."""
    found = objects(mode(name))
    return (
        ingress_server(only(found, "Ingress"), notes(mode(name)))
        if name == "ingress"
        else route_server(only(found, "HTTPRoute"))
    )


HOST = {"Host": "planner.example"}
BALANCED = pytest.mark.parametrize("name", ["ingress", "gateway"])


@BALANCED
def test_every_request_passes(name: str, tmp_path: Path) -> None:
    values = merged(mode(name), {"planner": {"trustedProxies": ["127.0.0.0/8"]}})
    with (
        running(objects(values), tmp_path) as planner,
        nginx(server(name), [planner.until_ready()], tmp_path / "nginx") as front,
    ):
        # The longest key that there may be, in headers whose names have underscores.
        key = ("/models/m$%C3%A9 " + "k" * 8192)[:8192]
        assert ask(front.address, "POST", "/add_seed", HOST | SEED | {"SEED_KEY": key}).status == 200
        granted = ask(front.address, "GET", "/get_seed", HOST | {"SEED_KEY": key})
        assert granted.status == 200, granted.body
        assert ask(front.address, "POST", "/renew_seed_lease", HOST | lease(granted)).status == 200
        # Waiting is answered, too, with a seed that comes free meanwhile.
        body = {"seed_key": key, "wait_ms": 60_000}
        answers = []
        waiter = threading.Thread(
            target=lambda: answers.append(ask(front.address, "POST", "/v2/leases", HOST, body)), daemon=True
        )
        waiter.start()
        until("one that waits", lambda: ask(front.address, "GET", "/v2/keys", HOST).json()["keys"][0]["waiting"] == 1)
        assert ask(front.address, "POST", "/put_seed", HOST | lease(granted)).status == 200
        waiter.join()
        assert answers[0].status in (200, 201), answers[0].body


@BALANCED
def test_waits_are_longer_than_the_longest_of_a_worker(name: str) -> None:
    text = "\n".join(server(name))
    where = text if name == "ingress" else re.search(r"location = /v2/leases \{(.*)\}", text)[1]  # type: ignore[index]
    (seconds,) = re.findall(r"proxy_read_timeout (\d+)s", where)
    assert int(seconds) > 300


class Deaf(socketserver.StreamRequestHandler):
    """Reads a request, and ends the connection without an answer, as a planner that is killed."""

    server: "Deafs"

    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (more := self.request.recv(65536)):
            head += more
        if head.startswith(b"GET /get_seed"):
            self.server.asked.append(head)
        else:
            self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


class Deafs(socketserver.ThreadingTCPServer):
    """Listens for one that is asked for a seed and does not answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((loopback(), 0), Deaf)
        self.asked: list[bytes] = []


@contextmanager
def deaf() -> Iterator[tuple[str, list[bytes]]]:
    """Its address, and what it was asked."""
    with Deafs() as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        try:
            host, port = listener.server_address[:2]
            yield f"{host}:{port}", listener.asked
        finally:
            listener.shutdown()


@BALANCED
def test_a_question_for_a_seed_is_never_sent_twice(name: str, tmp_path: Path) -> None:
    with deaf() as (one_address, one_asked), deaf() as (other_address, other_asked):
        with nginx(server(name), [one_address, other_address], tmp_path / "nginx") as front:
            for _ in range(4):
                assert ask(front.address, "GET", "/get_seed", HOST | {"SEED_KEY": "k"}).status == 502
        assert len(one_asked) + len(other_asked) == 4
        assert one_asked and other_asked, "both are asked"


def test_what_ingress_nginx_does_by_itself_would_not_do(tmp_path: Path) -> None:
    """The annotations and the ConfigMap are needed: without them, headers are dropped and a lease is taken twice."""
    bare = ingress_server(
        only(objects(merged(mode("ingress"), {"ingress": {"nginx": False, "annotations": {}}})), "Ingress"), ""
    )
    with running(objects({}), tmp_path) as planner, nginx(bare, [planner.until_ready()], tmp_path / "nginx") as front:
        refused = ask(front.address, "POST", "/add_seed", HOST | SEED)
        assert (refused.status, refused.body) == (400, b"missing required header: SEED_KEY")
    with deaf() as (one_address, one_asked), deaf() as (other_address, other_asked):
        with nginx(bare, [one_address, other_address], tmp_path / "nginx-2") as front:
            assert ask(front.address, "GET", "/get_seed", HOST | {"SEED_KEY": "k"}).status == 502
        assert len(one_asked) + len(other_asked) == 2


class Client(threading.Thread):
    """A worker that beats, leases and releases, again and again, and remembers every answer that is no 200."""

    def __init__(self, address: str, number: int) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._seed = HOST | SEED | {"SEED_KEY": f"k{number}", "SEED_RANK": str(number)}
        self.rounds, self.refused, self.stop = 0, [], threading.Event()
        self.start()

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        answer = ask(self._address, method, path, HOST | headers)
        if answer.status != 200:
            self.refused.append((path, answer.status, answer.body))
        return answer

    def run(self) -> None:
        while not (self.stop.is_set() or self.refused):
            self._ask("POST", "/add_seed", self._seed)
            granted = self._ask("GET", "/get_seed", {"SEED_KEY": self._seed["SEED_KEY"]})
            if granted.status == 200:
                self._ask("POST", "/put_seed", lease(granted))
            self.rounds += 1


class Waiter(threading.Thread):
    """A worker that waits for a seed of a key, and asks again under its idempotency key while it is told to. It asks
    planners themselves, the one that ends next: nginx would keep its old configuration for as long as somebody waits."""

    def __init__(self, pods: list[Container], name: str) -> None:
        super().__init__(daemon=True)
        self._pods, self._headers = pods, HOST | {"Idempotency-Key": name}
        self.told_again, self.granted = 0, None
        self.start()

    def run(self) -> None:
        wish = {"seed_key": "awaited", "wait_ms": 300_000}
        # Who waits when the test is over is cut off.
        with suppress(OSError, http.client.HTTPException):
            while (answer := self._ask(wish)).status == 503:
                self.told_again += 1
            self.granted = answer

    def _ask(self, wish: dict[str, Any]) -> Answer:
        return ask(self._pods[0].port("http"), "POST", "/v2/leases", self._headers, wish)


def waiting(pods: list[Container]) -> int:
    """How many requests wait at planners."""
    gauge = re.compile(r"^rfork_planner_requests_waiting (\d+)$", re.MULTILINE)
    return sum(int(gauge.search(ask(pod.port("http"), "GET", "/metrics").body.decode())[1]) for pod in pods)


# What an upgrade changes, beside the program.
BEFORE = merged(mode("postgres"), {"planner": {"drainSec": 3600}})
AFTER = merged(
    BEFORE,
    {
        "planner": {"leaseTtlSec": 90, "allocPolicy": "fifo", "databasePoolSize": 4, "logFormat": "text"},
        "rules": {"capacity": [{"key": "ruled", "leases": 3}]},
    },
)


def test_neither_an_upgrade_nor_a_roll_back_refuses_anybody(tmp_path: Path) -> None:
    """New pods come before old ones drain, as `rollingUpdate` has it, while clients ask through the Ingress; and back.
    Who waits is told to ask again, and has its place in the queue. Before the upgrade and after the roll back it is the
    program of the last release, if there is one (`RFORK_TEST_RELEASED`)."""
    revisions = {1: objects(BEFORE), 2: objects(AFTER, is_upgrade=True, revision=2)}
    strategies = [only(found, "Deployment")["spec"]["strategy"]["rollingUpdate"] for found in revisions.values()]
    assert strategies == [{"maxSurge": 1, "maxUnavailable": 0}] * 2
    programs = {1: os.environ.get("RFORK_TEST_RELEASED"), 2: None}
    with ExitStack() as stack:
        secrets = {"planner-database": {"url": stack.enter_context(postgres()).url("root", "postgres")}}
        names = count()

        def pod(revision: int) -> Container:
            root, program = tmp_path / f"pod-{next(names)}", programs[revision]
            started = stack.enter_context(running(revisions[revision], root, secrets=secrets, program=program))
            started.until_ready()
            return started

        pods = [pod(1), pod(1)]
        addresses = [one.port("http") for one in pods]
        front = stack.enter_context(nginx(server("ingress"), addresses, tmp_path / "nginx"))
        clients = [Client(front.address, number) for number in range(4)]
        waiter = Waiter(pods, "waits-first")
        until("that it waits", lambda: waiting(pods) == 1)

        def asked_on() -> None:
            goal = [client.rounds + 3 for client in clients]

            def reached() -> bool:
                assert not any(client.refused for client in clients), [client.refused for client in clients]
                return all(client.rounds >= rounds for client, rounds in zip(clients, goal, strict=True))

            until("more rounds", reached)

        def roll_to(revision: int) -> None:
            for _ in range(2):
                asked_on()
                pods.append(pod(revision))
                old = pods.pop(0)
                # The pod is told to end and taken out of the endpoints at the same time; who balances hears it later.
                old.terminate()
                asked_on()
                front.lead_to([one.port("http") for one in pods])
                # The drain, which was long enough, is over.
                old.terminate()
                assert old.ended() == 0
                until("that it waits again", lambda: waiting(pods) == 1)
            asked_on()

        def points() -> int:
            """How many leases a seed may have that a rule of the later revision is about."""
            assert ask(front.address, "POST", "/add_seed", HOST | ruled).status == 200
            seeds = ask(front.address, "GET", "/debug/snapshot", HOST).json()["seeds"]
            return seeds["10.9.9.8:8000:0"]["resource_total"]

        ruled = SEED | {"SEED_IP": "10.9.9.8", "SEED_KEY": "ruled"}
        try:
            assert points() == 1
            held = [lease(ask(front.address, "GET", "/get_seed", HOST | {"SEED_KEY": "ruled"}))]
            roll_to(2)
            assert points() == 3
            held.append(lease(ask(front.address, "GET", "/get_seed", HOST | {"SEED_KEY": "ruled"})))
            roll_to(1)
            assert points() == 1
            # What either granted lives on.
            for one in held:
                assert ask(front.address, "POST", "/renew_seed_lease", HOST | one).status == 200
            assert waiter.told_again >= 4 and waiter.granted is None
            later = Waiter(pods, "waits-later")
            until("that both wait", lambda: waiting(pods) == 2)
            ask(front.address, "POST", "/add_seed", HOST | SEED | {"SEED_IP": "10.9.9.9", "SEED_KEY": "awaited"})
            until("an answer to one of them", lambda: waiter.granted or later.granted)
            assert later.granted is None and waiter.granted.status == 200, "it was the first to ask"
        finally:
            for client in clients:
                client.stop.set()
                client.join()
        assert [client.refused for client in clients] == [[]] * 4
