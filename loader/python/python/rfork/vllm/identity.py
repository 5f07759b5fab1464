"""Which workers hold the same weights: what goes into the seed key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LAYOUT = "as loaded"
"""Weights are forked as the loader leaves them, before vLLM transforms them for the device."""

VOLATILE = frozenset({"_name_or_path", "name_or_path", "transformers_version"})
"""Where a model lies, and who wrote its configuration, says nothing of its weights."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """A worker's ranks, each within its group; ``None`` where there is no such parallelism."""

    tp: int
    pp: int | None = None
    ep: int | None = None


def identity(
    vllm_config: Any, model_config: Any, ranks: Ranks, tensors: Mapping[str, Any], vllm_version: str
) -> dict[str, Any]:
    """The parts of a worker's seed key, for ``rfork.Session``."""
    return {
        "tp_rank": ranks.tp,
        "pp_rank": ranks.pp,
        "ep_rank": ranks.ep,
        "draft": is_draft(model_config),
        "compatibility_fingerprint": fingerprint(vllm_config, model_config, vllm_version),
        "structural_digest": structural_digest(tensors.items()),
    }


def fingerprint(vllm_config: Any, model_config: Any, vllm_version: str) -> str:
    """SHA-256 in hex of all that decides which bytes a rank's tensors have, beside model, deployment and ranks."""
    parallel = vllm_config.parallel_config
    hf_config = getattr(model_config, "hf_config", None)
    hf_config = hf_config.to_dict() if hasattr(hf_config, "to_dict") else {}
    experts = bool(getattr(parallel, "enable_expert_parallel", False))
    parts = {
        "layout": LAYOUT,
        "vllm": vllm_version,
        "dtype": str(model_config.dtype),
        "quantization": getattr(model_config, "quantization", None),
        "revision": getattr(model_config, "revision", None),
        "hf_config": {key: value for key, value in hf_config.items() if key not in VOLATILE},
        "tensor_parallel_size": parallel.tensor_parallel_size,
        "pipeline_parallel_size": parallel.pipeline_parallel_size,
        "expert_parallel": experts,
        # Experts are spread over all ranks of all data-parallel replicas.
        "data_parallel_size": parallel.data_parallel_size if experts else None,
        "redundant_experts": getattr(getattr(parallel, "eplb_config", None), "num_redundant_experts", 0),
    }
    return _digest(parts)


def structural_digest(tensors: Iterable[tuple[str, Any]]) -> str:
    """SHA-256 in hex of names, shapes and types."""
    return _digest(sorted((name, list(tensor.shape), str(tensor.dtype)) for name, tensor in tensors))


def is_draft(model_config: Any) -> bool:
    """Whether it is the small model of speculative decoding."""
    if getattr(model_config, "runner_type", None) == "draft" or getattr(model_config, "runner", None) == "draft":
        return True
    for config in (getattr(model_config, "hf_config", None), getattr(model_config, "hf_text_config", None)):
        model_type = getattr(config, "model_type", None)
        architectures = getattr(config, "architectures", None) or []
        if isinstance(model_type, str) and model_type.lower().endswith("_mtp"):
            return True
        if any(isinstance(name, str) and name.endswith("MTPModel") for name in architectures):
            return True
    return False


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
