"""YuanRong's own Python library, as unmodified workers use it."""

import ctypes
import os
import socket
import threading

from generations import Refused

# What vLLM Ascend's workers ask for in one call at the most.
BATCH_BYTES, BATCH_RANGES = 1 << 30, 512


class Failed(Exception):
    """A call that the library refused; `code` is its number for why."""

    def __init__(self, doing, result):
        super().__init__(f"{doing}: {result.to_string()}")
        self.code = int(result.get_code())


class Engine:
    """The library, initialised for one NPU and listening on a free port of `host`.

    The NPU is set on the calling thread. Whoever reads `elsewhere` does so on another one, where it is not.
    """

    def __init__(self, host, npu, elsewhere):
        from yr.datasystem import TransferEngine

        self.acl = ctypes.CDLL(os.environ["RFORK_ASCENDCL_PATH"])
        self.acl.aclInit(None)
        if self.acl.aclrtSetDevice(npu) != 0:
            raise Refused("there is no such NPU")
        self.elsewhere = elsewhere
        self.engine = TransferEngine()
        self.session = f"{host}:{free_port(host)}"
        check("initialize", self.engine.initialize(self.session, "ascend", f"npu:{npu}"))

    def register(self, tensors):
        check(
            "register",
            self.engine.batch_register_memory([t.address for t in tensors], [t.bytes for t in tensors]),
        )

    def read(self, session, theirs, ours):
        """Reads each of their tensors into ours of the same place in the list."""
        batch, size = [], 0
        for pair in zip(ours, theirs, strict=True):
            if batch and (size + pair[0].bytes > BATCH_BYTES or len(batch) == BATCH_RANGES):
                self._read(session, batch)
                batch, size = [], 0
            batch.append(pair)
            size += pair[0].bytes
        self._read(session, batch)

    def _read(self, session, batch):
        to, source = [t.address for t, _ in batch], [t.address for _, t in batch]
        lens = [t.bytes for t, _ in batch]
        results = []
        reading = lambda: results.append(self.engine.batch_transfer_sync_read(session, to, source, lens))
        if self.elsewhere:
            thread = threading.Thread(target=reading)
            thread.start()
            thread.join()
        else:
            reading()
        check("read", results[0])


def check(doing, result):
    if result.is_error():
        raise Failed(doing, result)


def free_port(host):
    with socket.socket() as listener:
        listener.bind((host, 0))
        return listener.getsockname()[1]
