"""The machine hashes while the bytes travel; what changes, lies or stalls meanwhile is told, and nothing half stays."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpujobs.clock import StopToken
from gpujobs.errors import Cancelled, RemoteFailure, TransferFailed
from gpujobs.models import Access
from gpujobs.shell import Shell, connect, quote_path
from gpujobs.transfer import pull, push_file
from tests.sshd.machines import skip_without_sshd
from tests.sshd.openssh import OpenSsh

pytest_plugins = ("tests.sshd.fixtures",)

NEEDED = (
    "bash", "cat", "chmod", "dirname", "find", "grep", "head", "mkdir", "mv", "rm", "sh", "sha256sum", "sleep", "stat",
    "tar", "tee", "touch", "truncate", "wc", "xargs",
)  # fmt: skip
CAT = shutil.which("cat")
Machine = Callable[..., tuple[Shell, Path]]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine with only the tools that we need, some of them replaced by scripts; and its home folder."""
    skip_without_sshd()
    closing: list[Callable[[], None]] = []

    def start(**scripts: str) -> tuple[Shell, Path]:
        tools = tmp_path / "tools"
        tools.mkdir()
        for name in NEEDED:
            (tools / name).symlink_to(shutil.which(name) or "")
        for name, script in scripts.items():
            (tools / name).unlink(missing_ok=True)
            (tools / name).write_text(f"#!{shutil.which('sh')}\n{script}\n")
            (tools / name).chmod(0o755)
        sshd = OpenSsh(tmp_path / "sshd", path=str(tools))
        access = Access(host="127.0.0.1", port=sshd.port, user=sshd.user, password="")
        shell = connect(access, host_key=sshd.host_key, pkey_path=sshd.key)
        closing[:] = [shell.close, sshd.close]
        return shell, sshd.home

    yield start
    for close in closing:
        close()


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("change", ["touch r/x", "printf x >>r/x", "printf x | dd of=r/x bs=1 seek=9 conv=notrunc"])
def test_what_changes_while_it_comes_is_told(shell: Shell, place: str, tmp_path: Path, kind: str, change: str) -> None:
    there, changes = f"cd {quote_path(place)}", [change]
    shell.check(f"{there} && mkdir r && head -c 9000000 /dev/zero >r/x", what="making files")
    with pytest.raises(TransferFailed, match="not as the machine hashed them"):
        pull(
            shell,
            f"{place}/r/x" if kind == "file" else f"{place}/r",
            tmp_path / "down",
            progress=lambda *_: changes and shell.check(f"{there} && {changes.pop()}", what="changing a file"),
        )
    assert not (tmp_path / "down").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_hashing_and_streaming_overlap(machine: Machine, tmp_path: Path, kind: str) -> None:
    real = shutil.which("sha256sum")
    waiting = 'n=0; until [ -e "$HOME/streaming" ]; do sleep 0.01; n=$((n+1)); [ $n -lt 1000 ] || exit 1; done'
    script = f': >"$HOME/hashing"; {waiting}; exec {real} "$@"'
    shell, home = machine(sha256sum=script)
    (home / "r").mkdir()
    (home / "r" / "x").write_bytes(data := os.urandom(5_000_000))

    def progress(_done: int, _total: int | None) -> None:
        (home / "streaming").touch()
        ends_at = time.monotonic() + 60
        while not (home / "hashing").exists():
            assert time.monotonic() < ends_at, "nobody hashes while the bytes come"
            time.sleep(0.01)

    pull(shell, "~/r/x" if kind == "file" else "~/r", tmp_path / "down", progress=progress)
    assert (tmp_path / "down" if kind == "file" else tmp_path / "down" / "x").read_bytes() == data


@pytest.mark.parametrize(
    "openssl", [{}, {"openssl": "exit 1"}, {"openssl": "echo unknown option -r >&2; exit 1"}], ids=["none", "1", "old"]
)
def test_a_machine_without_a_working_openssl_will_do(machine: Machine, tmp_path: Path, openssl: dict[str, str]) -> None:
    shell, _ = machine(**openssl)
    (tmp_path / "up").write_bytes(data := os.urandom(400_000))
    push_file(shell, tmp_path / "up", "~/there")
    pull(shell, "~/there", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == data


LIES = {
    "an openssl that fails half way": ({"openssl": "head -c 10 >/dev/null; exit 1"}, TransferFailed),
    "another hash": ({"sha256sum": f"{CAT} >/dev/null; echo '{'0' * 64}  -'"}, TransferFailed),
    "no hash": ({"sha256sum": f"{CAT} >/dev/null; echo nothing"}, RemoteFailure),
    "silence": ({"sha256sum": f"{CAT} >/dev/null"}, TransferFailed),
    "failure": ({"sha256sum": f"{CAT} >/dev/null; exit 1"}, RemoteFailure),
}


@pytest.mark.parametrize(("scripts", "error"), LIES.values(), ids=LIES.keys())
def test_a_file_without_its_right_hash_does_not_come_down(
    machine: Machine, tmp_path: Path, scripts: dict[str, str], error: type[Exception]
) -> None:
    shell, home = machine(**scripts)
    (home / "x").write_bytes(os.urandom(200_000))
    with pytest.raises(error):
        pull(shell, "~/x", tmp_path / "down")
    assert not (tmp_path / "down").exists()


@pytest.mark.parametrize(
    "tee", [f': >"$1"; {CAT}', f'head -c 9 >"$1"; {CAT}', f'{CAT} >"$1"; {CAT} "$1"; echo more'], ids=["0", "9", "more"]
)
def test_a_file_that_the_machine_wrote_wrong_does_not_go_up(machine: Machine, tmp_path: Path, tee: str) -> None:
    shell, home = machine(tee=tee)
    (home / "there").write_text("old")
    (tmp_path / "up").write_bytes(os.urandom(200_000))
    with pytest.raises(TransferFailed, match="did not arrive whole"):
        push_file(shell, tmp_path / "up", "~/there")
    assert [(item.name, item.read_text()) for item in home.iterdir()] == [("there", "old")]


def test_a_hash_that_never_comes_can_be_stopped(machine: Machine, tmp_path: Path) -> None:
    shell, home = machine(sha256sum='echo $$ >"$HOME/pid"; exec sleep 100')
    (home / "x").write_bytes(b"x")
    stop = StopToken()

    def stop_once_all_came(done: int, total: int | None) -> None:
        if done == total:
            threading.Timer(0.3, stop.stop, [Cancelled("enough")]).start()

    began = time.monotonic()
    with pytest.raises(Cancelled, match="enough"):
        pull(shell, "~/x", tmp_path / "down", progress=stop_once_all_came, stop=stop)
    assert time.monotonic() - began < 20
    shell.check('kill "$(cat ~/pid)"', what="ending the sleep")
