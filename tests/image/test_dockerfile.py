"""The Dockerfile says what an image has to be. `tests/image/run` makes one's file system, without a container engine."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
STEPS = [line.split(maxsplit=1) for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
WORKSPACE = tomllib.loads((ROOT / "Cargo.toml").read_text())


def last_stage() -> list[list[str]]:
    """The steps that make the image itself."""
    last = max(number for number, (word, _) in enumerate(STEPS) if word == "FROM")
    return STEPS[last:]


def test_it_is_built_by_the_compiler_and_the_lock_file_of_the_workspace() -> None:
    assert ["ARG", f"RUST_VERSION={WORKSPACE['workspace']['package']['rust-version']}"] in STEPS
    (build,) = [text for word, text in STEPS if word == "RUN"]
    # tests/image/run has the same steps.
    script = (ROOT / "tests" / "image" / "run").read_text()
    cargo = "cargo build --locked --release --package rfork-cli --bin rfork"
    assert cargo in build and cargo in script
    assert "loader/cli/image-root target/release/rfork" in build and "loader/cli/image-root" in script
    assert WORKSPACE["profile"]["release"]["strip"] == "symbols"


def test_it_begins_with_nothing_and_ends_as_nobody_who_is_root() -> None:
    steps = last_stage()
    assert steps[0] == ["FROM", "scratch"]
    assert not [text for word, text in steps if word == "RUN"], "there is no shell"
    (user,) = [text for word, text in steps if word == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert ["ENTRYPOINT", '["/usr/bin/rfork"]'] in steps


def test_its_labels_have_the_version() -> None:
    assert ["ARG", f"VERSION={WORKSPACE['workspace']['package']['version']}"] in last_stage()
    (labels,) = [text for word, text in last_stage() if word == "LABEL"]
    named = re.findall(r"org\.opencontainers\.image\.([a-z]+)=", labels)
    assert named == ["title", "description", "licenses", "version", "revision", "created", "source"]


def test_what_is_no_source_is_not_sent_to_the_engine() -> None:
    # That no source is missing shows when `tests/image/run` builds from what is left.
    ignored = {line.strip() for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"}
    assert {".git", "target"} <= ignored
