"""What preparing a model leaves behind in vLLM, and would be there twice if another were prepared."""

from __future__ import annotations

import importlib
from typing import Any

IN_COMPILATION_CONFIG = ("static_forward_context", "static_all_moe_layers")
"""Layers by name, and layers of experts: attributes of ``compilation_config``."""

IN_MODULES = (("vllm.model_executor.layers.rotary_embedding", "_ROPE_DICT"),)
"""Embeddings that layers of equal settings share: attributes of modules."""


class Registries:
    """The contents of vLLM's registries at one moment."""

    def __init__(self, vllm_config: Any) -> None:
        compilation = getattr(vllm_config, "compilation_config", None)
        found = [getattr(compilation, name, None) for name in IN_COMPILATION_CONFIG]
        found += [_of_module(module, name) for module, name in IN_MODULES]
        self._contents = [(one, one.copy()) for one in found if isinstance(one, (dict, list))]

    def restore(self) -> None:
        """Gives them these contents again."""
        for registry, content in self._contents:
            registry.clear()
            if isinstance(registry, dict):
                registry.update(content)
            else:
                registry.extend(content)


def _of_module(module: str, name: str) -> Any:
    # Other versions of vLLM keep it elsewhere.
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
