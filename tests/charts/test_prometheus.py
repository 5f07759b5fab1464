"""A real Prometheus scrapes real planners. What the dashboard asks for is there, alerts whose cause can be made fire for
it, and none fires for a planner that is well. With their `for:` times they are tried in `alerts.test.yaml`."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path

import pytest

from prometheus import NAMESPACE, PANELS, RULES, Prometheus, prometheus
from rendering import Object, merged, mode, objects
from running import Answer, Container, Postgres, ask, lease, loopback, postgres, running, until

SELECTOR = re.compile(r"\b(rfork_planner_[a-z_]+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'([a-z_]+)\s*(=~|!~|!=|=)\s*"([^"]*)"')


def of_job(expression: str, job: str) -> str:
    """The expression as it is asked for one job."""
    chosen = expression.replace("$namespace", NAMESPACE).replace("$job", job).replace("$__rate_interval", "1m")

    def choose(found: re.Match[str]) -> str:
        matchers = found[2] or ""
        return found[0] if "job=" in matchers else f'{found[1]}{{job="{job}"{matchers and ", "}{matchers}}}'

    return SELECTOR.sub(choose, chosen)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    """A Postgres, which tests share."""
    with postgres() as cluster:
        yield cluster


@dataclass
class Planner:
    """A planner of the chart's."""

    container: Container
    address: str
    cluster: Postgres
    database: str | None

    def away(self, seconds: float) -> threading.Thread:
        """Has somebody else keep its table of seeds to himself for so long."""
        statement = f"BEGIN; LOCK TABLE seeds; SELECT pg_sleep({seconds}); COMMIT"
        return started(lambda: self.cluster.sql(statement, self.database or ""))


@contextmanager
def planner(
    root: Path, server: Prometheus, job: str, cluster: Postgres, settings: Object, on_postgres: bool
) -> Iterator[Planner]:
    """One with these settings, on SQLite or with a database of its own, which is scraped."""
    values, secrets, database = {"planner": settings}, {}, None
    if on_postgres:
        if not cluster.runs():
            cluster.start()
        database = f"{root.name}_{os.getpid()}"
        cluster.sql(f'CREATE DATABASE "{database}"')
        secrets = {"planner-database": {"url": cluster.url("root", database)}}
        values = merged(mode("postgres"), values)
    with running(objects(values), root, secrets=secrets, address=server.planners[job]) as container:
        planner = Planner(container, container.until_ready(), cluster, database)
        # It has swept and counted once; until then it looks as if it never would.
        begun = " and ".join(
            f'rfork_planner_{what}_timestamp_seconds{{job="{job}"}} > 0' for what in ("last_sweep", "counted")
        )
        until(f"that {job} is scraped", lambda: server.values(begun))
        yield planner


