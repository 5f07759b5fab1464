"""What operators' scripts ask a planner."""

import base64
import os
import socket
import subprocess
import threading
from pathlib import Path

import numpy
import pytest
import rfork

from conftest import Planner

OPERATOR, WORKER = "operator-0123456789abcdef", "worker-0123456789abcdef"


def test_it_lists_explains_drains_and_invalidates(planner):
    client = rfork.PlannerClient(planner.url + "/")
    assert client.service()["service"] == "rfork-planner" and client.ready()
    with rfork.Session(planner.config(), identity={}) as session:
        session.load({"w": numpy.zeros(9)}, fallback=lambda: None)
        seed = session.serve().identity
        [entry] = client.seeds()
        key = entry["seed_key"]
        assert [one["seed_key"] for one in client.keys()] == [key]
        assert list(client.seeds(seed_key="other")) == [] == list(client.leases())
        assert client.explain(key)["grant"] == seed
        client.drain(seed, key)
        assert client.explain(key)["seeds"][0]["verdict"] == "draining"
        assert "draining" in {event["kind"] for event in client.events()} | {entry["state"] for entry in client.seeds()}
        assert client.invalidate(key)
        client.deregister(seed, key)
    assert list(client.ended_leases()) == []


def test_pages_are_followed(planner):
    with rfork.Session(planner.config(), identity={}) as one, rfork.Session(planner.config(), identity={"tp_rank": 1}) as other:
        for session in (one, other):
            session.load({"w": numpy.zeros(9)}, fallback=lambda: None)
            session.serve()
        assert len(list(rfork.PlannerClient(planner.url).seeds(limit="1"))) == 2


def test_refusals_have_a_status_and_a_code(planner):
    with pytest.raises(rfork.PlannerError) as refused:
        rfork.PlannerClient(planner.url).drain("10.0.0.1:1:0", "k")
    assert (refused.value.status, refused.value.code) == (404, "seed-not-found")
    assert isinstance(refused.value, rfork.RForkError)


def test_who_is_no_planner_is_told_so(planner):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        client = rfork.PlannerClient(f"http://127.0.0.1:{taken.getsockname()[1]}", timeout_sec=2)
        with pytest.raises(rfork.PlannerError, match="does not answer") as raised:
            client.ready()
        assert raised.value.status is None
    with pytest.raises(rfork.PlannerError, match="must begin with http"):
        rfork.PlannerClient("planner:1223")


@pytest.mark.parametrize(
    "url", ["http://u:SECRET@127.0.0.1:9x", "http://u:SECRET@", "ftp://u:SECRET@planner", "u:SECRET@planner:1223"]
)
def test_no_message_shows_a_password(url):
    with pytest.raises(rfork.PlannerError) as raised:
        rfork.PlannerClient(url, timeout_sec=2).ready()
    assert "SECRET" not in f"{raised.value}{raised.value.__cause__}"


def test_credentials_of_the_url_are_sent():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        heads = []

        def serve():
            with listener.accept()[0] as reader:
                heads.append(reader.recv(65536).decode())
                reader.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        serving = threading.Thread(target=serve)
        serving.start()
        assert rfork.PlannerClient(f"http://team:p%40ss@127.0.0.1:{listener.getsockname()[1]}").ready()
        serving.join()
    assert f"Authorization: Basic {base64.b64encode(b'team:p@ss').decode()}" in heads[0]


def test_a_token_is_shown_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tokens, token = tmp_path / "tokens.toml", tmp_path / "token"
    named = [f'[[principal]]\nname = "{role}"\nroles = ["{role}"]\ntokens = ["{text}"]\n' for role, text in
             (("operator", OPERATOR), ("worker", WORKER))]
    tokens.write_text("".join(named))
    planner = Planner(tmp_path, "--token-file", str(tokens))
    try:
        with pytest.raises(rfork.PlannerError) as refused:
            list(rfork.PlannerClient(planner.url).seeds())
        assert (refused.value.status, refused.value.code) == (401, "unauthenticated")
        client = rfork.PlannerClient(planner.url, token_file=token)
        token.write_text(f"{OPERATOR}\n")
        assert list(client.seeds()) == []
        with pytest.raises(rfork.PlannerError, match="role worker") as refused:
            client.deregister("10.0.0.1:1:0", "k")
        assert refused.value.code == "forbidden"
        token.write_text(WORKER)
        with pytest.raises(rfork.PlannerError) as refused:
            client.deregister("10.0.0.1:1:0", "k")
        assert refused.value.code == "seed-not-found"
        token.write_text(OPERATOR)
        monkeypatch.setenv("RFORK_TOKEN_FILE", str(token))
        assert list(rfork.PlannerClient(planner.url).seeds()) == []
    finally:
        planner.stop()


