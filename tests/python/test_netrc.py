"""What unmodified workers can show a planner that asks who asks: what their `requests` takes from a netrc file."""

from pathlib import Path

import pytest
import requests

from conftest import DEADLINE_SEC, Planner

TOKEN = "worker-0123456789abcdef"


def get_seed(url: str) -> int:
    return requests.get(f"{url}/get_seed", headers={"SEED_KEY": "k"}, timeout=DEADLINE_SEC).status_code


def test_credentials_come_from_netrc_or_from_the_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, netrc = tmp_path / "tokens.toml", tmp_path / "netrc"
    tokens.write_text(f'[[principal]]\nname = "workers"\nroles = ["worker"]\ntokens = ["{TOKEN}"]\n')
    planner = Planner(tmp_path, "--token-file", str(tokens))
    try:
        monkeypatch.setenv("NETRC", str(netrc))
        assert get_seed(planner.url) == 401
        for password, status in ((TOKEN, 404), ("wrong", 401)):
            netrc.write_text(f"machine 127.0.0.1 login rfork password {password}\n")
            assert get_seed(planner.url) == status
        netrc.unlink()
        assert get_seed(planner.url.replace("http://", f"http://anybody:{TOKEN}@")) == 404
    finally:
        planner.stop()
