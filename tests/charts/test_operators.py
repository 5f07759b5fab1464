"""The operators' own definitions refuse what they should, so that what passes them tells something."""

import json

import jsonschema
import pytest
import yaml

import operators
from checking import CUSTOM, check
from rendering import CHART, Object, UniqueKeys, mode, objects

pytestmark = pytest.mark.skipif(
    not operators.SOURCE, reason="RFORK_TEST_CUSTOM_RESOURCES is not set; tests/run fetches the definitions"
)


def every() -> list[Object]:
    """One of each kind that the chart or its examples have."""
    names = ("monitoring", "pod-monitor", "gateway", "cloudnativepg", "tls")
    found = [one for name in names for one in objects(mode(name))]
    found += [yaml.load(path.read_text(), UniqueKeys) for path in sorted((CHART / "examples").glob("*.yaml"))]
    return [one for one in found if one["apiVersion"].partition("/")[0] in CUSTOM]


EVERY = every()


def test_each_kind_is_among_them() -> None:
    kinds = {(one["apiVersion"].partition("/")[0], one["kind"]) for one in EVERY}
    assert kinds == {(group, kind) for group, kinds in CUSTOM.items() for kind in kinds}


@pytest.mark.parametrize("found", EVERY, ids=lambda one: one["kind"])
def test_an_unknown_field_a_wrong_type_and_a_missing_field_are_refused(found: Object) -> None:
    check(found)
    schema = operators.definition(found["apiVersion"], found["kind"])
    root = schema.schema["$defs"][schema.schema["properties"]["spec"]["$ref"].rpartition("/")[2]]
    field = next(iter(found["spec"]))
    assert field in root["properties"]
    for spec in ({**found["spec"], "notThere": 1}, found["spec"] | {field: object}):
        with pytest.raises(jsonschema.ValidationError):
            operators.check(found | {"spec": spec})
    for field in root["required"]:
        spec = json.loads(json.dumps(found["spec"]))
        del spec[field]
        with pytest.raises(jsonschema.ValidationError):
            operators.check(found | {"spec": spec})
