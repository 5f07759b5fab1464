"""What the tests of the chart share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

RENEW = bool(os.environ.get("RFORK_REGENERATE"))


@pytest.fixture
def keeps() -> Callable[[Path, str], None]:
    """Compares a file with what it should hold; with RFORK_REGENERATE=1 writes it."""

    def compare(path: Path, text: str) -> None:
        if RENEW:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        hint = f"{path.name} is not what it should be; RFORK_REGENERATE=1 python -m pytest tests/charts renews it"
        assert path.exists() and path.read_text() == text, hint

    return compare
