"""One attempt: its phases on one machine, each of which may be entered again and goes on from what it finds."""

import logging
import posixpath
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from gpujobs import errors, teardown
from gpujobs.attempt_home import HEARTBEAT_S, Homeward, LeftThere
from gpujobs.attempt_snapshot import save_disk
from gpujobs.attempt_work import left_s, most_s, spec_of
from gpujobs.errors import (
    BootTimeout,
    GpujobsError,
    JobFailed,
    MachineLost,
    NoCapacity,
    OverLimit,
    ProviderError,
    RemoteFailure,
    TransferFailed,
    Unreachable,
)
from gpujobs.ledger_rows import Attempt as AttemptRow
from gpujobs.line import Line
from gpujobs.models import Machine, MachineStatus
from gpujobs.renting import Job
from gpujobs.runner import ExitRecord, Runner
from gpujobs.shell import Shell
from gpujobs.store_folder import growing
from gpujobs.transfer import push_file, push_folder

_log = logging.getLogger(__name__)
_NOT_BEGUN = frozenset({"absent", "installed"})
_ROUNDING_CNY = 0.005
WORKING = "working"  # an attempt's state in the ledger once its command may have been started
_FOUND = frozenset({MachineStatus.BOOTING, MachineStatus.RUNNING})


Beside = Callable[[Shell, str], AbstractContextManager[object]]


def _nothing(_shell: Shell, _work: str) -> AbstractContextManager[object]:
    return nullcontext()


