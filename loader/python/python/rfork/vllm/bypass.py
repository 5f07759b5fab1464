"""When a worker's memory is unfit for being forked, or for being a fork."""

from __future__ import annotations

from typing import Any

DIFFERENT_LOADERS = frozenset({"bitsandbytes", "gguf"})
"""Quantisations that vLLM loads with loaders of their own, which do more than fill tensors."""


def reason(vllm_config: Any, model_config: Any) -> str | None:
    """Why vLLM's own loader has to load alone; ``None`` when nothing speaks against a fork."""
    parallel = getattr(vllm_config, "parallel_config", None)
    additional = getattr(vllm_config, "additional_config", None) or {}
    balancing = additional.get("eplb_config") if isinstance(additional, dict) else None
    balancing = balancing if isinstance(balancing, dict) else {}
    if (
        getattr(parallel, "enable_eplb", False)
        or balancing.get("dynamic_eplb")
        or balancing.get("expert_map_record_path")
    ):
        return "experts are placed anew while it runs (EPLB), so its weights do not stay what they are"
    if balancing.get("expert_map_path"):
        return "experts are placed by a file (expert_map_path), of which the key says nothing"
    # A draft model sleeps with its target.
    models = (model_config, getattr(vllm_config, "model_config", None))
    if any(getattr(model, "enable_sleep_mode", False) for model in models):
        return "sleep mode frees the weights' memory while it runs"
    if getattr(vllm_config, "weight_transfer_config", None) is not None:
        return "weights are replaced while it runs (weight_transfer_config)"
    if _offloads(vllm_config):
        return "CPU offload moves weights out of the memory that would be forked"
    quantization = getattr(model_config, "quantization", None)
    if quantization in DIFFERENT_LOADERS:
        return f"vLLM loads {quantization} with a loader of its own"
    return None


def reason_in_model(model: Any, *, draft: bool) -> str | None:
    """The same for what only the prepared model tells."""
    # Of a draft vLLM notes in such attributes what its loader saw in the files; a fork does not read the files.
    told_by_files = [name for name in ("has_own_embed_tokens", "has_own_lm_head") if hasattr(model, name)]
    if draft and told_by_files:
        return f"its loader notes what the files have ({', '.join(told_by_files)})"
    if any(parameter.is_meta for parameter in model.parameters()):
        return "weights are quantised while they are loaded, so there is no memory for them yet"
    return None


def _offloads(vllm_config: Any) -> bool:
    # The settings moved between versions of vLLM.
    cache = getattr(vllm_config, "cache_config", None)
    offload = getattr(vllm_config, "offload_config", None)
    uva, prefetch = getattr(offload, "uva", None), getattr(offload, "prefetch", None)
    amounts = (
        getattr(cache, "cpu_offload_gb", 0),
        getattr(uva, "cpu_offload_gb", 0),
        getattr(prefetch, "offload_group_size", 0),
    )
    return any(amount and amount > 0 for amount in amounts)
