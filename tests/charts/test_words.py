"""A text stays one, whatever YAML without quotes would take it for."""

from collections.abc import Iterator
from typing import Any

import helm_python
import kubernetes_validate
import pytest

from checking import CUSTOM, KUBERNETES, check
from rendering import MODES, Object, defaults, merged, mode, objects

# Integers, floats, booleans, null and a date.
WORDS = ("7", "0o7", "0x1f", "1e3", "true", "no", "null", "2026-11-29")


def texts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each text within a value."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from texts(part, (*path, key))


def put(value: Any, path: tuple[Any, ...], word: str) -> Any:
    """A copy that has the word there."""
    if not path:
        return word
    copy = value.copy()
    copy[path[0]] = put(value[path[0]], path[1:], word)
    return copy


def refused(values: Object, **release: str) -> bool:
    """Whether the chart refuses the values; what it makes of others is what Kubernetes takes."""
    try:
        found = objects(values, **release)
    except (helm_python.HelmValuesError, helm_python.HelmRenderError):
        return True
    for one in found:
        if one["apiVersion"].partition("/")[0] in CUSTOM:
            check(one)
        else:
            kubernetes_validate.validate(one, KUBERNETES[-1], strict=True)
    return False


@pytest.mark.parametrize("name", MODES)
def test_a_text_that_looks_like_something_else_is_one(name: str) -> None:
    values = merged(defaults(), mode(name))
    # What is everywhere the same is tried in one mode; each text as a word of its own, if it may be one.
    paths = list(texts(values if name == "default" else mode(name)))
    words = [WORDS[number % len(WORDS) :] + WORDS[: number % len(WORDS)] for number in range(len(paths))]
    taken = [
        path
        for path, of_path in zip(paths, words, strict=True)
        if not all(refused(put(values, path, word)) for word in of_path)
    ]
    assert taken or name not in ("default", "everything")


@pytest.mark.parametrize("word", WORDS)
def test_names_of_releases_and_namespaces_are_texts(word: str) -> None:
    assert not refused({}, name=word, namespace=word)
    assert not refused(mode("everything"), name=word, namespace=word)
