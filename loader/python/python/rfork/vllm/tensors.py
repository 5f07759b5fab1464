"""The tensors of a model that hold its weights."""

from __future__ import annotations

from typing import Any


SCRATCH = frozenset({"topk_indices_buffer"})
"""What a worker only computes with, at the size that its own scheduler wants: the last parts of such names."""


class SharedMemory(ValueError):
    """Two tensors share a part of their memory, so that neither can be loaded without the other."""


def collect(model: Any) -> dict[str, Any]:
    """Parameters and buffers by name, each memory once, as tensors of their own.

    vLLM may give a parameter other memory later; what is collected keeps the memory that it has now. Tensors without
    elements, those that exist in name only (``meta``), and :data:`SCRATCH` are left out.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    held = {name: in_order(tensor.detach()) for name, tensor in named if _holds_weights(name, tensor)}
    kept = distinct({name: span(tensor) for name, tensor in held.items()})
    return {name: held[name] for name in kept}


def _holds_weights(name: str, tensor: Any) -> bool:
    return tensor.numel() > 0 and not tensor.is_meta and name.rpartition(".")[2] not in SCRATCH


def in_order(tensor: Any) -> Any:
    """The same memory, with the dimensions in the order in which its elements lie there."""
    if tensor.is_contiguous():
        return tensor
    strides = tensor.stride()
    return tensor.permute(*sorted(range(len(strides)), key=lambda dimension: -strides[dimension]))


def span(tensor: Any) -> tuple[str, int, int]:
    """The device, and the addresses of the first byte and of that behind the last."""
    start = tensor.data_ptr()
    return str(tensor.device), start, start + tensor.numel() * tensor.element_size()


def distinct(spans: dict[str, tuple[str, int, int]]) -> list[str]:
    """Names that cover all memory once: of those with the same memory the first, of nested ones the widest.

    Raises :class:`SharedMemory` when two overlap otherwise.
    """
    order = {name: at for at, name in enumerate(spans)}
    by_start = sorted(spans, key=lambda name: (spans[name][0], spans[name][1], -spans[name][2], order[name]))
    kept: list[str] = []
    for name in by_start:
        device, start, end = spans[name]
        if kept and spans[kept[-1]][0] == device and start < spans[kept[-1]][2]:
            if end > spans[kept[-1]][2]:
                raise SharedMemory(f"'{kept[-1]}' and '{name}' share a part of their memory")
            continue
        kept.append(name)
    return sorted(kept, key=order.__getitem__)
