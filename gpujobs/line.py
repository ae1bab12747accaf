"""The line to one machine: an SSH connection that comes back, and the news of whether the machine still lives."""

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from gpujobs.backends import Backend
from gpujobs.clock import StopToken, backoff
from gpujobs.errors import BootTimeout, GpujobsError, HostKeyChanged, MachineLost, NotFound, Unavailable, Unreachable
from gpujobs.host import Host
from gpujobs.models import Access, Machine, MachineStatus, Reporter
from gpujobs.settings import private_folder
from gpujobs.shell import Shell, Timeouts, connect, make_key, reachable

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
LOST = frozenset({MachineStatus.GONE, MachineStatus.ENDED, MachineStatus.FAILED, MachineStatus.OFF})
_CONNECTIONS = 5  # so many are lost before we give up
_LOOK_EVERY_S = 2.0  # often enough to notice a death, seldom enough to be quiet


class Line:
    """Keeps one machine reachable for one run; used from one thread at a time."""

    def __init__(self, host: Host, backend: Backend, machine: Machine, *, stop: StopToken, reporter: Reporter) -> None:
        """Connect nothing yet."""
        self.host, self.backend, self.machine, self.stop = host, backend, machine, stop
        self._reporter = reporter
        self._shell: Shell | None = None

    def insist(self, act: Callable[[Shell], _Result], *, patient: bool = False) -> _Result:
        """Do something that may be done twice, over as many connections as it takes; raises MachineLost.

        Some networks let us log in and lose whatever is large. So what is not done after some connections and `lost_s`
        is given up, but for what is `patient`: that gets on by each connection, and its time is bounded elsewhere.
        """
        clock, lost_s = self.host.clock, self.host.timing.lost_s
        gives_up_at = clock.monotonic() + lost_s
        for lost in itertools.count(1):
            shell = self.connected(within_s=lost_s, lost=MachineLost)
            try:
                return act(shell)
            except Unreachable as error:
                self.hang_up()
                self.stop.raise_if_stopped()
                if lost >= _CONNECTIONS and clock.monotonic() > gives_up_at and not patient:
                    raise MachineLost(f"{self.machine.name}: {lost} connections were lost one after another") from error
                self._reporter.note(f"the connection to {self.machine.name} was lost ({error}); connecting again")
        raise AssertionError("it counts for ever")  # for the type checker

    def connected(self, *, within_s: float, lost: type[MachineLost]) -> Shell:
        """Give the open shell, or connect until `within_s` has passed or the provider says that the machine is lost."""
        if self._shell is not None and self._shell.alive:
            return self._shell
        clock = self.host.clock
        started = looked_at = clock.monotonic()
        for wait_s in backoff(self.host.timing.reach_s, 5.0, dice=self.host.dice):
            self.stop.raise_if_stopped()
            try:
                trouble = self._try()
            except HostKeyChanged:
                self.look(booting=lost is BootTimeout)  # the provider may have put another container in its place
                raise
            if trouble is None and self._shell is not None:
                return self._shell
            waited_s = clock.monotonic() - started
            if waited_s >= within_s:
                raise lost(f"{self.machine.name} could not be reached for {within_s:.0f} s: {trouble}")
            if clock.monotonic() - looked_at >= _LOOK_EVERY_S:
                looked_at = clock.monotonic()
                self.look(booting=lost is BootTimeout)
                self._reporter.progress("waiting for SSH", round(waited_s), round(within_s))
            self.stop.sleep(clock, max(0.1, wait_s))
        raise AssertionError("backoff never ends")  # for the type checker

    def hang_up(self) -> None:
        """Close the connection; the next use opens another."""
        shell, self._shell = self._shell, None
        if shell is not None:
            shell.close()

    def note(self, machine: Machine) -> None:
        """Take and keep a newer description of the machine; raises MachineLost when another container stands for it."""
        if self.machine.unit and machine.unit and machine.unit != self.machine.unit:
            raise MachineLost(
                f"{machine.name}: {machine.backend} replaced its container, and the work in the old one is lost"
            )
        self.machine = machine
        ledger = self.host.ledger
        ledger.update_machine(machine.name, unit=machine.unit, region=machine.region, status=str(machine.status))
        if machine.price_cny_per_h is not None:
            ledger.update_machine(machine.name, price_cny_per_h=machine.price_cny_per_h)

    def check_alive(self, *, booting: bool = False) -> None:
        """Raise BootTimeout or MachineLost when the machine's last known status is an end."""
        machine = self.machine
        if machine.status not in LOST:
            return
        said = machine.raw_status or machine.status
        if booting:
            self.backend.avoid(machine, why="ended while booting")
            raise BootTimeout(f"{machine.name} ended while it booted ({machine.backend} says {said})")
        raise MachineLost(f"{machine.name} is no longer running ({machine.backend} says {said}); its work is lost")

    def look(self, *, booting: bool) -> None:
        """Ask the provider how the machine stands; no answer now is no news. Raises BootTimeout, MachineLost."""
        try:
            self.note(self.backend.refresh(self.machine))
        except Unavailable as error:
            _log.info("%s: %s", self.machine.name, error)
            return
        except NotFound as error:
            raise MachineLost(f"{self.machine.name} is gone: {error}") from error
        self.check_alive(booting=booting)

    @contextmanager
    def after_stop(self, limit_s: float) -> Iterator[None]:
        """Work on although the run was stopped, for at most `limit_s`: then the connection is closed under it."""
        before, grace = self.stop, StopToken()
        self.stop = grace

        def enough() -> None:
            grace.stop(MachineLost(f"not done within {limit_s:.0f} s"))
            self.hang_up()

        try:
            with self.bounded(limit_s, enough):
                yield
        finally:
            self.stop = before

    @contextmanager
    def bounded(self, limit_s: float, enough: Callable[[], None]) -> Iterator[None]:
        """Call `enough`, on a thread of its own, if the block takes longer than `limit_s`."""
        done = threading.Event()

        def watch() -> None:
            if not self.host.clock.wait(done, limit_s):
                enough()

        threading.Thread(target=watch, name=f"{self.machine.name}-bound", daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def _try(self) -> GpujobsError | None:
        try:
            access = self.backend.access(self.machine)
            if access is None:
                return Unreachable("the provider tells no address yet")
            if not reachable(access.host, access.port, timeout_s=5.0):
                return Unreachable(f"no SSH server answers at {access.host}:{access.port} yet")
            self._shell = self._log_in(access)
        except (Unreachable, Unavailable) as error:
            return error
        return None

    def _log_in(self, access: Access) -> Shell:
        """Log in; on first sight pin the machine's host key and put our own key there, so that the password rests."""
        ledger, key = self.host.ledger, private_folder(self.host.settings.home / "ssh") / "id_ed25519"
        record = ledger.machine(self.machine.name)
        pinned = record.host_key if record else ""
        public_key = make_key(key)
        silent_s = self.host.timing.silent_s
        timeouts = Timeouts(dead_after_s=silent_s, probe_every_s=silent_s / 6)
        shell = connect(access, host_key=pinned or None, pkey_path=key if pinned else None, timeouts=timeouts)
        try:
            if not pinned:
                ledger.update_machine(self.machine.name, host_key=shell.host_key)
            if shell.by_password:  # on first sight, or where that connection was lost before the key was there
                shell.install_key(public_key)
        except BaseException:
            shell.close()
            raise
        return shell
