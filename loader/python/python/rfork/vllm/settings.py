"""``--model-loader-extra-config``, which rfork shares with vLLM's own loader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OWN_LOADER_KEYS = frozenset({"enable_multithread_load", "num_threads", "enable_weights_track"})
"""What vLLM's default loader takes there; it refuses everything else."""


def split(extra: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings for rfork, and those for vLLM's own loader."""
    extra = dict(extra or {})
    own = {key: extra.pop(key) for key in OWN_LOADER_KEYS & extra.keys()}
    return extra, own
