"""vLLM Ascend's own functions: what its workers' keys are made of, which tensors hold a model's weights, and in which
layout they are forked.

A worker that takes all of that from vLLM Ascend forks from its unmodified workers, and they from it. The names here are
those of the versions of 2026; what a version does not have is left out of the key, as that version's own workers do.
Nothing of this could be tried on an NPU: it is tested with doubles.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import rfork

from .tensors import in_order

PACKAGE = "vllm_ascend.model_loader.rfork"
FRACTAL_NZ_MODE = 2
"""``weight_nz_mode`` in which all weights are stored in the NPU's own layout."""


def on_npu() -> bool:
    """Whether vLLM runs on Ascend NPUs."""
    from vllm.platforms import current_platform

    return getattr(current_platform, "device_type", None) == "npu"


class Ascend:
    """The functions of the vLLM Ascend that is installed.

    Raises :class:`ImportError` when it has none for forking weights.
    """

    def __init__(self) -> None:
        collect = _function("tensor_layout", "collect_transferable_tensors")
        # Before 2026-09.
        collect = collect or _function("transfer_backend", "_iter_transferable_tensors")
        if collect is None:
            raise ImportError(f"{PACKAGE} collects no tensors: this version of vLLM Ascend is not known")
        self._collect: Callable[..., Any] = collect

    def bypass_reason(self, vllm_config: Any, model_config: Any) -> str | None:
        """Why this model's weights do not stay what they are; ``None`` when they do."""
        told = _function("safety", "mutable_weights_bypass_reason")
        why = told(vllm_config, model_config) if told else None
        if why is None and getattr(getattr(_config(), "eplb_config", None), "expert_map_path", None) is not None:
            why = "static expert placement (expert_map_path)"
        return why

    def processed(self, model_config: Any) -> bool:
        """Whether weights are forked as vLLM Ascend makes them after loading, not as files have them."""
        if getattr(model_config, "quantization", None) is not None:
            return True
        mode = getattr(_config(), "weight_nz_mode", 0)
        if not isinstance(mode, bool) and isinstance(mode, int) and mode == FRACTAL_NZ_MODE:
            return True
        is_310p = _function("utils", "is_310p", package="vllm_ascend")
        return bool(is_310p and is_310p())

    def tensors(self, model: Any, processed: bool) -> dict[str, Any]:
        """The tensors that hold the weights."""
        return dict(self._collect(model, processed))

    def described(self, tensors: Mapping[str, Any]) -> dict[str, rfork.Tensor]:
        """The tensors as their bytes lie in memory. Whoever uses them keeps the tensors.

        Turned ones are told with the shape that they show, as vLLM Ascend's workers do. Raises
        :class:`rfork.TensorError` for one whose elements have gaps between them.
        """
        return {name: _described(name, tensor) for name, tensor in tensors.items()}

    def identity(
        self,
        vllm_config: Any,
        model_config: Any,
        settings: Mapping[str, Any],
        tensors: Mapping[str, Any],
    ) -> dict[str, Any]:
        """What the key of a worker with these tensors has beside its ranks, for ``rfork.Session``.

        Empty with versions whose keys are readable.
        """
        build = _function("identity", "build_compatibility_fingerprint")
        if build is None:
            return {}
        names = {name: _setting(settings, name) for name in ("model_url", "model_deploy_strategy_name")}
        parts = {"compatibility_fingerprint": build(vllm_config, model_config, **names)}
        digest = _function("tensor_layout", "build_structural_digest")
        if digest is not None:
            parts["structural_digest"] = digest(list(tensors.items()))
            sharded = _function("identity", "_resolve_sharded_dp_rank")
            parts["sharded_dp_rank"] = sharded(vllm_config) if sharded else None
        return parts

    @contextlib.contextmanager
    def preparing(self, model: Any) -> Iterator[None]:
        """While a model without weights is brought into the layout in which they are forked."""
        with _context("_rfork_pre_transfer_weight_processing", model):
            yield

    @contextlib.contextmanager
    def finishing(self, model: Any) -> Iterator[None]:
        """While vLLM transforms weights that were forked before: those of experts are transformed already."""
        with _context("_rfork_skip_unquantized_moe_post_load_processing", model):
            yield

    def refresh(self, model: Any) -> None:
        """Brings up to date what a model keeps of its weights on the host."""
        refresh = _function("rfork_loader", "_refresh_rfork_flatquant_state")
        if refresh is not None:
            refresh(model)


def readable(vllm_config: Any) -> dict[str, Any]:
    """What a readable key has beside the ranks: the node, and the worker's role for the KV cache."""
    transfer = getattr(vllm_config, "kv_transfer_config", None)
    role = "kv_both" if transfer is None else str(transfer.kv_role)
    return {"node_rank": vllm_config.parallel_config.node_rank, "kv_role": role}


def _described(name: str, tensor: Any) -> rfork.Tensor:
    if not in_order(tensor).is_contiguous():
        raise rfork.TensorError(f"tensor '{name}': its elements do not lie one after the other in memory")
    count, size = tensor.numel(), tensor.element_size()
    dtype = str(tensor.dtype).removeprefix("torch.")
    npu_format = _function("torch_npu", "get_npu_format", package=None)
    own = {} if npu_format is None else {"format": int(npu_format(tensor))}
    return rfork.Tensor(tensor.data_ptr(), count, size, tuple(tensor.shape), dtype, str(tensor.device), **own)


def _setting(settings: Mapping[str, Any], name: str) -> Any:
    # As rfork.Session takes it.
    return settings.get(name) or os.environ.get(name.upper())


def _function(module: str, name: str, *, package: str | None = PACKAGE) -> Callable[..., Any] | None:
    try:
        return getattr(importlib.import_module(f"{package}.{module}" if package else module), name, None)
    except ImportError:
        return None


def _context(name: str, model: Any) -> contextlib.AbstractContextManager[None]:
    make = _function("rfork_loader", name)
    return make(model) if make else contextlib.nullcontext()


def _config() -> Any:
    get = _function("ascend_config", "get_ascend_config", package="vllm_ascend")
    try:
        return get() if get else None
    except (RuntimeError, ValueError):
        # It is not made yet.
        return None
