"""What the operations page tells an operator of Postgres to type does what it says."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from rendering import CHART, ROOT, merged, mode, objects
from running import SEED, Answer, Container, Postgres, ask, lease, postgres, running, until

PAGE = (ROOT / "docs" / "operations.md").read_text()


def blocks(language: str, heading: str) -> list[str]:
    """The code under a heading."""
    section = re.split(r"^## ", PAGE[PAGE.index(f"\n## {heading}") + 4 :], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    """A Postgres with the roles and the database of the page."""
    with postgres() as cluster:
        (statements,) = blocks("sql", "Postgres")
        cluster.sql(statements)
        yield cluster


def secrets(cluster: Postgres) -> dict[str, dict[str, str]]:
    """The URLs of both roles, as the chart reads them."""
    owner, planner = ({"uri": cluster.url(f"rfork_{role}", "rfork")} for role in ("owner", "planner"))
    return {"planner-owner": owner, "planner-pooler": planner, "database-ca": {"ca.crt": ""}}


def migrate(cluster: Postgres, root: Path) -> None:
    """Runs the chart's Job with the owner's URL."""
    with running(objects(mode("postgres-migration")), root, "Job", secrets(cluster)) as job:
        assert job.process.wait(timeout=120) == 0, job.log.read_text()


def planner(cluster: Postgres, root: Path) -> AbstractContextManager[Container]:
    """The chart's planner in the role for planners; it sweeps often, and what it lends ends soon."""
    often = {"planner": {"heartbeatSweepSec": 1, "leaseTtlSec": 1, "historySec": 1}}
    return running(objects(merged(mode("postgres-migration"), often)), root, secrets=secrets(cluster))


def granted(address: str) -> Answer | None:
    """A lease of the seed, or nothing while it has none."""
    answer = ask(address, "GET", "/get_seed", {"SEED_KEY": "k"})
    return answer if answer.status == 200 else None


def test_a_planner_does_all_it_does_in_a_role_that_may_no_more(cluster: Postgres, tmp_path: Path) -> None:
    migrate(cluster, tmp_path / "job")
    with planner(cluster, tmp_path / "planner") as container:
        address = container.until_ready()
        for _ in range(2):
            assert ask(address, "POST", "/add_seed", SEED).status == 200
        leased = lease(until("a lease", lambda: granted(address)))
        assert ask(address, "POST", "/renew_seed_lease", leased).status == 200
        assert ask(address, "POST", "/put_seed", leased).status == 200
        # One that expires, and one for which somebody waits and is told by another planner.
        assert granted(address)
        waited = ask(address, "POST", "/v2/leases", {"Idempotency-Key": "again-and-again"}, {"seed_key": "k", "wait_ms": 30_000})
        assert waited.status < 300, waited.body
        assert ask(address, "POST", "/v2/keys/invalidate", body={"seed_key": "k"}).status == 200
        for path in ("/v2/seeds", "/v2/leases", "/v2/keys", "/v2/events", "/v2/leases/ended", "/readyz"):
            assert ask(address, "GET", path).status == 200, path
        # 409 until its last lease has ended.
        until("that it is gone", lambda: ask(address, "POST", "/remove_seed", SEED).status == 404)

        def metrics() -> str:
            return ask(address, "GET", "/metrics").body.decode()

        # History goes after a second.
        until("what the sweep deletes", lambda: re.search(r'history_deleted_total\{kind="lease"\} [1-9]', metrics()))
        assert "store_errors_total{" not in metrics()
    for statement in ("CREATE TABLE mine ()", "DROP TABLE seeds", "ALTER TABLE seeds ADD mine int", "TRUNCATE seeds"):
        refused = psql(cluster, statement)
        assert "permission denied" in refused or "must be owner" in refused, refused


def psql(cluster: Postgres, statement: str) -> str:
    """What a statement of the planners' role is told."""
    command = [cluster.binaries / "psql", "-qc", statement, cluster.url("rfork_planner", "rfork")]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True).stderr


def test_the_role_of_the_chart_s_first_steps_is_enough(cluster: Postgres, tmp_path: Path) -> None:
    (role,) = re.findall(r"postgres://(\w+):PASSWORD@", (CHART / "README.md").read_text())
    secrets = {"planner-database": {"url": cluster.url(role, "rfork")}}
    with running(objects(mode("postgres")), tmp_path, secrets=secrets) as container:
        assert ask(container.until_ready(), "POST", "/add_seed", SEED).status == 200


def test_a_copy_brings_back_what_was_decided(cluster: Postgres, tmp_path: Path) -> None:
    migrate(cluster, tmp_path / "job")
    (commands,) = blocks("sh", "Backup and restore")
    dump, stop, restore, start = commands.strip().splitlines()
    assert "scale" in stop and "scale" in start
    drained = {"seed": "10.0.0.7:8000:0", "seed_key": "k"}
    with planner(cluster, tmp_path / "before") as container:
        address = container.until_ready()
        assert ask(address, "POST", "/add_seed", SEED).status == 200
        assert ask(address, "POST", "/v2/seeds/drain", body=drained).status == 200
        # While it runs.
        shell(cluster, tmp_path, dump)
    cluster.sql("TRUNCATE seeds CASCADE", "rfork")
    shell(cluster, tmp_path, restore)
    with planner(cluster, tmp_path / "after") as container:
        address = container.until_ready()
        assert ask(address, "POST", "/add_seed", SEED).status == 200
        assert granted(address) is None, "it is drained yet"
    # Without the copy its next heartbeat offers it again.
    cluster.sql("TRUNCATE seeds CASCADE", "rfork")
    with planner(cluster, tmp_path / "empty") as container:
        address = container.until_ready()
        assert ask(address, "POST", "/add_seed", SEED).status == 200
        assert granted(address)


def shell(cluster: Postgres, directory: Path, command: str) -> None:
    """Runs a line of the page."""
    environment = os.environ | {"OWNER_URL": cluster.url("rfork_owner", "rfork")}
    environment["PATH"] = f"{cluster.binaries}:{environment['PATH']}"
    done = subprocess.run(
        ["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=directory, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_a_sqlite_file_is_copied_while_its_planner_does_not_run(tmp_path: Path) -> None:
    found = objects(mode("default"))
    with running(found, tmp_path / "one") as container:
        assert ask(container.until_ready(), "POST", "/add_seed", SEED).status == 200
        container.terminate()
        assert container.ended() == 0
    copy = tmp_path / "two/var/lib/rfork/planner.db"
    copy.parent.mkdir(parents=True)
    copy.write_bytes((tmp_path / "one/var/lib/rfork/planner.db").read_bytes())
    with running(found, tmp_path / "two") as container:
        assert until("the seed of the copy", lambda: granted(container.until_ready()))
