"""Fixtures: the machines that the shell, the runner and the transfers must work on, each a real SSH server."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_server.containers import Containers, ContainerSpec
from gpujobs.models import Access
from gpujobs.runner import Runner
from gpujobs.shell import Shell
from tests.sshd.machines import PASSWORD, Server, skip_without_sshd
from tests.sshd.openssh import OpenSsh
from tests.sshd.proxy import Proxy

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def openssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSsh]:
    skip_without_sshd()
    sshd = OpenSsh(tmp_path_factory.mktemp("sshd"))
    yield sshd
    sshd.close()


@pytest.fixture(scope="session")
def fake_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fake")
    containers = Containers(folder / "run", on_command=lambda _: None, on_cmd_exit=lambda _name, _code: None)
    (folder / "disk").mkdir()
    spec = ContainerSpec(
        name="box", hostname="box", disk=folder / "disk", volumes={}, gpu_name="NVIDIA GeForce RTX 4090", gpu_count=1,
        gpu_memory_mb=24564, cpus=2, memory_gb=4, env={}, conda="/root/miniconda3", password=PASSWORD,
    )  # fmt: skip
    end = containers.start(spec)
    access = Access(host=end.host, port=end.port, user="root", password=PASSWORD)
    yield Server(kind="fake", access=access, host_key=end.host_key, key=None, home="/root")
    containers.close()


@pytest.fixture(scope="session", params=["openssh", "fake"])
def server(request: pytest.FixtureRequest) -> Server:
    """A machine that answers."""
    if request.param == "fake":
        machine: Server = request.getfixturevalue("fake_machine")
        return machine
    sshd: OpenSsh = request.getfixturevalue("openssh_server")
    access = Access(host="127.0.0.1", port=sshd.port, user=sshd.user, password="")
    return Server(kind="openssh", access=access, host_key=sshd.host_key, key=sshd.key, home=str(sshd.home))


@pytest.fixture
def shell(server: Server) -> Iterator[Shell]:
    with server.connect() as shell:
        yield shell


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.access.port) as proxy:
        yield proxy


@pytest.fixture
def place(shell: Shell) -> str:
    """An empty folder on the machine, with a name that needs quoting."""
    path = f"~/place {next(_NUMBERS)}'s"
    name = path.removeprefix("~/").replace("'", "'\\''")
    shell.check(f"""mkdir "$HOME"/'{name}'""", what="making a folder")
    return path


@pytest.fixture
def runner(shell: Shell, place: str) -> Iterator[Runner]:
    runner = Runner(shell, base=place, name="gj-me-abcd-1")
    yield runner
    if runner.status().phase in {"setup", "running"}:
        runner.cancel(0)


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A place here where something stands already."""
    folder = tmp_path / "out" / "result"
    folder.mkdir(parents=True)
    (folder / "old").write_text("old")
    return folder
