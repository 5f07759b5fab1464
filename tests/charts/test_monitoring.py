"""Alerts fire when they should, are rendered as they stand, and each has its section in the documents; panels of the
dashboard are where they can be. What both ask for is in `test_prometheus.py`."""

import json
import re
from typing import Any

import yaml

from prometheus import DASHBOARD, PANELS, RULES, promtool
from rendering import CHART, HERE, ROOT, Object, mode, notes, objects, of_kind

SERIES = re.compile(r"\b(rfork_planner_[a-z_]+)(?:\{([^}]*)\})?")


def test_each_alert_fires_in_time_and_not_before() -> None:
    promtool("check", "rules", str(CHART / "files" / "alerts.yaml"))
    path = HERE / "alerts.test.yaml"
    promtool("test", "rules", str(path))
    tried = [
        (case["alertname"], bool(case["exp_alerts"]))
        for group in yaml.safe_load(path.read_text())["tests"]
        for case in group.get("alert_rule_test", [])
    ]
    assert set(tried) == {(rule["alert"], fires) for rule in RULES for fires in (False, True)}


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


def test_alerts_have_no_link_that_leads_nowhere() -> None:
    values = {"monitoring": {"prometheusRule": {"enabled": True}}}
    (rule,) = of_kind(objects(values), "PrometheusRule")
    for one in (one for group in rule["spec"]["groups"] for one in group["rules"]):
        assert "runbook_url" not in one["annotations"]
    assert "prometheusRule.runbookUrl" in notes(values) and "runbookUrl" not in notes(mode("monitoring"))


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
