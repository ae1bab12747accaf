"""What goes up is what was meant, what comes down is what the machine has; nothing lands half or where it must not."""

import io
import os
import shlex
import socket
import stat
import tarfile
from pathlib import Path

import pytest

from gpujobs.clock import StopToken
from gpujobs.errors import BadInput, Cancelled, RemoteFailure, TransferFailed, Unreachable, UnsafeArchive
from gpujobs.shell import Shell, quote_path
from gpujobs.transfer import Limits, pull, push_file, push_folder
from gpujobs.transfer_pack import survey, tar_stream
from gpujobs.transfer_place import swap
from tests.clocks import eventually
from tests.folders import alone, contents
from tests.sshd.machines import QUICK, Server
from tests.sshd.proxy import Proxy

pytest_plugins = ("tests.sshd.fixtures",)

NAMES = ["plain", "with space", "it's", "-rf", "$HOME", "ü", "*", "x" * 200, "deep/" * 20 + "end", "empty"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "up"
    for number, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.urandom(number * 3001 if name != "empty" else 0))
    (root / "hollow").mkdir()
    (root / "script").write_text("#!/bin/sh\n")
    (root / "script").chmod(0o755)
    return root


def make(shell: Shell, place: str, script: str) -> None:
    shell.check(f"cd {quote_path(place)} && {script}", what="making files")


def look(shell: Shell, place: str, script: str) -> str:
    return shell.check(f"cd {quote_path(place)} && {script}", what="looking").decode()


# Up


def test_a_folder_goes_up_and_comes_down_the_same(shell: Shell, place: str, tree: Path, tmp_path: Path) -> None:
    push_folder(shell, tree, f"{place}/new folder")
    pull(shell, f"{place}/new folder", tmp_path / "down")
    assert contents(tmp_path / "down") == contents(tree)
    assert look(shell, place, "stat -c '%a %u' 'new folder/script'") == f"755 {os.geteuid()}\n"
    assert int((tmp_path / "down" / "plain").stat().st_mtime) == int((tree / "plain").stat().st_mtime)


def test_a_folder_goes_into_what_is_there(shell: Shell, place: str, tree: Path) -> None:
    make(shell, place, "mkdir to && echo old >to/plain && echo keep >to/other")
    push_folder(shell, tree, f"{place}/to")
    push_folder(shell, tree, f"{place}/to")
    assert look(shell, place, "cat to/other; wc -c <to/plain") == "keep\n0\n"


def test_progress_goes_up_to_all_and_never_back(shell: Shell, place: str, tree: Path, tmp_path: Path) -> None:
    (tree / "big").write_bytes(bytes(9_000_000))
    for transfer in (lambda told: push_folder(shell, tree, f"{place}/p", progress=told),
                     lambda told: push_file(shell, tree / "big", f"{place}/f", progress=told),
                     lambda told: pull(shell, f"{place}/p", tmp_path / "p", progress=told),
                     lambda told: pull(shell, f"{place}/f", tmp_path / "f", progress=told)):  # fmt: skip
        steps: list[tuple[int, int | None]] = []
        transfer(lambda done, total, steps=steps: steps.append((done, total)))
        done = [step[0] for step in steps]
        assert len({step[1] for step in steps}) == 1
        assert (done == sorted(done), done[-1], len(done) > 2) == (True, steps[0][1], True)


def test_ignored_files_stay_here_as_git_would_have_it(tmp_path: Path) -> None:
    files = {
        ".gitignore": "*.log\n/build\ncache/\n!keep.log\n#c\n",
        ".gpujobsignore": "data/*.bin\n!important.log\n",
        "a.log": "", "keep.log": "", "important.log": "", "build/x": "", "src/build/y": "", "src/cache/z": "",
        "src/.gitignore": "!deep.log\n*.tmp\n", "src/deep.log": "", "src/a.tmp": "", "a.tmp": "",
        "data/1.bin": "", "data/1.txt": "", ".git/HEAD": "", "sub/.git/HEAD": "", "sub/file": "", "cache": "a file",
        ".venv/.gitignore": "*\n", ".venv/bin/python": "",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / ".venv/link").symlink_to("/usr/bin")
    sent = {entry.path for entry in survey(tmp_path) if stat.S_ISREG(entry.mode)}
    assert sent == {
        ".gitignore", ".gpujobsignore", "keep.log", "important.log", "src/build/y", "src/.gitignore", "src/deep.log",
        "a.tmp", "data/1.txt", "sub/file", "cache",
    }  # fmt: skip


