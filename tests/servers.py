"""A real PostgreSQL and a real Redis, on loopback and in temporary folders, for as long as a block runs."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

_START_S = 60.0
_POSTGRESQL = "usr/lib/postgresql/*/bin/postgres"  # where Debian has it
_SETTINGS = {"fsync": "off", "max_connections": "300", "unix_socket_directories": "", "listen_addresses": "127.0.0.1"}


def free_port() -> int:
    """Give a TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Say whether somebody listens on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def await_port(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the process listens; fails with its log where it ends instead."""
    deadline = time.monotonic() + _START_S
    while not answers(port):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@dataclass
class Postgresql:
    """A PostgreSQL server that can be restarted."""

    folder: Path
    programs: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it, and wait until it lets us in."""
        settings = [f"-c{name}={value}" for name, value in _SETTINGS.items()]
        command = [self.programs / "postgres", "-D", self.folder / "data", "-p", str(self.port), *settings]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **_as_nobody())
        await_port(self.port, self.process, self.folder / "log")
        deadline = time.monotonic() + _START_S
        ready = [self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode != 0:
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it as its service manager does before a restart: connections are cut."""
        if self.process is not None:
            self.process.send_signal(2)
            self.process.wait(timeout=_START_S)
            self.process = None

    def url(self, name: str) -> str:
        """Give the URL of a database on it."""
        return f"postgresql://gpujobs@127.0.0.1:{self.port}/{name}"

    def new_database(self) -> str:
        """Make an empty database; give its URL."""
        name = f"t{uuid.uuid4().hex}"
        self.do(f"CREATE DATABASE {name}")
        return self.url(name)

    def new_schema(self) -> str:
        """Make what looks like an empty database, in a hundredth of the time; give its URL."""
        name = f"t{uuid.uuid4().hex}"
        self.do(f"CREATE SCHEMA {name}")
        return f"{self.url('postgres')}?options=-csearch_path%3D{name}"

    def do(self, statement: str) -> None:
        """Do something outside of a transaction."""
        engine = create_engine(self.url("postgres").replace("://", "+psycopg://"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()


@contextmanager
def postgresql() -> Iterator[Postgresql]:
    """Start a PostgreSQL server, or skip and say so where none is installed."""
    programs = Path(_found("postgres", sorted(Path("/").glob(_POSTGRESQL)), package="postgresql")).parent
    folder = Path(tempfile.mkdtemp(prefix="gj-pg-"))
    try:
        if os.getuid() == 0:
            shutil.chown(folder, "postgres")
        command = [programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "gpujobs", "-N", "-E", "UTF8"]
        made = subprocess.run([*command, "--locale=C"], capture_output=True, text=True, check=False, **_as_nobody())
        assert made.returncode == 0, made.stderr
        server = Postgresql(folder=folder, programs=programs, port=free_port())
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@contextmanager
def redis() -> Iterator[int]:
    """Start a Redis server and give its port, or skip and say so where none is installed."""
    program = _found("redis-server", [], package="redis-server")
    folder, port = Path(tempfile.mkdtemp(prefix="gj-redis-")), free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            await_port(port, process, folder / "log")
            yield port
        finally:
            process.terminate()
            process.wait(timeout=_START_S)
    shutil.rmtree(folder)


def _found(program: str, elsewhere: Sequence[Path], *, package: str) -> str:
    found = next((str(path) for path in reversed(elsewhere)), shutil.which(program))
    if found is None:
        pytest.skip(f"NOT RUN: {program} is not installed; get Debian's package {package}: make machine")
    return found


def _as_nobody() -> Mapping[str, Any]:
    """Be the user that Debian's package has made, where we are root: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return {}
    return {"user": "postgres", "group": pwd.getpwnam("postgres").pw_gid, "extra_groups": []}
