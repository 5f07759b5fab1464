"""Runs what is rendered as processes here: the container's command, arguments, environment and files, as they stand in
the manifest. Three things differ from a cluster: a path in the container is one below a directory of the test's, an
address of loopback stands for the pod's, and a Service's name for what it leads to. In a network of its own a container
listens where the manifest says."""

import glob
import http.client
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from rendering import Object, of_kind, only

Result = TypeVar("Result")

# A hang ends here; nothing is judged by it.
HANG_SEC = 120


def until(what: str, look: Callable[[], Result | None]) -> Result:
    """Looks again and again until something is there."""
    begun = time.monotonic()
    while time.monotonic() - begun < HANG_SEC:
        found = look()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")


_addresses = count(2)


def loopback() -> str:
    """An address of this process's own, so that every port of it is free."""
    number = next(_addresses)
    return f"127.{1 + os.getpid() // 200 % 250}.{1 + os.getpid() % 200}.{number % 250}"


class Answer:
    """What a server said."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = dict(answer.getheaders())
        self.body = answer.read()

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


def ask(address: str, method: str, path: str, headers: dict[str, str] | None = None, body: Any = None) -> Answer:
    """One request, on a connection of its own."""
    host, port = address.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=HANG_SEC)
    more = {"Content-Type": "application/json"} if body is not None else {}
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, more | (headers or {}))
        return Answer(connection.getresponse())
    finally:
        connection.close()


def status(address: str, path: str) -> int | None:
    """The status of a GET, or nothing while nobody answers."""
    try:
        return ask(address, "GET", path).status
    except OSError:
        return None


SEED = {"SEED_KEY": "k", "SEED_IP": "10.0.0.7", "SEED_PORT": "8000", "SEED_RANK": "0", "SEED_REFCNT": "0"}


def lease(granted: Answer) -> dict[str, str]:
    """The headers that name a granted lease."""
    told = {name.upper(): value for name, value in granted.headers.items()}
    return {name: told[name] for name in ("SEED_IP", "SEED_PORT", "SEED_RANK", "USER_ID")}


def lonely() -> bool:
    """Whether this user may make networks."""
    return subprocess.run(["unshare", "--net", "true"], stderr=subprocess.DEVNULL).returncode == 0


class Network:
    """A network of a test's own: a loopback with these addresses, and nothing else. Only root may make one."""

    def __init__(self, addresses: list[str]) -> None:
        setup = "ip link set lo up && ip address flush dev lo && "
        setup += " && ".join(f"ip address add {address} dev lo" for address in addresses)
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", f"{setup} && echo up && exec sleep infinity"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        )
        assert self._holder.stdout and self._holder.stdout.readline() == b"up\n", "a network needs ip of iproute2"

    def enter(self) -> list[str]:
        """What a command begins with to be run in it."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net"]

    def remove(self) -> None:
        """Ends it."""
        self._holder.kill()
        self._holder.communicate()


@contextmanager
def network(addresses: list[str]) -> Iterator[Network]:
    """A network, which is gone afterwards."""
    made = Network(addresses)
    try:
        yield made
    finally:
        made.remove()


class Container:
    """A container of a pod, as a process. It is ended when the test is over."""

    def __init__(
        self,
        found: list[Object],
        pod: Object,
        root: Path,
        secrets: dict[str, dict[str, str]],
        address: str,
        services: dict[str, str],
        network: Network | None,
        program: str | None,
    ) -> None:
        (container,) = pod["spec"]["containers"]
        self.pod, self.container, self.root = pod, container, root
        self.address, self._services, self._network = address, services, network
        root.mkdir(parents=True, exist_ok=True)
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container.get("volumeMounts", [])}
        for path, volume in mounts.items():
            fill(root / path.lstrip("/"), volume, found, secrets)
        args = [self._here(argument, mounts) for argument in container["args"]]
        assert "command" not in container, "the image has an entry point"
        # Nothing but what the manifest says, and what the kubelet adds to every container.
        environment = {"PATH": "/usr/bin:/bin", "HOSTNAME": "demo-0", "KUBERNETES_SERVICE_HOST": "10.96.0.1"}
        for source in container.get("envFrom", []):
            environment |= taken_from(source, found, secrets)
        environment |= {entry["name"]: self._value(entry) for entry in container.get("env", [])}
        self.log = root / "log"
        with self.log.open("wb") as log:
            command = [*(network.enter() if network else []), program or os.environ["RFORK_BIN"], *args]
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=root
            )

    def _here(self, argument: str, mounts: dict[str, Object]) -> str:
        for path in mounts:
            argument = argument.replace(path + "/", f"{self.root}{path}/")
        for name, address in self._services.items():
            argument = argument.replace(f"//{name}", f"//{address}")
        if self._network:
            return argument
        # The addresses that stand for all of the pod's.
        return re.sub(r"^--host=(0\.0\.0\.0|::)$", f"--host={self.address}", argument)

    def _value(self, entry: Object) -> str:
        fields = {
            "spec.nodeName": "node-1",
            "status.podIP": self.address,
            "metadata.name": "demo-0",
            "metadata.uid": "0f1e",
        }
        return entry["value"] if "value" in entry else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]

    def port(self, name: str) -> str:
        """Where a port of that name is."""
        (number,) = [port["containerPort"] for port in self.container["ports"] if port["name"] == name]
        return f"{self.address}:{number}"

    def probe(self, kind: str) -> int | None:
        """What a probe of the kubelet gets."""
        get = self.container[kind]["httpGet"]
        return status(self.port(get["port"]), get["path"])

    def until_ready(self) -> str:
        """Waits until both probes succeed; says where the planner is."""

        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.probe("livenessProbe") == 200 and self.probe("readinessProbe") == 200

        until("a planner that is ready", ready)
        return self.port("http")

    def terminate(self) -> None:
        """What the kubelet does first."""
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> int:
        """The exit code, which comes before the kubelet would send SIGKILL."""
        return self.process.wait(timeout=self.pod["spec"]["terminationGracePeriodSeconds"])


def taken_from(source: Object, found: list[Object], secrets: dict[str, dict[str, str]]) -> dict[str, str]:
    """The variables of an `envFrom`: those of a Secret, or of a ConfigMap of the release or of somebody else's."""
    told = source.get("secretRef") or source["configMapRef"]
    made = secrets | {one["metadata"]["name"]: one["data"] for one in of_kind(found, "ConfigMap")}
    assert told["name"] in made or told.get("optional"), f"{told['name']} is not there"
    return {source.get("prefix", "") + name: value for name, value in made.get(told["name"], {}).items()}


