"""The commands that documents tell people to type: what they name is there, and those of the README's section on running
it do what is said of them."""

import json
import os
import re
import shlex
import struct
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest

from rendering import CHART, ROOT, Object, merged, objects, pods
from running import lonely, network, until

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", CHART / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
API = json.loads((ROOT / "docs" / "openapi.json").read_text())
CRATES = {
    tomllib.loads((ROOT / member / "Cargo.toml").read_text())["package"]["name"]: ROOT / member
    for member in tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["members"]
}
Words = list[str]


def blocks(text: str) -> list[str]:
    """What is fenced as a shell's, and what is only indented beside a line that begins with a program's name."""
    return re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE) + [
        block
        for block in re.findall(r"(?<=\n\n)(?:^    .*\n)+", text, re.MULTILINE)
        if re.match(r" +(cargo|tests/run|maturin) ", block)
    ]


def commands(block: str) -> list[Words]:
    """The words of each command."""
    whole = re.sub(r"\\\n", " ", block)
    lines, text = [], ""
    for line in whole.splitlines():
        text += line + "\n"
        try:
            lines.append(shlex.split(text, comments=True))
        except ValueError:
            # Its quotation goes on.
            continue
        text = ""
    assert not text, block
    return [words for words in lines if words]


@cache
def flags(*path: str) -> frozenset[str] | None:
    """The flags of a command of `rfork`, if there is that command."""
    told = subprocess.run(
        [os.environ["RFORK_BIN"], *path, "--help"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return frozenset(re.findall(r"--[a-z0-9-]+", told.stdout)) if told.returncode == 0 else None


def rfork(words: Words) -> None:
    """A command of ours: it has these flags."""
    path: Words = []
    while words and not words[0].startswith("-") and flags(*path, words[0]):
        path.append(words.pop(0))
    known = flags(*path)
    assert known and (path or "--help" in words), words
    for word in words:
        assert not word.startswith("--") or word.partition("=")[0] in known, (path, word)


def cargo(words: Words) -> None:
    """Crates, benchmarks, features and what is run are there."""
    own, _, ours = " ".join(words).partition(" -- ")
    for flag, name in re.findall(r"(-p|--bench|--features) (\S+)", own):
        crate = CRATES[re.findall(r"-p (\S+)", own)[0]] if "-p " in own else CRATES["rfork-cli"]
        manifest = tomllib.loads((crate / "Cargo.toml").read_text())
        if flag == "--bench":
            assert any((crate / "benches" / path).exists() for path in (f"{name}.rs", f"{name}/main.rs")), name
        elif flag == "--features":
            assert name in manifest["features"], name
    if words[0] == "run":
        rfork(shlex.split(ours))


def helm(words: Words) -> None:
    """The chart has the values, and the release the name by which documents know it."""
    (does,) = {"install", "upgrade", "test", "uninstall"} & {*words}
    assert "planner" in words and (does in ("test", "uninstall") or CHART.relative_to(ROOT).as_posix() in words), words
    values: Object = {}
    for setting in (words[number + 1] for number, word in enumerate(words) if word == "--set"):
        path, _, value = setting.partition("=")
        one: Object | str = value
        for key in reversed(path.split(".")):
            one = {key: one}
        assert isinstance(one, dict)
        values = merged(values, one)
    assert objects(values, "planner")


def kubectl(words: Words) -> None:
    """The release has what is named."""
    made = {maker.lower() for maker, _ in pods(objects({}, "planner"))}
    for word in words:
        assert not word.startswith("deployment/") or word in made, word
    if "--" in words:
        program, *rest = words[words.index("--") + 1 :]
        assert program == "/usr/bin/rfork"
        rfork(rest)


def curl(words: Words) -> None:
    """The API has the path and its parameters."""
    for url in (word for word in words if word.startswith("$PLANNER/")):
        path, _, query = url.removeprefix("$PLANNER").partition("?")
        named = {parameter["name"] for parameter in API["paths"][path]["get"]["parameters"]}
        assert {part.partition("=")[0] for part in query.split("&") if part} <= named, url


def of_others(words: Words) -> None:
    """Somebody else's program: paths of ours that it is given are there."""
    for word in words:
        assert not re.match(r"(charts|docs|loader|planner|tests)/", word) or (ROOT / word).exists(), word


def script(words: Words) -> None:
    """A script of ours takes no arguments."""
    assert not words


PROGRAMS = {"rfork": rfork, "target/release/rfork": rfork, "cargo": cargo, "helm": helm, "kubectl": kubectl} | {
    "curl": curl,
    "tests/run": script,
    ".ci/run": script,
    # Its arguments are those of cargo-mutants.
    "tests/mutants/run": of_others,
}
OTHERS = {"docker", "export", "maturin", "openssl", "pg_dump", "pg_restore", "pip", "umask", "vllm"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_commands_name_is_there(page: Path) -> None:
    for words in (words for block in blocks(page.read_text()) for words in commands(block)):
        program, *rest = words
        assert program in PROGRAMS or program in OTHERS, f"{program}: nothing is known of it here"
        if "/" in program and not program.startswith("target/"):
            assert os.access(ROOT / program, os.X_OK), program
        PROGRAMS.get(program, of_others)(rest)


def section(heading: str) -> list[Words]:
    """The commands under a heading of the README."""
    text = (ROOT / "README.md").read_text()
    part = re.split(r"^## ", text[text.index(f"\n## {heading}\n") + 4 :], maxsplit=1, flags=re.MULTILINE)[0]
    return [words for block in blocks(part) for words in commands(block)]


def test_the_first_command_forks(tmp_path: Path) -> None:
    (words,) = [words for words in section("Try it") if words[0] == "cargo"]
    assert words[:5] == ["cargo", "run", "--profile", "trial", "--"]
    # A smaller model than the default one, in the build that is tested.
    done = run([*words[5:], "--size=8MiB"], [], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "worker 1" in done.stdout


def run(words: Words, before: Words, home: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command of `rfork` to its end."""
    command = [*before, os.environ["RFORK_BIN"], *words]
    return subprocess.run(command, env=environment(home), stdin=subprocess.DEVNULL, capture_output=True, text=True)


def environment(home: Path) -> dict[str, str]:
    """Of somebody who has just come."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(home)}


@pytest.mark.skipif(not lonely(), reason="a network of its own takes root")
def test_planner_and_worker_run_as_the_readme_says(tmp_path: Path) -> None:
    model = tmp_path / "llama"
    model.mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": [256], "data_offsets": [0, 1024]}}).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(1024))
    lines = [words[1:] for words in section("Run it") if words[0] == "rfork"]
    planner, worker, look, seed, transfers, selftest, digest, explain = lines
    inspected = [words[1] for words in (look, seed, transfers) if words[0] == "inspect"]
    assert inspected == ["planner", "seed", "transfers"]
    drawing = tmp_path / transfers[-1]
    started = []
    with network(["127.0.0.1/8", "::1/128"]) as apart:

        def here(words: Words) -> Words:
            """What stands for names and paths of others."""
            words = [word.replace("//planner:", "//127.0.0.1:") for word in words]
            return [str(model) if before == "--model" else word for before, word in zip(["", *words], words, strict=False)]

        def tell(words: Words) -> str:
            done = run(here(words), apart.enter(), tmp_path)
            assert done.returncode == 0, (words, done.stdout, done.stderr)
            return done.stdout

        def is_there() -> bool:
            for process, words in zip(started, (planner, worker), strict=False):
                assert process.poll() is None, (tmp_path / words[0]).read_text()
            return run(here(look), apart.enter(), tmp_path).returncode == 0

        def registered() -> re.Match[str] | None:
            return re.search(r"\b(127\.0\.0\.1:\d+):0\b", tell(look)) if is_there() else None

        try:
            for words in (planner, worker):
                with (tmp_path / words[0]).open("wb") as log:
                    command = [*apart.enter(), os.environ["RFORK_BIN"], *here(words)]
                    started.append(
                        subprocess.Popen(
                            command, env=environment(tmp_path), stdin=subprocess.DEVNULL, stdout=log, stderr=log
                        )
                    )
                until("a planner", is_there)
            shown = until("a seed", registered)
            tell([word.replace("10.0.0.7:40123", shown[1]) for word in seed])
            tell([*transfers[:-1], str(drawing)])
            assert "storage" in drawing.read_text(), "it loaded from there"
            assert "the planner works" in tell(selftest)
            assert "would be given" in tell(explain), tell(explain)
            assert digest[:-1] == ["digest"] and len(tell(["digest", str(model)]).split()[0]) == 64
        finally:
            for process in started:
                process.kill()
                process.wait()
