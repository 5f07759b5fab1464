"""Alerts and dashboard ask for nothing that planners do not have, and each alert has its section in the documents."""

import json
import re
from contextlib import ExitStack
from typing import Any

import pytest
import yaml

from rendering import CHART, ROOT, Object, mode, objects, of_kind
from running import SEED, ask, lease, postgres, running, until

ALERTS = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())

RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [(rule["alert"], rule["expr"]) for rule in RULES]
EXPRESSIONS += [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]

# What Prometheus itself adds when it scrapes, and the bounds of histograms.
ADDED = {"namespace", "job", "instance", "pod", "le"}
SERIES = re.compile(r"\b(rfork_planner_[a-z_]+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'([a-z_]+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
SAMPLE = re.compile(r"^(rfork_planner_[a-z_]+)(?:\{(.*)\})? \S+$", re.MULTILINE)


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """Every series of a planner for which all has happened that makes one: its name, and the labels of each."""
    root = tmp_path_factory.mktemp("exposed")
    with ExitStack() as stack:
        cluster = stack.enter_context(postgres())
        secrets = {"planner-database": {"url": cluster.url("root", "postgres")}}
        planner = stack.enter_context(running(objects(mode("postgres")), root, secrets=secrets))
        address = planner.until_ready()
        ask(address, "POST", "/add_seed", SEED)
        ask(address, "POST", "/add_seed", SEED)
        granted = ask(address, "GET", "/get_seed", {"SEED_KEY": "k"})
        ask(address, "GET", "/get_seed", {"SEED_KEY": "k"})
        ask(address, "POST", "/put_seed", lease(granted))
        assert ask(address, "POST", "/v2/leases", body={"seed_key": "k", "wait_ms": 1000}).status < 300
        ask(address, "POST", "/v2/leases", body={"seed_key": "none", "wait_ms": 1})
        every_operation(address)
        cluster.stop()
        assert ask(address, "POST", "/add_seed", SEED | {"SEED_IP": "10.0.0.8"}).status == 503
        assert ask(address, "GET", "/readyz").status == 503
        text = ask(address, "GET", "/metrics").body.decode()
    found: dict[str, list[dict[str, str]]] = {}
    for name, labels in SAMPLE.findall(text):
        found.setdefault(name, []).append(dict(re.findall(r'([a-z_]+)="([^"]*)"', labels)))
    return found


def every_operation(address: str) -> None:
    """Waits for what a planner does by itself: the sweep, and that gathered heartbeats are written."""

    def done() -> bool:
        text = ask(address, "GET", "/metrics").body.decode()
        return all(
            f'store_seconds_count{{operation="{name}"}}' in text for name in ("sweep", "flush", "counts", "apply")
        )

    until("sweep and heartbeats", done)


@pytest.mark.parametrize(
    ("where", "expression"), EXPRESSIONS, ids=[f"{at}-{where}" for at, (where, _) in enumerate(EXPRESSIONS)]
)
def test_an_expression_asks_for_series_that_there_are(
    where: str, expression: str, exposed: dict[str, list[dict[str, str]]]
) -> None:
    named = SERIES.findall(expression)
    assert named
    labels: set[str] = set()
    for name, matchers in named:
        assert name in exposed, name
        have = exposed[name]
        labels |= {label for one in have for label in one}
        for label, _, value in MATCHER.findall(matchers):
            if label in ADDED:
                continue
            assert all(label in one for one in have), f"{name} has no {label}"
            # Statuses come with their first answer.
            if label != "status":
                for alternative in value.split("|"):
                    assert any(one[label] == alternative for one in have), f"no {name} has {label}={alternative}"
    for grouped in re.findall(r"\b(?:by|without|on) ?\(([^)]*)\)", expression):
        for label in filter(None, map(str.strip, grouped.split(","))):
            assert label in labels | ADDED, label


def test_each_alert_has_its_section_in_the_operations_page() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    sections = re.findall(r"^### ([A-Z][A-Za-z]+)$", page, re.MULTILINE)
    names = [rule["alert"] for rule in RULES]
    assert sections == names and len(names) == len(set(names))
    for section in re.split(r"^### ", page[page.index("## Alerts") : page.index("## What was")], flags=re.MULTILINE)[
        1:
    ]:
        for part in ("- *Means*:", "- *Look first*:", "- *Do*:"):
            assert section.count(part) == 1, (section, part)


def test_each_alert_says_what_and_how_bad_and_where_to_read_on() -> None:
    (rule,) = of_kind(objects(mode("monitoring")), "PrometheusRule")
    rendered = [one for group in rule["spec"]["groups"] for one in group["rules"]]
    assert [one["alert"] for one in rendered] == [one["alert"] for one in RULES]
    for one, source in zip(rendered, RULES, strict=True):
        assert one["annotations"].pop("runbook_url") == f"https://docs.example/operations#{one['alert'].lower()}"
        assert one["labels"].pop("team") == "inference"
        assert one == source
        assert one["labels"]["severity"] in ("critical", "warning", "info")
        assert set(one["annotations"]) == {"summary", "description"} and one["for"]


def test_alerts_that_are_not_wanted_are_left_out() -> None:
    def alerts(disabled: list[str]) -> list[str]:
        values = {"monitoring": {"prometheusRule": {"enabled": True, "disabled": disabled}}}
        (rule,) = of_kind(objects(values), "PrometheusRule")
        return [one["alert"] for group in rule["spec"]["groups"] for one in group["rules"]]

    every = alerts([])
    assert alerts(["SeedsVanish"]) == [name for name in every if name != "SeedsVanish"]
    assert alerts(every) == []


def test_the_dashboard_is_what_the_sidecar_gets() -> None:
    (dashboard,) = [
        one for one in of_kind(objects(mode("monitoring")), "ConfigMap") if "dashboard" in one["metadata"]["name"]
    ]
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    (text,) = dashboard["data"].values()
    assert json.loads(text) == DASHBOARD


def test_the_dashboard_shows_everything_that_planners_count(exposed: dict[str, list[dict[str, str]]]) -> None:
    asked = {name for _, expression in EXPRESSIONS for name, _ in SERIES.findall(expression)}

    def without_end(name: str) -> str:
        return re.sub("_(bucket|count|sum)$", "", name)

    assert {without_end(name) for name in exposed} == {without_end(name) for name in asked}


def test_panels_stand_side_by_side_and_ask_the_chosen_planners() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in PANELS:
        for target in panel["targets"]:
            for _, matchers in SERIES.findall(target["expr"]):
                assert 'namespace=~"$namespace", job=~"$job"' in matchers, panel["title"]


def variables() -> list[Any]:
    """What one may choose."""
    return DASHBOARD["templating"]["list"]


def test_the_dashboard_knows_no_data_source_of_ours() -> None:
    def sources(part: Any) -> list[Object]:
        if isinstance(part, dict):
            own = [part["datasource"]] if "datasource" in part else []
            return own + [one for value in part.values() for one in sources(value)]
        return [one for value in part for one in sources(value)] if isinstance(part, list) else []

    assert {json.dumps(source) for source in sources(DASHBOARD)} == {
        json.dumps({"type": "prometheus", "uid": "${datasource}"})
    }
    assert [one["name"] for one in variables()] == ["datasource", "namespace", "job"]
