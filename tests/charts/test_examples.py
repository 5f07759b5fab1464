"""The examples are what Kubernetes and its operators take, fit the chart, and what of them is ours runs."""

import json
import re
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from checking import check
from rendering import CHART, ROOT, Object, UniqueKeys, defaults, mode, notes, objects, only, pods
from running import ask, running, until

EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
VLLM = [path for path in EXAMPLES if path.stem.startswith("vllm")]


def load(path: Path) -> Object:
    """The only object of an example."""
    (found,) = yaml.load_all(path.read_text(), UniqueKeys)
    return found


def templates(found: Any) -> list[Object]:
    """Each pod that an object makes, of whatever kind it is."""
    if isinstance(found, dict):
        if "containers" in found.get("spec", {}):
            return [found]
        return [pod for value in found.values() for pod in templates(value)]
    return [pod for value in found for pod in templates(value)] if isinstance(found, list) else []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_what_kubernetes_takes(path: Path) -> None:
    found = load(path)
    check(found)
    assert templates(found)
    for pod in templates(found):
        check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod["spec"]})
        # Else a Service `rfork-seed` or the like would set settings of workers.
        assert pod["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_names_the_planner_that_the_readme_installs(path: Path) -> None:
    service = only(objects({}, "planner"), "Service")
    (port,) = service["spec"]["ports"]
    urls = set(re.findall(r"http://[^\s\"',}]+", path.read_text()))
    assert urls == {f"http://{service['metadata']['name']}.{load(path)['metadata']['namespace']}:{port['port']}"}


def test_the_policy_of_workers_is_for_those_of_the_examples_and_knows_the_planner() -> None:
    (policy,) = [found for found in in_kubernetes_md() if "kind" in found]
    chosen = policy["spec"]["podSelector"]["matchLabels"]
    for path in EXAMPLES:
        found = load(path)
        assert policy["metadata"]["namespace"] == found["metadata"]["namespace"]
        for pod in templates(found):
            assert chosen.items() <= pod["metadata"]["labels"].items(), path
    (_, pod), *_ = pods(objects({}, "planner"))
    peers = [peer for rule in policy["spec"]["ingress"] for peer in rule["from"]]
    peers += [peer for rule in policy["spec"]["egress"] for peer in rule["to"]]
    known = [peer["podSelector"]["matchLabels"] for peer in peers if "podSelector" in peer]
    others = [labels for labels in known if labels != chosen]
    assert len(others) == 2
    for labels in others:
        assert labels.items() <= pod["metadata"]["labels"].items()


@pytest.mark.parametrize("path", VLLM, ids=lambda path: path.stem)
def test_three_lines_make_a_vllm_worker_one_that_forks(path: Path) -> None:
    marked = re.findall(r"^ *- (.*) # ([123])$", path.read_text(), re.MULTILINE)
    assert [number for _, number in marked] == ["1", "2", "3"]
    assert marked[0][0] == "--load-format=rfork"
    for pod in templates(load(path)):
        (container,) = pod["spec"]["containers"]
        (config,) = [
            arg.partition("=")[2] for arg in container["args"] if arg.startswith("--model-loader-extra-config=")
        ]
        assert json.loads(config).keys() == {"model_url", "model_deploy_strategy_name"}
        names = [entry["name"] for entry in container["env"]]
        assert {"RFORK_SCHEDULER_URL", "RFORK_HOST", "RFORK_ZONE", "RFORK_INSTANCE_ID"} <= set(names)
        known = "".join(page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
        for name in names:
            assert f"`{name}`" in known or not name.startswith("RFORK"), name


@pytest.mark.parametrize("kind", ["leaderworkerset", "volcano"])
def test_the_nodes_of_an_instance_have_ranks_and_the_first_alone_an_api(kind: str) -> None:
    found = load(CHART / "examples" / f"vllm-ascend-{kind}.yaml")
    if kind == "volcano":
        (leader, _), (worker, workers) = [(task["template"], task["replicas"]) for task in found["spec"]["tasks"]]
        assert [task["replicas"] for task in found["spec"]["tasks"]][0] == 1
        nodes = found["spec"]["minAvailable"]
        assert nodes == 1 + workers
        first = f"{found['metadata']['name']}-{found['spec']['tasks'][0]['name']}-0.{found['metadata']['name']}"
        ranks, environments = [["0"], ["1", "2"]], [[{}], [{"VC_TASK_INDEX": "0"}, {"VC_TASK_INDEX": "1"}]]
    else:
        group = found["spec"]["leaderWorkerTemplate"]
        leader, worker, nodes = group["leaderTemplate"], group["workerTemplate"], group["size"]
        first = "$(LWS_LEADER_ADDRESS)"
        ranks, environments = [["$(NODE_RANK)"]] * 2, [[{}]] * 2
    for pod, expected, many, headless in zip([leader, worker], ranks, environments, [False, True], strict=True):
        (container,) = pod["spec"]["containers"]
        started = [started_with(container, environment) for environment in many]
        assert [flags["--node-rank"] for flags in started] == expected
        for flags in started:
            assert ("--headless" in flags, "--port" in flags) == (headless, not headless)
            assert (flags["--nnodes"], flags["--master-addr"]) == (str(nodes), first)


def started_with(container: Object, environment: dict[str, str]) -> dict[str, str]:
    """The flags that vllm gets, which a shell may have put together."""
    command = [*container["command"], *container["args"]]
    if command[0] == "sh":
        with tempfile.TemporaryDirectory() as directory:
            vllm = Path(directory) / "vllm"
            vllm.write_text('#!/bin/sh\nprintf "%s\\n" vllm "$@"\n')
            vllm.chmod(0o755)
            path = {"PATH": f"{directory}:/usr/bin:/bin"}
            done = subprocess.run(command, env=path | environment, check=True, capture_output=True, text=True)
        command = done.stdout.splitlines()
    assert command[:3] == ["vllm", "serve", "/models/dsv4"]
    return {flag: value for flag, _, value in (argument.partition("=") for argument in command[3:])}


def test_the_daemon_holds_a_model_in_memory(tmp_path: Path) -> None:
    path = CHART / "examples" / "memory-daemonset.yaml"
    models = tmp_path / "worker" / "models" / "llama"
    models.mkdir(parents=True)
    tensor = {"w": {"dtype": "F32", "shape": [256], "data_offsets": [0, 1024]}}
    header = json.dumps(tensor).encode()
    (models / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(1024))
    with running(objects({}), tmp_path / "planner") as planner:
        address = planner.until_ready()
        text = path.read_text().replace("planner-rfork-planner.models:1223", address)
        found = yaml.load(text, UniqueKeys)
        with running([found], tmp_path / "worker", "DaemonSet") as worker:

            def ready() -> bool:
                assert worker.process.poll() is None, worker.log.read_text()
                return worker.probe("readinessProbe") == 200

            until("weights that are served", ready)
            (identity,) = until("its seed", lambda: ask(address, "GET", "/debug/snapshot").json()["seeds"])
            assert identity.startswith(worker.address)
            worker.terminate()
            assert worker.ended() == 0
        assert ask(address, "GET", "/debug/snapshot").json()["seed_count"] == 0, "it took its leave"


def in_kubernetes_md() -> list[Object]:
    """Each manifest, or part of one, or of values."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "kubernetes.md").read_text(), re.DOTALL)
    return [yaml.load(block, UniqueKeys) for block in blocks]


def test_manifests_in_the_documents_are_what_kubernetes_takes() -> None:
    found = in_kubernetes_md()
    for one_object in found:
        if "kind" in one_object:
            check(one_object)
        elif one_object.keys() <= defaults().keys() and not isinstance(one_object.get("rules"), list):
            objects(one_object)
    assert sum("kind" in one_object for one_object in found) == 1
    (adapter,) = [one_object for one_object in found if isinstance(one_object.get("rules"), list)]
    assert adapter["rules"][0]["name"]["as"] == defaults()["autoscaling"]["requests"]["metric"]
    told = re.findall(r'^ +([a-z-]+): "(.*)"$', notes(mode("ingress")), re.MULTILINE)
    assert dict(told) in found, "what the controller's ConfigMap needs"