def started(act: Callable[[], object]) -> threading.Thread:
    """A thread that does something."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def register(address: str, number: int = 0, key: str = "k") -> None:
    """Registers a seed where nobody is and nobody is asked, or sends its heartbeat."""
    headers = {"SEED_KEY": key, "SEED_IP": f"192.0.2.{number}", "SEED_PORT": "8000", "SEED_RANK": "0"}
    ask(address, "POST", "/add_seed", headers | {"SEED_REFCNT": "0"})


def acquire(address: str, key: str = "k", wait_ms: int = 0) -> Answer:
    """Asks for a seed."""
    return ask(address, "POST", "/v2/leases", body={"seed_key": key, "wait_ms": wait_ms})


def release(address: str, granted: Answer, outcome: str) -> None:
    """Gives a lease back, if there is one, and tells how it went."""
    if granted.status < 300:
        told = {name: granted.json()[name] for name in ("lease_id", "seed")}
        report = {"outcome": outcome, "bytes": 1 << 30, "duration_ms": 1500}
        ask(address, "POST", "/v2/leases/release", body=told | report)


def healthy(address: str) -> None:
    """What happens all day long: seeds beat; workers lease, renew and release, and wait where that helps."""
    for number in range(4):
        register(address, number)
    for outcome in ("ok", "ok", "aborted"):
        release(address, acquire(address), outcome)
    granted = ask(address, "GET", "/get_seed", {"SEED_KEY": "k"})
    if granted.status == 200:
        ask(address, "POST", "/renew_seed_lease", lease(granted))
        ask(address, "POST", "/put_seed", lease(granted))
    release(address, acquire(address, wait_ms=1000), "ok")


def everything(planner: Planner) -> None:
    """What is healthy, and what is not."""
    address = planner.address
    healthy(address)
    register(address, 8, "bad")
    release(address, acquire(address, "bad"), "failed")
    register(address, 9, "held")
    acquire(address, "held")
    register(address, 7, "drained")
    ask(address, "POST", "/v2/seeds/drain", body={"seed": "192.0.2.7:8000:0", "seed_key": "drained"})
    register(address, 7, "drained")
    loads(address)
    crowd(address)


def loads(address: str) -> None:
    """A worker that loads gets another source, as the first brings no byte; another one reads from it, as no other seed is
    free; and another one asks whether it may read storage."""
    for seed in (11, 12):
        register(address, seed, "chain")
    loading = {"seed": "192.0.2.20:8000:0", "incarnation": "one", "total_bytes": 1}
    asked: Object = {"seed_key": "chain", "loading": loading}
    first = ask(address, "POST", "/v2/leases", body=asked)
    if first.status == 200:
        source = {"seed": first.json()["seed"], "lease_id": first.json()["lease_id"], "silent_ms": 4_000}
        second = ask(address, "POST", "/v2/leases", body=asked | {"stalled": source})
        behind = {"loading": loading | {"seed": "192.0.2.22:8000:0"}}
        release(address, ask(address, "POST", "/v2/leases", body=asked | behind), "aborted")
        release(address, second, "aborted")
        release(address, first, "aborted")
    leads = {"seed_key": "lead", "loading": loading | {"seed": "192.0.2.21:8000:0"}, "arrived_bytes": 0}
    ask(address, "POST", "/v2/leads", body=leads | {"patience_ms": 1_000})


def times_out(planner: Planner) -> None:
    """Statements take longer than they may."""
    other = planner.away(1.5)
    while other.is_alive():
        acquire(planner.address)


def crowd(address: str) -> None:
    """More requests at once than a planner takes that takes two, all of which wait in vain."""
    for one in [started(lambda: acquire(address, "none", 500)) for _ in range(4)]:
        one.join()


@contextmanager
def load(act: Callable[[], object]) -> Iterator[None]:
    """Does something again and again meanwhile, until it cannot be done any more."""
    ended = threading.Event()

    def go_on() -> None:
        with suppress(OSError):
            while not ended.is_set():
                act()

    thread = started(go_on)
    try:
        yield
    finally:
        ended.set()
        thread.join()


def goes_away(planner: Planner) -> None:
    """No planner is left."""
    planner.container.process.kill()


def has_no_room(planner: Planner) -> None:
    """There is one seed more than it takes."""
    for number in range(3):
        register(planner.address, number)


def fills(planner: Planner) -> None:
    """It takes one seed more, and no second one."""
    for number in range(4):
        register(planner.address, number)


def is_full(planner: Planner) -> None:
    """Every point of the only seed is leased, and somebody asks for one."""
    register(planner.address)
    acquire(planner.address)


def is_crowded(planner: Planner) -> None:
    """More ask at once than may."""
    crowd(planner.address)


def loses_its_database(planner: Planner) -> None:
    """The database is away while workers ask."""
    if planner.cluster.runs():
        planner.cluster.stop()
    register(planner.address)


def has_a_slow_database(planner: Planner) -> None:
    """A statement waits for somebody else."""
    other = planner.away(1)
    while other.is_alive():
        acquire(planner.address)


def has_no_connection_left(planner: Planner) -> None:
    """Both connections to the database are in use for as long as they may be."""
    other = planner.away(1)
    while other.is_alive():
        asking = [started(lambda: ask(planner.address, "GET", "/v2/seeds")) for _ in range(3)]
        acquire(planner.address)
        for one in asking:
            one.join()


def fail_their_readers(planner: Planner) -> None:
    """Readers tell of seeds that failed."""
    for number in range(2):
        register(planner.address, number)
    release(planner.address, acquire(planner.address), "failed")


def changes(planner: Planner, of: str, change: str) -> float:
    """How many such changes of seeds or leases it has counted."""
    told = ask(planner.address, "GET", "/metrics").body.decode()
    found = re.search(rf'^rfork_planner_{of}_changes_total{{change="{change}"}} (\S+)$', told, re.MULTILINE)
    return float(found[1]) if found else 0.0


def vanish(planner: Planner) -> None:
    """Seeds register and send no heartbeat."""
    for number in range(40):
        register(planner.address, number)
    # A seed that registers again before the sweep has found it silent is not counted.
    until("their silence", lambda: changes(planner, "seed", "forgotten") == changes(planner, "seed", "new"))


def never_release(planner: Planner) -> None:
    """Workers die while they load."""
    for number in range(20):
        register(planner.address, number, f"of-{number}")
        acquire(planner.address, f"of-{number}")
    # A lease whose point is leased anew before the sweep has found it is not counted.
    until("their ends", lambda: changes(planner, "lease", "expired") == changes(planner, "lease", "granted"))


def wait_in_vain(planner: Planner) -> None:
    """Workers wait for weights that nobody has."""
    acquire(planner.address, "none", 1)


class Mortal:
    """A seed that answers when the planner asks whether it lives, while it does."""

    def __init__(self) -> None:
        seed = self
        self.asked = False

        class Health(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                seed.asked = True

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer((loopback(), 0), Health)
        host, port = self._server.server_address[:2]
        self.key, self.identity = f"of-{port}", {"SEED_IP": str(host), "SEED_PORT": str(port), "SEED_RANK": "0"}
        started(self._server.serve_forever)

    def die(self) -> None:
        """Ends it, without a word."""
        self._server.shutdown()
        self._server.server_close()


def do_not_answer(planner: Planner) -> None:
    """Seeds that have answered the planner are dead."""
    seed, address = Mortal(), planner.address
    ask(address, "POST", "/add_seed", seed.identity | {"SEED_KEY": seed.key, "SEED_REFCNT": "0"})
    release(address, acquire(address, seed.key), "ok")
    until("that the planner asks it", lambda: seed.asked)
    seed.die()

    def quiet_ms() -> int:
        (found,) = ask(address, "GET", f"/v2/seeds?seed_key={seed.key}").json()["seeds"]
        return found["heartbeat_age_ms"]

    # It is doubted when no heartbeat, one a second, can be as late.
    until("its silence", lambda: quiet_ms() > 5_000)
    acquire(address, seed.key)


@dataclass
class Cause:
    """What makes an alert fire: done again and again to a planner with these settings."""

    alert: str
    act: Callable[[Planner], None]
    settings: Object = field(default_factory=dict)
    on_postgres: bool = False
    # Alerts that fire with it, and rightly.
    also: set[str] = field(default_factory=set)


CAUSES = [
    Cause("PlannerIsAway", goes_away),
    Cause("PlannerCannotServe", is_crowded, {"maxRequests": 2, "maxWaiting": 2}, also={"WaitsEndWithoutSeed"}),
    Cause(
        "PlannerStoreFails",
        loses_its_database,
        on_postgres=True,
        also={"PlannerCannotServe", "PlannerStoreIsSlow"},
    ),
    Cause("PlannerStoreIsSlow", has_a_slow_database, on_postgres=True),
    Cause(
        "PlannerPoolIsUsedUp",
        has_no_connection_left,
        {"databasePoolSize": 2, "databaseStatementTimeoutMs": 3500},
        on_postgres=True,
        also={"PlannerStoreIsSlow"},
    ),
    Cause("PlannerIsFull", has_no_room, {"maxSeeds": 2}, also={"PlannerIsNearlyFull"}),
    Cause("PlannerIsNearlyFull", fills, {"maxSeeds": 5}),
    Cause("SeedsAreFull", is_full),
    Cause("SeedsAreSuspect", fail_their_readers, also={"TransfersFail"}),
    Cause("SeedsVanish", vanish, {"heartbeatTtlSec": 1, "heartbeatSweepSec": 1}),
    Cause("SeedsDoNotAnswer", do_not_answer, {"heartbeatIntervalSec": 1}),
    Cause("TransfersFail", fail_their_readers, also={"SeedsAreSuspect"}),
    Cause("LeasesExpire", never_release, {"leaseTtlSec": 1, "heartbeatSweepSec": 1}),
    Cause("WaitsEndWithoutSeed", wait_in_vain),
]
# What fires, too, and rightly, where this machine is slow: no verdict depends on that.
STORE_IS_SLOW = {"PlannerStoreIsSlow", "PlannerPoolIsUsedUp"}
SLOW = STORE_IS_SLOW | {"PlannerStoreFails", "PlannerCannotServe"}
# Their causes take minutes, a planner of another version, or a file that changes beside it (planner/tests/identity.rs, jwt.rs,
# tls.rs).
NOT_MADE = {
    *("PlannerDoesNotSweep", "PlannerCountsAreOld", "PlannersDiffer", "PlannerTokenFileIsBad", "PlannerIssuerIsAway"),
    *("PlannerTlsFilesAreBad", "PlannerCertificateEnds"),
}

STORES = ["sqlite", "postgres"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus, which tests share; each has a job of its own."""
    jobs = [cause.alert for cause in CAUSES] + [f"{what}-{store}" for what in ("well", "all") for store in STORES]
    with prometheus(tmp_path_factory.mktemp("prometheus"), jobs) as server:
        yield server


