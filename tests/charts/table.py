"""The README's table of values, made from values.yaml."""

import json
import re
from collections.abc import Iterator
from typing import Any

from rendering import CHART, defaults

KEY = re.compile(r"^( *)([A-Za-z0-9]+):")
COMMENT = re.compile(r"^ *# -- (.+)$")


def described() -> Iterator[tuple[str, str, Any]]:
    """Each value that a comment beginning with two dashes stands before: path, comment, default."""
    path: list[str] = []
    comment = None
    for line in (CHART / "values.yaml").read_text().splitlines():
        if found := COMMENT.match(line):
            comment = found[1]
        elif found := KEY.match(line):
            path = [*path[: len(found[1]) // 2], found[2]]
            if comment:
                value: Any = defaults()
                for key in path:
                    value = value[key]
                yield ".".join(path), comment, value
            comment = None


def table() -> str:
    """All of them, as Markdown."""
    lines = ["| value | default | |", "|---|---|---|"]
    for path, comment, value in described():
        default = "" if value in (None, "", [], {}) else f"`{json.dumps(value)}`"
        lines.append(f"| `{path}` | {default} | {comment} |")
    return "\n".join(lines) + "\n"
