"""What a flow run's page shows: asked of the Prefect server by the calls that its UI makes."""

import json
from typing import Any

import pytest

from fake_server.server import FakeServer
from gpujobs.prefect_api import run_id_of
from tests.cloud import Control, recipe_for
from tests.prefect.desk import Desk, until

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("page")]


def artifacts(desk: Desk, flow_run_id: str) -> dict[str, Any]:
    """The flow run's artifacts by key, or by their type where they have none."""
    found = desk.ask("POST", "/artifacts/filter", {"flow_runs": {"id": {"any_": [flow_run_id]}}})
    keys = [one["key"] or one["type"] for one in found]
    assert len(keys) == len(set(keys)), keys
    return dict(zip(keys, found, strict=True))


def test_page(desk: Desk, truth: Control, cloud: FakeServer) -> None:
    recipe = recipe_for("matrixdc", name="digits_2.x", run="echo saved > kept; echo begun; sleep 4", outputs={"kept": "kept"}, max_duration="10m")
    flow_run_id = desk.create(recipe.model_dump(mode="json", exclude_unset=True))
    assert desk.ended(flow_run_id)[0] == "COMPLETED"
    found = artifacts(desk, flow_run_id)
    for name, one in found.items():
        print(name, one["type"], one["description"]); print(one["data"])
    print(desk.ask("GET", f"/flow_runs/{flow_run_id}"))
    print(desk.ask("POST", "/events/filter", {"filter": {"event": {"prefix": ["gpujobs."]}}}))
    from gpujobs import prefect_api
    print("\n".join(prefect_api.logs(desk.api, flow_run_id)))
    print((desk.settings.home/"controller"/"worker.log").read_text()[-3000:])
    assert 0
