"""Automations on a Prefect server: a run of ours that crashed, or fell silent, calls the reaper. Made over REST."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from gpujobs.prefect_api import REAPER, ask, deployment_id

# Before that, the reaper would leave the run alone: a lease runs out (60 s), then a grace of two minutes.
CRASHED_S = 200.0
# A flow run of Prefect's engine gives a sign of life every 180 s (PREFECT_FLOWS_HEARTBEAT_FREQUENCY): two are missing.
SILENT_S = 420.0
_OURS = {"prefect.resource.role": "flow", "prefect.resource.name": "run-recipe"}
_RUN = {"prefect.resource.id": "prefect.flow-run.*"}


def set_up(api: str, wait_s: float = 60.0) -> Mapping[str, str]:
    """Make the automations, or bring them up to date; give what became of each by name: made, updated or kept.

    Idempotent; one that somebody has switched off stays off. Waits up to `wait_s` for the reaper's deployment, which
    every host makes when it starts. Raises GpujobsError where there is none, Unavailable, BadCredentials.
    """
    reaper = deployment_id(api, REAPER, time.monotonic() + wait_s)
    return {wanted["name"]: _settle(api, wanted) for wanted in (crashed(reaper), silent(reaper))}


def crashed(reaper: str) -> Mapping[str, Any]:
    """Describe the automation for a run that Prefect calls Crashed; `reaper` is the deployment's id."""
    return {
        "name": "gpujobs: a crashed run calls the reaper",
        "description": "Calls the reaper once the run's lease and its grace have passed, unless a host resumes it.",
        "tags": ["gpujobs"],
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "match": _RUN,
            "match_related": _OURS,
            "expect": ["prefect.flow-run.Crashed"],
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": 0,
        },
        "actions": [_call(reaper, after_s=CRASHED_S)],
    }


def silent(reaper: str) -> Mapping[str, Any]:
    """Describe the automation for a run whose signs of life have ended before it did."""
    return {
        "name": "gpujobs: a silent run calls the reaper",
        "description": "A run of which Prefect hears nothing for seven minutes: its host hangs, or is dead.",
        "tags": ["gpujobs"],
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": _RUN,
            "match_related": _OURS,
            "after": ["prefect.flow-run.heartbeat"],
            "expect": ["prefect.flow-run.*"],
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": SILENT_S,
        },
        "actions": [_call(reaper, after_s=0.0)],
    }


def _call(reaper: str, *, after_s: float) -> Mapping[str, Any]:
    return {"type": "run-deployment", "source": "selected", "deployment_id": reaper, "schedule_after": after_s}


def _settle(api: str, wanted: Mapping[str, Any]) -> str:
    found: Sequence[Any] = ask(
        api, "POST", "/automations/filter", {"automations": {"name": {"any_": [wanted["name"]]}}}
    )
    if not found:
        ask(api, "POST", "/automations/", wanted)
        return "made"
    if _holds(found[0], wanted):
        return "kept"
    ask(api, "PUT", f"/automations/{found[0]['id']}", {**wanted, "enabled": found[0]["enabled"]})
    return "updated"


def _holds(found: Any, wanted: Any) -> bool:
    """Whether everything that is wanted is there; the server adds defaults, and orders sets as it likes."""
    if isinstance(wanted, Mapping):
        return all(key in found and _holds(found[key], value) for key, value in wanted.items())
    if isinstance(wanted, list) and all(isinstance(item, str) for item in wanted):
        return sorted(found) == sorted(wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_holds, found, wanted))
    return bool(found == wanted)
