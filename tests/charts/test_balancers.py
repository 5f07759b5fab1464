"""Planners are reached as the rendered Ingress and HTTPRoute say, through a real nginx."""

import re
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from balancing import ingress_server, nginx, route_server
from rendering import merged, mode, notes, objects, only
from running import SEED, ask, lease, loopback, running, until


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
        nginx(server(name), [planner.until_ready()], tmp_path / "nginx") as address,
    ):
        # The longest key that there may be, in headers whose names have underscores.
        key = ("/models/m$%C3%A9 " + "k" * 8192)[:8192]
        assert ask(address, "POST", "/add_seed", HOST | SEED | {"SEED_KEY": key}).status == 200
        granted = ask(address, "GET", "/get_seed", HOST | {"SEED_KEY": key})
        assert granted.status == 200, granted.body
        assert ask(address, "POST", "/renew_seed_lease", HOST | lease(granted)).status == 200
        # Waiting is answered, too, with a seed that comes free meanwhile.
        body = {"seed_key": key, "wait_ms": 60_000}
        answers = []
        waiter = threading.Thread(target=lambda: answers.append(ask(address, "POST", "/v2/leases", HOST, body)))
        waiter.start()
        until("one that waits", lambda: ask(address, "GET", "/v2/keys", HOST).json()["keys"][0]["waiting"] == 1)
        assert ask(address, "POST", "/put_seed", HOST | lease(granted)).status == 200
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

    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (more := self.request.recv(65536)):
            head += more
        if head.startswith(b"GET /get_seed"):
            self.server.asked.append(head)  # type: ignore[attr-defined]
        else:
            self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


@contextmanager
def deaf() -> Iterator[tuple[str, list[bytes]]]:
    """One that is asked for a seed and does not answer: its address, and what it was asked."""
    with socketserver.ThreadingTCPServer((loopback(), 0), Deaf) as listener:
        listener.asked = []  # type: ignore[attr-defined]
        threading.Thread(target=listener.serve_forever).start()
        yield f"{listener.server_address[0]}:{listener.server_address[1]}", listener.asked  # type: ignore[attr-defined]
        listener.shutdown()


@BALANCED
def test_a_question_for_a_seed_is_never_sent_twice(name: str, tmp_path: Path) -> None:
    with deaf() as (one_address, one_asked), deaf() as (other_address, other_asked):
        with nginx(server(name), [one_address, other_address], tmp_path / "nginx") as address:
            for _ in range(4):
                assert ask(address, "GET", "/get_seed", HOST | {"SEED_KEY": "k"}).status == 502
        assert len(one_asked) + len(other_asked) == 4
        assert one_asked and other_asked, "both are asked"


def test_what_ingress_nginx_does_by_itself_would_not_do(tmp_path: Path) -> None:
    """The annotations and the ConfigMap are needed: without them, headers are dropped and a lease is taken twice."""
    bare = ingress_server(
        only(objects(merged(mode("ingress"), {"ingress": {"nginx": False, "annotations": {}}})), "Ingress"), ""
    )
    with running(objects({}), tmp_path) as planner, nginx(bare, [planner.until_ready()], tmp_path / "nginx") as address:
        refused = ask(address, "POST", "/add_seed", HOST | SEED)
        assert (refused.status, refused.body) == (400, b"missing required header: SEED_KEY")
    with deaf() as (one_address, one_asked), deaf() as (other_address, other_asked):
        with nginx(bare, [one_address, other_address], tmp_path / "nginx-2") as address:
            assert ask(address, "GET", "/get_seed", HOST | {"SEED_KEY": "k"}).status == 502
        assert len(one_asked) + len(other_asked) == 2