def test_links_inside_go_as_links(shell: Shell, place: str, tree: Path) -> None:
    (tree / "latest").symlink_to("plain")
    (tree / "hollow" / "up").symlink_to("../deep")
    (tree / "dangling").symlink_to("not/yet")
    push_folder(shell, tree, place)
    assert look(shell, place, "readlink latest hollow/up dangling").split() == ["plain", "../deep", "not/yet"]


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "hollow/../../outside", "."])
def test_a_link_that_leads_out_is_refused_by_name(tree: Path, target: str) -> None:
    (tree / "bad link").symlink_to(target)
    if target == ".":
        assert any(entry.link == "." for entry in survey(tree))
        return
    with pytest.raises(BadInput, match=r"bad link is a link to .*gpujobsignore"):
        survey(tree)


def test_sockets_and_pipes_stay_here(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tree / "sock"))
    assert {"pipe", "sock"}.isdisjoint(entry.path for entry in survey(tree))


def test_a_missing_folder_is_bad_input(shell: Shell, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not a folder"):
        push_folder(shell, tmp_path / "no", "x")


def test_a_file_that_shrinks_on_its_way_is_told(shell: Shell, place: str, tree: Path) -> None:
    entries = survey(tree)
    (tree / "with space").write_bytes(b"")
    with pytest.raises(TransferFailed, match="with space became shorter"):
        shell.stream_in("cat >/dev/null", tar_stream(tree, entries))
    (tree / "with space").unlink()
    with pytest.raises(TransferFailed, match="with space could not be read"):
        shell.stream_in("cat >/dev/null", tar_stream(tree, entries))
    assert look(shell, place, "echo on") == "on\n"


def test_a_machine_that_cannot_take_a_folder_says_why(shell: Shell, place: str, tree: Path) -> None:
    make(shell, place, "echo file >to")
    with pytest.raises(RemoteFailure, match=r"unpacking .* failed on the machine .*(exists|directory)"):
        push_folder(shell, tree, f"{place}/to")


def test_our_stream_is_a_tar_that_others_read(tree: Path) -> None:
    (tree / "latest").symlink_to("plain")
    stream = io.BytesIO(b"".join(tar_stream(tree, survey(tree))))
    with tarfile.open(fileobj=stream) as tar:
        assert {m.name.removeprefix("./") for m in tar.getmembers()} == {e.path for e in survey(tree)}


@pytest.mark.parametrize("name", NAMES[:7])
def test_a_file_goes_up_under_any_name(shell: Shell, place: str, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(data := os.urandom(300_000))
    push_file(shell, tmp_path / "file", f"{place}/to/{name}", mode=0o640)
    pull(shell, f"{place}/to/{name}", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert look(shell, place, "cd to; stat -c %a -- *; ls -A | wc -l").split() == ["640", "1"]


def test_a_file_replaces_a_file_and_not_a_folder(shell: Shell, place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("new")
    make(shell, place, "echo old >file; mkdir folder")
    push_file(shell, tmp_path / "file", f"{place}/file")
    with pytest.raises(RemoteFailure, match="it is a folder"):
        push_file(shell, tmp_path / "file", f"{place}/folder")
    assert look(shell, place, "cat file; ls folder") == "new"


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_what_is_no_file_here_is_bad_input(shell: Shell, place: str, tmp_path: Path, what: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInput, match=what):
        push_file(shell, tmp_path / what, f"{place}/x")


def test_a_cut_upload_leaves_the_old_file(
    server: Server, shell: Shell, proxy: Proxy, place: str, tmp_path: Path
) -> None:
    make(shell, place, "echo old >file")
    (tmp_path / "file").write_bytes(bytes(5_000_000))
    with server.connect(port=proxy.port, timeouts=QUICK) as cut, pytest.raises(Unreachable):
        push_file(
            cut, tmp_path / "file", f"{place}/file", progress=lambda done, _: proxy.cut() if done > 10**6 else None
        )
    assert look(shell, place, "cat file") == "old\n"


def test_the_next_upload_removes_what_a_cut_one_left_and_nothing_else(
    server: Server, shell: Shell, proxy: Proxy, place: str, tmp_path: Path
) -> None:
    name = "it's *"
    others = [f"{name}.gj-", f"{name}.gj-mine", "its other.gj-0123abcd", f"{name}.gj-0123abcd.old"]
    make(shell, place, f"touch -- {shlex.join(others)}")
    (tmp_path / "file").write_bytes(data := bytes(3_000_000))
    with server.connect(port=proxy.port, timeouts=QUICK) as cut, pytest.raises(Unreachable):
        push_file(
            cut, tmp_path / "file", f"{place}/{name}", progress=lambda done, _: proxy.cut() if done > 10**6 else None
        )
    eventually(
        lambda: len(look(shell, place, "ls -A").splitlines()) == len(others) + 1, what="the draft of the cut one"
    )
    push_file(shell, tmp_path / "file", f"{place}/{name}")
    assert sorted(look(shell, place, "ls -A").splitlines()) == sorted([*others, name])
    assert look(shell, place, f"wc -c <{shlex.quote(name)}").split() == [str(len(data))]


# Down


def test_a_pulled_folder_replaces_what_stood_there_as_a_whole(shell: Shell, place: str, before: Path) -> None:
    make(
        shell,
        place,
        "mkdir -p r/a && echo new >r/a/b && chmod 777 r/a/b && ln -s a/b r/latest && mkfifo r/pipe && ln -s no r/dead",
    )
    pull(shell, f"{place}/r", before)
    assert contents(before) == {"a": None, "a/b": b"new\n", "latest": b"new\n"}
    modes = {str(p.relative_to(before)): stat.S_IMODE(p.lstat().st_mode) for p in [before, *before.rglob("*")]}
    assert modes == {".": 0o700, "a": 0o700, "a/b": 0o700, "latest": 0o700}
    assert alone(before)


def test_an_empty_folder_and_an_empty_file_come_down(shell: Shell, place: str, tmp_path: Path) -> None:
    make(shell, place, "mkdir r && : >f")
    pull(shell, f"{place}/r", tmp_path / "r")
    pull(shell, f"{place}/f", tmp_path / "f")
    assert (contents(tmp_path / "r"), (tmp_path / "f").read_bytes()) == ({}, b"")
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600


def test_hard_links_come_down_as_files(shell: Shell, place: str, tmp_path: Path) -> None:
    make(shell, place, "mkdir r && echo x >r/one && ln r/one r/two")
    pull(shell, f"{place}/r", tmp_path / "r")
    assert contents(tmp_path / "r") == {"one": b"x\n", "two": b"x\n"}


def test_a_missing_path_is_named(shell: Shell, place: str, before: Path) -> None:
    with pytest.raises(RemoteFailure, match=r"/no where does not exist on the machine"):
        pull(shell, f"{place}/no where", before)
    assert contents(before) == {"old": b"old"}
    assert alone(before)


def test_a_file_does_not_replace_a_folder(shell: Shell, place: str, before: Path) -> None:
    make(shell, place, "echo x >f")
    with pytest.raises(TransferFailed, match="is a folder"):
        pull(shell, f"{place}/f", before)
    assert contents(before) == {"old": b"old"}


@pytest.mark.parametrize("limits", [Limits(max_bytes=9_999), Limits(max_files=9)])
def test_too_much_is_refused_before_it_comes(shell: Shell, place: str, before: Path, limits: Limits) -> None:
    make(shell, place, "mkdir r && for i in 0 1 2 3 4 5 6 7 8 9; do head -c 1000 /dev/zero >r/$i; done")
    with pytest.raises(TransferFailed, match=r"over the limit|more than 9 files"):
        pull(shell, f"{place}/r", before, limits=limits)
    assert contents(before) == {"old": b"old"}


def test_a_file_that_grows_without_end_is_cut_off(shell: Shell, place: str, before: Path) -> None:
    make(shell, place, "ln -s /dev/zero zero; echo x >f")
    with pytest.raises(RemoteFailure, match="does not exist"):
        pull(shell, f"{place}/zero", before)


@pytest.mark.parametrize("name", ["new\nline", "back\\slash", "esc\x1b[31m"])
def test_names_that_could_trick_a_terminal_or_a_path_are_refused(
    shell: Shell, place: str, before: Path, name: str
) -> None:
    make(shell, place, f"mkdir r && echo x >r/{quote_path(name)}")
    with pytest.raises(UnsafeArchive, match="not a name that may be written here") as caught:
        pull(shell, f"{place}/r", before)
    assert "\x1b" not in str(caught.value)
    assert contents(before) == {"old": b"old"}
    assert alone(before)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_cut_pull_leaves_what_stood_there(server: Server, shell: Shell, place: str, before: Path, kind: str) -> None:
    make(shell, place, "mkdir folder && head -c 30000000 /dev/zero >folder/x && cp folder/x file")
    local = before if kind == "folder" else before / "old"
    with (
        Proxy(server.access.port) as proxy,
        server.connect(port=proxy.port, timeouts=QUICK) as cut,
        pytest.raises(Unreachable),
    ):
        pull(cut, f"{place}/{kind}", local, progress=lambda done, _: proxy.cut() if done else None)
    assert contents(before) == {"old": b"old"}
    assert alone(before)


def test_a_stopped_pull_leaves_what_stood_there(shell: Shell, place: str, before: Path) -> None:
    make(shell, place, "mkdir r && head -c 9000000 /dev/zero >r/x")
    stop = StopToken()
    with pytest.raises(Cancelled):
        pull(shell, f"{place}/r", before, stop=stop, progress=lambda *_: stop.stop(Cancelled("enough")))
    assert contents(before) == {"old": b"old"}
    assert alone(before)


@pytest.mark.parametrize("change", ["printf x | dd of=r/x bs=1 seek=39999999 conv=notrunc", "truncate -s 20000000 r/x"])
def test_a_file_that_changes_after_it_was_hashed_is_told(shell: Shell, place: str, before: Path, change: str) -> None:
    make(shell, place, "mkdir r && head -c 40000000 /dev/urandom >r/x")
    changes = [change]
    with pytest.raises(TransferFailed, match="not as the machine hashed them"):
        pull(shell, f"{place}/r", before, progress=lambda *_: changes and make(shell, place, changes.pop()))
    assert contents(before) == {"old": b"old"}
    assert alone(before)


def test_what_a_killed_pull_left_is_tidied(shell: Shell, place: str, before: Path) -> None:
    make(shell, place, "mkdir r && echo x >r/x")
    (before.parent / f".{before.name}.pull-999999999-abc").mkdir()
    before.rename(before.parent / f".{before.name}.before-pull")  # killed between the two renames
    with pytest.raises(RemoteFailure):
        pull(shell, f"{place}/missing", before)
    assert contents(before) == {"old": b"old"}
    assert alone(before)
    pull(shell, f"{place}/r", before)
    assert contents(before) == {"x": b"x\n"}
    assert alone(before)


def test_a_swap_that_fails_leaves_what_stood_there(before: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        swap(tmp_path / "vanished", before)
    assert contents(before) == {"old": b"old"}
    assert alone(before)
