"""The chart has a value for each setting of the planner, with what that takes and its default."""

import os
import re
import subprocess
from typing import NamedTuple

import pytest

from rendering import ROOT, Object, chart, defaults, objects, only
from table import described

# What a planner is told by other values than `planner`, or by nobody.
ELSEWHERE = {
    *("database-url", "database-url-file", "settings-file", "token-file", "help", "version"),
    *("tls-cert-file", "tls-key-file", "tls-client-ca-file"),
}


class Told(NamedTuple):
    """What docs/settings.md, which is made from the program, tells of a setting."""

    takes: str
    default: str


def settings() -> dict[str, Told]:
    """The planner's settings and those of logging, by flag."""
    page = (ROOT / "docs" / "settings.md").read_text()
    parts = dict(re.findall(r"<!-- settings: (\w+) -->(.*?)(?=<!-- settings: |\Z)", page, re.DOTALL))
    rows = re.findall(
        r"^\| `--([a-z0-9-]+)` \| ([^|]*) \| ([^|]*) \|", parts["planner"] + parts["logging"], re.MULTILINE
    )
    return {flag: Told(takes, default.strip("` ")) for flag, takes, default in rows}


def flag(name: str) -> str:
    """The flag that a value becomes."""
    return re.sub("([A-Z])", r"-\1", name).lower()


VALUES = {flag(name): name for name in defaults()["planner"]}
TOLD = settings()


def test_every_setting_of_the_planner_has_a_value() -> None:
    command = [os.environ["RFORK_BIN"], "planner", "--help"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    flags = set(re.findall(r"^ +(?:-[A-Za-z], )?--([a-z0-9-]+)", told, re.MULTILINE))
    assert len(flags) > 20
    assert VALUES.keys() | ELSEWHERE == flags


@pytest.mark.parametrize("name", sorted(VALUES.values()))
def test_a_value_takes_what_its_setting_takes(name: str) -> None:
    schema: Object = (chart().schema or {})["properties"]["planner"]["properties"][name]
    schema = (chart().schema or {})["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    takes = TOLD[flag(name)].takes
    if found := re.fullmatch(r"a whole number from (\d+) to (\d+)", takes):
        low, high = (int(number) for number in found.groups())
        # What Kubernetes is told of a port is its number.
        assert (schema["minimum"], schema["maximum"]) == (1 if name in ("port", "probePort") else low, high)
    elif takes.startswith("1, 0, true, false"):
        assert schema == {"type": "boolean"}
    elif takes.startswith("on, off"):
        # In quotes: without them these words are booleans in YAML, which stand for flags without a value.
        assert schema == {"enum": ["on", "off", None]}
    elif takes.startswith("networks"):
        assert schema == {"type": "array", "items": {"$ref": "#/$defs/network"}}
    elif "enum" in schema:
        assert {one for one in schema["enum"] if one} == set(re.split(", | or ", takes))
    else:
        assert "string" in schema["type"]


@pytest.mark.parametrize("name", sorted(VALUES.values()))
def test_a_value_that_is_not_set_tells_the_default(name: str) -> None:
    unset = {path: comment for path, comment, value in described() if value is None}
    comment = unset.get(f"planner.{name}")
    default = TOLD[flag(name)].default
    if comment and default != "none":
        assert re.search(rf"\(`?{re.escape(default)}`?\)", comment), (comment, default)


def test_the_network_policy_lets_planners_ask_where_they_do_by_default() -> None:
    (rule,) = [
        rule
        for rule in only(objects({"networkPolicy": {"enabled": True}}), "NetworkPolicy")["spec"]["egress"]
        if "ipBlock" in rule["to"][0]
    ]
    networks = {to["ipBlock"]["cidr"] for to in rule["to"]}
    assert networks == set(TOLD["probe-networks"].default.split(",")) - {"127.0.0.0/8", "::1/128"}
