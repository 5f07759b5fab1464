"""A real nginx, configured as ingress-nginx configures it for the rendered Ingress, or as a Gateway that is nginx does
for the rendered HTTPRoute: each annotation, each line of the controller's ConfigMap that NOTES.txt asks for, and each
field is the directive that it is documented to be."""

import os
import pwd
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rendering import Object
from running import loopback, status, until

ANNOTATION = "nginx.ingress.kubernetes.io/"

# What ingress-nginx does without being told, where it matters here.
CONTROLLER = {
    "underscores_in_headers": "off",
    "large_client_header_buffers": "4 8k",
    "proxy_next_upstream": "error timeout",
    "proxy_next_upstream_tries": "3",
    "proxy_connect_timeout": "5s",
    "proxy_read_timeout": "60s",
    "client_max_body_size": "1m",
    "proxy_http_version": "1.1",
    "proxy_request_buffering": "on",
}
# Keys of the controller's ConfigMap.
CONFIG_MAP = {
    "enable-underscores-in-headers": ("underscores_in_headers", {"true": "on", "false": "off"}),
    "large-client-header-buffers": ("large_client_header_buffers", {}),
}
# Annotations of an Ingress; times are seconds.
ANNOTATIONS = {
    "proxy-next-upstream": ("proxy_next_upstream", "{}"),
    "proxy-connect-timeout": ("proxy_connect_timeout", "{}s"),
    "proxy-read-timeout": ("proxy_read_timeout", "{}s"),
    "proxy-body-size": ("client_max_body_size", "{}"),
}


def ingress_server(ingress: Object, told: str) -> list[str]:
    """The server of an Ingress, where the controller's ConfigMap has what NOTES.txt says."""
    directives = dict(CONTROLLER)
    for key, value in re.findall(r'^ +([a-z-]+): "([^"]*)"$', told, re.MULTILINE):
        directive, words = CONFIG_MAP[key]
        directives[directive] = words.get(value, value)
    for annotation, value in ingress["metadata"].get("annotations", {}).items():
        directive, form = ANNOTATIONS[annotation.removeprefix(ANNOTATION)]
        directives[directive] = form.format(value)
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert (path["path"], path["pathType"]) == ("/", "Prefix")
    lines = [f"{name} {value};" for name, value in directives.items()]
    return [f"server_name {rule['host']};", *lines, "location / { proxy_pass http://planners; }"]


def route_server(route: Object) -> list[str]:
    """The server of an HTTPRoute. Gateways repeat no request that they were not told to."""
    spec = route["spec"]
    lines = [
        f"server_name {' '.join(spec['hostnames'])};",
        "underscores_in_headers on;",
        "large_client_header_buffers 4 16k;",
    ]
    lines += ["proxy_http_version 1.1;", "proxy_next_upstream off;"]
    for rule in spec["rules"]:
        (match,) = rule["matches"]
        exact = "= " if match["path"]["type"] == "Exact" else ""
        time = rule["timeouts"]["request"]
        where = f"location {exact}{match['path']['value']}"
        lines.append(f"{where} {{ proxy_read_timeout {time}; proxy_pass http://planners; }}")
    return lines


class Nginx:
    """Runs before planners."""

    def __init__(self, server: list[str], planners: list[str], directory: Path) -> None:
        self.address = f"{loopback()}:8080"
        self._server, self._directory = server, directory
        directory.mkdir()
        self._write(planners)
        command = ["nginx", "-e", "stderr", "-p", str(directory), "-c", str(directory / "nginx.conf")]
        environment = {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)

    def _write(self, planners: list[str]) -> None:
        upstream = " ".join(f"server {planner} max_fails=0;" for planner in planners)
        lines = [
            "daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn;",
            f"user {pwd.getpwuid(os.getuid()).pw_name};" if os.getuid() == 0 else "",
            "events { worker_connections 512; }",
            "http { access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;",
            "uwsgi_temp_path uwsgi; scgi_temp_path scgi;",
            f"upstream planners {{ {upstream} keepalive 64; keepalive_timeout 60s; }}",
            f"server {{ listen {self.address}; proxy_set_header Connection ''; proxy_set_header Host $host;",
            "proxy_set_header X-Forwarded-For $remote_addr;",
            *self._server,
            "} }",
        ]
        (self._directory / "nginx.conf").write_text("\n".join(lines))

    def _workers(self) -> set[str]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return set(children.read_text().split())

    def until_up(self) -> None:
        """Waits until it lets requests through."""

        def up() -> bool:
            assert self.process.poll() is None, "nginx has ended"
            return status(self.address, "/healthz") is not None

        until("nginx", up)

    def lead_to(self, planners: list[str]) -> None:
        """Leads to other planners from now on, as a controller has it do when endpoints come and go; returns when the
        last request that was led elsewhere has its answer."""
        before = self._workers()
        self._write(planners)
        self.process.send_signal(signal.SIGHUP)
        until("the end of nginx's workers of before", lambda: self._workers() and not self._workers() & before)


@contextmanager
def nginx(server: list[str], planners: list[str], directory: Path) -> Iterator[Nginx]:
    """Runs it, until the test is over."""
    balancer = Nginx(server, planners, directory)
    try:
        balancer.until_up()
        yield balancer
    finally:
        balancer.process.terminate()
        balancer.process.wait()