def fill(directory: Path, volume: Object, found: list[Object], secrets: dict[str, dict[str, str]]) -> None:
    """Makes what is mounted."""
    directory.mkdir(parents=True, exist_ok=True)
    if "secret" in volume:
        content = secrets[volume["secret"]["secretName"]]
        items = volume["secret"].get("items") or [{"key": key, "path": key} for key in content]
        for item in items:
            (directory / item["path"]).write_text(content[item["key"]])
    elif "configMap" in volume:
        made = {one["metadata"]["name"]: one["data"] for one in of_kind(found, "ConfigMap")}
        for name, text in made.get(volume["configMap"]["name"], {}).items():
            (directory / name).write_text(text)
    else:
        assert volume.keys() & {"persistentVolumeClaim", "emptyDir"}


@contextmanager
def running(
    found: list[Object],
    root: Path,
    kind: str = "Deployment",
    secrets: dict[str, dict[str, str]] | None = None,
    address: str | None = None,
    services: dict[str, str] | None = None,
    network: Network | None = None,
    program: str | None = None,
) -> Iterator[Container]:
    """Runs the only object of a kind, which is a pod or makes some, at this address or at one of its own, or in a
    network. Services have names with ports, and lead to an address and port each. The image has this program, or the
    one that is tested."""
    maker = only(found, kind)
    pod = maker if kind == "Pod" else maker["spec"]["template"]
    container = Container(found, pod, root, secrets or {}, address or loopback(), services or {}, network, program)
    try:
        yield container
    finally:
        container.process.kill()
        container.process.wait()


class Postgres:
    """A cluster of the test's own, on one address of loopback."""

    def __init__(self) -> None:
        binaries = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
        self.binaries = Path(binaries[-1]) if binaries else Path("/usr/bin")
        # Not in a directory of pytest's, where only this user comes.
        self._home, self._address = Path(tempfile.mkdtemp(prefix="rfork-test-pg-")), loopback()
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:
            # Postgres refuses to run as root.
            nobody = pwd.getpwnam("nobody")
            os.chown(self._home, nobody.pw_uid, nobody.pw_gid)
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._run("initdb", "--no-sync", "--auth=trust", "--username=root", "--encoding=UTF8", "--locale=C")
        self.start()

    def _run(self, program: str, *args: str) -> None:
        command = [self.binaries / program, "-D", self._home / "data", *args]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, cwd="/", **self._user)

    def start(self) -> None:
        """Starts it, and waits until it serves."""
        options = f"-c listen_addresses={self._address} -c unix_socket_directories={self._home} -c fsync=off"
        self._run("pg_ctl", "start", "-w", "-o", options, "-l", str(self._home / "log"))

    def stop(self) -> None:
        """Ends it at once."""
        self._run("pg_ctl", "stop", "-m", "immediate", "-w")

    def runs(self) -> bool:
        """Whether it was started and not stopped."""
        return (self._home / "data" / "postmaster.pid").exists()

    def remove(self) -> None:
        """Ends it if it runs, and deletes its files."""
        if self.runs():
            self.stop()
        shutil.rmtree(self._home)

    def url(self, role: str, database: str) -> str:
        """The URL of a database."""
        return f"postgres://{role}@{self._address}:5432/{database}"

    def sql(self, text: str, database: str = "postgres") -> None:
        """Runs statements as the owner of the cluster."""
        psql = [self.binaries / "psql", "-q", "-v", "ON_ERROR_STOP=1", self.url("root", database)]
        subprocess.run(psql, input=text, text=True, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A cluster, which is gone afterwards."""
    cluster = Postgres()
    try:
        yield cluster
    finally:
        cluster.remove()
