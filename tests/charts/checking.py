"""Compares objects with the schemas of Kubernetes, and with those of custom resources: the operators' own definitions,
where they are, and the parts that the chart uses, with bounds and patterns, which stand in `resources`."""

import json
from functools import cache

import jsonschema
import kubernetes_validate
import yaml
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

import operators
from rendering import HERE, Object

# The oldest that Chart.yaml allows, one between, and the newest that there are schemas of.
KUBERNETES = ("1.27", "1.32", "1.37")

# What Kubernetes itself has no schema of.
CUSTOM = {
    "monitoring.coreos.com": {
        "ServiceMonitor": "ServiceMonitor",
        "PodMonitor": "PodMonitor",
        "PrometheusRule": "PrometheusRule",
    },
    "gateway.networking.k8s.io": {"HTTPRoute": "HTTPRoute"},
    "cert-manager.io": {"Certificate": "Certificate"},
    "postgresql.cnpg.io": {"Cluster": "Cluster"},
    "leaderworkerset.x-k8s.io": {"LeaderWorkerSet": "LeaderWorkerSet"},
    "batch.volcano.sh": {"Job": "VolcanoJob"},
}


@cache
def custom() -> dict[str, jsonschema.Draft202012Validator]:
    """A validator for each file of `resources`."""
    schemas = {path.stem: yaml.safe_load(path.read_text()) for path in (HERE / "resources").glob("*.yaml")}
    resources = [(schema["$id"], Resource(schema, DRAFT202012)) for schema in schemas.values()]
    registry: Registry = Registry().with_resources(resources)
    return {name: jsonschema.Draft202012Validator(schema, registry=registry) for name, schema in schemas.items()}


def check(found: Object) -> None:
    """Refuses an object that some version of Kubernetes, or its operator, would not take; unknown fields, too."""
    _check(json.dumps(found))


@cache
def _check(text: str) -> None:
    """Most objects are the same ones with most values."""
    found = json.loads(text)
    group = found["apiVersion"].partition("/")[0]
    if group in CUSTOM:
        custom()[CUSTOM[group][found["kind"]]].validate(found)
        operators.check(found)
        return
    for version in KUBERNETES:
        kubernetes_validate.validate(found, version, strict=True)
