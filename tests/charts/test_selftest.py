"""The pod of `helm test`, as it is rendered, says whether the rendered planner works, and if not, what fails."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rendering import Object, at, merged, mode, objects, only
from running import SEED, Container, Network, ask, lonely, loopback, network, postgres, running

WORKS = "the planner works\n"


def services(found: list[Object], address: str) -> dict[str, str]:
    """The Service, which leads to this address and port."""
    service = only(found, "Service")
    (port,) = service["spec"]["ports"]
    return {f"{service['metadata']['name']}:{port['port']}": address}


def told(found: list[Object], root: Path, address: str, network: Network | None = None) -> tuple[int, str]:
    """How the test ends whose Service leads there, before Kubernetes would end it, and what it says."""
    with running(found, root / "test", "Pod", services=services(found, address), network=network) as test:
        code = test.process.wait(timeout=test.pod["spec"]["activeDeadlineSeconds"])
        return code, test.log.read_text()


def port(planner: Container) -> str:
    """The number of the port to which the Service leads."""
    return planner.port("http").rsplit(":", 1)[1]


@pytest.mark.parametrize("name", ["default", "rules", "ingress"])
def test_it_succeeds_where_the_planner_works(name: str, tmp_path: Path) -> None:
    found = objects(mode(name))
    # It waits for a planner that is not ready yet.
    with running(found, tmp_path / "planner") as planner:
        code, said = told(found, tmp_path, planner.port("http"))
        assert code == 0 and said.endswith(WORKS), said
        assert ask(planner.port("http"), "GET", "/debug/snapshot").json()["seed_count"] == 0


@pytest.mark.skipif(not lonely(), reason="a network of its own takes root")
@pytest.mark.parametrize(
    ("values", "addresses"),
    [
        ({}, ["127.0.0.1/8"]),
        (mode("dual-stack"), ["127.0.0.1/8", "::1/128"]),
        ({"service": {"ipFamilyPolicy": "PreferDualStack"}}, ["127.0.0.1/8", "::1/128"]),
        ({"service": {"ipFamilies": ["IPv6"]}}, ["::1/128"]),
    ],
    ids=["ipv4", "both", "preferred", "ipv6"],
)
def test_a_planner_is_reached_by_each_family_of_its_service(
    values: Object, addresses: list[str], tmp_path: Path
) -> None:
    found = objects(values)
    with network(addresses) as apart, running(found, tmp_path / "planner", network=apart) as planner:
        for address in (address.partition("/")[0] for address in addresses):
            host = f"[{address}]" if ":" in address else address
            code, said = told(found, tmp_path, f"{host}:{port(planner)}", apart)
            assert code == 0 and said.endswith(WORKS), (address, said, planner.log.read_text())


SOON = at("test.timeoutSeconds", 1)


def test_it_says_that_nobody_is_there(tmp_path: Path) -> None:
    code, said = told(objects(SOON), tmp_path, f"{loopback()}:1223")
    assert code == 1 and "waiting for the planner, up to 1 s" in said and "did not answer" in said, said


def test_it_says_what_keeps_the_planner_from_its_database(tmp_path: Path) -> None:
    found = objects(merged(mode("postgres"), SOON))
    with postgres() as cluster:
        secrets = {"planner-database": {"url": cluster.url("root", "postgres")}}
        with running(found, tmp_path / "planner", secrets=secrets) as planner:
            address = planner.until_ready()
            assert told(found, tmp_path, address)[0] == 0
            cluster.stop()
            code, said = told(found, tmp_path, address)
            assert code == 1 and "registering a seed failed" in said and "503" in said, said


def test_it_says_that_the_planner_is_full(tmp_path: Path) -> None:
    found = objects(merged(SOON, at("planner.maxSeeds", 1)))
    with running(found, tmp_path / "planner") as planner:
        address = planner.until_ready()
        assert ask(address, "POST", "/add_seed", SEED).status == 200
        code, said = told(found, tmp_path, address)
        assert code == 1 and "registering a seed failed" in said and "full" in said, said


@contextmanager
def somebody_else() -> Iterator[str]:
    """A server that is no planner."""

    class Handler(BaseHTTPRequestHandler):
        """Knows no path."""

        def do_POST(self) -> None:
            """Refuses."""
            self.send_error(404)

        do_GET = do_PUT = do_POST

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer((loopback(), 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield "%s:%d" % server.server_address[:2]
        finally:
            server.shutdown()
            serving.join()


def test_it_says_that_somebody_else_answers(tmp_path: Path) -> None:
    with somebody_else() as address:
        code, said = told(objects(SOON), tmp_path, address)
    assert code == 1 and "registering a seed failed" in said and "404" in said, said


def test_variables_come_from_config_maps_and_secrets(tmp_path: Path) -> None:
    sources = [
        {"configMapRef": {"name": "shared", "optional": True}},
        {"secretRef": {"name": "planner-environment"}, "prefix": "RFORK_CFG_"},
    ]
    found = objects({"extraEnvFrom": sources})
    secrets = {"planner-environment": {"DEFAULT_RESOURCE_POINTS": "7"}}
    with running(found, tmp_path, secrets=secrets) as planner:
        address = planner.until_ready()
        assert ask(address, "POST", "/add_seed", SEED).status == 200
        (seed,) = ask(address, "GET", "/debug/snapshot").json()["seeds"].values()
        assert seed["resource_total"] == 7
