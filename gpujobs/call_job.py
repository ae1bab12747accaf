"""One call on a rented machine, as a Future: a run of its own, driven by a thread of this process."""

import atexit
import concurrent.futures.thread  # noqa: F401 - for its hook; see the end of this file
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from gpujobs import lifecycle, process, settings
from gpujobs.call_outcome import Wanted, ending_of, result_of
from gpujobs.call_recipe import OUTCOME
from gpujobs.clock import StopToken
from gpujobs.errors import BadInput, Busy, Cancelled
from gpujobs.host import Host
from gpujobs.ledger import open_ledger
from gpujobs.ledger_rows import ENDED, Run
from gpujobs.models import Reporter
from gpujobs.plan import check_local
from gpujobs.recipe import Recipe
from gpujobs.run_folder import CALL_FOLDER, LOG, RunFolder
from gpujobs.settings import Settings, private_folder
from gpujobs.store_folder import fetch_outputs, folder_of

_LOOK_EVERY_S = 0.5
_R = TypeVar("_R")


class Silent:
    """A reporter whom nobody hears: all that it would tell is in the run's folder."""

    def phase(self, name: str, detail: str) -> None:
        """Say nothing."""

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def output(self, data: bytes) -> None:
        """Say nothing."""


class Job(Future[_R]):
    """A call that runs, or ran, on a rented machine. Made by `submit`, or by `from_id` for one of another process.

    It is a `concurrent.futures.Future`: `result`, `exception`, `done`, `add_done_callback` are as documented there.
    A script that ends waits for its jobs; one that ends by Ctrl-C cancels them first.
    """

    def __init__(self, run_id: str, found: Settings, wanted: Wanted, reporter: Reporter) -> None:
        """Stand for a run; `submit` and `from_id` are the usual ways."""
        super().__init__()
        self.run_id = run_id
        self._settings, self._wanted, self._reporter = found, wanted, reporter
        self._stop = StopToken()
        self._over = threading.Event()
        self._lock = threading.Lock()

    @classmethod
    def from_id(cls, run_id: str, function: Callable[..., Any] | None = None) -> Self:
        """Give the job of a run that any process on this ledger has begun; goes on with it where nobody drives it.

        Args:
            run_id: the id, its first letters, or the run's name.
            function: the decorated function; needed for results that its type hints describe, and for trust_remote.

        Raises:
            BadInput: there is no such run, or it is none of a decorated function.
        """
        found = settings.load()
        with open_ledger(found.database_url) as ledger:
            run = ledger.get_run(run_id)
        if OUTCOME not in Recipe.model_validate_json(run.recipe_json).outputs:
            raise BadInput(f"run {run.id} ({run.name}) is no call of a function; see: gpujobs status {run.id}")
        if known := next((job for job in list(_jobs) if job.run_id == run.id), None):
            return known  # type: ignore[return-value] # two drivers in one process would share one lease
        wanted = getattr(function, "wanted", None) or Wanted(hint=Any, trust_remote=False)
        job = cls(run.id, found, wanted, Silent())
        job.start()
        return job

    def start(self) -> None:
        """Begin to drive the run, in a thread."""
        _jobs.add(self)
        threading.Thread(target=self._drive, name=f"gpujobs-{self.run_id}", daemon=True).start()

    @property
    def cost(self) -> float | None:
        """What the call has cost so far, in CNY; None while that is not known."""
        with open_ledger(self._settings.database_url) as ledger:
            return ledger.cost_cny(self.run_id)

    @property
    def outputs(self) -> Mapping[str, Path]:
        """The files and folders of `outputs=` that are home, by name, or in the store."""
        folder = self._folder()
        names = [path.name for path in folder.outputs.glob("*") if path.name != OUTCOME and path.name[0] != "."]
        return folder.pulled(dict.fromkeys(names, ""))

    def logs(self) -> str:
        """Give what the call has written so far; from the store where another host has more."""
        with open_ledger(self._settings.database_url) as ledger:
            log = folder_of(self._settings, ledger.get_run(self.run_id)) / LOG
        return log.read_text("utf-8", "replace") if log.exists() else ""

    def running(self) -> bool:
        """Say whether the call is on its way: waiting for a machine, or at work on one."""
        return not self.done()

    def cancel(self) -> bool:
        """Stop the call wherever it is; False where it is over. Its machine is released in the background."""
        with self._lock:
            if self.cancelled():
                return True
            if not super().cancel():
                return False
            self.set_running_or_notify_cancel()
            self._stop.stop(Cancelled(f"run {self.run_id} was cancelled"))
        return True

    def wait_released(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing more happens to the run, as after a cancel; False where `timeout_s` passes before."""
        return self._over.wait(timeout_s)

    def _drive(self) -> None:
        try:
            value = self._outcome()
        except Cancelled:
            self.cancel()
        except BaseException as error:  # noqa: BLE001 - a future's exception is whatever came
            with suppress(InvalidStateError):
                self.set_exception(error)
        else:
            with suppress(InvalidStateError):
                self.set_result(value)
        finally:
            self._over.set()
            _jobs.discard(self)

    def _outcome(self) -> _R:
        with shared_host(self._settings) as host:
            run = self._ended(host)
            if run is None:
                run = self._run_to_end(host)
            codes = [row.exit_code for row in host.ledger.attempts(self.run_id)]
        shutil.rmtree(self._settings.runs / self.run_id / CALL_FOLDER, ignore_errors=True)
        folder = self._folder()
        try:
            result: _R = result_of(folder.outputs / OUTCOME, ending_of(run, codes), self._wanted)
        except Exception as error:
            error.add_note(f"gpujobs run {self.run_id}; its log: {folder.log}")
            raise
        return result

    def _folder(self) -> RunFolder:
        """Give the folder that holds what came home: the run's own, or what another host has put into the store."""
        own, found = RunFolder(self._settings.runs / self.run_id), self._settings
        if not found.store or (own.outputs / OUTCOME).exists():
            return own
        fetched = RunFolder(private_folder(found.home / "fetched") / self.run_id)
        if not (fetched.outputs / OUTCOME).exists():
            with open_ledger(found.database_url) as ledger:
                run = ledger.get_run(self.run_id)
            if run.state not in ENDED or not fetch_outputs(found, run, fetched.outputs):
                return own
        return fetched

    def _run_to_end(self, host: Host) -> Run:
        """Drive the run; where another process does, wait until it has ended or that process has let go of it."""
        while True:
            self._free_of_the_dead(host)
            with suppress(Busy):
                lifecycle.execute(host, self.run_id, stop=self._stop, reporter=self._reporter, unended=True)
            if run := self._ended(host):
                return run
            if self.cancelled():
                host.ledger.request_cancel(self.run_id, host.clock.now())
            else:
                self._listen_anew()
            host.clock.wait(threading.Event(), _LOOK_EVERY_S)

    def _free_of_the_dead(self, host: Host) -> None:
        driver = host.ledger.get_run(self.run_id).driver
        if process.driver_died(driver):  # its lease need not be waited out
            host.ledger.release_claim(self.run_id, driver)

    def _listen_anew(self) -> None:
        """Take a fresh token where the old one was stopped by another process's taking over."""
        with self._lock:
            if not self.cancelled():
                self._stop = StopToken()

    def _ended(self, host: Host) -> Run | None:
        run = host.ledger.get_run(self.run_id)
        return run if run.state in ENDED else None


def submit(recipe_in: Callable[[Path], Recipe], *, wanted: Wanted, reporter: Reporter | None) -> Job[Any]:
    """Begin a run of its own for a call; `recipe_in` writes the call's files into a folder and gives the recipe.

    Raises BadInput, before anything is rented.
    """
    found, run_id = settings.load(), lifecycle.new_run_id()
    folder = found.runs / run_id / CALL_FOLDER
    try:
        recipe = recipe_in(folder)
        with shared_host(found) as host:
            check_local(host, recipe)
            lifecycle.open_run(host, recipe, run_id=run_id)
    except BaseException:
        shutil.rmtree(folder.parent, ignore_errors=True)
        raise
    job: Job[Any] = Job(run_id, found, wanted, reporter or Silent())
    job.start()
    return job


# One host for all jobs of one ledger, open while there are any


class _Desk:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open: list[tuple[Settings, Host, int]] = []


_desk = _Desk()
_jobs: set[Job[Any]] = set()


@contextmanager
def shared_host(found: Settings) -> Iterator[Host]:
    """Lend the one host of this process for the ledger of `found`; it is closed when nobody has it any more."""
    host = _borrow(found)
    try:
        yield host
    finally:
        _give_back(host)


def _borrow(found: Settings) -> Host:
    with _desk.lock:
        for index, (of, host, users) in enumerate(_desk.open):
            if of == found:
                _desk.open[index] = (of, host, users + 1)
                return host
        host = Host.open(found)
        _desk.open.append((found, host, 1))
        return host


def _give_back(host: Host) -> None:
    with _desk.lock:
        index = next(index for index, (_, one, _) in enumerate(_desk.open) if one is host)
        of, _, users = _desk.open[index]
        if users > 1:
            _desk.open[index] = (of, host, users - 1)
            return
        del _desk.open[index]
    host.close()


def _wait_for_jobs() -> None:
    """Let no script end under its machines: wait for its jobs, cancelled first where it ends by Ctrl-C."""
    interrupted = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)
    for job in list(_jobs):
        if interrupted:
            job.cancel()
    for job in list(_jobs):
        try:
            job.wait_released()
        except KeyboardInterrupt:
            job.cancel()
            job.wait_released()


# Behind Python's own such hook, which was registered by the import of concurrent.futures.thread above and runs after
# ours, no pool of threads takes work any more, and so no run could be ended.
getattr(threading, "_register_atexit", atexit.register)(_wait_for_jobs)
