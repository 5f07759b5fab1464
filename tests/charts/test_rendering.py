"""What is rendered in each mode is what it was, and what Kubernetes takes, with each switch on and off."""

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import helm_python
import pytest
from helm_python.chart import lint

from checking import check
from rendering import CHART, HERE, MODES, Object, at, defaults, merged, mode, objects, of_kind, only, pods, templates

POSTGRES = mode("postgres")


@pytest.mark.parametrize("name", MODES)
def test_a_mode_renders_as_it_did(name: str, keeps: Callable[[Path, str], None]) -> None:
    rendered = templates(mode(name))
    text = "".join(f"# {path}\n{text.strip()}\n---\n" for path, text in rendered.items())
    # Long, and a file of its own.
    dashboard = textwrap.indent((CHART / "files" / "dashboard.json").read_text().strip(), "    ")
    text = text.replace(dashboard, "    (files/dashboard.json)")
    keeps(HERE / "snapshots" / f"{name}.yaml", text)


def test_no_snapshot_is_left_of_a_mode_that_is_gone() -> None:
    assert sorted(path.stem for path in (HERE / "snapshots").iterdir()) == MODES


@pytest.mark.parametrize("name", MODES)
def test_kubernetes_takes_each_mode(name: str) -> None:
    for found in objects(mode(name)):
        check(found)


@pytest.mark.parametrize("name", MODES)
def test_helm_s_own_linter_finds_nothing(name: str) -> None:
    report = lint(CHART, mode(name), strict=True)
    assert not report["errors"]
    assert [found["error"] for found in report["messages"]] == ["icon is recommended"]


def switches(values: Object, path: str = "") -> Iterator[str]:
    """The path of each value that is true or false."""
    for key, value in values.items():
        if isinstance(value, bool):
            yield path + key
        elif isinstance(value, dict):
            yield from switches(value, f"{path}{key}.")


# What a switch needs beside it.
NEEDS = {
    "database.cloudNativePG.enabled": {"database": {"postgres": {"secret": {"name": ""}}}},
    "ingress.enabled": {"ingress": {"hosts": ["planner.example"]}},
    "httpRoute.enabled": {"httpRoute": {"parentRefs": [{"name": "gateway"}]}},
    "tls.certificate.enabled": {"tls": {"certificate": {"issuerRef": {"name": "issuer"}}}},
    "identity.kubernetes.enabled": {"identity": {"tokens": {"secret": {"name": "planner-tokens"}}}},
}


@pytest.mark.parametrize("path", sorted(switches(defaults())))
def test_kubernetes_takes_each_switch_both_ways(path: str) -> None:
    value = defaults()
    for key in path.split("."):
        value = value[key]
    for base in ({}, POSTGRES):
        flipped = merged(merged(base, NEEDS.get(path, {})), at(path, not value))
        try:
            found = objects(flipped)
        except helm_python.HelmRenderError as refusal:
            # For Postgres alone.
            assert base == {} and "database.type" in str(refusal)
            continue
        for one_object in found:
            check(one_object)


@pytest.mark.parametrize("name", MODES)
def test_an_upgrade_renders_the_same(name: str) -> None:
    assert objects(mode(name), is_upgrade=True, revision=2) == objects(mode(name), is_install=True)


