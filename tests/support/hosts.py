"""Two hosts on this machine: each has a network, a name and process numbers of its own.

They share the disk, as machines that mount one file system do, and reach each other by a pair of
virtual network cards.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDRESSES = {"first": "10.77.0.1", "second": "10.77.0.2"}
# The command becomes the child of process 1, as on a host: process 1 itself ignores most signals.
ENTER = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && "$@"; exit $?'


def explain_absence() -> str | None:
    if missing := next((name for name in ("ip", "unshare") if not shutil.which(name)), None):
        return f"{missing} is missing: apt-get install iproute2 util-linux"
    may = subprocess.run(["unshare", "--net", "--uts", "--pid", "--fork", "true"]).returncode == 0
    return None if may else "network namespaces need root"


class Host:
    def __init__(self, name: str, names: Path):
        self.name, self.address, self._names = name, ADDRESSES[name], names
        self.network = f"strop-{os.getpid()}-{name[0]}"
        self._started: list[subprocess.Popen[str]] = []

    def start(self, command: list[str], **popen) -> "subprocess.Popen[str]":
        """If the process that this returns is killed, all that it started is too."""
        apart = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        enter = ["sh", "-c", ENTER, self.name, str(self._names)]
        network = ["ip", "netns", "exec", self.network]
        self._started.append(
            subprocess.Popen([*network, *apart, *enter, *command], text=True, **popen)
        )
        return self._started[-1]

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
        subprocess.run(["ip", "netns", "delete", self.network], capture_output=True)


@contextmanager
def run_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    names = folder / "hosts"
    lines = [f"{address} {name}" for name, address in ADDRESSES.items()]
    names.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
    hosts = Host("first", names), Host("second", names)
    try:
        for host in hosts:
            _ip("netns", "add", host.network)
        cards = [f"strop{os.getpid()}{host.name[0]}"[-15:] for host in hosts]
        _ip("link", "add", cards[0], "type", "veth", "peer", "name", cards[1])
        for host, card in zip(hosts, cards, strict=True):
            _ip("link", "set", card, "netns", host.network)
            for words in (
                ["address", "add", f"{host.address}/24", "dev", card],
                ["link", "set", card, "up"],
                ["link", "set", "lo", "up"],
            ):
                _ip("-n", host.network, *words)
        yield hosts
    finally:
        for host in hosts:
            host.end()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
