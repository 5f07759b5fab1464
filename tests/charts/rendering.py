"""Renders the chart with Helm's own engine, without a cluster."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "rfork-planner"
HERE = Path(__file__).parent

# What is rendered: each file of `modes` has values, and a comment that says what for.
MODES = sorted(path.stem for path in (HERE / "modes").glob("*.yaml"))

Object = dict[str, Any]


@cache
def chart() -> Chart:
    """The chart, loaded once."""
    return Chart.load(CHART)


@cache
def defaults() -> Object:
    """What values.yaml says."""
    return yaml.load((CHART / "values.yaml").read_text(), yaml.CSafeLoader)


@cache
def mode(name: str) -> Object:
    """The values of a mode."""
    return yaml.load((HERE / "modes" / f"{name}.yaml").read_text(), yaml.CSafeLoader) or {}


class UniqueKeys(yaml.CSafeLoader):
    """Reads as Helm and Kubernetes do, who refuse a key that stands twice in a map, where YAML's own loader takes the
    last, and for whom `1e3` and `0o7` are numbers."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Object:
        keys = [self.construct_object(key, deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{twice} stand twice, {node.start_mark}"
        return super().construct_mapping(node, deep)


UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
UniqueKeys.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"0o[0-7]+$"), ["0"])


def templates(values: Object, name: str = "demo", **more: Any) -> dict[str, str]:
    """Each template's path in the chart, and what it gives, if anything."""
    rendered = chart().render(values, name=name, **{"namespace": "models"} | more)
    return {path.partition("/templates/")[2]: text for path, text in sorted(rendered.items()) if text.strip()}


def objects(values: Object, name: str = "demo", **more: Any) -> list[Object]:
    """All objects. They are the same ones for the same values: nobody changes them."""
    return _objects(json.dumps(values), name, tuple(more.items()))


@cache
def _objects(values: str, name: str, more: tuple[tuple[str, Any], ...]) -> list[Object]:
    texts = templates(json.loads(values), name, **dict(more)).items()
    loaded = [yaml.load_all(text, UniqueKeys) for path, text in texts if path.endswith(".yaml")]
    return [found for documents in loaded for found in documents if found]


def notes(values: Object) -> str:
    """What an installation tells."""
    return templates(values)["NOTES.txt"]


def of_kind(found: list[Object], kind: str) -> list[Object]:
    """Those of a kind."""
    return [one for one in found if one["kind"] == kind]


def only(found: list[Object], kind: str) -> Object:
    """The only one of a kind."""
    (one,) = of_kind(found, kind)
    return one


def merged(under: Object, over: Object) -> Object:
    """As Helm merges values: maps within one another, everything else replaced."""
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def at(path: str, value: Any) -> Object:
    """Values with one at a path, as `--set` has it."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def pods(found: list[Object]) -> list[tuple[str, Object]]:
    """Each pod that the objects make, with the name of its maker: metadata and spec."""
    made = []
    for one in found:
        pod = one if one["kind"] == "Pod" else one.get("spec", {}).get("template")
        if isinstance(pod, dict) and "spec" in pod:
            made.append((f"{one['kind']}/{one['metadata']['name']}", pod))
    return made
