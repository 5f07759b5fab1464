"""vLLM's model loader ``rfork``.

A model is prepared as vLLM prepares it; then its empty tensors are forked from a seed, or filled by vLLM's own loader,
and only then does vLLM transform them for the device. So a fork takes part in nothing but the reading of files, and
what vLLM makes of weights, which may be opaque, never has to be moved. A worker that serves keeps the weights as they
were loaded, beside what vLLM made of them, where that has memory of its own.
"""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import rfork
import torch
from vllm import __version__ as vllm_version
from vllm.config import ModelConfig, VllmConfig
from vllm.config.load import LoadConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.distributed.parallel_state import get_ep_group, get_pp_group
from vllm.logger import init_logger
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from . import bypass
from .ascend import Ascend, on_npu
from .identity import Ranks, identity, is_draft
from .registries import Registries
from .settings import split
from .tensors import SharedMemory, collect, span

# Under vLLM's own name, whose handlers it then has.
logger = init_logger("vllm.rfork")

# They serve until the process ends; rfork closes them then.
_sessions: list[rfork.Session] = []


class _StartOver(Exception):
    """A seed failed on the way: what it wrote may be in tensors that files do not fill."""


class _Replaced(Exception):
    """vLLM's own loader has loaded, into other memory than was prepared."""


class RForkModelLoader(BaseModelLoader):
    """Forks weights from a seed if the planner has one, else has vLLM's own loader read them; then serves them."""

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(load_config)
        self._settings, own = split(load_config.model_loader_extra_config)
        own_config = dataclasses.replace(load_config, load_format="auto", model_loader_extra_config=own)
        self._own = DefaultModelLoader(own_config)
        self._load: _Load | None = None

    def download_model(self, model_config: ModelConfig) -> None:
        self._own.download_model(model_config)

    def load_weights(self, model: Any, model_config: ModelConfig) -> None:
        if self._load is None:
            # Somebody has other weights loaded into a model that is there already.
            self._own.load_weights(model, model_config)
        else:
            self._load.run(model)

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> Any:
        # Settings that cannot be used end it here: loading from storage would hide them.
        rfork.seed_key(self._settings, {})
        why = bypass.reason(vllm_config, model_config)
        if why is not None:
            logger.warning("rfork: loading from storage, and not serving: %s", why)
            return self._own.load_model(vllm_config, model_config, prefix)
        if on_npu():
            return self._load_on_npu(vllm_config, model_config, prefix)
        registries = Registries(vllm_config)
        self._load = _Load(self._own, self._settings, vllm_config, model_config)
        try:
            try:
                model = super().load_model(vllm_config, model_config, prefix)
            except _StartOver:
                # Raised with nothing of the model, whose memory is needed.
                model = None
            if model is None:
                logger.warning("rfork: a seed failed on the way; preparing the model anew and loading from storage")
                registries.restore()
                gc.collect()
                self._load.from_storage = True
                model = super().load_model(vllm_config, model_config, prefix)
            self._load.serve()
            return model
        finally:
            self._load = None

    def _load_on_npu(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str) -> Any:
        # It imports what only vLLM Ascend's vLLM has to have.
        from .ascend_load import AscendLoad

        try:
            ascend = Ascend()
        except ImportError as error:
            logger.warning("rfork: loading from storage, and not serving: %s", error)
            return self._own.load_model(vllm_config, model_config, prefix)
        load = AscendLoad(ascend, self._settings, self.load_config, vllm_config, model_config, _ranks(vllm_config))
        why = ascend.bypass_reason(vllm_config, model_config)
        if why is not None:
            logger.warning("rfork: loading from storage, and not serving: %s", why)
            return load.own(prefix)
        return load.run(prefix)


