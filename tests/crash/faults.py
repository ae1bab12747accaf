"""What goes wrong at a provider's API, in the words of its fake."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.crash.world import World

Fault = tuple[str, str, Mapping[str, Any]]
CALLS: Mapping[str, Mapping[str, str]] = {
    "autodl": {"create": "create_deployment", "delete": "delete_deployment", "list": "list_deployments"},
    "matrixdc": {"create": "create_instance", "delete": "delete_instance", "list": "list_instances"},
}
FAULTS: Sequence[Fault] = (
    ("create", "lost_reply", {}),
    ("create", "error_500", {}),
    ("create", "late_act", {"seconds": 5}),  # inside the settling window
    ("create", "late_act", {"seconds": 90}),  # when the next process is at work
    ("create", "late_act", {"seconds": 400}),  # when all is over
    ("delete", "lost_reply", {}),
    ("delete", "error_500", {"count": 3}),
    ("delete", "late_act", {"seconds": 30}),
    ("list", "stale_list", {}),
)


def begin_fault(world: World, fault: Fault) -> None:
    """Have the next call, or calls, of that kind go wrong."""
    call, kind, more = fault
    world.fault(CALLS[world.backend][call], kind, **more)
