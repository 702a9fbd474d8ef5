"""A PostgreSQL server of the tests' own, on loopback, that can be killed."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from typing import Any

import psycopg
import pytest

# Nobody's power fails here: what a SIGKILL leaves is in the kernel's cache, synced or not.
_OPTIONS = {"fsync": "off", "max_connections": "60", "shared_buffers": "32MB"}
_START_SECONDS = 30


def binaries() -> str:
    """The folder of the server's programs, or a skip that says what is missing."""
    on_path = shutil.which("pg_ctl")
    if on_path and shutil.which("initdb"):
        return os.path.dirname(os.path.realpath(on_path))
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    if not found:
        pytest.skip("there is no PostgreSQL server here (on Debian: apt-get install postgresql)")
    return os.path.dirname(found[-1])


def run_as() -> dict[str, Any]:
    """Whom to run the server as: it refuses root."""
    return {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}


class PostgresServer:
    """A server with a database `metering`, from `start` to `remove`."""

    def __init__(self, *addresses: str) -> None:
        self._binaries = binaries()
        self._addresses = ",".join(("127.0.0.1", *addresses))
        # Short, for the socket; where the server's user may go.
        self._folder = tempfile.mkdtemp(prefix="meter-pg-", dir="/tmp")
        if run_as():
            shutil.chown(self._folder, "nobody", "nogroup")
        self._data = os.path.join(self._folder, "data")
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._run("initdb", "-D", self._data, "-A", "trust", "-U", "meter", "-E", "UTF8",
                  "--locale=C", "--no-sync")  # fmt: skip
        with open(os.path.join(self._data, "pg_hba.conf"), "a", encoding="ascii") as rules:
            rules.writelines(f"host all all {address}/24 trust\n" for address in addresses)
        self.start()
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE metering")

    def url(self, database: str = "metering", address: str = "127.0.0.1") -> str:
        """Where a database is."""
        return f"postgresql://meter:s3cret@{address}:{self.port}/{database}"

    def start(self) -> None:
        """Start it; return once it takes connections."""
        options = {"port": str(self.port), "listen_addresses": self._addresses,
                   "unix_socket_directories": self._folder, **_OPTIONS}  # fmt: skip
        with open(os.path.join(self._folder, "log"), "ab") as log:
            self._process = subprocess.Popen(
                [os.path.join(self._binaries, "postgres"), "-D", self._data,
                 *(f"--{name}={value}" for name, value in options.items())],
                stdout=log, stderr=log, cwd=self._folder, start_new_session=True, **run_as(),
            )  # fmt: skip
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def folder_for(self, name: str) -> str:
        """A folder that what runs as the server's user may read."""
        folder = os.path.join(self._folder, name)
        os.makedirs(folder, exist_ok=True)
        shutil.chown(folder, *(("nobody", "nogroup") if run_as() else (os.geteuid(), os.getegid())))
        return folder

    def kill(self) -> None:
        """Kill it and all its processes, as a crash of the machine would, save for the disk."""
        if self._process is not None:
            for pid in self._processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _processes(self) -> list[int]:
        assert self._process is not None
        children = f"/proc/{self._process.pid}/task/{self._process.pid}/children"
        # The parent first: it would start anew what it sees dying.
        with open(children, encoding="ascii") as listed:
            return [self._process.pid, *map(int, listed.read().split())]

    def remove(self) -> None:
        """End it and leave nothing behind."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def clear(self) -> None:
        """Leave no outbox in the database, and nobody connected to it."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(
                """
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()
                """
            )
            connection.execute("SET client_min_messages = warning")
            connection.execute("DROP SCHEMA IF EXISTS meter_lib CASCADE")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [os.path.join(self._binaries, program), *arguments],
            check=True, capture_output=True, cwd=self._folder, **run_as(),
        )  # fmt: skip
