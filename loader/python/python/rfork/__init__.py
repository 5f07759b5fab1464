"""Start inference workers from running ones instead of from storage.

A worker that needs a model's weights asks the planner for a *seed*: a worker that holds the same weights already. It
reads them out of the seed's memory, or, if there is none, loads them in its own way, and becomes a seed itself::

    import numpy, rfork

    weights = {"layers.0.w": numpy.empty((4096, 4096), numpy.float32)}
    config = {"model_url": "/models/m", "model_deploy_strategy_name": "prod", "rfork_scheduler_url": "http://planner:1223"}
    with rfork.Session(config, identity={"tp_rank": 0}) as session:
        report = session.load(weights, fallback="/models/m")
        print(report)
        session.serve()
        ...  # use the weights; others may fork them until the block ends

The package needs none of torch, numpy and vllm. Whatever it raises is an :class:`RForkError`, but for what callbacks
and signal handlers raise, which comes through as it is. ``RFORK_LOG=info`` in the environment has it tell on standard
error what it does.
"""

from ._rfork import (
    ConfigError,
    EngineUnavailableError,
    LoadError,
    RForkError,
    ServeError,
    SessionError,
    TensorError,
    TensorsInUseError,
    UnreachableError,
    __version__,
)
from .planner import PlannerClient, PlannerError
from .session import LoadReport, Progress, Serving, Session, Share, Tensor, seed_key

__all__ = [
    "ConfigError",
    "EngineUnavailableError",
    "LoadError",
    "LoadReport",
    "PlannerClient",
    "PlannerError",
    "Progress",
    "RForkError",
    "ServeError",
    "Serving",
    "Session",
    "SessionError",
    "Share",
    "Tensor",
    "TensorError",
    "TensorsInUseError",
    "UnreachableError",
    "__version__",
    "seed_key",
]