class _Load:
    """One model's load."""

    def __init__(
        self, own: DefaultModelLoader, settings: dict[str, Any], vllm_config: VllmConfig, model_config: ModelConfig
    ) -> None:
        self._own, self._settings = own, settings
        self._vllm_config, self._model_config = vllm_config, model_config
        self._session: rfork.Session | None = None
        self.from_storage = False

    def run(self, model: Any) -> None:
        """Fills the model's tensors."""
        try:
            why = bypass.reason_in_model(model, draft=is_draft(self._model_config))
            tensors = {} if why else collect(model)
        except SharedMemory as error:
            why, tensors = str(error), {}
        if why or not tensors:
            logger.warning("rfork: loading from storage, and not serving: %s", why or "the model has no tensors")
            self._own.load_weights(model, self._model_config)
        elif self.from_storage:
            self._own.load_weights(model, self._model_config)
            self._adopt(model)
        else:
            self._fork(model, tensors)

    def _fork(self, model: Any, tensors: dict[str, Any]) -> None:
        session = self._begin(tensors)

        def load() -> None:
            if session.touched:
                raise _StartOver
            self._own.load_weights(model, self._model_config)
            if {name: span(tensor) for name, tensor in tensors.items()} != _spans(model):
                raise _Replaced

        try:
            report = session.load(tensors, fallback=load)
        except _Replaced:
            session.close()
            self._adopt(model)
            return
        except (rfork.EngineUnavailableError, rfork.TensorError) as error:
            session.close()
            logger.warning("rfork: loading from storage, and not serving: %s", error)
            self._own.load_weights(model, self._model_config)
            return
        except rfork.LoadError as error:
            session.close()
            logger.warning("rfork: %s", error)
            raise _StartOver from None
        except BaseException:
            session.close()
            raise
        self._session = session
        if report.forked:
            seconds = sum(share.seconds for share in report.shares)
            gib = report.total_bytes / (1 << 30)
            logger.info(
                "rfork: forked %.3f GiB from seed %s in %.2f seconds (%.2f GiB/s), %.2f with asking and waiting",
                gib,
                report.seed,
                seconds,
                gib / max(seconds, 1e-9),
                report.seconds,
            )
        else:
            logger.info("rfork: no seed gave the weights, so they were loaded from storage")

    def _adopt(self, model: Any) -> None:
        """Takes over what vLLM's own loader has loaded. A worker that cannot be a seed is a worker all the same."""
        try:
            tensors = collect(model)
            session = self._begin(tensors)
            session.adopt(tensors)
            self._session = session
        except (rfork.RForkError, SharedMemory) as error:
            logger.warning("rfork: loaded from storage, and not serving: %s", error)

    def _begin(self, tensors: dict[str, Any]) -> rfork.Session:
        parts = identity(self._vllm_config, self._model_config, _ranks(self._vllm_config), tensors, vllm_version)
        # The planner is told the tensor-parallel rank; fixed ports are counted by that among all.
        return rfork.Session(self._settings, identity=parts, global_rank=torch.distributed.get_rank())

    def serve(self) -> None:
        """Has others fork what was loaded, unless vLLM has changed it in place since."""
        if self._session is None:
            return
        try:
            serving = self._session.serve(verify=True)
        except rfork.UnreachableError as error:
            _sessions.append(self._session)
            logger.warning("rfork: not serving: %s", error)
            return
        except rfork.RForkError as error:
            logger.warning("rfork: not serving: %s", error)
            self._session.close()
            return
        _sessions.append(self._session)
        logger.info("rfork: serving these weights as %s", serving.identity)


def _spans(model: Any) -> dict[str, tuple[str, int, int]]:
    try:
        return {name: span(tensor) for name, tensor in collect(model).items()}
    except SharedMemory:
        return {}


def _ranks(vllm_config: VllmConfig) -> Ranks:
    parallel = vllm_config.parallel_config
    experts = parallel.enable_expert_parallel and getattr(parallel, "is_moe_model", True) is not False
    return Ranks(
        tp=get_tensor_model_parallel_rank(),
        pp=get_pp_group().rank_in_group if parallel.pipeline_parallel_size > 1 else None,
        ep=get_ep_group().rank_in_group if experts else None,
    )
