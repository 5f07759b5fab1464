"""One worker's life: load from a seed or from the fallback, then serve others."""

from __future__ import annotations

import atexit
import json
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple

from . import _rfork

Engine = Literal["auto", "tcp", "yuanrong"]


class Tensor(NamedTuple):
    """A tensor by its address, for memory that no Python object stands for.

    Whoever passes one promises that the memory stays where it is until the session is closed.
    """

    address: int
    """Where its first byte is, in this process or on the device."""
    count: int
    """How many elements it has."""
    element_size: int
    """Bytes of one element."""
    shape: tuple[int, ...]
    """Its dimensions; their product is ``count``."""
    dtype: str
    """The element type as torch names it, without ``torch.``: ``bfloat16``."""
    device: str = "cpu"
    """As torch names it: ``cpu``, ``npu:0``."""
    format: int = 2
    """How its elements lie in an NPU's memory, as AscendCL numbers it (``ACL_FORMAT_ND`` is 2)."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load is."""

    phase: Literal["idle", "asking", "checking", "loading", "loaded", "failed"]
    """What it is doing: asking the planner, checking a seed's tensors, having bytes flow."""
    source: str | None
    """The seed (``host:port:rank``) that is being checked or read; ``None`` for the fallback."""
    held_bytes: int
    """Bytes that are there and verified."""
    total_bytes: int
    """The bytes of all tensors."""
    held_chunks: int
    """Chunks that are there and verified."""
    total_chunks: int
    """All chunks: the tensors' bytes, cut into pieces of one size."""
    bytes_per_sec: float
    """Since this phase began."""


