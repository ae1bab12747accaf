"""The run behind a fleet: how many machines there are, what becomes of a lost one's tasks, the limits, and the end."""

import atexit
import concurrent.futures.thread  # noqa: F401 - for its hook; see the end of this file
import shutil
import sys
import threading
from concurrent.futures import BrokenExecutor
from contextlib import suppress

from gpujobs import ending, lifecycle
from gpujobs.call_files import CALL_FOLDER, write_fleet
from gpujobs.call_job import Silent, shared_host
from gpujobs.call_recipe import for_fleet
from gpujobs.clock import StopToken
from gpujobs.errors import Cancelled, GpujobsError, LetGo, MachineLost, OverLimit, Unavailable
from gpujobs.fleet_deal import Dealer
from gpujobs.fleet_machine import FleetMachine, Places
from gpujobs.fleet_task import Task
from gpujobs.host import Host, describe_bug
from gpujobs.models import Reporter
from gpujobs.news import NewsWriter
from gpujobs.plan import check_local
from gpujobs.recipe import Recipe
from gpujobs.renting import Job
from gpujobs.run_folder import RunFolder
from gpujobs.settings import Settings
from gpujobs.teardown import spent_cny

_LOOK_EVERY_S = 1.0


class _Log(Silent):
    """Puts what all machines write into the run's one log, as it comes, and hands it on."""

    def __init__(self, folder: RunFolder, reporter: Reporter) -> None:
        self._folder, self._reporter, self._lock = folder, reporter, threading.Lock()

    def note(self, text: str) -> None:
        self._reporter.note(text)

    def output(self, data: bytes) -> None:
        with self._lock, self._folder.appending() as add:
            add(data)
        self._reporter.output(data)


class FleetRun:
    """One run in the ledger with up to `machines` machines at a time, driven by a thread of this process."""

    def __init__(self, run_id: str, found: Settings, *, machines: int, reporter: Reporter) -> None:
        """Rent nothing yet."""
        self.run_id = run_id
        self.error: BaseException | None = None
        self._settings, self._machines = found, machines
        self.folder = RunFolder(found.runs / run_id)
        self._reporter = reporter
        self._news = threading.Event()
        self._lock = threading.Lock()
        self._crew: list[FleetMachine] = []
        self._places = Places()
        self._rented = 0
        self._closing = self._ending = False
        self._slots = 1
        self._look_again_s = 0.0  # by the host's monotonic clock: no more machines were to be had
        self.stop = StopToken()
        self.over = threading.Event()
        self.dealer = Dealer(self._news.set)

    def begin(self, common: Recipe, *, workdir: str, python: str) -> None:
        """Write the run down and begin to drive it; raises BadInput before anything is rented."""
        files = self.folder.path / CALL_FOLDER
        try:
            write_fleet(files)
            recipe = for_fleet(common, workdir=workdir, files=files, python=python)
            with shared_host(self._settings) as host:
                check_local(host, recipe)
                lifecycle.open_run(host, recipe, run_id=self.run_id)
        except BaseException:
            shutil.rmtree(self.folder.path, ignore_errors=True)
            raise
        self._slots = min(count for _, count in recipe.resources.wanted)
        _fleets.add(self)
        self.dealer.start(f"gpujobs-{self.run_id}-tasks")
        threading.Thread(target=self._drive, args=(recipe,), name=f"gpujobs-{self.run_id}", daemon=True).start()

    def add(self, task: Task) -> None:
        """Queue a task; raises BrokenExecutor where the fleet has ended by itself."""
        with self._lock:
            if self._ending:
                raise BrokenExecutor(f"run {self.run_id} of this fleet has ended: {self.error}")
            self.dealer.add([task])
        self._news.set()

    def close(self) -> None:
        """Take no more tasks: machines go as the queue empties. Idempotent."""
        self._closing = True
        self._news.set()

    def cancel(self, why: str) -> None:
        """Stop everything now, and release all."""
        self.stop.stop(Cancelled(f"run {self.run_id} was cancelled: {why}"))
        self.close()

    def drop_queue(self) -> None:
        """Cancel the tasks that no machine has begun."""
        for task in self.dealer.take_queue():
            if task.future.running():  # it waits for its next try
                self.dealer.add([task], first=True)
            else:
                task.give_up()
        self._news.set()

    # The run's own thread

    def _drive(self, recipe: Recipe) -> None:
        failed: BaseException | None = None
        try:
            with shared_host(self._settings) as host, host.guarded(self.run_id, self.stop) as held:
                failed = self._drive_as(held, recipe)
        except BaseException as error:  # noqa: BLE001 - whoever waits for a task must hear of it
            failed = error
        with self._lock:
            self._ending, self.error = True, failed
        self._fail_all(failed or MachineLost(f"run {self.run_id} ended without it"))
        self.dealer.close()
        shutil.rmtree(self.folder.path / CALL_FOLDER, ignore_errors=True)
        self.over.set()
        _fleets.discard(self)

    def _drive_as(self, host: Host, recipe: Recipe) -> GpujobsError | None:
        run = host.ledger.get_run(self.run_id)
        host.ledger.update_run(self.run_id, state="running", phase="run", started_at=host.clock.now())
        reporter = NewsWriter(self.folder.news, _Log(self.folder, self._reporter))
        job = Job(
            host=host.under(recipe.credentials),
            run=run,
            recipe=recipe,
            stop=self.stop,
            reporter=reporter,
            machines=self._machines,
        )
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
        if isinstance(failed, LetGo):
            return failed
        if any(record.id is None for record in host.ledger.machines(self.run_id)):
            with suppress(GpujobsError):  # the reaper goes on
                ending.sweep(job)
        if host.store is not None and self._rented:
            ending.keep_in_store(job)
        outcome = ending.finish(job, failed)
        if recipe.notify:
            ending.tell(job, outcome)
        return failed

    def _until_over(self, job: Job) -> None:
        began, clock = None, job.host.clock
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
        if recipe.budget is not None and spent_cny(job.host, recipe, self.run_id) >= recipe.budget:
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


_fleets: set[FleetRun] = set()


def _wait_for_fleets() -> None:
    """Let no script end under its machines: tasks are waited for, or cancelled where it ends by Ctrl-C."""
    interrupted = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)
    for fleet in list(_fleets):
        fleet.close()
        if interrupted:
            fleet.cancel("the script was interrupted")
    for fleet in list(_fleets):
        try:
            fleet.over.wait()
        except KeyboardInterrupt:
            fleet.cancel("the script was interrupted")
            fleet.over.wait()


# As in call_job: before Python's own such hook, behind which nothing can be begun any more.
getattr(threading, "_register_atexit", atexit.register)(_wait_for_fleets)
