"""What is rendered starts the real planner, which answers its probes, serves, migrates and drains."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rendering import Object, merged, mode, objects
from running import SEED, Answer, Postgres, ask, lease, postgres, running, status, until


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    """A Postgres, which tests share."""
    with postgres() as cluster:
        yield cluster


@pytest.mark.parametrize(
    "name", ["default", "sqlite-claim", "sqlite-ephemeral", "dual-stack", "rules", "ingress", "pod-monitor"]
)
def test_a_planner_on_sqlite_starts_and_serves(name: str, tmp_path: Path) -> None:
    with running(objects(mode(name)), tmp_path) as planner:
        serves(planner.until_ready())
        assert (tmp_path / "var/lib/rfork/planner.db").exists()


@pytest.mark.parametrize("name", ["postgres", "cloudnativepg", "everything", "autoscaling", "network-policy"])
def test_a_planner_on_postgres_starts_and_serves(name: str, tmp_path: Path, cluster: Postgres) -> None:
    database = "mode_" + name.replace("-", "_")
    cluster.sql(f"CREATE DATABASE {database}")
    url = cluster.url("root", database)
    secrets = {"planner-database": {"url": url}, "demo-rfork-planner-db-app": {"uri": url}}
    # No traffic leaves this machine.
    here = {"planner": {"otlpEndpoint": "http://127.0.0.1:9"}}
    values = merged(mode(name), here if "otlpEndpoint" in mode(name).get("planner", {}) else {})
    with running(objects(values), tmp_path, secrets=secrets) as planner:
        serves(planner.until_ready())


def serves(address: str) -> None:
    """One seed is registered, leased and released."""
    assert ask(address, "POST", "/add_seed", SEED).status == 200
    granted = ask(address, "GET", "/get_seed", {"SEED_KEY": "k"})
    assert granted.status == 200, granted.body
    assert ask(address, "POST", "/put_seed", lease(granted)).status == 200


def test_the_rules_count(tmp_path: Path) -> None:
    with running(objects(mode("rules")), tmp_path) as planner:
        address = planner.until_ready()
        ask(address, "POST", "/add_seed", SEED | {"SEED_KEY": "/models/dsv4$decode$0", "SEED_IP": "10.9.0.1"})
        (seed,) = ask(address, "GET", "/debug/snapshot").json()["seeds"].values()
        assert seed["resource_total"] == 4
        refused = ask(address, "POST", "/add_seed", SEED | {"SEED_KEY": "/models/pinned$0", "SEED_IP": "10.9.0.2"})
        assert (refused.status, refused.body.split(b":")[0]) == (503, b"not-pinned")


def test_a_job_migrates_for_planners_that_may_not(tmp_path: Path, cluster: Postgres) -> None:
    cluster.sql("CREATE ROLE owner LOGIN; CREATE ROLE planner LOGIN; CREATE DATABASE apart OWNER owner")
    cluster.sql(
        """ALTER DEFAULT PRIVILEGES FOR ROLE owner GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO planner;
        ALTER DEFAULT PRIVILEGES FOR ROLE owner GRANT USAGE ON SEQUENCES TO planner""",
        "apart",
    )
    urls = {
        name: {"uri": cluster.url(role, "apart")}
        for name, role in (("planner-owner", "owner"), ("planner-pooler", "planner"))
    }
    secrets = urls | {"database-ca": {"ca.crt": ""}}
    found = objects(mode("postgres-migration"))
    with running(found, tmp_path / "before", secrets=secrets) as early:
        assert early.process.wait(timeout=120) == 1, "its role may not make tables"
    with running(found, tmp_path / "job", "Job", secrets) as job:
        assert job.process.wait(timeout=120) == 0, job.log.read_text()
    with running(found, tmp_path / "planner", secrets=secrets) as planner:
        serves(planner.until_ready())


def with_drain(seconds: int) -> Object:
    """A planner on SQLite that drains that long."""
    return {"planner": {"drainSec": seconds}}


def test_a_planner_drains_within_its_grace_period_with_requests_under_way(tmp_path: Path) -> None:
    with running(objects(with_drain(1)), tmp_path) as planner:
        address = planner.until_ready()
        assert ask(address, "POST", "/add_seed", SEED).status == 200
        assert ask(address, "GET", "/get_seed", {"SEED_KEY": "k"}).status == 200
        waiters = waiting(address, 8)
        planner.terminate()
        assert planner.ended() == 0
        for waiter in waiters:
            waiter.join()
        # They have their place at another planner.
        assert [answer.status for answer in answers(waiters)] == [503] * 8


def test_a_planner_that_drains_serves_until_others_have_noticed(tmp_path: Path) -> None:
    with running(objects(with_drain(3600)), tmp_path) as planner:
        address = planner.until_ready()
        planner.terminate()
        until("a planner that is not ready", lambda: status(address, "/readyz") == 503)
        assert status(address, "/healthz") == 200
        serves(address)
        # The drain would last an hour; a second signal ends it.
        planner.terminate()
        assert planner.ended() == 0


class Waiter(threading.Thread):
    """A worker that waits a long time for a seed."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address = address
        self.answer: Answer | None = None
        self.start()

    def run(self) -> None:
        self.answer = ask(self._address, "POST", "/v2/leases", body={"seed_key": "k", "wait_ms": 300_000})


def waiting(address: str, number: int) -> list[Waiter]:
    """So many workers, of which the planner knows."""
    waiters = [Waiter(address) for _ in range(number)]
    until("that all wait", lambda: ask(address, "GET", "/v2/keys").json()["keys"][0]["waiting"] == number)
    return waiters


def answers(waiters: list[Waiter]) -> list[Answer]:
    """What they were told."""
    return [waiter.answer for waiter in waiters if waiter.answer]
