"""Looking at a run through Prefect's API alone: before our ledger knows it, or where its worker keeps another one."""

import time
from collections.abc import Callable
from typing import NamedTuple

from gpujobs import prefect_api
from gpujobs.cli.output import Output
from gpujobs.errors import Cancelled, GpujobsError, JobFailed, Unavailable
from gpujobs.progress import TerminalReporter

_EVERY_S = 1.0
_NO_WORKER_S = 15.0  # a worker that is up takes a run within two seconds
_ELSEWHERE_S = 5.0  # a run that works here is in our ledger within one
_LOG_S = 4.0  # the last lines of a log reach the server some seconds after the end
_PATIENCE_S = 60.0  # with a server that does not answer
_EXIT_CODES = {
    "COMPLETED": 0,
    "FAILED": JobFailed.exit_code,
    "CANCELLED": Cancelled.exit_code,
    "CRASHED": GpujobsError.exit_code,
}


class EndedElsewhere(Exception):
    """A run has ended whose worker keeps another ledger than ours."""

    def __init__(self, flow_run_id: str, kind: str, text: str) -> None:
        """Take Prefect's words for its end."""
        super().__init__(f"flow run {flow_run_id} ended as {kind}: {text}")
        self.flow_run_id, self.kind, self.text = flow_run_id, kind, text

    def tell(self, out: Output) -> int:
        """Print it; give the exit code."""
        code = _EXIT_CODES[self.kind]
        out.value({"flow_run_id": self.flow_run_id, "state": self.kind.lower(), "exit_code": code, "error": self.text})
        out.text(f"{self}; its outputs are where its worker runs")
        return code


class FlowRunWatch:
    """Looks at a flow run that our ledger does not know; asks once a second at most, however often it is called."""

    def __init__(
        self, api: str, flow_run_id: str, reporter: TerminalReporter, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin now."""
        self._api, self._flow_run_id, self._reporter, self._now = api, flow_run_id, reporter, now
        self._asked_s = self._answered_s = now()
        self._since = _Since("", now())
        self._said = False
        self._lines = 0

    def look(self) -> None:
        """Tell what is new of it.

        Raises Cancelled where it was cancelled before it began, EndedElsewhere where it ended on a worker with another
        ledger, GpujobsError where it ended without beginning, or the server no longer answers.
        """
        if self._now() - self._asked_s < _EVERY_S:
            return
        self._asked_s = self._now()
        try:
            kind, _, text = prefect_api.flow_run_state(self._api, self._flow_run_id)
        except Unavailable:
            if self._now() - self._answered_s > _PATIENCE_S:
                raise
            return
        self._answered_s = self._now()
        if kind != self._since.kind:
            self._since = _Since(kind, self._now())
        self._judge(kind, text, self._now() - self._since.at_s)

    def _judge(self, kind: str, text: str, lasts_s: float) -> None:
        if kind in ("SCHEDULED", "PENDING") and lasts_s > _NO_WORKER_S and not self._said:
            self._said = True
            self._reporter.note(self._why_not_taken())
        if kind == "RUNNING" and lasts_s > _ELSEWHERE_S:
            self._tell_log()
        if kind in _EXIT_CODES and self._lines:
            self._tell_log()
            if lasts_s > _LOG_S:
                raise EndedElsewhere(self._flow_run_id, kind, text)
            return
        if kind == "CANCELLED" or (kind == "CANCELLING" and lasts_s > _NO_WORKER_S):
            raise Cancelled("cancelled before it began; nothing was rented")
        if kind in _EXIT_CODES and lasts_s > _ELSEWHERE_S:
            raise GpujobsError(
                f"flow run {self._flow_run_id} ended as {kind}, and our ledger knows no such run: {text}"
            )

    def _why_not_taken(self) -> str:
        try:
            there = prefect_api.host_is_there(self._api)
        except GpujobsError:
            there = False
        if there:
            return (
                "the run waits for its turn: as many are at work as the pool's limit allows, or its host has just ended"
            )
        return f"no host at {self._api} has taken the run yet; start one: gpujobs serve"

    def _tell_log(self) -> None:
        while lines := prefect_api.logs(self._api, self._flow_run_id, self._lines):
            self._lines += len(lines)
            for line in lines:
                self._reporter.output(line.encode() + b"\n")


class _Since(NamedTuple):
    kind: str
    at_s: float
