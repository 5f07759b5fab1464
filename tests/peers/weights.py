"""A model in host memory: its tensors, how it is cut into chunks, and what its bytes are called."""

import ctypes
import hashlib
import json
import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path

TORCH_NAMES = {"U8": "uint8", "I8": "int8", "F16": "float16", "BF16": "bfloat16", "F32": "float32"}
ELEMENT_BYTES = {"uint8": 1, "int8": 1, "float16": 2, "bfloat16": 2, "float32": 4}
# What AscendCL calls ACL_FORMAT_ND: plain row-major.
FORMAT_ND = 2
MIN_CHUNK_BYTES, MAX_CHUNK_BYTES, GRAIN_BYTES = 256 << 10, 16 << 20, 4096


@dataclass(frozen=True)
class Tensor:
    """One tensor; `shape`, `dtype` and `format` are None where a seed does not say."""

    name: str
    address: int
    count: int
    element_bytes: int
    shape: tuple | None = None
    dtype: str | None = None
    format: int | None = None

    @property
    def bytes(self):
        return self.count * self.element_bytes


class Weights:
    """The memory of all tensors, one after the other in the byte order of their names: chunks are slices of it."""

    def __init__(self, model):
        """Reads the headers of a safetensors file and allocates; no weights yet."""
        self.file = Path(model) / "model.safetensors"
        with self.file.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        entries = sorted(header.items(), key=lambda item: item[0].encode())
        self.starts = [8 + length + entry["data_offsets"][0] for _, entry in entries]
        self.memory = bytearray(sum(e["data_offsets"][1] - e["data_offsets"][0] for _, e in entries))
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.tensors = []
        for name, entry in entries:
            dtype = TORCH_NAMES[entry["dtype"]]
            count = math.prod(entry["shape"])
            tensor = Tensor(name, address, count, ELEMENT_BYTES[dtype], tuple(entry["shape"]), dtype, FORMAT_ND)
            self.tensors.append(tensor)
            address += tensor.bytes
        wanted = min(max(len(self.memory) // 2048, MIN_CHUNK_BYTES), MAX_CHUNK_BYTES)
        self.chunk_bytes = -(-wanted // GRAIN_BYTES) * GRAIN_BYTES
        self.chunk_count = -(-len(self.memory) // self.chunk_bytes)

    def chunk(self, number):
        """The bytes of one chunk, to read or to write."""
        start = number * self.chunk_bytes
        return memoryview(self.memory)[start : start + self.chunk_bytes]

    def fill_from_storage(self):
        at = 0
        with self.file.open("rb") as file:
            for tensor, start in zip(self.tensors, self.starts, strict=True):
                file.seek(start)
                self.memory[at : at + tensor.bytes] = file.read(tensor.bytes)
                at += tensor.bytes

    def sha256(self):
        """The digest of the whole model, as `rfork worker --digest` tells it."""
        digest, at = hashlib.sha256(), 0
        for tensor in self.tensors:
            shape = ",".join(map(str, tensor.shape))
            digest.update(f"{tensor.name}\n{tensor.dtype}\n{shape}\n".encode())
            digest.update(memoryview(self.memory)[at : at + tensor.bytes])
            at += tensor.bytes
        return digest.hexdigest()

    def extension(self):
        """What seeds of the TCP engine say beyond the protocol: chunk digests and the content id."""
        digests = [crc64_nvme(self.chunk(number)) for number in range(self.chunk_count)]
        return {
            "engine": "tcp",
            "content_id": content_id(self.tensors, self.chunk_bytes, digests),
            "digest_algorithm": "crc64nvme",
            "chunk_bytes": self.chunk_bytes,
            "chunk_digests": "".join(f"{digest:016x}" for digest in digests),
        }


def disagreeing(tensors, how):
    """The tensors as a seed of another model would describe them: one of them differs in one thing."""
    at = next(at for at, tensor in enumerate(tensors) if len(tensor.shape) == 2)
    odd = tensors[at]
    rows, columns = odd.shape
    changed = {
        "count": [replace(odd, count=odd.count // 2, shape=(rows // 2, columns))],
        "element-size": [replace(odd, element_bytes=4, dtype="float32")],
        "dtype": [replace(odd, dtype="float16")],
        "format": [replace(odd, format=29)],
        "shape": [replace(odd, shape=(rows * 2, columns // 2))],
        "missing": [],
        "extra": [odd, replace(odd, name=odd.name + ".extra")],
    }
    return [*tensors[:at], *changed[how], *tensors[at + 1 :]]


def content_id(tensors, chunk_bytes, digests):
    """SHA-256 over the manifest, without addresses, and the digests of the chunks."""
    digest = hashlib.sha256()

    def numbers(form, *values):
        digest.update(struct.pack("<" + form * len(values), *values))

    def text(value):
        numbers("Q", len(value.encode()))
        digest.update(value.encode())

    text("rfork content 1")
    numbers("Q", len(tensors))
    for tensor in tensors:
        text(tensor.name)
        numbers("Q", tensor.count, tensor.element_bytes, len(tensor.shape), *tensor.shape)
        text(tensor.dtype)
        numbers("q", tensor.format)
    text("crc64nvme")
    numbers("Q", chunk_bytes, len(digests), *digests)
    return digest.hexdigest()


def _crc64_table():
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = (crc >> 1) ^ (0x9A6C9329AC4BC9B5 if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _crc64_table()


def crc64_nvme(data):
    crc = 0xFFFF_FFFF_FFFF_FFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFF_FFFF_FFFF_FFFF


assert crc64_nvme(b"123456789") == 0xAE8B14860A799888  # The standard's check value.
