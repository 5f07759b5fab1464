"""A real Prometheus, which scrapes planners and evaluates alerts and expressions."""

import json
import math
import subprocess
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rendering import CHART, Object
from running import ask, loopback, status, until

ALERTS = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
RULES: list[Object] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

NAMESPACE = "models"
# How often it scrapes, how long it waits for an answer, and how often it judges.
SCRAPE_MS = 250


def promtool(*args: str) -> None:
    """Checks something; fails with what it says."""
    done = subprocess.run(["promtool", *args], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """A server whose alerts fire at once. It scrapes a planner for each job, at an address that it has for it, as soon
    as there is one."""

    def __init__(self, root: Path, jobs: list[str]) -> None:
        self.address = f"{loopback()}:9090"
        self.planners = {job: loopback() for job in jobs}
        groups = [group | {"rules": [rule | {"for": "0s"} for rule in group["rules"]]} for group in ALERTS["groups"]]
        targets = [
            {"targets": [f"{planner}:1223"], "labels": {"namespace": NAMESPACE, "job": job}}
            for job, planner in self.planners.items()
        ]
        (root / "alerts.yaml").write_text(yaml.safe_dump({"groups": groups}))
        config = {
            "global": dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), f"{SCRAPE_MS}ms"),
            "rule_files": ["alerts.yaml"],
            "scrape_configs": [{"job_name": "planners", "static_configs": targets}],
        }
        (root / "prometheus.yaml").write_text(yaml.safe_dump(config))
        flags = [
            f"--config.file={root}/prometheus.yaml",
            f"--storage.tsdb.path={root}/data",
            f"--web.listen-address={self.address}",
            "--log.level=warn",
        ]
        with (root / "log").open("wb") as log:
            self.process = subprocess.Popen(
                ["prometheus", *flags], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=root
            )
        until("Prometheus", lambda: status(self.address, "/-/ready") == 200)

    def values(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """What an expression gives now: labels and value of each."""
        data = self._get("query", {"query": expression})
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(one["metric"], float(one["value"][1])) for one in data["result"]]

    def names(self, job: str) -> set[str]:
        """The names of the planner's own series of a job."""
        found = self.values(f'count by (__name__) ({{job="{job}", __name__=~"rfork_.+"}})')
        return {labels["__name__"] for labels, _ in found}

    def firing(self, job: str) -> set[str]:
        """The alerts of this job that fire."""
        alerts = self._get("alerts", {})["alerts"]
        return {
            one["labels"]["alertname"] for one in alerts if one["state"] == "firing" and one["labels"]["job"] == job
        }

    def now(self) -> float:
        """Its clock."""
        return self.values("time()")[0][1]

    def fired(self, job: str, since: float) -> set[str]:
        """The alerts of this job that fired at any moment since then."""
        found = self.values(f'count_over_time(ALERTS{{alertstate="firing", job="{job}"}}[{self._age(since)}])')
        return {labels["alertname"] for labels, _ in found}

    def gave_up(self, job: str, since: float) -> bool:
        """Whether a scrape of this job took as long as it may since then: for Prometheus the planner is away then."""
        most = f'max_over_time(scrape_duration_seconds{{job="{job}"}}[{self._age(since)}])'
        return bool(self.values(f"{most} >= {SCRAPE_MS / 1000}"))

    def _age(self, since: float) -> str:
        return f"{math.ceil((self.now() - since) * 1000)}ms"

    def judged(self) -> list[tuple[str, str]]:
        """Each group of rules, and when it was judged last."""
        return [(group["name"], group["lastEvaluation"]) for group in self._get("rules", {})["groups"]]

    def _get(self, what: str, query: dict[str, str]) -> Any:
        answer = ask(self.address, "GET", f"/api/v1/{what}?{urllib.parse.urlencode(query)}")
        assert answer.status == 200, answer.body.decode()
        return answer.json()["data"]


@contextmanager
def prometheus(root: Path, jobs: list[str]) -> Iterator[Prometheus]:
    """A server, which is gone afterwards."""
    server = Prometheus(root, jobs)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
