"""A seed's metadata service, and how it is asked: HTTP, as the three generations do both."""

import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit

INFO_PATH = "/get_rfork_transfer_engine_info"
SHAPES_PATH = "/get_rfork_transfer_engine_shape_info"
FETCH_PATH = "/rfork_fetch_seed"
HEALTH_PATH = "/health_check_with_key"
SHAPES = "rfork_transfer_engine_shape_info"
TIMEOUT_SEC = 10


def ask(address, path, key):
    """Status and JSON of one request for `key` to the seed at `address`, `host:port`."""
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_SEC)
    try:
        connection.request("GET", f"{path}?seed_key={quote(key, safe='')}")
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if answer.status == 200 and body else None
    finally:
        connection.close()


class Service:
    """Serves on a free port of `host` until the process ends."""

    def __init__(self, host, generation, key, info, shapes):
        answers = {INFO_PATH: (info, generation.other_key())}
        if generation.has_old_urls:
            answers[SHAPES_PATH] = ({SHAPES: shapes}, {SHAPES: None})

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                url = urlsplit(self.path)
                right = parse_qs(url.query).get("seed_key") == [key]
                if url.path in answers:
                    self._answer(200, answers[url.path][0 if right else 1])
                elif url.path == HEALTH_PATH:
                    self._answer(200 if right else 400, {})
                elif url.path == FETCH_PATH and generation.has_old_urls:
                    self._answer(200, {"status": "ok"})
                else:
                    self._answer(404, {})

            def _answer(self, status, document):
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer((host, 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
