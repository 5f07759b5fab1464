"""Versions that have to be the same are."""

import re
import tomllib

from rendering import ROOT, chart, objects, only


def test_chart_image_and_program_have_one_version() -> None:
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    metadata = chart().metadata
    assert (metadata["version"], metadata["appVersion"]) == (version, version)
    (container,) = only(objects({}), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"rfork:{version}"
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first and first[1] == version
    for text in (
        "charts/rfork-planner/README.md",
        "charts/rfork-planner/examples/memory-daemonset.yaml",
        "docs/kubernetes.md",
        "README.md",
    ):
        tags = re.findall(r"\brfork:(\d[\w.-]*)", (ROOT / text).read_text())
        assert tags and set(tags) == {version}, text
