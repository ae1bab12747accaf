"""A program's fleet as a run: written down, driven by a thread of the program, and ended with it."""

import atexit
import concurrent.futures.thread  # noqa: F401 - for its hook; see the end of this file
import shutil
import sys
import threading
from concurrent.futures import BrokenExecutor
from contextlib import suppress

from gpujobs import ending, lifecycle
from gpujobs.call_files import write_fleet
from gpujobs.call_job import shared_host
from gpujobs.call_recipe import for_fleet
from gpujobs.clock import StopToken
from gpujobs.errors import Cancelled, GpujobsError, LetGo, MachineLost
from gpujobs.fleet_book import Book
from gpujobs.fleet_run import Crew, Log
from gpujobs.fleet_task import Task
from gpujobs.host import Host
from gpujobs.models import Reporter
from gpujobs.news import NewsWriter
from gpujobs.plan import check_local
from gpujobs.recipe import Recipe
from gpujobs.renting import Job
from gpujobs.run_folder import CALL_FOLDER, RunFolder
from gpujobs.settings import Settings


class FleetRun(Crew):
    """One run in the ledger with up to `machines` machines at a time, driven by a thread of this process."""

    def __init__(self, run_id: str, found: Settings, *, machines: int, reporter: Reporter) -> None:
        """Rent nothing yet."""
        super().__init__(machines=machines)
        self.run_id = run_id
        self._settings = found
        self.folder = RunFolder(found.runs / run_id)
        self._reporter = reporter
        self.stop = StopToken()
        self.over = threading.Event()
        self.book = Book(run_id)

    def begin(self, common: Recipe, *, workdir: str, python: str) -> None:
        """Write the run down and begin to drive it; raises BadInput before anything is rented."""
        files = self.folder.path / CALL_FOLDER
        try:
            write_fleet(files)
            recipe = for_fleet(common, workdir=workdir, files=files, python=python)
            with shared_host(self._settings) as host:
                check_local(host, recipe)
                lifecycle.open_run(host, recipe, run_id=self.run_id, kind="fleet")
        except BaseException:
            shutil.rmtree(self.folder.path, ignore_errors=True)
            raise
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
        if not isinstance(failed, LetGo):
            self._end_book()
        shutil.rmtree(self.folder.path / CALL_FOLDER, ignore_errors=True)
        self.over.set()
        _fleets.discard(self)

    def _end_book(self) -> None:
        """Write down how the last calls ended; the run is over, whatever comes of it."""
        with suppress(GpujobsError), shared_host(self._settings) as host:
            self.book.write(host.ledger)

    def _drive_as(self, host: Host, recipe: Recipe) -> GpujobsError | None:
        run = host.ledger.get_run(self.run_id)
        host.ledger.update_run(self.run_id, state="running", phase="run", started_at=host.clock.now())
        reporter = NewsWriter(self.folder.news, Log(self.folder, self._reporter, phases=False))
        job = Job(
            host=host.under(recipe.credentials),
            run=run,
            recipe=recipe,
            stop=self.stop,
            reporter=reporter,
            machines=self._machines,
        )
        with self.book.kept(host.ledger):
            failed = self.work(job)
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
