"""What the rules of both clouds stand on: one lock, the clock, the containers, the ledger of truth."""

import logging
import random
import secrets
import shutil
import string
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from fake_server import disk_change
from fake_server.call_log import CallLog
from fake_server.clock import Timeline
from fake_server.containers import Containers
from fake_server.distortion import shown
from fake_server.fault_rules import Rules, Target
from fake_server.lanes import Lanes
from fake_server.mortals import Mortals
from fake_server.spec import CommandRecord, ContainerSpec, Endpoint
from fake_server.stages import Stages
from fake_server.timings import Guesses, Timings
from fake_server.trouble import Trouble
from fake_server.truth import Command, Truth

_log = logging.getLogger(__name__)
_WORKERS = 32
_FAREWELL_TIMEOUT_S = 5.0  # AutoDL's document: cmd_before_shutdown gets five seconds


class Ground:
    """Shared by both clouds' rules. Whoever reads or changes the world's data holds `lock`."""

    def __init__(
        self,
        *,
        folder: Path,
        start_at: float,
        speed: float,
        seed: int | None,
        timings: Timings,
        guesses: Guesses,
        containers: Callable[..., Containers],
        rules: Rules,
        disk_gb: float,
    ) -> None:
        self.lock = threading.RLock()
        self.timeline = Timeline(self.lock, start_at=start_at, speed=speed)
        self.timings = timings
        self.guesses = guesses
        self.rules = rules
        self.disk_gb = disk_gb
        self.stages = Stages(self.timeline, rules, lambda: self.timings)
        self.mortals = Mortals(self.timeline, rules)
        self.truth = Truth()
        self.calls: Counter[str] = Counter()
        self.call_log = CallLog()
        self.random = random.Random(seed)  # noqa: S311 -- ids, which a seed makes repeatable; passwords come from secrets
        self.folder = folder
        self.on_cmd_exit: dict[str, Callable[[], None]] = {}
        self._saying_farewell: set[str] = set()
        self._lanes = Lanes(workers=_WORKERS)
        self.containers = containers(
            folder / "containers", on_command=self._command_ended, on_cmd_exit=self._cmd_exited
        )

    def close(self) -> None:
        """End the clock, all work and all containers. Nothing runs afterwards."""
        self.timeline.close()
        self._lanes.end()
        for name in list(self._saying_farewell):
            self.containers.stop(name)  # a lane waits for its farewell command
        self._lanes.join()
        self.containers.close()

    @property
    def stirrings(self) -> tuple[int, int]:
        """Numbers that change when something happened by itself, off any call."""
        return self.timeline.acts, self._lanes.done

    def settle(self, timeout_s: float) -> bool:
        """Wait until no work on any machine is under way; return whether that came in time."""
        return self._lanes.wait(timeout_s)

    def target(self, machine_id: str) -> Target:
        """Return how fault rules see a machine that was made."""
        truth = self.truth.machines[machine_id]
        return Target(provider=truth.provider, id=machine_id, name=truth.name)

    def listed(self, created_at: float) -> bool:
        """Say whether lists know yet of what was created then."""
        return shown(created_at, now=self.timeline.now(), lag_s=self.timings.list_lag_s)

    def hex(self, digits: int) -> str:
        """Return an id of so many hexadecimal digits."""
        return f"{self.random.getrandbits(4 * digits):0{digits}x}"

    def password(self) -> str:
        """Return a fresh root password."""
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(12))

    def boot(
        self,
        spec: ContainerSpec,
        *,
        image: Path | None,
        wanted: Callable[[], bool],
        ready: Callable[[Endpoint], None],
        failed: Callable[[], None],
    ) -> None:
        """Start the container off the lock, then call ready (or failed) with the lock held.

        Args:
            spec: the container; folders it names are made.
            image: a saved disk to copy when the container has none yet.
            wanted: asked with the lock held, before and after; a container no longer wanted is stopped again.
            ready: told where its SSH server is.
            failed: told when it could not be started.
        """

        def job() -> None:
            with self.lock:
                if not wanted():
                    return
                target = self.target(spec.name)
                if self.rules.strike("dies_in_boot", target):
                    failed()
                    return
            machine = replace(spec, trouble=Trouble(self.rules, target), disk_gb=self.disk_gb)
            try:
                _lay_out(spec, image)
                sshd_s = 0.0 if spec.port else self.timings.sshd_s  # one that comes back answers at once
                endpoint = self.containers.start(machine, sshd_delay_s=self.timeline.real_s(sshd_s))
            except Exception:  # noqa: BLE001 -- whatever it was, the cloud says that the machine failed
                _log.exception("container %s did not start", spec.name)
                with self.lock:
                    failed()
                return
            with self.lock:
                if keep := wanted():
                    ready(endpoint)
            if not keep:
                self.containers.stop(spec.name)

        self._lanes.submit(spec.name, job)

    def runs(self, machine_id: str, *, die: Callable[[], None]) -> None:
        """Note that a machine runs from now on; `die` lets its provider notice that it died of a fault."""
        unnoticed = partial(self.halt, machine_id, then=lambda: None)
        self.mortals.enter(self.target(machine_id), {"dies_mid_run": die, "dies_unnoticed": unnoticed})

    def halt(self, name: str, *, then: Callable[[], None], farewell: str | None = None, grace_s: float = 0.0) -> None:
        """Stop the container off the lock, after a farewell command where there is one; then call `then`, locked."""
        self.mortals.leave(name)

        def job() -> None:
            if farewell and name in self.containers.running():
                self._say_farewell(name, farewell)
            self.containers.stop(name, grace_s=self.timeline.real_s(grace_s))
            with self.lock:
                then()

        self._lanes.submit(name, job)

    def copy_disk(
        self, name: str, source: Path, target: Path, *, then: Callable[[], None], failed: Callable[[], None]
    ) -> None:
        """Copy a disk after all earlier work on that machine; then call `then` (or failed), locked."""

        def job() -> None:
            try:
                _copy(source, target)
            except (OSError, subprocess.CalledProcessError):
                _log.exception("the disk of %s was not copied", name)
                with self.lock:
                    failed()
                return
            with self.lock:
                then()

        self._lanes.submit(name, job)

    def weigh(self, name: str, disk: Path, *volumes: Path, remove: bool) -> None:
        """Enter in the ledger what a released machine wrote, after all earlier work on it; then its folders may go."""

        def job() -> None:
            change = disk_change.measure(disk, [disk, *volumes])
            if change is not None:
                with self.lock:
                    self.truth.left(name, change)
            for folder in (disk, *volumes) if remove else ():
                shutil.rmtree(folder, ignore_errors=True)

        self._lanes.submit(name, job)

    def _say_farewell(self, name: str, command: str) -> None:
        self._saying_farewell.add(name)
        try:
            self.containers.execute(name, command, timeout_s=_FAREWELL_TIMEOUT_S)
        except (KeyError, OSError):
            _log.info("%s ended before its farewell command", name)
        finally:
            self._saying_farewell.discard(name)

    def _cmd_exited(self, name: str, _exit_code: int) -> None:
        with self.lock:
            if action := self.on_cmd_exit.pop(name, None):
                self.timeline.after(0.0, action)

    def _command_ended(self, record: CommandRecord) -> None:
        with self.lock:
            ended_at = self.timeline.now()
            self.truth.ran(
                record.machine,
                Command(
                    command=record.command,
                    kind=record.kind,
                    exit_code=record.exit_code,
                    bytes_written=record.bytes_written,
                    sha256=record.sha256,
                    output_head=record.output_head.decode(errors="replace"),
                    started_at=ended_at - (record.ended_at - record.started_at) * self.timeline.speed,
                    ended_at=ended_at,
                ),
            )


def _lay_out(spec: ContainerSpec, image: Path | None) -> None:
    if image is not None and not spec.disk.exists():
        _copy(image, spec.disk)
    for folder in (spec.disk, *spec.volumes.values()):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _copy(source: Path, target: Path) -> None:
    """Copy a disk whole (modes, owners, links, pipes), so that a half-made copy never stands under its name."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    subprocess.run(["cp", "-a", "--", str(source), str(unfinished)], check=True)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
