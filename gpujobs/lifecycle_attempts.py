"""The steps of a run: attempt after attempt until one counts, each torn down whatever happened."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from gpujobs import ending, sweep
from gpujobs.attempt import WORKING, Attempt, verdict_of
from gpujobs.ending import Outcome
from gpujobs.errors import (
    BootTimeout,
    Cancelled,
    Detached,
    GpujobsError,
    JobFailed,
    LetGo,
    MachineLost,
    NoCapacity,
    OverLimit,
    Unavailable,
)
from gpujobs.host import describe_bug
from gpujobs.ledger_rows import Attempt as AttemptRow
from gpujobs.plan import Choice
from gpujobs.renting import Job, await_choices, await_slot, rent_first, resume
from gpujobs.run_folder import attempt_log

_RETRY_NAMES: Mapping[type[GpujobsError], str] = {  # the first that fits counts
    NoCapacity: "no-capacity",
    BootTimeout: "boot-timeout",
    MachineLost: "machine-lost",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A piece of slow work: `call` it in any one thread; it wakes soon when the run is stopped."""

    name: str
    attempt: int
    call: Callable[[], None]


Steps = Generator[Step, None, Outcome]
_END_STEPS = ("pull", "snapshot", "keep", "release")


class Life:
    """One driver's pass over a run."""

    def __init__(self, job: Job) -> None:
        """Take a run that this process has claimed."""
        self._job, self._ledger, self._clock = job, job.host.ledger, job.host.clock
        self._attempt: Attempt | None = None
        self._over: AttemptRow | None = None  # the attempt of a dead process that had come to its end
        self._choices: Sequence[Choice] = ()
        self._released = True
        self._pulled = False
        self._tries = 0

    def steps(self) -> Steps:
        """Give the steps that are left."""
        job = self._job
        unfinished = [row for row in self._ledger.attempts(job.run.id) if row.ended_at is None]
        self._check_reach(unfinished)
        try:
            self._ledger.update_run(
                job.run.id, state="running", started_at=job.run.started_at or self._clock.now(), ended_at=None, error=""
            )
            failed = yield from self._go_on(unfinished)
            if any(record.id is None for record in self._ledger.machines(job.run.id)):
                yield from self._try("release", partial(ending.sweep, job))
            if job.host.settings.store and self._has_files():
                yield from self._try("store", partial(ending.keep_in_store, job))
            outcome = ending.finish(job, failed)
        except LetGo as error:
            return ending.outcome_now(job, "running", error.exit_code, str(error))
        if job.recipe.notify:
            yield Step(name="notify", attempt=0, call=partial(ending.tell, job, outcome))
        return outcome

    def _go_on(self, unfinished: list[AttemptRow]) -> Generator[Step, None, GpujobsError | None]:
        if self._job.run.kind == "tasks":
            return self._do_tasks(unfinished)
        if self._job.run.kind == "fleet":
            return self._end_dead_fleet(unfinished)
        return self._attempts(unfinished)

    def _has_files(self) -> bool:
        if self._job.run.kind == "job":
            return self._attempt is not None or self._over is not None
        return bool(self._ledger.attempts(self._job.run.id))

    def _check_reach(self, unfinished: list[AttemptRow]) -> None:
        """Let go of a run whose machine we have no credentials for now: it works on, and may be reached later."""
        for row in unfinished:
            try:
                self._job.host.backend(row.backend)
            except GpujobsError as error:
                raise Detached(f"run {row.run_id} cannot go on here: {error}; {row.name} works on") from error

    def _was_never_made(self, unfinished: list[AttemptRow], failed: GpujobsError | None) -> bool:
        return bool(unfinished) and failed is None and self._attempt is None

    def _attempts(self, unfinished: list[AttemptRow]) -> Generator[Step, None, GpujobsError | None]:
        failed: GpujobsError | None = None
        if unfinished:
            failed = yield from self._attempt_steps(unfinished[-1])
            again = self._was_never_made(unfinished, failed)
        else:
            self._over = self._unreported()
            failed = self._verdict_of(self._over) if self._over else None
            again = self._over is None
        rented = self._attempt is not None or self._over is not None
        if again or (failed and self._goes_again(failed, rented=rented)):
            failed = yield from self._attempts_until_one_counts()
        return failed

    def _unreported(self) -> AttemptRow | None:
        """Give the attempt that had come to its end under a process which died before it said so of the run."""
        rows = self._ledger.attempts(self._job.run.id)
        return rows[-1] if rows and rows[-1].outcome and self._job.run.state == "running" else None

    def _verdict_of(self, row: AttemptRow) -> GpujobsError | None:
        """Give what an attempt of a dead process came to, and write that down: its work must not be done again."""
        verdict, machine = verdict_of(row), self._ledger.machine(row.name)
        self._tries, self._released = 1, machine is None or not machine.alive
        self._ledger.update_attempt(row.name, state="failed" if verdict else "succeeded", error=str(verdict or ""))
        return verdict

    def _end_dead_fleet(self, unfinished: list[AttemptRow]) -> Generator[Step, None, GpujobsError]:
        """End what nobody can go on with: a fleet's tasks are in the memory of the process that drives it."""
        job, why = self._job, "the process that had the fleet is dead, and so are its tasks"
        failed = yield from self._end_fleet(unfinished, why)
        sweep.end_tasks(job, failed)
        return failed

    def _end_fleet(self, unfinished: list[AttemptRow], why: str) -> Generator[Step, None, GpujobsError]:
        """Release what a fleet had rented: its tasks were in the memory of the process that drove it."""
        failed = self._job.stop.error or MachineLost(why)
        for row in unfinished:
            self._attempt, self._job = None, replace(self._job, log_name=attempt_log(row.number))
            yield self._step("provision", partial(self._resume, row), number=row.number)
            if self._attempt is not None:
                yield from self._end_steps(self._attempt, failed)
        return failed

    def _do_tasks(self, unfinished: list[AttemptRow]) -> Generator[Step, None, GpujobsError | None]:
        """Do the tasks that are left over machines of their own; those of a dead process are released first."""
        job = self._job
        sweep.add_tasks(job)
        failed: GpujobsError | None = None
        if unfinished:
            self._job = replace(job, recipe=sweep.of_machines(job.recipe))
            dead = yield from self._end_fleet(unfinished, "the process that drove it is dead; its tasks go again")
            self._attempt, self._job = None, job
            failed = job.stop.error or (None if self._released else dead)
        try:
            if failed is None:
                yield self._step("plan", self._plan)
                yield self._step("run", partial(sweep.run_tasks, job))
        except LetGo:
            raise
        except GpujobsError as error:
            failed = self._why_failed(error)
        except Exception as error:  # noqa: BLE001 - as below
            failed = describe_bug(error)
        if failed is not None:
            sweep.end_tasks(job, failed)
        return failed

    def _attempts_until_one_counts(self) -> Generator[Step, None, GpujobsError | None]:
        while True:
            self._attempt, self._pulled = None, False
            failed = yield from self._attempt_steps(None)
            if failed is None or not self._goes_again(failed, rented=self._attempt is not None):
                return failed
            self._job.reporter.note(f"{failed}; trying again")

    def _attempt_steps(self, row: AttemptRow | None) -> Generator[Step, None, GpujobsError | None]:
        failed: GpujobsError | None = None
        try:
            if row is None:
                yield self._step("plan", self._plan)
                yield self._step("provision", self._provision)
            else:
                yield self._step("provision", partial(self._resume, row), number=row.number)
                if self._attempt is None:
                    return None
                if row.outcome:
                    return (yield from self._end_steps(self._attempt, verdict_of(row), begun_at=row.phase))
            for name in ("boot", "push", "run", "pull"):
                yield self._step(name, partial(self._do, name))
        except LetGo:
            raise
        except GpujobsError as error:
            failed = self._why_failed(error)
        except Exception as error:  # noqa: BLE001 - a bug of ours must not leave a machine rented
            failed = describe_bug(error)
        if self._attempt is not None:
            failed = yield from self._end_steps(self._attempt, failed)
        return failed

    def _why_failed(self, error: GpujobsError) -> GpujobsError:
        """Give the cancel where there was one: only what the job itself came to counts more."""
        cancel = self._job.stop.error
        return cancel if isinstance(cancel, Cancelled) and not isinstance(error, JobFailed | OverLimit) else error

    def _end_steps(
        self, attempt: Attempt, failed: GpujobsError | None, *, begun_at: str = ""
    ) -> Generator[Step, None, GpujobsError | None]:
        """Bring home what there is, save, keep, release; trouble here is told, and never hides `failed`.

        A pass that another process had begun goes on at the step that it had reached.
        """
        if failed and not begun_at:
            attempt.settle(failed)
        recipe, trouble = self._job.recipe, None
        due = [
            ("pull", attempt.pull_what_there_is, failed and not self._pulled and not isinstance(failed, MachineLost)),
            ("snapshot", attempt.snapshot, recipe.snapshot and recipe.snapshot.wanted_after(success=failed is None)),
            ("keep", attempt.keep, failed and recipe.on_failure.keep and not self._job.stop.stopped),
        ]
        passed = _END_STEPS.index(begun_at) if begun_at in _END_STEPS else 0
        for name, call, wanted in due[passed:]:
            if attempt.work_began and wanted:
                error = yield from self._try(name, call)
                trouble = trouble or (error if name != "keep" else None)
        verdict = failed or trouble
        if trouble and not failed:  # whoever goes on after the release knows of it by this alone
            attempt.settle(trouble)
        self._released = (yield from self._try("release", attempt.release)) is None
        self._ledger.update_attempt(attempt.name, state="failed" if verdict else "succeeded", error=str(verdict or ""))
        return verdict

    def _try(self, name: str, call: Callable[[], None]) -> Generator[Step, None, GpujobsError | None]:
        try:
            yield self._step(name, call)
        except LetGo:
            raise
        except Cancelled:  # the work is over: what is called off is saving its disk, or keeping it for a look
            self._job.reporter.note(f"{name}: called off")
            return None
        except GpujobsError as error:
            self._job.reporter.note(f"{name}: {error}")
            return error
        except Exception as error:  # noqa: BLE001 - as above
            told = describe_bug(error)
            self._job.reporter.note(f"{name}: {told}")
            return told
        return None

    def _step(self, name: str, call: Callable[[], None], *, number: int | None = None) -> Step:
        if self._attempt:
            number = int(self._attempt.name.rpartition("-")[2])
        elif number is None:
            number = 1 + max((row.number for row in self._ledger.attempts(self._job.run.id)), default=0)
        return Step(name=name, attempt=number, call=partial(self._in_phase, name, call))

    def _in_phase(self, name: str, call: Callable[[], None]) -> None:
        where = self._attempt.name if self._attempt else ""
        self._ledger.update_run(self._job.run.id, phase=name, detail=where)
        if self._attempt:
            self._ledger.update_attempt(where, phase=name)
        self._job.reporter.phase(name, where)
        call()

    def _plan(self) -> None:
        self._choices = await_choices(self._job)

    def _provision(self) -> None:
        self._tries += 1
        if await_slot(self._job, self._choices):
            self._plan()  # what was free when the wait began may be so no longer
        machine = rent_first(self._job, self._choices)
        self._attempt = Attempt(self._job, machine)
        self._in_phase("provision", lambda: None)

    def _resume(self, row: AttemptRow) -> None:
        machine = resume(self._job, row)
        if machine is None:
            self._ledger.update_attempt(row.name, ended_at=self._clock.now(), state="failed", error="it was never made")
            return
        self._tries += 1
        left_there = partial(sweep.left_on, self._job, row.name)
        self._attempt = Attempt(self._job, machine, left_there=left_there)
        self._attempt.work_began = row.state == WORKING
        self._job.reporter.note(f"going on with {machine.name} ({machine.backend} {machine.id})")

    def _do(self, phase: str) -> None:
        if self._attempt is not None:
            getattr(self._attempt, phase)()
        self._pulled = phase == "pull"

    def _goes_again(self, failed: GpujobsError, *, rented: bool) -> bool:
        retry = self._job.recipe.retry
        if self._job.stop.stopped or self._tries >= retry.attempts:
            return False
        if not rented:  # the plan has waited for stock; a create that came to nothing may be made anew
            return isinstance(failed, Unavailable)
        name = next((name for kind, name in _RETRY_NAMES.items() if isinstance(failed, kind)), None)
        if name not in retry.on:
            return False
        if not self._released:
            self._job.reporter.note("no new attempt: the old machine is not confirmed gone")
        return self._released
