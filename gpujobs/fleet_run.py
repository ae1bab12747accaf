"""Machines that do tasks together: how many there are, what becomes of a lost one's tasks, the limits, and the end."""

import threading
from collections.abc import Sequence

from gpujobs.errors import Cancelled, GpujobsError, MachineLost, OverLimit, Unavailable
from gpujobs.fleet_deal import Dealer
from gpujobs.fleet_machine import FleetMachine, Places
from gpujobs.host import describe_bug
from gpujobs.models import Machine, Reporter
from gpujobs.renting import Job
from gpujobs.run_folder import RunFolder
from gpujobs.teardown import spent_cny

_LOOK_EVERY_S = 1.0


class Log:
    """A reporter that puts what all machines write into the run's one log, as it comes, and hands it on.

    Notes go on too, and with `phases` what each machine is at.
    """

    def __init__(self, folder: RunFolder, reporter: Reporter, *, phases: bool) -> None:
        """Write into the run's `folder`."""
        self._folder, self._reporter, self._phases = folder, reporter, phases
        self._lock = threading.Lock()

    def phase(self, name: str, detail: str) -> None:
        """Hand on, where that is wanted."""
        if self._phases:
            self._reporter.phase(name, detail)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Leave out: several machines are at it."""

    def note(self, text: str) -> None:
        """Hand on."""
        self._reporter.note(text)

    def output(self, data: bytes) -> None:
        """Keep and hand on."""
        with self._lock, self._folder.appending() as add:
            add(data)
        self._reporter.output(data)


class Crew:
    """Up to `machines` machines at a time that do tasks, and what they share; `work` drives them."""

    def __init__(self, *, machines: int) -> None:
        """Rent nothing yet."""
        self.error: BaseException | None = None
        self._machines = machines
        self._news = threading.Event()
        self._lock = threading.Lock()
        self._crew: list[FleetMachine] = []
        self._places = Places()
        self._rented = 0
        self._closing = self._ending = False
        self._slots = 1
        self._look_again_s = 0.0  # by the host's monotonic clock: no more machines were to be had
        self.dealer = Dealer(self._news.set)

    @property
    def machines(self) -> Sequence[Machine]:
        """The machines that are rented now."""
        return [one.attempt.machine for one in list(self._crew) if one.attempt and not one.ended]

    def close(self) -> None:
        """Take no more tasks: machines go as the queue empties. Idempotent."""
        self._closing = True
        self._news.set()

    def work(self, job: Job) -> GpujobsError | None:
        """See all tasks through, and release all machines; gives what ended it early."""
        self._slots = min(count for _, count in job.recipe.resources.wanted)
        failed: GpujobsError | None = None
        try:
            self._until_over(job)
        except GpujobsError as error:
            failed = error
        except Exception as error:  # noqa: BLE001 - a bug of ours must not leave a machine rented
            failed = describe_bug(error)
        with self._lock:
            self._ending, self.error = True, failed
        self._release_all(failed)
        return failed

    def _until_over(self, job: Job) -> None:
        clock = job.host.clock
        began = clock.monotonic() - job.worked_s if job.worked_s else None
        while True:
            self._news.clear()
            job.stop.raise_if_stopped()
            self._bury(job)
            waiting, at_work = self.dealer.waiting(), self.dealer.at_work()
            if self._closing and not waiting and not at_work and not self._crew:
                return
            if began is None and any(one.attempt and one.attempt.work_began for one in self._crew):
                began = clock.monotonic()
            self._check_limits(job, 0.0 if began is None else clock.monotonic() - began)
            if self._closing and not waiting:
                self._let_idle_go()
            else:
                self._grow(job, waiting + at_work)
            clock.wait(self._news, _LOOK_EVERY_S)

    def _check_limits(self, job: Job, worked_s: float) -> None:
        recipe = job.recipe
        if worked_s > recipe.max_duration:
            raise OverLimit(f"max_duration ({recipe.max_duration} s) was reached; the fleet's machines were released")
        if recipe.budget is not None and spent_cny(job.host, recipe, job.run.id) >= recipe.budget:
            raise OverLimit(f"the budget of {recipe.budget:.2f} CNY is used up; the fleet's machines were released")

    def _let_idle_go(self) -> None:
        for machine in self._crew:
            if machine.link is None or not machine.link.tasks:
                machine.dismiss()

    def _grow(self, job: Job, tasks: int) -> None:
        """Rent as many machines as there are tasks for."""
        most = self._machines * job.recipe.retry.attempts - self._rented
        wanted = min(self._machines, -(-tasks // self._slots)) - len(self._crew)
        if self._crew and job.host.clock.monotonic() < self._look_again_s:
            return
        if wanted > 0 and most <= 0 and not self._crew:
            raise MachineLost(f"all of the {self._rented} machines that it may rent are used up (retry.attempts)")
        for _ in range(min(wanted, most)):
            machine = FleetMachine(job, self.dealer, self._places, self._news.set)
            self._crew.append(machine)
            self._rented += 1
            machine.start()

    def _bury(self, job: Job) -> None:
        """Take leave of the machines that have ended; raises where the fleet can do no more."""
        for machine in [one for one in self._crew if one.ended]:
            self._crew.remove(machine)
            error = machine.error or MachineLost("its work there ended early")
            if machine.end == "broken":
                self.dealer.fail(machine.left, error)
                raise error
            self._again(job, machine, error)
            if machine.end == "lost":
                job.reporter.note(f"a machine of the fleet: {error}")
                refused = machine.attempt is None and not isinstance(error, Unavailable)
                if refused and self._crew:  # it goes on with fewer, and asks again later
                    self._rented -= 1
                    self._look_again_s = job.host.clock.monotonic() + job.host.timing.stock_s
                spent = self._rented >= self._machines * job.recipe.retry.attempts
                if not self._crew and (spent or refused):
                    raise error

    def _again(self, job: Job, machine: FleetMachine, error: GpujobsError) -> None:
        """Queue a lost machine's tasks again, once it is surely gone; one that was tried too often fails."""
        retry = job.recipe.retry
        again = [task for task in machine.left if task.tries < retry.attempts and "machine-lost" in retry.on]
        if not machine.released:
            again = []
        kept = {task.number for task in again}
        self.dealer.fail([task for task in machine.left if task.number not in kept], error)
        for task in again:
            task.put_back()
        self.dealer.add(again, first=True)

    def _release_all(self, failed: GpujobsError | None) -> None:
        for machine in self._crew:
            machine.stop.stop(failed or Cancelled("the fleet is over"))
        self._fail_all(failed or MachineLost("the fleet is over"))
        for machine in self._crew:
            machine.join()
            self.dealer.fail(machine.left, failed or MachineLost("the fleet is over"))

    def _fail_all(self, error: BaseException) -> None:
        self.dealer.fail(self.dealer.take_queue(), error)
