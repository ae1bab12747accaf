"""What Prefect was told of a job's output, as Prefect has it: whoever takes a run up goes on from there."""

import logging
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.sorting import LogSort

from gpujobs.flow_log import OUTPUT_BYTES, RunLog, told_of
from gpujobs.flow_outbox import drained
from gpujobs.flow_work import Work
from gpujobs.host import Host
from gpujobs.run_folder import RunFolder

DRAINED_S = 20.0  # for what this process itself has still to send
_PAGE = 200  # what Prefect gives at most
_PAGES = 5

_log = logging.getLogger(__name__)


async def catch_up(log: RunLog, host: Host, run_id: str, flow_run_id: UUID, client: PrefectClient) -> None:
    """Tell what of the newest attempt's output came and was not told, because its host died or Prefect was away.

    Where Prefect cannot say what it was told, that counts as all: a gap, with the file named, is better than a repeat.
    """
    known = await Work(lambda: _written(host, run_id), name=f"gpujobs-{run_id}-log").begun()
    if known.error is not None or known.value is None:
        return
    attempt, path, size = known.value
    try:
        told = await _told(client, flow_run_id, attempt) if await drained(DRAINED_S) else None
    except Exception as error:  # noqa: BLE001 - the job goes on, whatever Prefect says
        _log.info("run %s: what its log tells is not known: %s", run_id, error)
        told = None
    begin = size if told is None else min(told, size)
    rest = await Work(lambda: _read(path, begin, size), name=f"gpujobs-{run_id}-log").begun()
    log.catch_up(attempt, begin, b"" if rest.error else rest.value)


def _written(host: Host, run_id: str) -> tuple[int, Path, int] | None:
    attempts = host.ledger.attempts(run_id)
    folder = RunFolder(host.settings.runs / run_id)
    return (attempts[-1].number, folder.log, folder.log_size()) if attempts else None


async def _told(client: PrefectClient, flow_run_id: UUID, attempt: int) -> int | None:
    """Give how many bytes of the attempt's output Prefect has; None where it would take too long to see."""
    ours = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
    for page in range(_PAGES):
        found: Sequence[str] = [
            one.name
            for one in await client.read_logs(
                log_filter=ours, limit=_PAGE, offset=page * _PAGE, sort=LogSort.TIMESTAMP_DESC
            )
        ]
        told = told_of(found)
        if told is not None:
            return told[1] if told[0] == attempt else 0
        if len(found) < _PAGE:
            return 0
    return None


def _read(path: Path, begin: int, end: int) -> bytes:
    """Read that part of the log, and no more than a log takes and one byte, by which it tells that it is cut."""
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(max(0, min(end, OUTPUT_BYTES + 1) - begin))
