"""One machine of a fleet: a thread that rents it, has it take tasks, and releases it; an attempt of the fleet's run."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from gpujobs.attempt import Attempt
from gpujobs.clock import StopToken
from gpujobs.errors import (
    BadInput,
    Cancelled,
    GpujobsError,
    JobFailed,
    LetGo,
    MachineLost,
    NoCapacity,
    OverLimit,
    ProviderError,
)
from gpujobs.fleet_deal import Dealer
from gpujobs.fleet_link import Link
from gpujobs.fleet_task import Task
from gpujobs.host import describe_bug
from gpujobs.models import Machine
from gpujobs.plan import Choice, make_plan
from gpujobs.renting import Job, rent_first
from gpujobs.run_folder import attempt_log

End = Literal["done", "lost", "broken"]  # it was let go; another may take its place; none would fare better
_REFUSED_CODE = 2  # the script's exit code where the machine's Python will not do
_BROKEN = (BadInput, JobFailed, OverLimit, Cancelled, LetGo)
_TAIL_BYTES = 4000


class Places:
    """What a fleet has asked for and not got yet: its machines come one beside the other, and see the same stock."""

    def __init__(self) -> None:
        """Have asked for nothing."""
        self._lock = threading.Lock()
        self._asked: Counter[tuple[str, str, str, str]] = Counter()

    def ask(self, choices: Sequence[Choice]) -> Choice:
        """Give the first that is still to be had, or else the first, and count it."""
        with self._lock:
            choice = min(choices, key=lambda one: one.offer.free <= self._asked[_shape(one)])
            self._asked[_shape(choice)] += 1
        return choice

    def came(self, choice: Choice) -> None:
        """Count one fewer: the provider has given it, or has not."""
        with self._lock:
            self._asked[_shape(choice)] -= 1


def _shape(choice: Choice) -> tuple[str, str, str, str]:
    return choice.offer.backend, choice.offer.region, choice.offer.gpu, choice.offer.sku


class FleetMachine:
    """Goes through its life on a thread of its own; `over` is called at the end."""

    def __init__(self, job: Job, dealer: Dealer, places: "Places", over: Callable[[], None]) -> None:
        """Start nothing yet; `job` is the fleet's, of which this takes what is its own."""
        self._places = places
        self._choice: Choice | None = None
        self.stop = StopToken()
        self._job = replace(job, stop=self.stop)
        self._dealer, self._over = dealer, over
        self.link: Link | None = None
        self.attempt: Attempt | None = None
        self.error: GpujobsError | None = None
        self.end: End = "done"
        self.ended, self.released = False, True
        self.left: Sequence[Task] = ()  # tasks that were at it when it was lost
        self._thread = threading.Thread(target=self._live, name=f"gpujobs-{job.run.id}-machine", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join()

    def dismiss(self) -> None:
        """Let it go once it has no task; at once where it is not up yet."""
        if self.link is not None and self.link.served:
            self._dealer.dismiss(self.link)
        else:
            self.stop.stop(Cancelled("the fleet has no task for it any more"))

    def _live(self) -> None:
        try:
            self._rent_and_work()
        except GpujobsError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - a bug of ours must not leave a machine rented
            self.error = describe_bug(error)
        try:
            self.end = self._judge()
            if self.attempt is not None and not isinstance(self.error, LetGo):
                self._release(self.attempt)
        finally:  # whatever befalls this thread, nobody waits for it in vain
            if self.link is not None:
                self.left = self._dealer.leave(self.link)
            self.ended = True
            self._over()

    def _rent_and_work(self) -> None:
        machine, choice = self._rent()
        number = int(machine.name.rpartition("-")[2])
        self._job = replace(self._job, log_name=attempt_log(number))
        link = self.link = Link(machine.name, max(1, choice.offer.gpu_count), distrust=self.stop.stop)
        self._dealer.join(link)
        beside = partial(self._dealer.attached, link)
        self.attempt = attempt = Attempt(self._job, machine, beside=beside, left_there=link.left_there)
        for name, act in (("boot", self._boot), ("push", attempt.push), ("run", attempt.run)):
            self._job.host.ledger.update_attempt(attempt.name, phase=name)
            self._job.reporter.phase(name, attempt.name)
            act()

    def _boot(self) -> None:
        try:
            if self.attempt is not None:
                self.attempt.boot()
        finally:
            if self._choice is not None:
                self._places.came(self._choice)

    def _rent(self) -> tuple[Machine, Choice]:
        """Rent what is cheapest; where nothing is free, wait for as long as the recipe allows."""
        job, began = self._job, self._job.host.clock.monotonic()
        while True:
            job.stop.raise_if_stopped()
            try:
                return self._rent_of(make_plan(job.host, job.recipe).choices)
            except NoCapacity as error:
                waited_s = job.host.clock.monotonic() - began
                if waited_s >= job.recipe.retry.wait:
                    raise
                job.reporter.progress(f"waiting for a free card ({error})", round(waited_s), job.recipe.retry.wait)
            job.stop.sleep(job.host.clock, job.host.timing.stock_s * job.host.dice.uniform(0.8, 1.2))

    def _rent_of(self, choices: Sequence[Choice]) -> tuple[Machine, Choice]:
        left = list(choices)
        while left:
            choice = self._places.ask(left)
            left.remove(choice)
            try:
                machine = rent_first(self._job, [choice])
            except NoCapacity:
                self._places.came(choice)
                continue
            except BaseException:
                self._places.came(choice)
                raise
            self._choice = choice
            return machine, choice
        raise NoCapacity(f"nothing that fits is free now for a machine of run {self._job.run.id}")

    def _judge(self) -> End:
        error = self.error
        if error is None or (self.stop.stopped and isinstance(self.stop.error, Cancelled)):
            return "done"
        if self.attempt is None:
            return "lost" if isinstance(error, ProviderError) else "broken"
        if isinstance(error, JobFailed) and self.link is not None and self.link.served:
            return "lost"  # its foreman was ended
        if isinstance(error, JobFailed) and (told := self._told_by_the_machine()):
            self.error = BadInput(told)
        return "broken" if isinstance(error, _BROKEN) else "lost"

    def _told_by_the_machine(self) -> str:
        """Give the last line of its log where that is why its Python will not do."""
        exit_ = self.attempt.exit if self.attempt else None
        if exit_ is None or exit_.code != _REFUSED_CODE or not self._job.folder.log.exists():
            return ""
        lines = self._job.folder.log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace").splitlines()
        return lines[-1].removeprefix("gpujobs: ") if lines and lines[-1].startswith("gpujobs: ") else ""

    def _release(self, attempt: Attempt) -> None:
        """End its work, keep its log whole, end its rent; trouble here is told."""
        error = self.error
        try:
            attempt.settle(error)
            if self.end == "lost":
                attempt.avoid(why="lost under its tasks")
            if error is not None and attempt.work_began and not isinstance(error, MachineLost):
                attempt.pull_what_there_is()
        except LetGo:
            return
        except Exception as trouble:  # noqa: BLE001 - as above
            self._job.reporter.note(f"{attempt.name}: {trouble}")
        self.released = False
        try:
            self._job.host.ledger.update_attempt(attempt.name, phase="release")
            attempt.release()
            self.released = True
        except GpujobsError as trouble:
            self._job.reporter.note(f"release: {trouble}")
        state = "succeeded" if error is None else "cancelled" if isinstance(error, Cancelled) else "failed"
        self._job.host.ledger.update_attempt(attempt.name, state=state, error=str(error or ""))
