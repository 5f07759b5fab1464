"""A switch in this namespace, and nodes behind shaped links, each in a namespace of its own.

Namespaces have no names: each is that of a process that sleeps, so nothing is left when the processes have ended.
"""

import json
import subprocess

BRIDGE = "switch"
PLANNER_HOST = "10.77.0.1"
PREFIX = 16
# What a link makes up for when its timer is late, 10 ms at 400 Mbit/s: that of a busy virtual machine is.
BURST_BYTES = 512 << 10
# What waits in front of a link before packets are dropped: 40 ms at 400 Mbit/s.
QUEUE_BYTES = 2 << 20


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def make_switch() -> None:
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{PLANNER_HOST}/{PREFIX}", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")


class Node:
    """A host with one link to the switch, of this rate each way."""

    def __init__(self, number: int, mbit: float):
        self.host = f"10.77.1.{number + 1}"
        self._outer = f"link{number}"
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        try:
            self._connect(mbit)
        except BaseException:
            self.close()
            raise

    def _connect(self, mbit: float) -> None:
        pid = str(self._holder.pid)
        # It is there before unshare has made its namespace, in which case the link would come back to us.
        while run("readlink", f"/proc/{pid}/ns/net") == run("readlink", "/proc/self/ns/net"):
            pass
        run("ip", "link", "add", self._outer, "type", "veth", "peer", "name", "eth0", "netns", pid)
        run("ip", "link", "set", self._outer, "master", BRIDGE, "up")
        for command in (
            ["link", "set", "lo", "up"],
            ["address", "add", f"{self.host}/{PREFIX}", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
        ):
            run(*self.inside("ip", *command))
        self.shape(down_mbit=mbit, up_mbit=mbit)

    def inside(self, *command: str) -> list[str]:
        """The command as one that runs on this node."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--", *command]

    def shape(self, *, down_mbit: float, up_mbit: float) -> None:
        run(*_tbf(self._outer, down_mbit))
        run(*self.inside(*_tbf("eth0", up_mbit)))

    def sent_bytes(self) -> int:
        """What has left it, with the heads of packets as the kernel counts them."""
        return json.loads(run(*self.inside("ip", "-json", "-s", "link", "show", "eth0")))[0]["stats64"]["tx"]["bytes"]

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


def _tbf(device: str, mbit: float) -> list[str]:
    shape = ["rate", f"{round(mbit * 1_000_000)}bit", "burst", str(BURST_BYTES), "limit", str(QUEUE_BYTES)]
    return ["tc", "qdisc", "replace", "dev", device, "root", "tbf", *shape]
