"""The TCP engine's frames, as `protocol/src/frame/mod.rs` describes them: a reader and a server over plain sockets."""

import socket
import struct
import threading

MAGIC, VERSION = b"RFORKTCP", 1
HELLO = struct.Struct("<8sHHI32s")
WELCOME = struct.Struct("<8sHHIQII")
READ_HEAD = struct.Struct("<BBHI")
RANGE = struct.Struct("<II")
ANSWER = struct.Struct("<BBHIQ")
READ, CHUNK, NOT_YET, FAILED = 1, 1, 2, 3
OTHER_VERSION, OTHER_CONTENT, NO_SUCH_CHUNK = 1, 2, 1
MAX_CHUNKS_PER_READ, MAX_RANGES = 4096, 256
# Chunks that a reader here asks for at a time.
AHEAD = 8
# How long a peer may be silent, in seconds.
SILENCE_SEC = 10


class Broken(Exception):
    """The other side is gone, refuses, or does not speak these frames."""


def receive(stream, view):
    """Fills `view`."""
    while view:
        received = stream.recv_into(view)
        if received == 0:
            raise Broken("the connection ended")
        view = view[received:]


def receive_frame(stream, form):
    frame = bytearray(form.size)
    receive(stream, memoryview(frame))
    return form.unpack(frame)


def read_all(session, content, weights):
    """Reads every chunk from the engine at `session`, `host:port`, straight into place."""
    host, port = session.rsplit(":", 1)
    with socket.create_connection((host.strip("[]"), int(port)), timeout=SILENCE_SEC) as stream:
        stream.sendall(HELLO.pack(MAGIC, VERSION, 0, 0, content))
        magic, status, version, _, chunk_bytes, chunks, most = receive_frame(stream, WELCOME)
        if magic != MAGIC or status != 0:
            raise Broken(f"refused: status {status}, version {version}")
        if (chunk_bytes, chunks) != (weights.chunk_bytes, weights.chunk_count):
            raise Broken("other chunks")
        step = min(AHEAD, most)
        for first in range(0, chunks, step):
            count = min(step, chunks - first)
            stream.sendall(READ_HEAD.pack(READ, 0, 1, 0) + RANGE.pack(first, count))
            for number in range(first, first + count):
                _receive_chunk(stream, number, weights.chunk(number))


def _receive_chunk(stream, number, place):
    while True:
        kind, code, _, answered, length = receive_frame(stream, ANSWER)
        if answered != number or kind not in (CHUNK, NOT_YET):
            raise Broken(f"answer {kind}, code {code}, for chunk {answered} and not {number}")
        if kind == CHUNK:
            if length != len(place):
                raise Broken(f"{length} bytes for chunk {number}, which has {len(place)}")
            return receive(stream, place)


class Server:
    """Serves the chunks of `weights` under `content` on a free port of `host`, a thread for each reader."""

    def __init__(self, host, weights, content, log):
        self.weights, self.content, self.log = weights, content, log
        self.listener = socket.create_server((host, 0))
        self.session = "%s:%d" % self.listener.getsockname()[:2]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            stream, _ = self.listener.accept()
            threading.Thread(target=self._serve, args=(stream,), daemon=True).start()

    def _serve(self, stream):
        self.log("a reader connected")
        sent = [0]
        with stream:
            stream.settimeout(SILENCE_SEC)
            try:
                self._answer(stream, sent)
            except (Broken, OSError) as error:
                self.log("a reader's connection ended", error=str(error))
        self.log("a reader was served", bytes=sent[0])

    def _answer(self, stream, sent):
        magic, version, identity, _, content = receive_frame(stream, HELLO)
        if magic != MAGIC:
            return
        receive(stream, memoryview(bytearray(identity)))
        status = OTHER_VERSION if version != VERSION else OTHER_CONTENT if content != self.content else 0
        weights = self.weights
        if status:
            stream.sendall(WELCOME.pack(MAGIC, status, VERSION, 0, 0, 0, 0))
            return
        plan = (weights.chunk_bytes, weights.chunk_count, MAX_CHUNKS_PER_READ)
        stream.sendall(WELCOME.pack(MAGIC, 0, VERSION, 0, *plan))
        while True:
            kind, _, ranges, _ = receive_frame(stream, READ_HEAD)
            if kind != READ or not 1 <= ranges <= MAX_RANGES:
                raise Broken(f"request {kind} of {ranges} ranges")
            for first, count in [receive_frame(stream, RANGE) for _ in range(ranges)]:
                for number in range(first, first + count):
                    if number >= weights.chunk_count:
                        stream.sendall(ANSWER.pack(FAILED, NO_SUCH_CHUNK, 0, number, 0))
                        return
                    chunk = weights.chunk(number)
                    stream.sendall(ANSWER.pack(CHUNK, 0, 0, number, len(chunk)))
                    stream.sendall(chunk)
                    sent[0] += len(chunk)
