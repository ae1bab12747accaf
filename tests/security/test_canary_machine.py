"""What a machine keeps once the work is over: its disk, and the snapshot made of it, hold no secret."""

import pytest

from fake_server.server import FakeServer
from gpujobs.host import Host
from tests.cloud import Control, recipe_for
from tests.lifecycle.test_run import run
from tests.security.canary import leaks, new_secret

ENDS = {
    "well": {"run": 'test -n "$HF_TOKEN"; echo kept > /root/kept'},
    "failed": {"run": 'test -n "$HF_TOKEN"; echo kept > /root/kept; exit 3'},
    "in its set-up": {"setup": 'test -n "$HF_TOKEN"; echo kept > /root/kept; exit 3', "run": "true"},
    "by a signal": {"run": "echo kept > /root/kept; kill -KILL $$"},
}


@pytest.mark.parametrize("end", ENDS)
def test_no_secret_is_in_a_snapshot_however_the_work_ended(
    end: str, host: Host, fake: FakeServer, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", secret := new_secret("value"))
    snapshot = {"name": "env", "on": "always"}
    outcome = run(host, recipe_for("matrixdc", secrets=["HF_TOKEN"], snapshot=snapshot, **ENDS[end]))
    assert outcome.exit_code == (0 if end == "well" else 1), outcome.error
    [image] = fake.world.matrixdc.images.values()
    assert [path.read_text() for path in image.rglob("kept") if path.is_file()] == ["kept\n"]
    assert leaks([image], {"the secret": secret}) == []
    assert control.left() == []
