"""A worker with its weights in an NPU's memory, through rfork.Session. Run by test_yuanrong.py.

Its argument is a JSON object: `model` (a safetensors file), `npu`, `config`, `identity`, and perhaps `once` and `ready`.
What it does it tells as JSON lines, as `rfork worker` does. It ends on SIGTERM.
"""

import ctypes
import hashlib
import json
import os
import signal
import struct
import sys
import threading

import rfork

TYPES = {"U8": ("uint8", 1), "BF16": ("bfloat16", 2)}
HUGE_FIRST = 0


def tell(message, **fields):
    print(json.dumps({"message": message} | fields), flush=True)


class Npu:
    """Memory of an NPU, as an inference engine has it."""

    def __init__(self, number):
        self.acl = ctypes.CDLL(os.environ["RFORK_ASCENDCL_PATH"])
        self.acl.aclInit(None)
        assert self.acl.aclrtSetDevice(number) == 0
        self.number = number

    def allocate(self, size):
        address = ctypes.c_void_p()
        assert self.acl.aclrtMalloc(ctypes.byref(address), ctypes.c_size_t(size), HUGE_FIRST) == 0
        return address.value


def tensors_of(model, npu):
    """An empty tensor in the NPU's memory for each of the file's, and what their digest is made of."""
    with open(model, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    tensors = {}
    for name in sorted(header, key=str.encode):
        dtype, size = TYPES[header[name]["dtype"]]
        shape = header[name]["shape"]
        start, end = header[name]["data_offsets"]
        address = npu.allocate(end - start)
        tensors[name] = rfork.Tensor(address, (end - start) // size, size, tuple(shape), dtype, f"npu:{npu.number}")
    return tensors


def digest(tensors):
    """As `rfork worker --digest` tells it. The fakes' device memory is the host's."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name}\n{tensor.dtype}\n{','.join(map(str, tensor.shape))}\n".encode())
        digest.update((ctypes.c_char * (tensor.count * tensor.element_size)).from_address(tensor.address))
    return digest.hexdigest()


def ready_engine(npu):
    """A TransferEngine that somebody else has made."""
    import socket

    from yr.datasystem import TransferEngine

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    engine = TransferEngine()
    assert not engine.initialize(f"127.0.0.1:{port}", "ascend", f"npu:{npu}").is_error()
    return engine


def main():
    wanted = json.loads(sys.argv[1])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    tensors = tensors_of(wanted["model"], Npu(wanted["npu"]))
    ready = ready_engine(wanted["npu"]) if wanted.get("ready") else None
    session = rfork.Session(wanted["config"], identity=wanted["identity"], engine="yuanrong", transfer_engine=ready)
    with session:
        loaded = []
        # On a thread that has set no device, as a thread of an inference engine may be.
        loading = threading.Thread(target=lambda: loaded.append(session.load(tensors, fallback=wanted["model"])))
        loading.start()
        loading.join()
        (report,) = loaded
        source = "seed" if report.forked else "storage"
        tell("loaded", source=source, seed=report.seed, digest=digest(tensors), bytes_from_seeds=report.bytes_from_seeds)
        if not wanted.get("once"):
            tell("serving", identity=session.serve().identity)
            while not stop.wait(0.1):
                pass


if __name__ == "__main__":
    main()
