"""What must hold for the objects of every mode, whatever the release's name."""

import re

import pytest

from rendering import MODES, Object, merged, mode, objects, of_kind, only, pods

# Names that Helm takes: long, with a digit first, with dots.
LONG = "a-release-whose-name-is-as-long-as-helm-lets-it-be-53"
NAMES = ["demo", "rfork-planner", LONG, "7b.models.v2"]


@pytest.mark.parametrize("name", MODES)
def test_pods_pass_the_restricted_standard(name: str) -> None:
    for maker, pod in pods(objects(mode(name))):
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), maker
        allowed = {
            "configMap",
            "csi",
            "downwardAPI",
            "emptyDir",
            "ephemeral",
            "persistentVolumeClaim",
            "projected",
            "secret",
        }
        for volume in spec.get("volumes", []):
            assert volume.keys() - {"name"} <= allowed, maker
        whole = spec["securityContext"]
        assert whole["runAsNonRoot"] is True and whole["runAsUser"] > 0 and whole["runAsGroup"] > 0, maker
        assert whole["seccompProfile"] == {"type": "RuntimeDefault"}, maker
        assert "initContainers" not in spec and "ephemeralContainers" not in spec, maker
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and context.get("privileged") is not True, maker
            assert context["capabilities"] == {"drop": ["ALL"]}, maker
            assert context["readOnlyRootFilesystem"] is True, maker
            assert not any("hostPort" in port for port in container.get("ports", [])), maker


