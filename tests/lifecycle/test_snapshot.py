"""Snapshots: saved at power-off where asked, and booted from by the next recipe."""

import pytest

from gpujobs import errors
from gpujobs.host import Host
from gpujobs.plan import make_plan
from tests.cloud import Control, recipe_for
from tests.lifecycle.test_run import assert_nothing_left, run

SAVE = {"snapshot": {"name": "env", "tag": "v1"}}


def test_the_next_run_boots_from_the_saved_disk_and_finds_the_files(host: Host, control: Control) -> None:
    saved = run(host, recipe_for("matrixdc", run="echo installed > /root/tool", **SAVE))
    assert saved.exit_code == 0
    record = host.ledger.find_snapshot("env")
    assert record is not None
    assert (record.backend, record.tag, record.run_id) == ("matrixdc", "v1", saved.run_id)
    assert_nothing_left(control)
    following = run(host, recipe_for("matrixdc", run="cat /root/tool", resources={"image": "snapshot:env"}))
    assert following.log.read_bytes() == b"installed\n"
    assert control.left() == []


def test_a_failed_run_is_not_saved_unless_asked(host: Host, control: Control) -> None:
    assert run(host, recipe_for("matrixdc", run="exit 1", **SAVE)).exit_code == 1
    assert host.ledger.snapshots() == []
    always = {"snapshot": {"name": "env", "on": "always"}}
    assert run(host, recipe_for("matrixdc", run="exit 1", **always)).exit_code == 1
    assert [record.tag for record in host.ledger.snapshots()] == ["latest"]
    assert control.left() == []


def test_a_snapshot_on_autodl_is_refused_before_anything_is_rented(host: Host, control: Control) -> None:
    with pytest.raises(errors.BadInput, match="snapshot"):
        make_plan(host, recipe_for("autodl", **SAVE))
    assert run(host, recipe_for("autodl", **SAVE)).exit_code == 2
    assert control.machines() == []


def test_an_unknown_snapshot_names_the_known_ones(host: Host) -> None:
    run(host, recipe_for("matrixdc", **SAVE))
    with pytest.raises(errors.BadInput, match=r"no snapshot:enw on matrixdc; known snapshots there: env:v1"):
        make_plan(host, recipe_for("matrixdc", resources={"image": "snapshot:enw"}))


@pytest.mark.parametrize("kind", ["timeout", "reset", "error_500", "rate_limit_429", "broken_json", "lost_reply"])
def test_a_fault_at_the_power_off_still_saves_once_and_leaves_nothing(kind: str, host: Host, control: Control) -> None:
    control.fault("matrixdc.power_off", kind, seconds=0.5)
    outcome = run(host, recipe_for("matrixdc", **SAVE))
    assert (outcome.state, outcome.error) == ("succeeded", "")
    assert [record.name for record in host.ledger.snapshots()] == ["env"]
    assert_nothing_left(control)
