"""What preparing a model leaves behind in vLLM, and would be there twice if another were prepared."""

from __future__ import annotations

import importlib
import sys
from typing import Any

IN_COMPILATION_CONFIG = ("static_forward_context", "static_all_moe_layers")
"""Layers by name, and layers of experts: attributes of ``compilation_config``."""

IN_MODULES = (("vllm.model_executor.layers.rotary_embedding", "_ROPE_DICT"),)
"""Embeddings that layers of equal settings share: attributes of modules."""

OF_ASCEND = (
    ("vllm_ascend.eplb.adaptor.vllm_adaptor", "VllmEplbAdaptor._registered_moe_layers"),
    ("vllm_ascend.ops.fused_moe.fused_moe", "AscendMoERunner.moe_counter"),
    ("vllm_ascend.ops.rotary_embedding", "_cos_sin_cache"),
    ("vllm_ascend.ops.rotary_embedding", "_cos_cache"),
    ("vllm_ascend.ops.rotary_embedding", "_sin_cache"),
)
"""What vLLM Ascend has beside these, in modules that may be loaded: contents of some, values of others."""


class Registries:
    """The contents of vLLM's registries at one moment."""

    def __init__(self, vllm_config: Any) -> None:
        compilation = getattr(vllm_config, "compilation_config", None)
        found = [getattr(compilation, name, None) for name in IN_COMPILATION_CONFIG]
        found += [_of_module(module, name) for module, name in IN_MODULES]
        ascend = [(owner, name, getattr(owner, name)) for owner, name in map(_owner, OF_ASCEND) if hasattr(owner, name)]
        found += [value for _, _, value in ascend]
        self._contents = [(one, one.copy()) for one in found if isinstance(one, (dict, list))]
        self._values = ascend

    def restore(self) -> None:
        """Gives them these contents again."""
        for owner, name, value in self._values:
            setattr(owner, name, value)
        for registry, content in self._contents:
            registry.clear()
            if isinstance(registry, dict):
                registry.update(content)
            else:
                registry.extend(content)


def _owner(place: tuple[str, str]) -> tuple[Any, str]:
    """What has the attribute: a module that is loaded, or a class of it; ``None`` when there is none."""
    module, path = place
    owner = sys.modules.get(module)
    *classes, name = path.split(".")
    for one in classes:
        owner = getattr(owner, one, None)
    return owner, name


def _of_module(module: str, name: str) -> Any:
    # Other versions of vLLM keep it elsewhere.
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