class Share(NamedTuple):
    """What one source gave."""

    seed: str | None
    """The seed; ``None`` for the fallback."""
    bytes: int
    """Bytes that it gave and that are there at the end."""
    seconds: float
    """How long it was read."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """A load that has ended well."""

    total_bytes: int
    """The bytes of all tensors."""
    seconds: float
    """From the first question to the last byte."""
    seed: str | None
    """The seed that gave most (``host:port:rank``); ``None`` when that was the fallback."""
    bytes_from_seeds: int
    """Bytes that came from other workers."""
    shares: tuple[Share, ...]
    """What each source gave, in the order in which they were asked."""
    content_id: str | None
    """A digest of all bytes and tensors, in hex; ``None`` if they came from a seed that has none, until they are
    served."""

    @property
    def forked(self) -> bool:
        """Whether most bytes came from a seed."""
        return self.seed is not None


@dataclass(frozen=True, slots=True)
class Serving:
    """What other workers are told of this one."""

    identity: str
    """As the planner knows it: ``host:port:rank``."""
    url: str
    """Where its metadata is."""


def seed_key(config: Mapping[str, Any], identity: Mapping[str, Any], *, engine: Engine = "tcp") -> str:
    """The key under which a worker of this identity is known to the planner.

    Raises :class:`ConfigError` for a setting or a part that is missing or not known.
    """
    return _rfork.seed_key(_json(config, "config"), _json(identity, "identity"), engine)


# Those that have something to be taken down when the interpreter ends.
_open: weakref.WeakSet[Session] = weakref.WeakSet()


class Session:
    """One worker's life. A context manager: leaving the block closes it.

    ``config``
        The settings that RFork's users know, as in vLLM's ``--model-loader-extra-config``: ``model_url``,
        ``model_deploy_strategy_name`` and ``rfork_scheduler_url`` at least, here or in the environment.
        ``docs/settings.md`` of the project has all of them.
    ``seed_key`` or ``identity``
        Who holds the same weights: a ready key, or its parts beside model and deployment: ``tp_rank``, ``pp_rank``,
        ``ep_rank``, ``node_rank``, ``kv_role``, ``draft``, ``compatibility_fingerprint``, ``structural_digest`` and
        ``sharded_dp_rank``. A key that is built names its engine.
    ``rank``, ``draft``
        Under which rank it serves, and whether it is a draft model; by ``identity`` if that is given.
    ``global_rank``
        Its rank among all workers of the instance, by which ``rfork_seed_port_base`` counts; ``rank`` if not given.
    ``engine``
        What moves the bytes: ``tcp`` for host memory, ``yuanrong`` for the memory of one Ascend NPU, ``auto`` for what
        the tensors need. ``yuanrong`` needs the package ``yr.datasystem``, whose calls hold the GIL until they return:
        one that does not return within ``rfork_transfer_timeout_sec`` ends the process with code 70 and a line on
        standard error.
    ``shared``
        Names of tensors that a draft model shares with its target, which is loaded already: seeds may lack them.
    ``transfer_engine``
        A ``yr.datasystem.TransferEngine`` that is initialised for the tensors' NPU and this worker's address, to be
        used instead of one of the session's own. Whoever made it finalizes it, after the session is closed.

    Threads are started at the first load. After a fork the session stays the parent's: the child can make its own.
    Methods may be called from any thread, one at a time.

    Raises :class:`ConfigError`.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        seed_key: str | bytes | None = None,
        identity: Mapping[str, Any] | None = None,
        rank: int | None = None,
        global_rank: int | None = None,
        draft: bool = False,
        engine: Engine = "auto",
        shared: Iterable[str] = (),
        transfer_engine: Any = None,
    ) -> None:
        self._native = _rfork.Session(
            _json(config, "config"),
            seed_key.encode() if isinstance(seed_key, str) else seed_key,
            None if identity is None else _json(identity, "identity"),
            rank,
            global_rank,
            draft,
            engine,
            list(shared),
            transfer_engine,
        )
        self._touched = False

    def load(
        self,
        tensors: Mapping[str, Any],
        *,
        fallback: str | os.PathLike[str] | Callable[[], object] | None = None,
        progress: Callable[[Progress], object] | None = None,
    ) -> LoadReport:
        """Fills the tensors with a seed's bytes, or with the fallback's if there is no seed; once in a session.

        ``tensors``
            By name; each a :class:`Tensor`, or an object with torch's methods, the buffer protocol or DLPack. All of
            them are contiguous and writable, and share no memory. Those without elements are left out. Nobody else may
            write to them while this runs, nor while the session is open and serves them; they must not be resized.
        ``fallback``
            A model in safetensors (a file, or a directory) that has exactly these tensors; or a function without
            arguments that fills all of them itself, called in this thread; or ``None``: no seed is an error then.
        ``progress``
            Called in this thread about ten times a second while something changes.

        Waits without the GIL. Ctrl-C, or whatever a callback raises, ends the load and comes through when nobody
        writes to the tensors any more. Raises :class:`TensorError` with the tensor's name, before anything is read;
        :class:`EngineUnavailableError`; :class:`LoadError`. After any of these the tensors are the caller's again,
        with whatever bytes, for a loader of its own; but for :class:`TensorsInUseError`, which is a :class:`LoadError`:
        these tensors are to be left alone, and others loaded, in another session.
        """
        path, reload = None, None
        if callable(fallback):

            def reload(touched: bool) -> None:
                self._touched = touched
                fallback()

        elif fallback is not None:
            path = os.fspath(fallback)
        told = None if progress is None else lambda seen: progress(Progress(**seen))
        _open.add(self)
        return _report(self._native.load(list(tensors.items()), path, reload, told))

    @property
    def touched(self) -> bool:
        """For a fallback that is being called: whether a seed that failed may have written to the tensors."""
        return self._touched

    def adopt(self, tensors: Mapping[str, Any]) -> LoadReport:
        """Takes over tensors that the caller has loaded, to serve them; instead of :meth:`load`.

        They are as for :meth:`load`. No planner is asked. Raises as :meth:`load` does.
        """
        _open.add(self)
        return _report(self._native.adopt(list(tensors.items())))

    def serve(self, *, verify: bool = False) -> Serving:
        """Lets other workers fork these weights until the session is closed; after a load, once.

        ``verify``
            First make sure that the bytes are what was loaded: for engines that may transform weights in place.

        Returns when the planner knows of it, or could not be told; it is then told again and again, on a thread that
        needs no GIL. Raises :class:`ServeError`; the weights stay loaded then. After :class:`UnreachableError`, which says
        what to set, this worker still becomes a seed when others come to reach it.
        """
        return Serving(**self._native.serve(verify))

    def close(self) -> None:
        """Withdraws the seed, waits for its readers (bounded), and gives the tensors' memory back.

        A second time, or in a forked child, it does nothing. Sessions that are open when the interpreter ends are
        closed then.
        """
        self._native.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._native.closed

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _report(told: dict[str, Any]) -> LoadReport:
    told["shares"] = tuple(Share(*share) for share in told["shares"])
    return LoadReport(**told)


def _json(value: Mapping[str, Any], what: str) -> str:
    try:
        return json.dumps(dict(value))
    except (TypeError, ValueError) as error:
        raise _rfork.ConfigError(f"{what} must be a mapping that JSON can express: {error}") from error


@atexit.register
def _close_all() -> None:
    for session in list(_open):
        # One that another thread is using ends with the process.
        try:
            session.close()
        except _rfork.RForkError:
            pass