def fire(server: Prometheus, job: str, expected: set[str]) -> None:
    """Waits until these alerts fire for a job, and no other but for what a slow machine does."""
    seen: set[str] = set()

    def fires() -> bool:
        nonlocal seen
        seen = server.firing(job)
        return expected <= seen <= expected | SLOW

    try:
        until("alerts", fires)
    except AssertionError:
        pytest.fail(f"{expected} do not fire, but {seen} do")


def test_each_alert_is_made_to_fire_or_is_known_not_to_be() -> None:
    assert {cause.alert for cause in CAUSES} | NOT_MADE == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.alert)
def test_an_alert_fires_for_its_cause(cause: Cause, server: Prometheus, cluster: Postgres, tmp_path: Path) -> None:
    with planner(tmp_path, server, cause.alert, cluster, cause.settings, cause.on_postgres) as subject:
        expected = {cause.alert} | cause.also
        with load(lambda: cause.act(subject)):
            fire(server, cause.alert, expected)


@pytest.mark.parametrize("store", STORES)
def test_no_alert_fires_for_a_planner_that_is_well(
    store: str, server: Prometheus, cluster: Postgres, tmp_path: Path
) -> None:
    job = f"well-{store}"
    with planner(tmp_path, server, job, cluster, {}, store == "postgres") as subject:
        until("that its start is forgotten", lambda: not server.firing(job) - SLOW)
        begun = server.now()
        granted = f'rfork_planner_wait_seconds_count{{job="{job}", outcome="granted"}} > 20'
        with load(lambda: healthy(subject.address)):
            until("many requests", lambda: server.values(granted))
            judged = server.judged()
            until("that all rules are judged anew", lambda: not set(judged) & set(server.judged()))
        # A machine on which an answer takes longer than a scrape may is no reason to accuse the planner.
        missed = {"PlannerIsAway"} if server.gave_up(job, begun) else set()
        assert server.fired(job, begun) <= STORE_IS_SLOW | missed