def certify(home: Path, ca: str) -> None:
    """Makes a CA, and a certificate of its for a planner at 127.0.0.1."""
    request = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "9"]
    of_ca = ["-x509", "-subj", "/CN=ca", "-keyout", f"{ca}.key", "-out", f"{ca}.crt"]
    of_planner = ["-x509", "-CA", f"{ca}.crt", "-CAkey", f"{ca}.key", "-subj", "/CN=planner"]
    of_planner += ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    for more in (of_ca, of_planner + ["-keyout", "tls.key", "-out", "tls.crt"]):
        subprocess.run(request + more, cwd=home, check=True, capture_output=True)


def test_a_planner_is_whom_its_ca_vouches_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("other", "ca"):
        certify(tmp_path, name)
    planner = Planner(tmp_path, f"--tls-cert-file={tmp_path}/tls.crt", f"--tls-key-file={tmp_path}/tls.key")
    url = planner.url.replace("http://", "https://")
    try:
        assert rfork.PlannerClient(url, ca_file=tmp_path / "ca.crt").ready()
        for wrong in (tmp_path / "other.crt", None):
            with pytest.raises(rfork.PlannerError, match="certificate"):
                rfork.PlannerClient(url, ca_file=wrong).ready()
        with pytest.raises(rfork.PlannerError, match="no CAs that can be used"):
            rfork.PlannerClient(url, ca_file=tmp_path / "tls.key").ready()
        monkeypatch.setenv("RFORK_PLANNER_CA_FILE", str(tmp_path / "ca.crt"))
        assert rfork.PlannerClient(url).ready()
        with pytest.raises(rfork.PlannerError, match="tls-required"):
            rfork.PlannerClient(planner.url).service()
        with pytest.raises(rfork.PlannerError, match="https://"):
            rfork.PlannerClient(planner.url, ca_file=tmp_path / "ca.crt")
    finally:
        planner.stop()


def test_a_token_that_cannot_be_had_is_named_and_not_shown(tmp_path: Path):
    pipe, long, odd, none = (tmp_path / name for name in ("pipe", "long", "odd", "none"))
    os.mkfifo(pipe)
    long.write_text("SECRET" * 2_000)
    odd.write_text("SECRET and more")
    for path, why in ((pipe, "not a regular file"), (long, "8185 at most"), (odd, "visible ASCII"), (none, "No such file"),
                      (Path("/dev/zero"), "not a regular file")):
        with pytest.raises(rfork.PlannerError, match=why) as raised:
            rfork.PlannerClient("http://127.0.0.1:9", token_file=path).service()
        assert str(path) in str(raised.value) and "SECRET" not in str(raised.value)


@pytest.mark.parametrize(
    "url, sent",
    [("https://planner", True), ("http://planner:1223", False), ("http://localhost:1223", True), ("http://127.0.0.2", True),
     ("http://[::1]:1223", True), ("http://[::ffff:127.0.0.1]:1223", True), ("http://10.0.0.1", False),
     ("http://localhost.example", False)],
)
def test_a_token_is_sent_where_nobody_else_hears_it(url: str, sent: bool):
    rfork.PlannerClient(url, token_file="token", token_over_http=True)
    if sent:
        rfork.PlannerClient(url, token_file="token")
    else:
        with pytest.raises(rfork.PlannerError, match="without TLS"):
            rfork.PlannerClient(url, token_file="token")
    with pytest.raises(rfork.PlannerError, match="one credential"):
        rfork.PlannerClient(url.replace("://", "://u:p@"), token_file="token")
