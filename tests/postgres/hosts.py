"""Hosts of a network of their own: namespaces that are connected with each other and nothing else.

Nothing leaves the machine: there is no route out, and no address outside of the namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["HUB", "Network", "require_namespaces"]

HUB = "10.79.0.1"
_NAME = re.compile(r"meter-(\d+)-\w+")
_IP = shutil.which("ip") or "ip"
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_libc = ctypes.CDLL(None, use_errno=True)


class Network:
    """A hub at the address `HUB`, and hosts that are wired to it, from `made` to `remove`."""

    def __init__(self, *hosts: str) -> None:
        _remove_stale()
        self._names = {host: f"meter-{os.getpid()}-{host}" for host in ("hub", *hosts)}
        try:
            for name in self._names.values():
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "dev", "lo", "up")
            hub = self._names["hub"]
            _ip("-n", hub, "link", "add", "name", "bridge", "type", "bridge")
            _ip("-n", hub, "addr", "add", f"{HUB}/24", "dev", "bridge")
            _ip("-n", hub, "link", "set", "dev", "bridge", "up")
            for number, host in enumerate(hosts, start=11):
                name = self._names[host]
                _ip("-n", hub, "link", "add", "name", host, "type", "veth",
                    "peer", "name", "wire", "netns", name)  # fmt: skip
                _ip("-n", hub, "link", "set", "dev", host, "master", "bridge", "up")
                _ip("-n", name, "addr", "add", f"10.79.0.{number}/24", "dev", "wire")
                _ip("-n", name, "link", "set", "dev", "wire", "up")
        except BaseException:
            self.remove()
            raise

    def cut_off(self, host: str) -> None:
        """Pull the wire of a host: not a word comes or goes, and nobody is told."""
        _ip("-n", self._names["hub"], "link", "set", "dev", host, "down")

    def connect(self, host: str) -> None:
        """Put it in again."""
        _ip("-n", self._names["hub"], "link", "set", "dev", host, "up")

    @contextlib.contextmanager
    def inside(self, host: str) -> Generator[None]:
        """Be on a host: what this thread starts or connects to meanwhile is there, and stays."""
        with open("/proc/thread-self/ns/net", "rb") as outside:
            with open(f"/run/netns/{self._names[host]}", "rb") as there:
                _enter(there.fileno())
            try:
                yield
            finally:
                _enter(outside.fileno())

    def remove(self) -> None:
        """Leave nothing of it behind."""
        for name in self._names.values():
            if os.path.exists(f"/run/netns/{name}"):
                _ip("netns", "delete", name)


def require_namespaces() -> None:
    """Skip the test with the reason where no network can be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces take root and ip (on Debian: apt-get install iproute2)")
    try:
        Network("a").remove()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")


def _remove_stale() -> None:
    """Remove the networks of tests that were killed, with what still runs in them."""
    for line in _ip("netns", "list").splitlines():
        match = _NAME.match(line)
        if match is not None and not os.path.exists(f"/proc/{match[1]}"):
            for pid in _ip("netns", "pids", match[0]).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _ip("netns", "delete", match[0])


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _NEW_NETWORK):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _ip(*arguments: str) -> str:
    return subprocess.run([_IP, *arguments], check=True, capture_output=True, text=True).stdout