# Of alerts that are not made to fire, what they compare.
ASKED = [
    part
    for rule in RULES
    if rule["alert"] in NOT_MADE
    for part in re.split(r" (?:>=?|<=?|and|or|unless) ", rule["expr"])
    if SELECTOR.search(part)
]
ASKED += [target["expr"] for panel in PANELS for target in panel["targets"]]


@pytest.mark.parametrize("store", STORES)
def test_every_expression_gives_what_happens(store: str, server: Prometheus, cluster: Postgres, tmp_path: Path) -> None:
    settings = {"maxRequests": 2, "maxWaiting": 2, "historySec": 1, "heartbeatSweepSec": 1, "databaseStatementTimeoutMs": 500}
    # Nobody who asks has a token.
    settings |= {"forkWhileLoading": "on", "authMode": "permissive"}
    job = f"all-{store}"
    with planner(tmp_path, server, job, cluster, settings, store == "postgres") as subject:
        missing = {of_job(expression, job) for expression in ASKED}
        # The database fails on Postgres alone.
        missing = {one for one in missing if store == "postgres" or "store_errors_total" not in one}
        # No issuer of JWTs is named here; `planner/tests/jwt.rs` looks at what is told of one.
        missing = {one for one in missing if "issuer_keys_good" not in one}
        # It speaks no TLS; `planner/tests/tls.rs` looks at what is counted of it.
        missing = {one for one in missing if "tls_certificate_end" not in one and "tls_handshakes" not in one}
        unknown = {selector for expression in missing for selector in selectors(expression)}

        def seen() -> bool:
            nonlocal missing, unknown
            missing = {one for one in missing if not any(value > 0 for _, value in server.values(one))}
            unknown = {one for one in unknown if not server.values(one)}
            return not missing and not unknown

        acts = cycle([everything] * 5 + [times_out] if store == "postgres" else [everything])
        with load(lambda: next(acts)(subject)):
            try:
                until("values", seen)
            except AssertionError:
                pytest.fail(f"never above zero: {missing}; no such series: {unknown}")
        counted = {re.sub("_(bucket|count|sum)$", "", name) for name in server.names(job)}
        named = {name for rule in RULES for name, _ in SELECTOR.findall(rule["expr"])}
        named |= {name for expression in ASKED for name, _ in SELECTOR.findall(expression)}
        shown = {re.sub("_(bucket|count|sum)$", "", name) for name in named}
        assert counted - shown == set(), "what planners count is somewhere on the dashboard"


def selectors(expression: str) -> Iterator[str]:
    """Each selection of series in an expression, one for each alternative that it names."""
    for name, matchers in SELECTOR.findall(expression):
        found = {label: (operator, value) for label, operator, value in MATCHER.findall(matchers)}
        job = found["job"][1]
        for label in found.keys() - {"namespace", "job"}:
            for alternative in found[label][1].split("|"):
                yield f'{name}{{job="{job}", {label}="{alternative}"}}'
