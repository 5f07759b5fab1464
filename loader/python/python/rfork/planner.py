"""For operators' scripts: what a planner knows, and what it can be told (its API v2)."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import os
import ssl
import stat
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from ._rfork import RForkError

_MAX_ANSWER_BYTES = 16 << 20
_MAX_TOKEN_BYTES = (8 << 10) - len("Bearer ")


class PlannerError(RForkError):
    """A planner that refused, or could not be asked."""

    def __init__(self, text: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(text)
        self.status = status
        """The HTTP status; ``None`` when there was no answer."""
        self.code = code
        """The problem's stable code, such as ``seed-not-found``; ``None`` when there is none."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class PlannerClient:
    """Asks one planner. Blocks; every request ends within ``timeout_sec`` of silence.

    ``docs/openapi.json`` of the project describes the answers, which are given as they came.

    A planner that asks who asks is shown the token in ``token_file``, or else in the file that ``RFORK_TOKEN_FILE`` names. It
    is read for each request, so that it may change. Most of what is asked here takes the role ``operator``. Without TLS it
    is sent to another machine only with ``token_over_http``, or ``RFORK_TOKEN_OVER_HTTP=1``: others may read it on its way.

    At ``https://`` it must be a planner that the CAs in ``ca_file`` (PEM) vouch for, or in the file that
    ``RFORK_PLANNER_CA_FILE`` names, or else the system's. That file is read for each request, too.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_sec: float = 10.0,
        token_file: str | os.PathLike[str] | None = None,
        token_over_http: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
    ) -> None:
        # What stands before an @ may be a password: no message shows it.
        scheme, slashes, rest = url.partition("://") if "://" in url else ("", "", url)
        credentials, _, place = rest.rpartition("@")
        self._base = f"{scheme}{slashes}{place.rstrip('/')}"
        if scheme not in ("http", "https"):
            raise PlannerError(f"the planner's URL must begin with http:// or https://, got {self._base!r}")
        self._headers = {"Accept": "application/json"}
        if credentials:
            token = base64.b64encode(urllib.parse.unquote_to_bytes(credentials)).decode()
            self._headers["Authorization"] = f"Basic {token}"
        self._token_file = token_file or os.environ.get("RFORK_TOKEN_FILE") or None
        if self._token_file is not None:
            if credentials:
                raise PlannerError("a request shows one credential: a token file, or a user and a password in the URL")
            told = os.environ.get("RFORK_TOKEN_OVER_HTTP", "").lower() in ("1", "true", "yes", "on")
            if not (token_over_http or told or _is_private(self._base)):
                raise PlannerError(
                    "the token would be sent without TLS, where others may read it on its way: give an https:// URL, or "
                    "token_over_http if nobody else is on that network"
                )
        if ca_file is not None and scheme != "https":
            raise PlannerError("ca_file is for a planner at https://")
        self._ca_file = (ca_file or os.environ.get("RFORK_PLANNER_CA_FILE") or None) if scheme == "https" else None
        self._timeout_sec = timeout_sec

    def service(self) -> dict[str, Any]:
        """What the planner is, and which APIs it speaks."""
        return self._ask("GET", "/v2")

    def ready(self) -> bool:
        """Whether it can do its work now."""
        try:
            self._ask("GET", "/readyz")
        except PlannerError as error:
            if error.status is None:
                raise
            return False
        return True

    def seeds(self, **filters: str) -> Iterator[dict[str, Any]]:
        """All seeds that fit, page by page; ``seed_key=…`` and the other filters of ``GET /v2/seeds``."""
        return self._pages("/v2/seeds", "seeds", filters)

    def leases(self, **filters: str) -> Iterator[dict[str, Any]]:
        """All leases that live and fit."""
        return self._pages("/v2/leases", "leases", filters)

    def ended_leases(self, **filters: str) -> Iterator[dict[str, Any]]:
        """Leases that ended lately."""
        return self._pages("/v2/leases/ended", "leases", filters)

    def events(self, **filters: str) -> Iterator[dict[str, Any]]:
        """What became of seeds lately."""
        return self._pages("/v2/events", "events", filters)

    def keys(self) -> Iterator[dict[str, Any]]:
        """All keys, with how many seeds and leases each has."""
        return self._pages("/v2/keys", "keys", {})

    def drain(self, seed: str, seed_key: str) -> dict[str, Any]:
        """Has a seed (``host:port:rank``) handed out no more while its memory is the same; its leases live on."""
        return self._ask("POST", "/v2/seeds/drain", {"seed": seed, "seed_key": seed_key})

    def deregister(self, seed: str, seed_key: str) -> dict[str, Any]:
        """Removes a seed; one with leases goes with the last of them.

        It is the seed's owner that says so: it takes the role ``worker``. Operators :meth:`drain`.
        """
        return self._ask("POST", "/v2/seeds/deregister", {"seed": seed, "seed_key": seed_key})

    def invalidate(self, seed_key: str, *, keep_content_id: str | None = None) -> dict[str, Any]:
        """Weights were replaced under the same name: seeds of the old content are handed out no more."""
        body = {"seed_key": seed_key}
        if keep_content_id is not None:
            body["keep_content_id"] = keep_content_id
        return self._ask("POST", "/v2/keys/invalidate", body)

    def explain(self, seed_key: str, **requester: Any) -> dict[str, Any]:
        """For each seed of a key, whether a worker would be given it now, and why (not)."""
        return self._ask("POST", "/v2/explain", {"seed_key": seed_key, **requester})

    def _pages(self, path: str, name: str, filters: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        query = dict(filters)
        while True:
            page = self._ask("GET", f"{path}?{urllib.parse.urlencode(query)}" if query else path)
            yield from page[name]
            if page.get("next") is None:
                return
            query["after"] = page["next"]

    def _opener(self) -> urllib.request.OpenerDirector:
        # No proxy of the environment's: a planner is inside the cluster.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirect()]
        if self._ca_file is not None:
            try:
                context = ssl.create_default_context(cafile=os.fspath(self._ca_file))
            except OSError as error:
                raise PlannerError(f"{os.fspath(self._ca_file)} holds no CAs that can be used: {error}") from None
            handlers.append(urllib.request.HTTPSHandler(context=context))
        return urllib.request.build_opener(*handlers)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers | ({} if data is None else {"Content-Type": "application/json"})
        if self._token_file is not None:
            headers["Authorization"] = f"Bearer {_token(self._token_file)}"
        request = urllib.request.Request(self._base + path, data=data, headers=headers, method=method)
        try:
            with self._opener().open(request, timeout=self._timeout_sec) as answer:
                text = answer.read(_MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(method, path, error.code, error.read(_MAX_ANSWER_BYTES)) from None
        except (OSError, http.client.HTTPException) as error:
            raise PlannerError(f"{self._base} does not answer: {error}") from error
        if len(text) > _MAX_ANSWER_BYTES:
            raise PlannerError(f"{method} {path}: the answer is longer than {_MAX_ANSWER_BYTES} bytes")
        try:
            return json.loads(text)
        except ValueError as error:
            raise PlannerError(f"{method} {path}: {self._base} is no planner: {error}") from error


def _token(path: str | os.PathLike[str]) -> str:
    """What is in a file but blanks around it. No message shows it."""
    try:
        # A pipe would keep us until somebody writes, a device for ever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError("it is not a regular file")
            text = file.read(_MAX_TOKEN_BYTES + 1)
    except OSError as error:
        why = error.strerror or error
        raise PlannerError(f"the token in {os.fspath(path)} cannot be used: {why}") from None
    token = text.strip()
    if len(text) > _MAX_TOKEN_BYTES or not token or not all(0x21 <= byte <= 0x7E for byte in token):
        raise PlannerError(
            f"the token in {os.fspath(path)} cannot be used: it must have visible ASCII characters alone, "
            f"{_MAX_TOKEN_BYTES} at most"
        )
    return token.decode()


def _is_private(url: str) -> bool:
    """Whether what is sent there is seen by nobody between: by TLS, or because it does not leave the machine."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme == "https" or host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _refusal(method: str, path: str, status: int, text: bytes) -> PlannerError:
    try:
        problem = json.loads(text)
        told, code = problem.get("detail") or problem.get("title"), problem.get("code")
    except (ValueError, AttributeError):
        told, code = text[:200].decode(errors="replace").strip(), None
    return PlannerError(f"{method} {path}: {status} {told or ''}".rstrip(), status=status, code=code)
