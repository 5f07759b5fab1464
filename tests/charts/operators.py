"""Schemas of custom resources from operators' own definitions, as far as their Rust types tell them: which fields there
are, of which types, which must be there, and which words some take. Types are those of the crates kcr_*, each a file that
kopium (0.23) has written of one definition. Bounds and patterns are not in them."""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from rendering import Object

# Where tests/run has put the crates' source; nothing is known without it.
SOURCE = os.environ.get("RFORK_TEST_CUSTOM_RESOURCES")

PLAIN = {
    "String": {"type": "string"},
    "bool": {"type": "boolean"},
    "IntOrString": {"type": ["integer", "string"]},
    "Condition": {"type": "object"},
    "serde_json::Value": {},
    "f64": {"type": "number"},
} | {f"{sign}{bits}": {"type": "integer"} for sign in "iu" for bits in (8, 16, 32, 64)}

ATTRIBUTES = r"((?:#\[[^\n]*\]\s*)*)"
ITEM = re.compile(ATTRIBUTES + r"pub (struct|enum) (\w+) \{(.*?)^\}", re.DOTALL | re.MULTILINE)
FIELD = re.compile(ATTRIBUTES + r"pub (?:r#)?(\w+): ([^\n]+),\n")
VARIANT = re.compile(ATTRIBUTES + r"(?:r#)?(\w+),\n")


def renamed(attributes: str, name: str) -> str:
    """What a field or a word is called in JSON."""
    other = re.search(r'\brename = "([^"]+)"', attributes)
    return other[1] if other else name


def of_type(rust: str) -> Object:
    """The schema of a field's type."""
    outer = re.fullmatch(r"(Option|Vec|BTreeMap)<(?:String, )?(.+)>", rust)
    if not outer:
        return PLAIN[rust] if rust in PLAIN else {"$ref": f"#/$defs/{rust}"}
    inner = of_type(outer[2])
    if outer[1] == "Vec":
        return {"type": "array", "items": inner}
    return inner if outer[1] == "Option" else {"type": "object", "additionalProperties": inner}


def of_item(kind: str, body: str) -> Object:
    """The schema of a struct or of an enumeration."""
    if kind == "enum":
        return {"enum": [renamed(attributes, name) for attributes, name in VARIANT.findall(body)]}
    fields = [(renamed(attributes, name), rust, attributes) for attributes, name, rust in FIELD.findall(body)]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: of_type(rust) for name, rust, _ in fields},
        "required": [
            name for name, rust, attributes in fields if not rust.startswith("Option<") and "default" not in attributes
        ],
    }


def of_file(path: Path) -> dict[tuple[str, str], Object]:
    """The schema of each resource that a file defines, by its version and kind."""
    text = re.sub(r"^\s*//[^\n]*\n", "", path.read_text(), flags=re.MULTILINE)
    items = ITEM.findall(text)
    definitions = {name: of_item(kind, body) for _, kind, name, body in items}
    found = {}
    for attributes, _, name, _ in items:
        if "#[kube(group" in attributes:
            told = dict(re.findall(r'\b(group|version|kind) = "([^"]+)"', attributes))
            version, kind = f"{told['group']}/{told['version']}", told["kind"]
            properties: dict[str, Any] = {
                "apiVersion": {"const": version},
                "kind": {"const": kind},
                "metadata": {"type": "object"},
                "spec": {"$ref": f"#/$defs/{name}"},
            }
            found[version, kind] = {
                "type": "object",
                "additionalProperties": False,
                "required": list(properties),
                "properties": properties,
                "$defs": definitions,
            }
    return found


@cache
def definition(version: str, kind: str) -> jsonschema.Draft202012Validator:
    """A validator of the resource, which some crate has."""
    for path in sorted(Path(SOURCE or "").glob("kcr_*/src/*/*.rs")):
        # The files are long.
        if f'kind = "{kind}"' in path.read_text():
            schema = of_file(path).get((version, kind))
            if schema:
                jsonschema.Draft202012Validator.check_schema(schema)
                return jsonschema.Draft202012Validator(schema)
    raise AssertionError(f"no definition of {version} {kind} in {SOURCE}")


def check(found: Object) -> None:
    """Refuses what an operator's definition does not have. Says nothing where there is no source."""
    if SOURCE:
        definition(found["apiVersion"], found["kind"]).validate(found)