def test_by_default_it_is_a_planner_on_a_volume() -> None:
    found = objects({})
    assert sorted(one["kind"] for one in found) == [
        "Deployment",
        "PersistentVolumeClaim",
        "Pod",
        "Service",
        "ServiceAccount",
    ]
    spec = only(found, "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert only(found, "PersistentVolumeClaim")["spec"]["resources"]["requests"] == {"storage": "1Gi"}
    (container,) = spec["template"]["spec"]["containers"]
    assert container["args"] == [
        "planner",
        "--host=0.0.0.0",
        "--port=1223",
        "--log-format=json",
        "--max-memory-mib=192",
        "--database-url=sqlite:///var/lib/rfork/planner.db",
    ]
    assert "command" not in container and "env" not in container and "lifecycle" not in container


def test_each_setting_becomes_its_flag() -> None:
    (container,) = only(objects(mode("everything")), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["args"] == [
        "planner",
        "--host=::",
        "--port=8080",
        "--alloc-policy=lru",
        "--auth-mode=permissive",
        "--database-lock-wait-sec=0",
        "--database-pool-size=16",
        "--database-pooler=yes",
        "--database-statement-timeout-ms=3000",
        "--default-resource-points=2",
        "--drain-sec=15",
        "--fork-while-loading=on",
        "--heartbeat-interval-sec=20",
        "--heartbeat-sweep-sec=10",
        "--heartbeat-ttl-sec=90",
        "--history-sec=0",
        "--idle-timeout-sec=90",
        "--lease-ttl-sec=300",
        "--log=info,rfork_planner=debug",
        "--log-format=text",
        "--max-chain-depth=64",
        "--max-connections=1000000",
        "--max-database-mib=8192",
        "--max-memory-mib=1500",
        "--max-remembered-requests=3000000",
        "--max-seeds=2000000",
        "--max-waiting=20000",
        "--no-liveness-probe",
        "--otlp-endpoint=http://collector:4318",
        "--probe-networks=10.0.0.0/8",
        "--probe-port=8081",
        "--seed-owner=address",
        "--trusted-proxies=10.0.0.0/8,fd00::/8",
        "--v1-hold-sec=5",
        "--database-url-file=/etc/rfork/database/url",
        "--settings-file=/etc/rfork/settings/settings.toml",
        "--max-requests=5000",
    ]


def test_other_rules_roll_the_pods_and_the_same_do_not() -> None:
    def checksum(values: Object) -> str:
        metadata = only(objects(values), "Deployment")["spec"]["template"]["metadata"]
        return metadata.get("annotations", {}).get("checksum/settings", "")

    rules = mode("rules")
    more = merged(rules, {"rules": {"hostCapacity": []}})
    assert len({checksum({}), checksum(rules), checksum(more)}) == 3
    assert checksum(rules) == checksum(merged(rules, {"podAnnotations": {"other": "thing"}}))


def test_the_grace_period_is_the_drain_and_what_comes_after_it() -> None:
    def grace(values: Object) -> int:
        return only(objects(values), "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]

    assert grace({}) == 25
    assert grace({"planner": {"drainSec": 0}}) == 20
    assert grace({"planner": {"drainSec": 100}}) == 120
    assert grace({"planner": {"drainSec": 10}, "terminationGracePeriodSeconds": 300}) == 300


def test_a_planner_on_sqlite_refuses_before_its_memory_ends() -> None:
    def bound(values: Object) -> list[str]:
        (container,) = only(objects(values), "Deployment")["spec"]["template"]["spec"]["containers"]
        return [argument for argument in container["args"] if argument.startswith("--max-memory-mib=")]

    def limited(memory: object) -> Object:
        return {"resources": {"limits": {"memory": memory}}}

    for memory, mib in (
        ("512Mi", 192),
        ("2Gi", 768),
        ("0.5Gi", 192),
        (536870912, 192),
        ("1e9", 357),
        ("1G", 357),
        ("524288Ki", 192),
        ("536870912000m", 192),
        ("1Mi", 1),
        ("4Ei", 1048576),
    ):
        assert bound(limited(memory)) == [f"--max-memory-mib={mib}"], memory
    assert bound({"planner": {"maxMemoryMib": 400}}) == ["--max-memory-mib=400"]
    # Nobody kills it: its own default holds.
    assert bound({"resources": {"limits": {"memory": None}}}) == bound({"resources": {"limits": None}}) == []
    assert bound(POSTGRES) == []


def test_planners_listen_on_the_families_of_their_service() -> None:
    def host(service: Object) -> str:
        (container,) = only(objects({"service": service}), "Deployment")["spec"]["template"]["spec"]["containers"]
        return container["args"][1]

    assert host({}) == host({"ipFamilies": ["IPv4"]}) == host({"ipFamilyPolicy": "SingleStack"}) == "--host=0.0.0.0"
    for service in ({"ipFamilies": ["IPv6"]}, {"ipFamilyPolicy": "PreferDualStack"}):
        assert host(service) == "--host=::"


def test_an_autoscaler_and_a_number_of_replicas_do_not_fight() -> None:
    assert "replicas" not in only(objects(mode("autoscaling")), "Deployment")["spec"]
    assert only(objects(merged(POSTGRES, {"replicas": 0})), "Deployment")["spec"]["replicas"] == 0


def test_migrations_run_before_planners_and_with_their_own_secret() -> None:
    found = objects(mode("postgres-migration"))
    job = only(found, "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"][:3] == ["planner", "migrate", "--database-url-file=/etc/rfork/database/url"]
    secrets = [volume["secret"]["secretName"] for volume in pod["volumes"]]
    assert secrets == ["planner-owner", "database-ca"]
    assert pod["serviceAccountName"] == "planner"
    # What the release makes is not there yet.
    made = merged(mode("postgres-migration"), {"serviceAccount": {"create": True}})
    assert "serviceAccountName" not in only(objects(made), "Job")["spec"]["template"]["spec"]
    same = merged(mode("postgres-migration"), {"migration": {"job": {"secret": {"name": ""}}}})
    volumes = only(objects(same), "Job")["spec"]["template"]["spec"]["volumes"]
    assert volumes[0]["secret"]["secretName"] == "planner-pooler"


def test_every_pod_has_what_keeps_a_sidecar_away() -> None:
    keep_away = {"sidecar.istio.io/inject": "false"}
    more = {
        "podAnnotations": keep_away,
        "podLabels": {"tier": "control"},
        "commonLabels": {"team": "inference"},
        "extraEnv": [{"name": "HTTPS_PROXY", "value": ""}],
    }
    found = objects(merged(mode("postgres-migration"), more))
    assert {maker.partition("/")[0] for maker, _ in pods(found)} == {"Deployment", "Job", "Pod"}
    for maker, pod in pods(found):
        assert keep_away.items() <= pod["metadata"]["annotations"].items(), maker
        assert {"tier": "control", "team": "inference"}.items() <= pod["metadata"]["labels"].items(), maker
    for kind in ("Deployment", "Job"):
        (container,) = only(found, kind)["spec"]["template"]["spec"]["containers"]
        assert container["env"] == more["extraEnv"]


def test_planners_and_their_migration_have_what_the_url_of_the_database_may_name() -> None:
    more = {
        "extraEnvFrom": [{"configMapRef": {"name": "certificates"}}],
        "extraVolumes": [{"name": "certificates", "configMap": {"name": "certificates"}}],
        "extraVolumeMounts": [{"name": "certificates", "mountPath": "/etc/certificates", "readOnly": True}],
    }
    found = objects(merged(mode("postgres-migration"), more))
    for kind in ("Deployment", "Job"):
        pod = only(found, kind)["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["envFrom"] == more["extraEnvFrom"], kind
        assert more["extraVolumes"][0] in pod["volumes"] and more["extraVolumeMounts"][0] in container["volumeMounts"]


def test_labels_and_annotations_of_an_object_win_and_stand_once() -> None:
    own = {"labels": {"team": "own"}}
    values = {
        "commonLabels": {"team": "all"},
        "podLabels": {"team": "own"},
        "podAnnotations": {"checksum/settings": "none"},
        "service": own,
        "httpRoute": merged(NEEDS["httpRoute.enabled"]["httpRoute"], own),
        "monitoring": {
            kind: merged(own, {"enabled": True}) for kind in ("serviceMonitor", "prometheusRule", "dashboard")
        },
        "migration": {"job": {"annotations": {"helm.sh/hook": "pre-upgrade"}}},
    }
    values["httpRoute"]["enabled"] = True
    base = mode("postgres-migration")
    # The loader of what is rendered refuses a key that stands twice.
    found = objects(merged(merged(base, mode("rules")), values))
    found += objects(
        merged(base, {"commonLabels": {"team": "all"}, **at("monitoring.podMonitor", own | {"enabled": True})})
    )
    for kind in ("HTTPRoute", "ServiceMonitor", "PodMonitor", "PrometheusRule"):
        assert only(found, kind)["metadata"]["labels"]["team"] == "own"
    assert of_kind(found, "Service")[0]["metadata"]["labels"]["team"] == "own"
    deployment = of_kind(found, "Deployment")[0]
    assert deployment["metadata"]["labels"]["team"] == "all"
    template = deployment["spec"]["template"]["metadata"]
    # A checksum of one's own would keep the pods from rolling.
    assert template["labels"]["team"] == "own" and len(template["annotations"]["checksum/settings"]) == 64
    assert of_kind(found, "Job")[0]["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"


def test_a_budget_never_keeps_the_only_planner_on_its_node() -> None:
    assert not of_kind(objects({}), "PodDisruptionBudget")
    assert only(objects(POSTGRES), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_seeds_may_be_asked_where_the_network_policy_lets_planners_go() -> None:
    def networks(values: Object) -> list[str]:
        rules = only(objects(values), "NetworkPolicy")["spec"]["egress"]
        return [to["ipBlock"]["cidr"] for rule in rules for to in rule["to"] if "ipBlock" in to]

    policy = {"networkPolicy": {"enabled": True}}
    assert networks(policy) == ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]
    assert networks(mode("network-policy")) == ["10.0.0.0/8", "fc00::/7"]
    assert networks(merged(policy, {"planner": {"noLivenessProbe": True}})) == []


def test_whoever_comes_to_a_planner_with_tls_speaks_it() -> None:
    found = objects(mode("tls"))
    certificate = only(found, "Certificate")["spec"]
    (volume,) = [one for one in only(found, "Deployment")["spec"]["template"]["spec"]["volumes"] if one["name"] == "certificate"]
    assert volume["secret"]["secretName"] == certificate["secretName"] == "demo-rfork-planner-tls"
    assert certificate["dnsNames"][-2:] == ["demo-rfork-planner.models.svc", "planner.example"]
    (endpoint,) = only(found, "ServiceMonitor")["spec"]["endpoints"]
    assert (endpoint["scheme"], endpoint["tlsConfig"]["serverName"]) == ("https", certificate["dnsNames"][2])
    (test,) = only(found, "Pod")["spec"]["containers"]
    assert "--planner=https://demo-rfork-planner.models.svc:1223" in test["args"]
    assert "--ca-file=/etc/rfork/ca/ca.crt" in test["args"] and "--token-over-http" not in test["args"]
    annotations = only(found, "Ingress")["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/backend-protocol"] == "HTTPS"
    (port,) = [one for one in of_kind(found, "Service")[0]["spec"]["ports"]]
    assert port["appProtocol"] == "https"

    def schemes(values: Object) -> set[str]:
        (container,) = only(objects(values), "Deployment")["spec"]["template"]["spec"]["containers"]
        probes = [container[kind]["httpGet"] for kind in ("livenessProbe", "readinessProbe")]
        (endpoint,) = only(objects(values), "PodMonitor")["spec"]["podMetricsEndpoints"]
        return {probe.get("scheme", "HTTP") for probe in probes} | {endpoint.get("scheme", "http").upper()}

    of_secret = {"tls": {"secret": {"name": "planner-tls"}}, "monitoring": {"podMonitor": {"enabled": True}}}
    assert schemes(of_secret) == {"HTTPS"}
    assert schemes(merged(of_secret, {"planner": {"probePort": 1224}})) == {"HTTP"}, "that port stays plain"


def test_the_database_of_the_operator_is_the_planners() -> None:
    found = objects(mode("cloudnativepg"))
    cluster = only(found, "Cluster")["metadata"]["name"]
    (volume,) = only(found, "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert volume["secret"]["secretName"] == f"{cluster}-app"
    assert volume["secret"]["items"] == [{"key": "uri", "path": "url"}]
