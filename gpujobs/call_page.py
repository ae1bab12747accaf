"""What a call's task run shows in Prefect: what it returned, where it ran and what it cost."""

import logging
from dataclasses import replace
from typing import Any

from prefect.artifacts import create_markdown_artifact

from gpujobs import settings
from gpujobs.call_job import Silent, shared_host
from gpujobs.call_recipe import OUTCOME, run_name
from gpujobs.call_shown import shown
from gpujobs.flow_facts import artifact_key, read_facts, summary
from gpujobs.flow_log import Logger

RESULT_CHARS = 4000
_log = logging.getLogger(__name__)


class Told(Silent):
    """A reporter for a flow's log: what becomes of the machines; their output is in the logs of the tasks."""

    def __init__(self, logger: Logger) -> None:
        """Write to `logger`."""
        self._logger = logger

    def phase(self, name: str, detail: str) -> None:
        """Write it."""
        self._logger.info("%s: %s", name, detail)

    def note(self, text: str) -> None:
        """Write it."""
        self._logger.warning("%s", text)


def tell(run_id: str, function: str, value: Any, *, attempt: int | None) -> None:
    """Make the artifact of the task run that this is called in; trouble with that is logged, and costs no result.

    Args:
        run_id: of the call, or of the fleet that it was made on.
        function: its name.
        value: what it returned.
        attempt: which of the fleet's machines it was made on; None for a call with a run of its own.
    """
    try:
        page = _page(run_id) if attempt is None else f"## {function}\n\nOn machine {attempt} of run `{run_id}`\n"
        key = artifact_key(run_name(function), "call")
        text = shown(value, RESULT_CHARS)
        create_markdown_artifact(
            f"{page}\n**Returned**\n\n{fenced(text)}\n", key=key, description=text[:200], _sync=True
        )  # type: ignore[call-arg]
    except Exception as error:  # noqa: BLE001 - the call is made, whether Prefect shows it or not
        _log.warning("run %s: Prefect does not show what it returned: %s", run_id, error)


def fenced(text: str) -> str:
    """Put JSON on one line into a block of Markdown that it cannot leave."""
    return f"```json\n{text}\n```"


def _page(run_id: str) -> str:
    """Give a run's summary without the script that makes calls."""
    with shared_host(settings.load()) as host:
        facts = read_facts(host, run_id)
    outputs = {name: path for name, path in facts.outputs.items() if name != OUTCOME}
    return summary(replace(facts, outputs=outputs)).partition("\n\n```")[0] + "\n"
