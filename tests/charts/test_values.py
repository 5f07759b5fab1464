"""Values: which are refused, and how; that all are described, in the schema, in values.yaml and in the README."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest

from checking import check
from rendering import CHART, Object, at, chart, defaults, merged, mode, notes, objects, only
from table import described, table

# A wrong value, and what the message has to name: its path, and what is right.
WRONG: list[tuple[Object, str, str]] = [
    (at("replica", 2), "replica", "not allowed"),
    (at("planner.leaseTTLSec", 60), "leaseTTLSec", "not allowed"),
    (at("image.tags", "1"), "tags", "not allowed"),
    (at("replicas", "two"), "/replicas", "want null or integer"),
    (at("replicas", -1), "/replicas", "minimum: got -1, want 0"),
    (at("database.type", "mysql"), "/database/type", "'sqlite', 'postgres'"),
    (at("database.sqlite.persistence.size", "big"), "/database/sqlite/persistence/size", "does not match"),
    (at("database.sqlite.persistence.accessModes", ["ReadOnlyMany"]), "/accessModes/0", "'ReadWriteOnce'"),
    (at("planner.port", 70000), "/planner/port", "maximum: got 70,000, want 65,535"),
    (at("planner.port", "http"), "/planner/port", "want integer"),
    (at("planner.leaseTtlSec", 0), "/planner/leaseTtlSec", "want 1"),
    (at("planner.leaseTtlSec", 1.5), "/planner/leaseTtlSec", "want null or integer"),
    (at("planner.allocPolicy", "random"), "/planner/allocPolicy", "'balanced', 'fifo', 'lru'"),
    (at("planner.logFormat", "xml"), "/planner/logFormat", "'text', 'json'"),
    (at("planner.databasePoolSize", 1), "/planner/databasePoolSize", "want 2"),
    (at("planner.databaseStatementTimeoutMs", 9000), "/planner/databaseStatementTimeoutMs", "want 3,500"),
    # What YAML makes of a yes without quotes.
    (at("planner.databasePooler", True), "/planner/databasePooler", "'auto', 'yes', 'no'"),
    (at("planner.databaseLockWaitSec", 3601), "/planner/databaseLockWaitSec", "want 3,600"),
    (at("planner.maxSeeds", 0), "/planner/maxSeeds", "want 1"),
    (at("planner.maxMemoryMib", "1Gi"), "/planner/maxMemoryMib", "want null or integer"),
    (at("planner.v1HoldSec", 10), "/planner/v1HoldSec", "want 9"),
    (at("planner.historySec", 2592001), "/planner/historySec", "want 2.592"),
    (at("planner.probeNetworks", ["10.0.0.1"]), "/planner/probeNetworks/0", "does not match"),
    (at("planner.probeNetworks", ["10.0.0.0/33"]), "/planner/probeNetworks/0", "does not match"),
    (at("planner.probeNetworks", ["fd00::/129"]), "/planner/probeNetworks/0", "does not match"),
    (at("planner.trustedProxies", "10.0.0.0/8"), "/planner/trustedProxies", "want array"),
    (at("planner.otlpEndpoint", "collector:4318"), "/planner/otlpEndpoint", "https?://"),
    (at("planner.noLivenessProbe", "yes"), "/planner/noLivenessProbe", "want boolean"),
    (at("image.repository", ""), "/image/repository", "does not match"),
    (at("image.repository", "registry.example/rfork:0.1.0"), "/image/repository", "does not match"),
    (at("image.repository", "rfork@sha256:abc"), "/image/repository", "does not match"),
    (at("image.digest", "sha256:abc"), "/image/digest", "does not match"),
    (at("image.pullPolicy", "Sometimes"), "/image/pullPolicy", "'IfNotPresent'"),
    (at("fullnameOverride", "Planner_1"), "/fullnameOverride", "does not match"),
    (at("service.type", "ExternalName"), "/service/type", "'ClusterIP'"),
    (at("service.ipFamilies", ["ipv6"]), "/service/ipFamilies/0", "'IPv4', 'IPv6'"),
    (at("service.internalTrafficPolicy", "Node"), "/service/internalTrafficPolicy", "'Cluster', 'Local'"),
    (at("ingress.hosts", ["https://planner"]), "/ingress/hosts/0", "does not match"),
    (at("httpRoute.timeouts.wait", "320"), "/httpRoute/timeouts/wait", "does not match"),
    (at("httpRoute.parentRefs", [{"namespace": "x"}]), "/httpRoute/parentRefs/0", "missing property 'name'"),
    (at("networkPolicy.from", [{}]), "/networkPolicy/from/0", "minProperties"),
    (at("networkPolicy.from", [{"podSelector": {"app": "vllm"}}]), "/networkPolicy/from/0/podSelector", "'app'"),
    (at("rules.capacity", [{"leases": 4}]), "/rules/capacity/0", "missing property 'key'"),
    (at("rules.capacity", [{"key": "*", "leases": 0}]), "/rules/capacity/0/leases", "want 1"),
    (at("rules.capacity", [{"key": "*", "points": 1, "leases": 1}]), "/rules/capacity/0", "'points'"),
    (at("rules.location", [{"network": "10.0.0.0/8"}]), "/rules/location/0", "minProperties"),
    (at("commonLabels", {"team": 7}), "/commonLabels/team", "want string"),
    (at("commonLabels", {"team": "A and B"}), "/commonLabels/team", "does not match"),
    (at("podLabels", {"app.kubernetes.io/name": "x"}), "/podLabels", "app.kubernetes.io~1name"),
    (at("extraArgs", "--drain-sec=1"), "/extraArgs", "want array"),
    (at("extraEnv", [{"value": "x"}]), "/extraEnv/0", "missing property 'name'"),
    (at("resources", {"cpu": 1}), "/resources", "'cpu'"),
    (at("tolerations", [{"effect": "Never"}]), "/tolerations/0/effect", "'NoSchedule'"),
    (at("antiAffinity", "maybe"), "/antiAffinity", "'soft', 'hard', 'none'"),
    (at("affinity", {"nodeAntiAffinity": {}}), "/affinity", "'nodeAntiAffinity'"),
    (at("topologySpreadConstraints", [{"maxSkew": 1}]), "/topologySpreadConstraints/0", "'topologyKey'"),
    (at("monitoring.serviceMonitor.interval", "often"), "/monitoring/serviceMonitor/interval", "does not match"),
    (at("podDisruptionBudget.maxUnavailable", "half"), "/podDisruptionBudget/maxUnavailable", "does not match"),
    (at("monitoring.prometheusRule.runbookUrl", "docs/operations.md"), "/prometheusRule/runbookUrl", "does not match"),
    # What is left empty, as a section of which all is commented out.
    (at("planner", None), "planner", "missing property"),
    (at("database.sqlite", None), "sqlite", "missing property"),
    (at("service.port", None), "port", "missing property"),
    (at("podAnnotations", None), "podAnnotations", "missing property"),
    # What is wrong only beside another value.
    (at("database.type", "postgres"), "database.postgres.secret.name", "name the Secret"),
    (at("database.postgres.secret.name", "x"), "database.postgres.secret.name", "set database.type to postgres"),
    (at("database.cloudNativePG.enabled", True), "database.cloudNativePG.enabled", "set database.type to postgres"),
    (
        merged(mode("postgres"), at("database.cloudNativePG.enabled", True)),
        "database.cloudNativePG.enabled",
        "set one of them",
    ),
    (at("autoscaling.enabled", True), "autoscaling.enabled", "a SQLite file serves one planner"),
    (at("identity.kubernetes.enabled", True), "identity.kubernetes.enabled", "name the Secret of identity.tokens"),
    (at("tls.certificate.enabled", True), "tls.certificate.issuerRef", "name cert-manager's Issuer"),
    (merged(mode("tls"), at("tls.secret.name", "planner-tls")), "tls.certificate.enabled", "set one of them"),
    (at("tls.clientCA.secret.name", "ca"), "tls.clientCA.secret.name", "speaks no TLS"),
    (at("tls.ca.secret.name", "ca"), "tls.ca.secret.name", "speaks no TLS"),
    (at("tls.certificate.duration", "90 days"), "/tls/certificate/duration", "does not match"),
    (merged(mode("autoscaling"), at("autoscaling.maxReplicas", 1)), "autoscaling.maxReplicas", "less than"),
    (
        merged(mode("postgres"), {"autoscaling": {"enabled": True, "targetCPUUtilizationPercentage": None}}),
        "autoscaling.targetCPUUtilizationPercentage",
        "autoscaling.requests.perSecond",
    ),
    (
        merged(mode("autoscaling"), at("resources.requests.cpu", None)),
        "autoscaling.targetCPUUtilizationPercentage",
        "resources.requests.cpu",
    ),
    (
        merged(mode("postgres"), at("podDisruptionBudget.maxUnavailable", None)),
        "podDisruptionBudget.maxUnavailable",
        "podDisruptionBudget.minAvailable",
    ),
    (at("planner.probePort", 1223), "planner.probePort", "choose another one"),
    (at("service.nodePort", 30123), "service.nodePort", "set service.type"),
    (at("service.externalTrafficPolicy", "Local"), "service.externalTrafficPolicy", "set service.type"),
    (
        {"service": {"type": "NodePort", "loadBalancerSourceRanges": ["10.0.0.0/8"]}},
        "service.loadBalancerSourceRanges",
        "set service.type to LoadBalancer",
    ),
    (at("service.loadBalancerClass", "internal"), "service.loadBalancerClass", "set service.type to LoadBalancer"),
    ({"service": {"type": "LoadBalancer", "clusterIP": "None"}}, "service.clusterIP", "not LoadBalancer"),
    ({"service": {"clusterIP": "None", "port": 80}}, "service.port", "set it to planner.port (1223)"),
    (at("service.ipFamilies", ["IPv4", "IPv6"]), "service.ipFamilyPolicy", "PreferDualStack"),
    (
        {"service": {"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "SingleStack"}},
        "service.ipFamilyPolicy",
        "PreferDualStack",
    ),
    (at("migration.job.enabled", True), "migration.job.enabled", "the planner itself migrates"),
    (merged(mode("cloudnativepg"), at("migration.job.enabled", True)), "migration.job.enabled", "not there before"),
    (
        {"monitoring": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}},
        "podMonitor.enabled",
        "twice",
    ),
    (
        at("monitoring.serviceMonitor", {"interval": "5s", "scrapeTimeout": "10s"}),
        "monitoring.serviceMonitor.scrapeTimeout",
        "more than interval (5s)",
    ),
    (at("monitoring.podMonitor.scrapeTimeout", "1m"), "monitoring.podMonitor.scrapeTimeout", "more than interval (15s)"),
    (at("database.postgres.tls.secretName", "x"), "database.postgres.tls.secretName", "set database.type to postgres"),
    (merged(mode("postgres"), at("rollingUpdate.maxSurge", "0%")), "rollingUpdate.maxSurge", "rollingUpdate.maxUnavailable"),
    (at("extraVolumes", [{"name": "data", "emptyDir": {}}]), "extraVolumes", "choose another name"),
    (at("terminationGracePeriodSeconds", 10), "terminationGracePeriodSeconds", "planner.drainSec (5)"),
    (at("extraArgs", ["--drain-sec=60"]), "extraArgs", "set planner.drainSec"),
    (at("extraArgs", ["--drain-sec", "60"]), "extraArgs", "set planner.drainSec"),
    (at("extraEnv", [{"name": "RFORK_CFG_DRAIN_SEC", "value": "60"}]), "extraEnv", "set planner.drainSec"),
    (at("extraArgs", ["--port=80"]), "--port=80", "set planner.port"),
    (at("extraArgs", ["--max-memory-mib", "100"]), "--max-memory-mib", "set planner.maxMemoryMib"),
    (at("extraArgs", ["--database-url=sqlite:///tmp/planner.db"]), "extraArgs", "set database"),
    (merged(mode("rules"), at("extraArgs", ["--settings-file=/etc/mine.toml"])), "extraArgs", "set rules"),
    (at("extraEnv", [{"name": "RFORK_CFG_LOG_FORMAT", "value": "text"}]), "extraEnv", "set planner.logFormat"),
    (at("extraEnv", [{"name": "RFORK_CFG_DATABASE_URL", "value": "postgres://db/x"}]), "extraEnv", "set database"),
    (at("planner.maxMemoryMib", 512), "planner.maxMemoryMib", "not below resources.limits.memory (512 MiB)"),
    (at("ingress.enabled", True), "ingress.hosts", "name the hosts"),
    (at("httpRoute.enabled", True), "httpRoute.parentRefs", "name the Gateways"),
    (at("monitoring.prometheusRule", {"enabled": True, "disabled": ["Nothing"]}), "prometheusRule.disabled", "Nothing"),
]


@pytest.mark.parametrize(
    ("values", "name", "why"), WRONG, ids=[f"{number}-{name}" for number, (_, name, _) in enumerate(WRONG)]
)
def test_a_wrong_value_is_refused_by_name(values: Object, name: str, why: str) -> None:
    with pytest.raises((helm_python.HelmValuesError, helm_python.HelmRenderError)) as refusal:
        objects(values)
    assert name in str(refusal.value) and why in str(refusal.value), refusal.value


def test_a_flag_that_the_chart_does_not_set_may_be_more() -> None:
    free = {
        "extraArgs": ["--max-requests=5000", "--settings-file=/etc/mine.toml"],
        "extraEnv": [{"name": "RFORK_CFG_LEASE_TTL_SEC", "value": "90"}, {"name": "OTEL_TRACES_SAMPLER", "value": "on"}],
    }
    (container,) = only(objects(free), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["args"][-2:] == free["extraArgs"] and container["env"] == free["extraEnv"]


def test_a_scrape_may_take_as_long_as_until_the_next_one() -> None:
    for interval, timeout in (("90s", "1m30s"), ("1m", "59s"), ("5s", None)):
        values = {"enabled": True, "interval": interval, "scrapeTimeout": timeout}
        (endpoint,) = only(objects(at("monitoring.serviceMonitor", values)), "ServiceMonitor")["spec"]["endpoints"]
        assert (endpoint["interval"], endpoint.get("scrapeTimeout")) == (interval, timeout)


@pytest.mark.parametrize("repository", ["rfork", "localhost:5000/rfork", "registry.example:443/a/b_c/rfork", "a/b"])
def test_an_image_is_where_registries_have_it(repository: str) -> None:
    found = objects({"image": {"repository": repository, "tag": "1"}})
    (container,) = only(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"{repository}:1"


def leaves(values: Object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each value that is no map, or an empty one, with its path."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{key}.")
        else:
            yield path + key, value


def emptied(values: Object, path: str = "") -> Iterator[str]:
    """The path of each value that there is, and of each section."""
    for key, value in values.items():
        if value is not None:
            yield path + key
        if isinstance(value, dict):
            yield from emptied(value, f"{path}{key}.")


# Between them they render every template.
ALL_OF_IT = [
    {},
    merged(
        mode("postgres-migration"),
        {
            "ingress": {"enabled": True, "hosts": ["planner.example"]},
            "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]},
            "autoscaling": {"enabled": True},
            "networkPolicy": {"enabled": True, "egress": {"database": {"to": [{"podSelector": {}}]}}},
            "monitoring": {kind: {"enabled": True} for kind in ("serviceMonitor", "prometheusRule", "dashboard")},
        },
    ),
    mode("pod-monitor"),
    mode("cloudnativepg"),
]


@pytest.mark.parametrize("path", sorted(emptied(defaults())))
def test_what_is_left_empty_is_refused_by_name_or_rendered_without(path: str) -> None:
    for values in ALL_OF_IT:
        try:
            found = objects(merged(values, at(path, None)))
        except (helm_python.HelmValuesError, helm_python.HelmRenderError) as refusal:
            told = str(refusal)
            # A template that fails by itself names what it tried to do.
            assert f"'{path.rpartition('.')[2]}'" in told or (path in told and "executing" not in told), refusal
            continue
        for one in found:
            check(one)


def test_every_value_is_described_in_values_yaml() -> None:
    told = [path for path, _, _ in described()]
    assert len(told) == len(set(told))
    for path, _ in leaves(defaults()):
        assert any(path == one or path.startswith(f"{one}.") for one in told), path


def test_schema_and_values_have_the_same_names() -> None:
    def compare(schema: Object, values: Object, path: str) -> None:
        properties = schema["properties"]
        assert set(values) == set(properties) - {"global"}, path
        for key, value in values.items():
            # What a value passes on to Kubernetes has more fields than its default.
            if isinstance(value, dict) and value and "properties" in properties[key] and not passed_on(path + key):
                compare(properties[key], value, f"{path}{key}.")

    def passed_on(path: str) -> bool:
        return path in ("podSecurityContext", "securityContext", "resources")

    compare(chart().schema or {}, defaults(), "")


def test_the_schema_takes_no_unknown_name_anywhere() -> None:
    # Objects of Kubernetes that are taken as they are, and checked by it.
    free = {"nodeAffinity", "podAffinity", "podAntiAffinity", "extraVolumes", "global"}

    def walk(schema: Any, name: str) -> None:
        if isinstance(schema, dict):
            if schema.get("type") == "object" and name not in free:
                assert "additionalProperties" in schema, name
                assert schema["additionalProperties"] is not True, name
            for key, part in schema.items():
                walk(part, name if key in ("items", "anyOf") else key)
        elif isinstance(schema, list):
            for part in schema:
                walk(part, name)

    walk(chart().schema, "")


def test_the_readme_has_all_values(keeps: Callable[[Path, str], None]) -> None:
    readme = CHART / "README.md"
    begin, end = "<!-- values -->\n", "<!-- end of values -->\n"
    before, rest = readme.read_text().split(begin)
    keeps(readme, before + begin + table() + end + rest.split(end)[1])


def test_notes_say_the_next_command_and_what_is_unsafe() -> None:
    told = notes({})
    assert "kubectl --namespace models rollout status deployment/demo-rfork-planner" in told
    assert "helm --namespace models test demo --logs" in told and "WARNING" not in told
    for open_to_all in (
        {"ingress": {"enabled": True, "hosts": ["planner.example"]}},
        {"httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]}},
        {"service": {"type": "LoadBalancer"}},
        {"service": {"type": "NodePort"}},
    ):
        assert "WARNING: the planner does not ask who asks (identity.tokens)" in notes(open_to_all), open_to_all
        known = merged(open_to_all, at("identity.tokens.secret.name", "planner-tokens"))
        assert "WARNING: the planner" not in notes(known), known
        for kind, told in (("permissive", "serves whoever it would refuse"), ("off", "does not ask who asks")):
            assert f"WARNING: the planner {told} (planner.authMode)" in notes(merged(known, at("planner.authMode", kind))), kind
    keyed = at("identity", {"tokens": {"secret": {"name": "planner-tokens"}}, "kubernetes": {"enabled": True}})
    assert "reach the cluster's API" in notes(merged(mode("network-policy"), keyed)) and "cluster's API" not in notes(keyed)
    assert "WARNING: replicas is 2, but a SQLite file serves one planner" in notes({"replicas": 2})
    assert "enable-underscores-in-headers" in notes(mode("ingress"))
    assert "WARNING" not in notes(mode("postgres")) and "WARNING" not in notes(mode("network-policy"))
    assert "networkPolicy.egress.database.to" in notes(merged(mode("postgres"), at("networkPolicy.enabled", True)))
    assert "networkPolicy.egress.database.to" not in notes(mode("network-policy"))
    traced = {"planner": {"otlpEndpoint": "http://collector:4318"}, "networkPolicy": {"enabled": True}}
    assert "networkPolicy.egress.collector.to" in notes(traced)
    told = merged(traced, at("networkPolicy.egress.collector.to", [{"podSelector": {}}]))
    assert "networkPolicy.egress.collector.to" not in notes(told)
    far = {"rules": {"location": [{"network": "10.0.0.0/8", "zone": "a"}]}}
    behind = merged(mode("gateway"), far)
    assert "planner.trustedProxies" in notes(behind) and "planner.trustedProxies" not in notes(far)
    assert "planner.trustedProxies" not in notes(merged(behind, at("planner.trustedProxies", ["10.9.0.0/16"])))
    assert "networkPolicy.enabled" in notes({}) and "networkPolicy.enabled" not in notes(mode("network-policy"))
    shut = {"networkPolicy": {"enabled": True}}
    for far, name in (("monitoring", "Prometheus"), ("ingress", "the controller of the Ingress"), ("gateway", "the Gateway")):
        behind = merged(mode(far), shut)
        assert f"From another namespace\n{name} cannot" in notes(behind), far
        known = at("networkPolicy.from", [{"namespaceSelector": {}}])
        assert "From another namespace" not in notes(merged(behind, known)), far
    assert "From another namespace" not in notes(shut)
    for least, number, drained in ((1, None, True), (2, None, False), (2, 3, True), ("60%", None, True)):
        budget = {"replicas": number, "podDisruptionBudget": {"minAvailable": least}}
        assert ("can be drained" not in notes(merged(mode("postgres"), budget))) is drained, (least, number)
    scaled = merged(mode("autoscaling"), at("podDisruptionBudget.minAvailable", 2))
    assert "can be drained" in notes(scaled)