class Attempt:
    """One try of a job on one machine. Each phase is a method: in order, and any of them again after a crash."""

    def __init__(
        self, job: Job, machine: Machine, *, beside: Beside | None = None, left_there: LeftThere = dict
    ) -> None:
        """Take a machine that the provider has given.

        `beside` is what goes on while the work runs: a context for each connection, with the folder of the work.
        `left_there` says what else than the outputs to bring home where the work is ended: by a folder here, names
        in it and where in the work's folder they are.
        """
        self._beside = beside or _nothing
        self.job, self.name, self.backend = job, machine.name, job.host.backend(machine.backend)
        self.exit: ExitRecord | None = None
        self.work_began = False
        self._line = Line(job.host, self.backend, machine, stop=job.stop, reporter=job.reporter)
        self._homeward = Homeward(job, self._line, runner=self._runner, left_there=left_there)

    # boot

    def boot(self) -> None:
        """Wait until the machine runs, then until it lets us in; pin its host key, and put our own key on it.

        Raises NoCapacity when no host was found in time, BootTimeout, MachineLost, HostKeyChanged.
        """
        host, line, timing = self.job.host, self._line, self.job.host.timing
        with host.watching(line.machine) as watch:
            for wanted, limit_s, late in (
                (_FOUND, timing.queued_s, NoCapacity),
                ({MachineStatus.RUNNING}, timing.boot_s, BootTimeout),
            ):
                tick = partial(self._waited, limit_s)
                try:
                    line.note(watch.wait_for(wanted, timeout_s=limit_s, stop=line.stop, tick=tick))
                except BootTimeout as error:
                    self.backend.avoid(line.machine, why="slow to boot")
                    raise late(str(error)) from error
                line.check_alive(booting=not self.work_began)
        line.look(booting=not self.work_began)
        self._check_price()
        record = host.ledger.machine(self.name)
        if record and record.running_at is None:
            host.ledger.update_machine(self.name, running_at=host.clock.now())
        self.job.reporter.phase("boot", f"{self.name} is running; waiting for its SSH")
        line.connected(within_s=timing.boot_s, lost=BootTimeout)

    def _check_price(self) -> None:
        """Hold the provider to `max_price`, by the rate that it bills: what it said before may have been another."""
        most, price = self.job.recipe.resources.max_price, self._line.machine.price_cny_per_h
        if most is not None and price is not None and price > most + _ROUNDING_CNY and not self.work_began:
            raise OverLimit(
                f"{self.name} is billed at {price:.2f} CNY/h, above resources.max_price ({most:.2f}); "
                "it is released before any work began"
            )

    def _waited(self, limit_s: float, waited_s: float) -> None:
        self.job.reporter.progress("waiting for the machine", round(waited_s), round(limit_s))

    # push

    def push(self) -> None:
        """Send the runner first, which arms the dead-man, then the workdir and the file mounts; once begun, nothing."""
        if self._line.insist(lambda shell: self._runner(shell).status()).phase not in _NOT_BEGUN:
            return
        recipe, spec = self.job.recipe, spec_of(self.job, self.name)
        self._line.insist(lambda shell: self._runner(shell).install(spec))
        if recipe.workdir:
            local, progress = Path(recipe.workdir), self._progress("uploading workdir")
            self._line.insist(
                lambda shell: push_folder(
                    shell, local, self._runner(shell).work, progress=progress, stop=self._line.stop
                )
            )
        for remote, source in recipe.file_mounts.items():
            self._line.insist(partial(self._push_mount, Path(source), remote))

    def _push_mount(self, local: Path, remote: str, shell: Shell) -> None:
        progress, remote = self._progress(f"uploading {local.name}"), posixpath.join(self._runner(shell).work, remote)
        if local.is_dir():
            push_folder(shell, local, remote, progress=progress, stop=self._line.stop)
        else:
            push_file(shell, local, remote, progress=progress, stop=self._line.stop)

    def _progress(self, what: str) -> Callable[[int, int | None], None]:
        return partial(self.job.reporter.progress, what)

    # run

    def run(self) -> None:
        """Start the command, at most once, and follow it to its end; then check what it says of itself.

        Raises JobFailed (exit code, signal, failed set-up), OverLimit, MachineLost, TransferFailed.
        """
        self.work_began = True
        self.job.host.ledger.update_attempt(self.name, state=WORKING)
        recipe, allowed_s = self.job.recipe, left_s(self.job, self.name)
        limit_s = (most_s(self.job) if allowed_s is None else max(0, allowed_s)) + self.job.host.timing.overrun_s
        limit = "max_duration" if recipe.budget is None else "max_duration or the budget"
        over = OverLimit(f"the work was still running after {limit_s:.0f} s, past {limit}; it was stopped")
        with self._line.bounded(limit_s, lambda: self._line.stop.stop(over)), self._log_in_store():
            self._line.insist(self._start)
            self._line.insist(self._attend, patient=True)
        self._check_log()
        self._judge()

    def _log_in_store(self) -> AbstractContextManager[None]:
        host, number = self.job.host, int(self.name.rpartition("-")[2])
        if host.store is None:
            return nullcontext()
        return growing(host.store, self.job.run.id, number, self.job.folder.log, clock=host.clock)

    def _start(self, shell: Shell) -> None:
        runner = self._runner(shell)
        if runner.status().phase in _NOT_BEGUN:
            self.job.host.ledger.check_hold()
            runner.start()

    def _attend(self, shell: Shell) -> None:
        with self._beside(shell, self._runner(shell).work):
            self._follow(shell)

    def _follow(self, shell: Shell) -> None:
        folder = self.job.folder
        with folder.appending() as add:

            def keep(data: bytes) -> None:
                self.job.host.check_hold()
                add(data)
                self.job.reporter.output(data)

            runner = self._runner(shell)
            runner.follow(folder.log_size(), keep, stop=self._line.stop)
            status = runner.status()
        self.exit = status.exit
        if self.exit is None:
            raise MachineLost(
                f"{self.name}: the work ended without a record of its exit ({status.phase}); was it rebooted?"
            )

    def _check_log(self) -> None:
        """Hold promise 4: the log here is what the machine recorded, byte for byte; fetched anew once if it is not."""
        folder, exit_ = self.job.folder, self._exit
        self.job.host.ledger.check_hold()  # the log may be another's by now
        if (folder.log_size(), folder.log_sha256()) != (exit_.log_size, exit_.sha256):
            _log.warning("%s: the log here differs from the machine's; fetching it again", self.name)
            folder.drop_log()
            self._line.insist(self._follow)
        if folder.log_sha256() != exit_.sha256:
            raise TransferFailed(
                f"the log of {self.name} does not have the hash that the machine recorded: {folder.log}"
            )

    @property
    def machine(self) -> Machine:
        """The machine, as the provider described it last."""
        return self._line.machine

    @property
    def _exit(self) -> ExitRecord:
        if self.exit is None:
            raise RemoteFailure(f"{self.name} has no record of how its work ended")
        return self.exit

    def _note_exit(self) -> None:
        exit_ = self._exit
        self.job.host.ledger.update_attempt(self.name, exit_code=exit_.code, log_sha256=exit_.sha256)

    def _judge(self) -> None:
        exit_, job = self._exit, self.job
        self._note_exit()
        if exit_.reason == "max_duration":
            limit = "the budget" if job.recipe.budget is not None else f"max_duration ({job.recipe.max_duration} s)"
            raise OverLimit(f"{limit} was reached, so the work was stopped; what it wrote so far is pulled")
        if exit_.reason == "idle":
            raise OverLimit(
                f"no GPU was used over 5 % for {job.recipe.idle_duration} s (idle_duration), so the work was stopped; "
                "what it wrote so far is pulled"
            )
        if exit_.code == 0 and exit_.reason == "exit":
            return
        what = "setup" if exit_.reason == "setup" else "the command"
        how = f"was killed by signal {exit_.signal}" if exit_.signal else f"ended with exit code {exit_.code}"
        raise JobFailed(f"{what} {how}; its output is in {job.folder.log}")

    # pull

    def pull(self) -> None:
        """Bring every output home, whole or not at all; raises JobFailed where one does not exist."""
        missing = self._homeward.outputs()
        failed = None
        if missing:
            failed = JobFailed(f"outputs that the command did not write: {', '.join(missing)}; mend `outputs` or run")
        self.settle(failed)  # first: a machine that knows itself pulled may end at any moment
        self._line.insist(lambda shell: self._runner(shell).mark_pulled())
        if failed:
            raise failed

    def settle(self, failed: GpujobsError | None) -> None:
        """Write down how the attempt ended, so that whoever resumes it has only to tear it down."""
        verdict = "succeeded" if failed is None else type(failed).__name__
        self.job.host.ledger.update_attempt(self.name, outcome=verdict, error=str(failed or ""))

    def pull_what_there_is(self) -> None:
        """End the command if it still runs, and bring home what it left; what is missing is told, never raised.

        The machine is not told that everything is fetched: it may be kept for a look.
        """
        timing = self.job.host.timing
        limit_s = timing.stop_grace_s + timing.stop_pull_s if self._line.stop.stopped else timing.lost_s
        with self._line.after_stop(limit_s):
            try:
                if self.exit is None:
                    self._end_the_work()
                missing = self._homeward.outputs()
                self._homeward.left()
            except (Unreachable, MachineLost, TransferFailed, RemoteFailure) as error:
                self.job.reporter.note(f"not everything could be pulled: {error}")
            else:
                if missing:
                    self.job.reporter.note(f"outputs that the command did not write: {', '.join(missing)}")

    def _end_the_work(self) -> None:
        """Send TERM, then KILL, and fetch the rest of the log."""
        grace_s = round(self.job.host.timing.stop_grace_s)
        self._line.insist(lambda shell: self._runner(shell).cancel(grace_s))
        self._line.insist(self._follow)
        self._note_exit()

    # the end

    def snapshot(self) -> None:
        """Save the machine's disk, as the recipe says; raises GpujobsError with the reason."""
        save_disk(self.job, self.backend, self._line)

    def keep(self) -> None:
        """Leave a failed machine up for a look, for as long as the recipe says, or until somebody cancels."""
        keep_s, clock = self.job.recipe.on_failure.keep, self.job.host.clock
        self.job.reporter.note(f"{self.name} is kept for {keep_s} s: gpujobs ssh {self.job.run.id}; cancel releases it")
        until = clock.monotonic() + keep_s
        while (left_s := until - clock.monotonic()) > 0:
            self._line.insist(lambda shell: self._runner(shell).heartbeat())
            self._line.stop.sleep(clock, min(left_s, HEARTBEAT_S))

    def avoid(self, *, why: str) -> None:
        """Keep the next machines off this one's host, where the provider can."""
        try:
            self.backend.avoid(self._line.machine, why=why)
        except ProviderError as error:
            self.job.reporter.note(f"{self.name}: its host could not be avoided: {error}")

    def release(self) -> None:
        """End the rent, and wait for the provider's own list to say so; raises MachineLost where it does not."""
        self._line.hang_up()
        try:
            teardown.release(self.job.host, self.backend, self._line.machine, within_s=self.job.host.timing.release_s)
        finally:
            self.job.host.ledger.update_attempt(self.name, ended_at=self.job.host.clock.now())

    # the parts

    def _runner(self, shell: Shell) -> Runner:
        return Runner(shell, base=self.backend.work_root, name=self.name)


def verdict_of(row: AttemptRow) -> GpujobsError | None:
    """Give what an attempt had ended with, as `Attempt.settle` wrote it down."""
    if row.outcome == "succeeded":
        return None
    kind = getattr(errors, row.outcome, GpujobsError)
    told: GpujobsError = kind(row.error)
    return told
