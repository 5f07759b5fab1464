"""One model's load on Ascend NPUs: in the order in which vLLM Ascend's own workers do it.

Quantised weights, and those in the NPU's own layout, are forked as vLLM Ascend makes them: the model is brought into that
layout first, without weights. All others are forked as files have them, and transformed afterwards. A worker serves
what it has in the end, under the key that this has.
"""

from __future__ import annotations

import contextlib
import copy
import gc
from typing import Any

import rfork
import torch
from vllm.config import ModelConfig, VllmConfig
from vllm.config.load import LoadConfig
from vllm.logger import init_logger
from vllm.model_executor.model_loader import get_model
from vllm.model_executor.model_loader.utils import initialize_model, process_weights_after_loading
from vllm.utils.torch_utils import set_default_torch_dtype

from .ascend import Ascend, readable
from .identity import Ranks, is_draft
from .registries import Registries
from .tensors import span

logger = init_logger("vllm.rfork")

FAILURES = (rfork.RForkError, ImportError, OSError, RuntimeError, ValueError)
"""What ends a fork, and not the worker: rfork's own errors, and those of vLLM Ascend's functions."""

# The tensors that are loaded in this process, with their sessions, if any, which serve until it ends, or try to.
_loaded: list[tuple[rfork.Session | None, dict[str, Any]]] = []

# Those that others may still read though they are not loaded. They are never freed.
_kept: list[dict[str, Any]] = []


class AscendLoad:
    """One model's load."""

    def __init__(
        self,
        ascend: Ascend,
        settings: dict[str, Any],
        load_config: LoadConfig,
        vllm_config: VllmConfig,
        model_config: ModelConfig,
        ranks: Ranks,
    ) -> None:
        self._ascend, self._settings, self._load_config = ascend, settings, load_config
        self._vllm_config, self._model_config, self._ranks = vllm_config, model_config, ranks
        self._processed = ascend.processed(model_config)
        device = load_config.device or vllm_config.device_config.device
        self._device = torch.device(device)

    def run(self, prefix: str) -> Any:
        """The model, with its weights."""
        registries = Registries(self._vllm_config)
        model = self._forked(prefix)
        if model is None:
            # What a seed may have written is gone with the model that it was for.
            registries.restore()
            gc.collect()
            torch.npu.empty_cache()
            model = self.own(prefix)
            self._serve(model)
        return model

    def own(self, prefix: str) -> Any:
        """The model, loaded by vLLM's own loader."""
        load_config = copy.copy(self._load_config)
        load_config.load_format, load_config.model_loader_extra_config = "auto", {}
        return get_model(
            vllm_config=self._vllm_config, model_config=self._model_config, load_config=load_config, prefix=prefix
        )

    def _forked(self, prefix: str) -> Any:
        """The model with a seed's weights, serving; ``None`` when no seed gave them."""
        session, tensors = None, {}
        try:
            with set_default_torch_dtype(self._model_config.dtype):
                model = self._initialized(prefix)
                if self._is_shared(model):
                    logger.info("rfork: all tensors are the target model's: nothing to fork")
                    return model.eval()
                self._prepare(model)
                session, tensors = self._session(model)
                report = session.load(self._ascend.described(tensors))
                logger.info(
                    "rfork: forked %.3f GiB from seed %s in %.2f seconds",
                    report.total_bytes / (1 << 30),
                    report.seed,
                    report.seconds,
                )
                if self._processed:
                    self._ascend.refresh(model)
                    self._begin_serving(session, tensors)
                else:
                    # What is transformed now is no longer what the seed gave: it is served as what it is then.
                    session.close()
                    with self._ascend.finishing(model):
                        process_weights_after_loading(model, self._model_config, self._device)
                    self._serve(model)
                return model.eval()
        except FAILURES as error:
            if session is not None:
                session.close()
            if isinstance(error, rfork.TensorsInUseError):
                # Others may still read them. They were passed by their addresses, so nothing else keeps them.
                _kept.append(tensors)
            logger.warning("rfork: loading from storage: %s", error)
            return None

    def _initialized(self, prefix: str) -> Any:
        """The model without weights."""
        with self._device:
            return initialize_model(vllm_config=self._vllm_config, model_config=self._model_config, prefix=prefix)

    def _prepare(self, model: Any) -> None:
        """Brings a model without weights into the layout in which they are forked."""
        if self._processed:
            with self._ascend.preparing(model):
                process_weights_after_loading(model, self._model_config, self._device)
        # The NPU has made all memory before a seed's bytes are written there.
        torch.npu.synchronize()

    def _is_shared(self, model: Any) -> bool:
        """Whether it is a draft model that has no tensor of its own: its target's are loaded, transformed and served.

        Transforming them again could change them under the target.
        """
        if not is_draft(self._model_config):
            return False
        tensors = self._ascend.tensors(model, self._processed)
        return bool(tensors) and _loaded_here(tensors) == list(tensors)

    def _serve(self, model: Any) -> None:
        """Serves a model that is complete. A worker that cannot be a seed is a worker all the same."""
        try:
            torch.npu.synchronize()
            session, tensors = self._session(model)
            try:
                session.adopt(self._ascend.described(tensors))
            except BaseException:
                session.close()
                raise
        except FAILURES as error:
            logger.warning("rfork: not serving: %s", error)
            # A draft model must find them loaded all the same: it would transform what it shares a second time.
            with contextlib.suppress(*FAILURES):
                _loaded.append((None, self._ascend.tensors(model, self._processed)))
            return
        self._begin_serving(session, tensors)

    def _begin_serving(self, session: rfork.Session, tensors: dict[str, Any]) -> None:
        # Served or not: a draft model's target has them.
        _loaded.append((session, tensors))
        try:
            serving = session.serve()
        except rfork.UnreachableError as error:
            # It goes on trying.
            logger.warning("rfork: not serving: %s", error)
            return
        except rfork.RForkError as error:
            logger.warning("rfork: not serving: %s", error)
            session.close()
            return
        logger.info("rfork: serving these weights as %s", serving.identity)

    def _session(self, model: Any) -> tuple[rfork.Session, dict[str, Any]]:
        """A session for the model's tensors, and the tensors."""
        tensors = self._ascend.tensors(model, self._processed)
        draft = is_draft(self._model_config)
        parts = self._ascend.identity(self._vllm_config, self._model_config, self._settings, tensors)
        ranks = {"tp_rank": self._ranks.tp, "pp_rank": self._ranks.pp, "ep_rank": self._ranks.ep, "draft": draft}
        parts = ranks | (parts or readable(self._vllm_config))
        # A draft model's own tensors: those of its target are there, and are served by it.
        shared = _loaded_here(tensors) if draft else []
        own = {name: tensor for name, tensor in tensors.items() if name not in shared}
        # The planner is told the tensor-parallel rank; fixed ports are counted by that among all.
        everywhere = {"global_rank": torch.distributed.get_rank(), "engine": "yuanrong", "shared": shared}
        return rfork.Session(self._settings, identity=parts, **everywhere), own


def _loaded_here(tensors: dict[str, Any]) -> list[str]:
    """The names of those whose memory another model of this process has loaded."""
    there = [span(tensor) for _, tensors_there in _loaded for tensor in tensors_there.values()]

    def is_there(device: str, start: int, end: int) -> bool:
        return any(on == device and first <= start and end <= last for on, first, last in there)

    return [name for name, tensor in tensors.items() if is_there(*span(tensor))]