def test_the_cluster_may_choose_whom_pods_run_as() -> None:
    chosen = {"podSecurityContext": dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"))}
    found = pods(objects(merged(mode("postgres-migration"), chosen)))
    assert len(found) == 3
    for maker, pod in found:
        assert pod["spec"]["securityContext"].keys() == {"runAsNonRoot", "seccompProfile", "fsGroupChangePolicy"}, maker


@pytest.mark.parametrize("name", MODES)
def test_pods_have_neither_token_nor_service_links(name: str) -> None:
    found = objects(mode(name))
    assert pods(found)
    for maker, pod in pods(found):
        assert pod["spec"]["automountServiceAccountToken"] is False, maker
        # Else a Service `rfork-planner` would set RFORK_PLANNER_PORT in every pod of its namespace.
        assert pod["spec"]["enableServiceLinks"] is False, maker
    for account in of_kind(found, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", MODES)
def test_planners_are_probed_at_a_port_that_they_have(name: str) -> None:
    (container,) = only(objects(mode(name)), "Deployment")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        by_tls = {"scheme": "HTTPS"} if name == "tls" else {}
        assert container[probe]["httpGet"] == {"path": path, "port": "probes" if "probes" in ports else "http"} | by_tls
    assert f"--port={ports['http']}" in container["args"]
    told = [argument for argument in container["args"] if argument.startswith("--probe-port=")]
    assert told == [f"--probe-port={ports[name]}" for name in ports if name == "probes"]


def selects(selector: Object, labels: Object) -> bool:
    """Whether all labels of a selector are there."""
    return bool(selector) and selector.items() <= labels.items()


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("release", NAMES)
def test_selectors_find_planners_and_nothing_else(name: str, release: str) -> None:
    found = objects(mode(name), release)
    deployment = only(found, "Deployment")
    service = only(found, "Service")
    selectors = [deployment["spec"]["selector"]["matchLabels"], service["spec"]["selector"]]
    selectors += [
        one["spec"]["selector"]["matchLabels"]
        for kind in ("PodDisruptionBudget", "PodMonitor")
        for one in of_kind(found, kind)
    ]
    selectors += [one["spec"]["podSelector"]["matchLabels"] for one in of_kind(found, "NetworkPolicy")]
    template = deployment["spec"]["template"]["spec"]
    selectors += [one["labelSelector"]["matchLabels"] for one in template.get("topologySpreadConstraints", [])]
    for selector in selectors:
        chosen = [maker for maker, pod in pods(found) if selects(selector, pod["metadata"]["labels"])]
        assert chosen == [f"Deployment/{deployment['metadata']['name']}"], selector
    for monitor in of_kind(found, "ServiceMonitor"):
        assert selects(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
    # A selector can never be changed, so nothing is in it that an upgrade changes.
    assert deployment["spec"]["selector"]["matchLabels"].keys() == {
        f"app.kubernetes.io/{what}" for what in ("name", "instance", "component")
    }


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("release", NAMES)
def test_what_refers_to_another_object_finds_it(name: str, release: str) -> None:
    values = mode(name)
    found = objects(values, release)
    names = {kind: {one["metadata"]["name"] for one in of_kind(found, kind)} for kind in {one["kind"] for one in found}}
    service = only(found, "Service")
    (port,) = service["spec"]["ports"]
    (container,) = only(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert port["targetPort"] in {port["name"] for port in container["ports"]}
    for ingress in of_kind(found, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                assert path["backend"] == {
                    "service": {"name": service["metadata"]["name"], "port": {"name": port["name"]}}
                }
    for route in of_kind(found, "HTTPRoute"):
        for rule in route["spec"]["rules"]:
            assert rule["backendRefs"] == [{"name": service["metadata"]["name"], "port": port["port"]}]
    for scaler in of_kind(found, "HorizontalPodAutoscaler"):
        assert scaler["spec"]["scaleTargetRef"]["name"] in names["Deployment"]
    for monitor in of_kind(found, "ServiceMonitor"):
        assert monitor["spec"]["endpoints"][0]["port"] == port["name"]
    for monitor in of_kind(found, "PodMonitor"):
        assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == container["ports"][-1]["name"]
    for policy in of_kind(found, "NetworkPolicy"):
        allowed = [port["port"] for port in policy["spec"]["ingress"][0]["ports"]]
        assert allowed == [port["containerPort"] for port in container["ports"]]
    for test in of_kind(found, "Pod"):
        told = test["spec"]["containers"][0]["args"][1]
        host = f"{service['metadata']['name']}{'.models.svc' if port['appProtocol'] == 'https' else ''}"
        assert told == f"--planner={port['appProtocol']}://{host}:{port['port']}"
    elsewhere = {
        *("planner-data", "planner-database", "planner-owner", "planner-pooler", "planner-tokens", "worker-token"),
        *("database-ca", "certificates", "inference-ca"),
    }
    for maker, pod in pods(found):
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        for container in pod["spec"]["containers"]:
            mounts = [mount["name"] for mount in container.get("volumeMounts", [])]
            assert sorted(mounts) == sorted(volumes), maker
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert (
                    volume["persistentVolumeClaim"]["claimName"]
                    in names.get("PersistentVolumeClaim", set()) | elsewhere
                )
            if "configMap" in volume:
                assert volume["configMap"]["name"] in names.get("ConfigMap", set()) | elsewhere
            if "secret" in volume:
                made = {f"{cluster}-app" for cluster in names.get("Cluster", ())}
                made |= {one["spec"]["secretName"] for one in of_kind(found, "Certificate")}
                assert volume["secret"]["secretName"] in made | elsewhere
        account = pod["spec"].get("serviceAccountName")
        if account and values.get("serviceAccount", {}).get("create", True):
            assert account in names["ServiceAccount"], maker


LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("release", NAMES)
@pytest.mark.parametrize(
    "more", [{}, {"fullnameOverride": "x" * 63}, {"nameOverride": "y" * 63}], ids=["", "full", "chart"]
)
def test_names_are_valid_and_none_occurs_twice(name: str, release: str, more: Object) -> None:
    found = objects(merged(mode(name), more), release)
    every = [(one["kind"], one["metadata"]["name"]) for one in found]
    assert len(every) == len(set(every))
    for one_object in found:
        metadata = one_object["metadata"]
        assert metadata["namespace"] == "models"
        assert LABEL.fullmatch(metadata["name"]), metadata["name"]
        if one_object["kind"] == "Cluster":
            assert len(metadata["name"]) <= 50
        texts = [*metadata["labels"].values()]
        texts += [text for _, pod in pods([one_object]) for text in pod["metadata"]["labels"].values()]
        for text in texts:
            assert LABEL_VALUE.fullmatch(text), text
        for container in (container for _, pod in pods([one_object]) for container in pod["spec"]["containers"]):
            for port in container.get("ports", []):
                assert len(port["name"]) <= 15


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("pair", [("one", "two"), (LONG, LONG[:-1] + "4"), ("planner", "planner-2"), ("a.b", "a-b")])
def test_two_releases_stand_side_by_side_in_a_namespace(name: str, pair: tuple[str, str]) -> None:
    ours, theirs = (objects(mode(name), release) for release in pair)
    shared = {("ServiceAccount", "planner")} if name in ("everything",) else set()
    named = [{(one["kind"], one["metadata"]["name"]) for one in found} for found in (ours, theirs)]
    assert named[0] & named[1] == shared
    for selector in (
        only(ours, "Service")["spec"]["selector"],
        only(ours, "Deployment")["spec"]["selector"]["matchLabels"],
    ):
        assert not [maker for maker, pod in pods(theirs) if selects(selector, pod["metadata"]["labels"])]


def test_a_volume_that_one_node_has_is_never_wanted_by_two_pods() -> None:
    for name in MODES:
        deployment = only(objects(mode(name)), "Deployment")["spec"]
        volumes = deployment["template"]["spec"]["volumes"]
        if any("persistentVolumeClaim" in volume for volume in volumes):
            assert (deployment["strategy"], deployment["replicas"]) == ({"type": "Recreate"}, 1), name


def test_the_planner_drains_by_itself_within_its_grace_period() -> None:
    for name in MODES:
        for maker, pod in pods(objects(mode(name))):
            for container in pod["spec"]["containers"]:
                assert "lifecycle" not in container, maker
