"""Where the tests hand in recipes, and ask what came of them."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import requests

from gpujobs import controller_record, prefect_api, process
from gpujobs.controller_record import Controller
from gpujobs.errors import Unavailable
from gpujobs.ledger import Ledger
from gpujobs.ledger_rows import Run
from gpujobs.settings import Settings
from tests.cloud import STARTS, Control, recipe_for

UNTIL_TOLD = "echo begun; while [ ! -e /tmp/go ]; do sleep 0.2; done"
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


@dataclass(frozen=True)
class Desk:
    """Where recipes are handed in, and what comes of them is asked."""

    settings: Settings
    ledger: Ledger

    @property
    def api(self) -> str:
        """The controller's API; another one after each of its starts."""
        return self.controller().url

    def submit(self, script: str, **more: Any) -> tuple[str, str]:
        """Hand in a recipe that runs `script`; give its run id and flow run id."""
        recipe = recipe_for("autodl", run=script, max_duration="10m", **more)
        return prefect_api.submit(self.settings, self.api, recipe)

    def ended(self, flow_run_id: str, *, within_s: float = 60) -> tuple[str, str, str]:
        """Wait for the flow run's end; give its state's type, name and message."""
        return self.state(flow_run_id, FINAL, within_s=within_s)

    def state(self, flow_run_id: str, wanted: set[str], *, within_s: float = 60) -> tuple[str, str, str]:
        """Wait until the flow run is in one of the `wanted` types of state."""
        deadline = time.monotonic() + within_s
        while (state := self._state(flow_run_id))[0] not in wanted:
            assert time.monotonic() < deadline, f"still {state}"
            time.sleep(0.1)
        return state

    def _state(self, flow_run_id: str) -> tuple[str, str, str]:
        try:
            return prefect_api.flow_run_state(self.api, flow_run_id)
        except Unavailable as error:  # a server whose database stands still on a busy machine answers later
            return ("", "", str(error))

    def run(self, run_id: str) -> Run:
        """The run as the ledger has it."""
        return self.ledger.get_run(run_id)

    def wrote(self, run_id: str, text: str, *, within_s: float = 60) -> None:
        """Wait until the job's log holds `text`."""
        log = self.settings.runs / run_id / "output.log"
        deadline = time.monotonic() + within_s
        while not log.exists() or text not in log.read_text():
            assert time.monotonic() < deadline, f"{log} does not say {text}"
            time.sleep(0.05)

    def _send(self, method: str, path: str, body: Any) -> requests.Response:
        return requests.request(method, self.api + path, json=body, timeout=60)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the Prefect server itself; again while it is too busy, as Prefect's own client does."""
        deadline = time.monotonic() + 60
        while (reply := self._send(method, path, body)).status_code == 503 and time.monotonic() < deadline:
            time.sleep(0.2)
        reply.raise_for_status()
        return reply.json() if reply.content else None

    def tasks(self, flow_run_id: str) -> Sequence[tuple[str, str]]:
        """Name the flow run's tasks in the order of their start, each with its state."""
        body = {"flow_runs": {"id": {"any_": [flow_run_id]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found = self.ask("POST", "/task_runs/filter", body)
        return [(task["name"], task["state_name"]) for task in sorted(found, key=lambda task: task["start_time"] or "")]

    def shows(self, flow_run_id: str, *wanted: tuple[str, str], alone: bool = False, within_s: float = 60.0) -> None:
        """Wait until Prefect shows these tasks, or these alone: it stores them a moment after they have ended."""
        deadline = time.monotonic() + within_s
        while True:
            found = list(self.tasks(flow_run_id))
            if found == list(wanted) or (not alone and set(wanted) <= set(found)):
                return
            assert time.monotonic() < deadline, found
            time.sleep(0.2)

    def logged(self, flow_run_id: str, text: str, *, within_s: float = 60.0) -> None:
        """Wait until the flow run's log in Prefect holds `text`, once."""
        deadline = time.monotonic() + within_s
        while (count := "\n".join(prefect_api.logs(self.api, flow_run_id)).count(text)) == 0:
            assert time.monotonic() < deadline, prefect_api.logs(self.api, flow_run_id)
            time.sleep(0.2)
        assert count == 1

    def create(self, recipe: Any, *, deployment: str = prefect_api.DEPLOYMENT, **more: Any) -> str:
        """Create a flow run with these parameters, whatever they are, as the UI's form would; give its id."""
        until(lambda: self.deployments(deployment.rpartition("/")[2]), within_s=60)  # a host makes them as it starts
        found = self.ask("GET", f"/deployments/name/{deployment}")
        body = {"parameters": {"recipe": recipe}, **more}
        return str(self.ask("POST", f"/deployments/{found['id']}/create_flow_run", body)["id"])

    def deployments(self, name: str) -> Sequence[Any]:
        """The deployments of that name, whatever their flows."""
        return list(self.ask("POST", "/deployments/filter", {"deployments": {"name": {"any_": [name]}}}))

    def controller(self) -> Controller:
        """The controller as its record has it."""
        found = controller_record.status(self.settings)
        assert found is not None
        return found

    def now(self) -> datetime:
        """The time, as the ledger wants it."""
        return datetime.now(UTC)


def until(done: Callable[[], object], *, within_s: float = 30) -> None:
    """Wait until `done` gives something true."""
    deadline = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def end_host(desk: Desk, number: signal.Signals) -> None:
    """End the controller's host by that signal; its server lives on."""
    found = desk.controller()
    os.kill(found.worker_pid, number)
    until(lambda: not process.alive(found.worker_pid, found.worker_started), within_s=60)


def let_go(truth: Control) -> None:
    """Tell every job that waits `UNTIL_TOLD` to go on."""
    containers = truth.fake.world.ground.containers
    for name in containers.running():
        containers.execute(name, "touch /tmp/go", timeout_s=30)


def starts_and_left(truth: Control, run_id: str) -> tuple[int, Sequence[str]]:
    """How often the run's command was started, by the cloud's own ledger, and which machines of it are still there.

    The providers get their time to shut down what they were told to.
    """
    deadline = time.monotonic() + 30
    while True:
        machines = [machine for machine in truth.machines() if f"-{run_id}-" in machine["name"]]
        left = [machine["name"] for machine in machines if machine["gone_at"] is None]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    commands = [command for machine in machines for command in machine["commands"]]
    begun = [command for command in commands if command["command"].endswith(STARTS) and command["exit_code"] == 0]
    return len(begun), left
