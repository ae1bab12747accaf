"""The keeper holds a container while somebody needs it and lets it end when nobody does, with no controller at all."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpujobs import remote
from gpujobs.errors import BadInput
from gpujobs.remote import keeper_command

LONG_S = 60


@pytest.fixture(autouse=True)
def no_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MARGIN_S", 0)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / ".gpujobs"


class Keeper:
    """The command as a provider runs it: expanded once, then given to `bash -c`."""

    def __init__(self, base: Path, *, grace: int = LONG_S, duration: int = LONG_S, linger: int = LONG_S) -> None:
        command = keeper_command(base=str(base), boot_grace_s=grace, max_duration_s=duration, linger_s=linger)
        twice = f'bash -c "{command}"'
        self.process = subprocess.Popen(["bash", "-c", twice], start_new_session=True, stdin=subprocess.DEVNULL)
        self.started = time.monotonic()

    def ends(self, *, within_s: float) -> int:
        return self.process.wait(within_s)

    def stays(self, seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.poll() is None


@pytest.fixture
def keep() -> Iterator[Callable[..., Keeper]]:
    keepers = []

    def start(*args: object, **times: int) -> Keeper:
        keepers.append(Keeper(*args, **times))  # type: ignore[arg-type]
        return keepers[-1]

    yield start
    for keeper in keepers:
        if keeper.process.poll() is None:
            os.killpg(keeper.process.pid, signal.SIGKILL)
            keeper.process.wait()


def attempt(base: Path, name: str = "gj-1") -> Path:
    folder = base / name
    (folder / "started").mkdir(parents=True)
    (folder / "runner.sh").touch()
    (folder / "pid").write_text(f"{os.getpid()} 1\n")
    return folder


def ready(base: Path) -> None:
    ends_at = time.monotonic() + 60
    while not base.exists():
        assert time.monotonic() < ends_at
        time.sleep(0.02)
    time.sleep(0.3)  # past what it does once, at boot


def test_the_command_is_words_and_pipes_that_survive_an_expansion() -> None:
    command = keeper_command(base="/root/autodl-tmp/.gpujobs", boot_grace_s=1, max_duration_s=2, linger_s=3)
    assert re.fullmatch(r"echo [A-Za-z0-9+/=]+ \| base64 -d \| sh", command)
    assert len(command) < 4000


@pytest.mark.parametrize("base", ["", "relative", "/a b", "/a;b", "/$x", "/a/../b", "/a\nb"])
def test_a_base_that_is_no_plain_path_is_refused(base: str) -> None:
    with pytest.raises(BadInput, match="plain absolute path"):
        keeper_command(base=base, boot_grace_s=1, max_duration_s=2, linger_s=3)


def test_negative_times_are_refused() -> None:
    with pytest.raises(BadInput, match="negative"):
        keeper_command(base="/a", boot_grace_s=1, max_duration_s=-1, linger_s=3)


def test_it_ends_when_it_is_told(base: Path, keep: Callable[..., Keeper]) -> None:
    keeper = keep(base)
    ready(base)
    assert keeper.stays(2.5)
    (base / "end").touch()
    assert keeper.ends(within_s=4) == 0


def test_it_ends_when_nothing_starts(base: Path, keep: Callable[..., Keeper]) -> None:
    keeper = keep(base, grace=3)
    assert keeper.ends(within_s=8) == 0
    assert time.monotonic() - keeper.started > 2


def test_a_heartbeat_before_the_start_makes_it_wait_on(base: Path, keep: Callable[..., Keeper]) -> None:
    keeper = keep(base, grace=4)
    ready(base)
    (base / "gj-1").mkdir()
    (base / "gj-1" / "runner.sh").touch()
    for beat in range(8):
        (base / "gj-1" / "heartbeat").write_text(f"{beat}\n")
        assert keeper.stays(1)
    assert keeper.ends(within_s=60) == 0


def test_running_work_is_kept_however_long_nobody_asks(base: Path, keep: Callable[..., Keeper]) -> None:
    keeper = keep(base, grace=2, linger=1)
    ready(base)
    attempt(base)
    assert keeper.stays(6)


def test_it_ends_soon_after_the_results_are_pulled(base: Path, keep: Callable[..., Keeper]) -> None:
    keeper = keep(base)
    ready(base)
    folder = attempt(base)
    (folder / "exit.json").touch()
    assert keeper.stays(3)
    (folder / "pulled").touch()
    assert keeper.ends(within_s=4) == 0


def test_the_one_attempt_may_be_the_base_itself(base: Path, keep: Callable[..., Keeper]) -> None:
    keeper = keep(base, grace=2)
    ready(base)
    attempt(base.parent, base.name)
    assert keeper.stays(5)
    (base / "exit.json").touch()
    (base / "pulled").touch()
    assert keeper.ends(within_s=4) == 0


def test_it_lingers_for_who_might_pull_and_then_ends(base: Path, keep: Callable[..., Keeper]) -> None:
    keeper = keep(base, linger=4)
    ready(base)
    folder = attempt(base)
    (folder / "exit.json").touch()
    for beat in range(6):
        (folder / "heartbeat").write_text(f"{beat}\n")
        assert keeper.stays(1)
    assert keeper.stays(2)
    assert keeper.ends(within_s=8) == 0


def test_a_lost_supervisor_counts_as_an_end(base: Path, keep: Callable[..., Keeper]) -> None:
    keeper = keep(base, linger=2)
    ready(base)
    done = subprocess.Popen(["true"])
    done.wait()
    (attempt(base) / "pid").write_text(f"{done.pid} 1\n")
    assert keeper.ends(within_s=60) == 0


def test_it_ends_at_its_hard_limit_whatever_runs(base: Path, keep: Callable[..., Keeper]) -> None:
    keeper = keep(base, grace=1, duration=3, linger=1)
    ready(base)
    attempt(base)
    assert keeper.ends(within_s=60) == 0
    assert time.monotonic() - keeper.started > 4


def test_what_an_earlier_use_of_the_container_left_is_set_aside(base: Path, keep: Callable[..., Keeper]) -> None:
    old = attempt(base, "gj-old")
    (old / "exit.json").touch()
    (old / "pulled").touch()
    (base / "end").touch()
    keeper = keep(base)
    assert keeper.stays(5)
    new = attempt(base, "gj-new")
    (new / "exit.json").touch()
    (new / "pulled").touch()
    assert keeper.ends(within_s=4) == 0


def test_two_attempts_on_one_machine_both_count(base: Path, keep: Callable[..., Keeper]) -> None:
    keeper = keep(base)
    ready(base)
    first, second = attempt(base, "gj-1"), attempt(base, "gj-2")
    for name in ("exit.json", "pulled"):
        (first / name).touch()
    assert keeper.stays(3)
    for name in ("exit.json", "pulled"):
        (second / name).touch()
    assert keeper.ends(within_s=4) == 0
