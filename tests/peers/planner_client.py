"""The planner's API v1 as workers of the three generations call it: headers alone, a new connection each time."""

import http.client
import threading
from dataclasses import dataclass
from urllib.parse import urlsplit

# What these clients give a request, in seconds.
TIMEOUT_SEC = 10
# What counts for no answer at all.
UNREACHABLE = 0
ANSWERED = ("SEED_IP", "SEED_PORT", "SEED_RANK", "USER_ID")


@dataclass(frozen=True)
class Lease:
    """A granted seed. `ttl_sec` is None when the planner did not say."""

    ip: str
    port: str
    rank: str
    user: str
    ttl_sec: float | None

    def headers(self):
        return {"SEED_IP": self.ip, "SEED_PORT": self.port, "SEED_RANK": self.rank, "USER_ID": self.user}

    @property
    def identity(self):
        return f"{self.ip}:{self.port}:{self.rank}"


class Planner:
    """One planner, as a client of one generation sees it."""

    def __init__(self, url, generation):
        self.address = urlsplit(url).netloc
        self.generation = generation

    def _call(self, method, path, headers):
        connection = http.client.HTTPConnection(self.address, timeout=TIMEOUT_SEC)
        try:
            # Python sends header values as Latin-1.
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.headers
        finally:
            connection.close()

    def get_seed(self, key):
        """A lease, or None. Generation C takes none whose lifetime it was not told."""
        status, headers = self._call("GET", "/get_seed", {"SEED_KEY": key})
        if status != 200:
            return None
        ttl_sec = headers.get("LEASE_TTL_SEC")
        if self.generation.renews and ttl_sec is None:
            return None
        return Lease(*(headers[name] for name in ANSWERED), ttl_sec=ttl_sec and float(ttl_sec))

    def renew(self, lease):
        return self._call("POST", "/renew_seed_lease", lease.headers())[0]

    def put_seed(self, lease):
        try:
            return self._call("POST", "/put_seed", lease.headers())[0]
        except (OSError, http.client.HTTPException):
            return UNREACHABLE

    def add_seed(self, key, ip, port):
        return self._call("POST", "/add_seed", self._seed(key, ip, port) | {"SEED_REFCNT": "0"})[0]

    def remove_seed(self, key, ip, port):
        return self._call("POST", "/remove_seed", self._seed(key, ip, port))[0]

    @staticmethod
    def _seed(key, ip, port):
        return {"SEED_KEY": key, "SEED_IP": ip, "SEED_PORT": str(port), "SEED_RANK": "0"}


def is_passing(status):
    """Whether the same request may have another answer later."""
    return status in (UNREACHABLE, 408, 429) or status >= 500


class Renewal:
    """Renews a lease at a third of its lifetime while its `with` block runs, in the generation that does."""

    def __init__(self, planner, lease, log):
        self.planner, self.lease, self.log = planner, lease, log
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        # A renewal that fails is noted, and the read goes on.
        while not self.over.wait(min(max(self.lease.ttl_sec / 3, 0.1), 30)):
            try:
                status = self.planner.renew(self.lease)
            except (OSError, http.client.HTTPException):
                status = UNREACHABLE
            self.log("renewed", status=status)

    def __enter__(self):
        if self.planner.generation.renews:
            self.thread.start()

    def __exit__(self, *_):
        self.over.set()
        if self.planner.generation.renews:
            self.thread.join()
