"""Writes the model that is forked."""

import json
import os
from pathlib import Path

TENSOR_BYTES = 4 << 20


def write(path: Path, size_bytes: int) -> None:
    """A safetensors file of random bytes, in tensors of 4 MiB."""
    count = size_bytes // TENSOR_BYTES
    header = {
        f"layers.{at}.weight": {
            "dtype": "U8",
            "shape": [TENSOR_BYTES],
            "data_offsets": [at * TENSOR_BYTES, (at + 1) * TENSOR_BYTES],
        }
        for at in range(count)
    }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for _ in range(count):
            file.write(os.urandom(TENSOR_BYTES))
