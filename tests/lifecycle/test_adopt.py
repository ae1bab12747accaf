"""A ledger that is lost is rebuilt from what the providers list and the machines tell; nothing is believed too far."""

import json
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpujobs import adopt, reaper
from gpujobs.adopt import Finding
from gpujobs.clock import StopToken
from gpujobs.errors import Detached
from gpujobs.host import Host
from gpujobs.lifecycle import execute, new_run_id, open_run
from gpujobs.run_folder import RunFolder
from gpujobs.settings import Settings
from gpujobs.shell import connect
from tests.cloud import BACKENDS, Control, Memory, recipe_for
from tests.conftest import QUICK
from tests.lifecycle.test_reaper import rent_by_hand
from tests.lifecycle.test_resume import drive_until
from tests.lifecycle.test_run import assert_nothing_left

pytestmark = pytest.mark.parametrize("backend", BACKENDS)

WAITS = "echo begun; until [ -e /root/go ]; do sleep 0.1; done; echo kept > kept; echo over"


@pytest.fixture
def anew(cloud_settings: Settings, tmp_path: Path) -> Iterator[Host]:
    """Another home with an empty ledger: the old one is lost, with its key."""
    home = tmp_path / "anew"
    found = replace(cloud_settings, home=home, database_url=f"sqlite:///{home}/ledger.db")
    home.mkdir(mode=0o700)
    with Host.open(found, dice=random.Random(3), timing=QUICK) as host:
        yield host


def work_begun(host: Host, backend: str, **more: object) -> str:
    """Start a run whose work waits, and leave it alone."""
    run_id, stop, reporter = new_run_id(), StopToken(), Memory()
    parts = {"run": WAITS, "outputs": {"kept": "kept"}, **more}
    open_run(host, recipe_for(backend, **parts), run_id=run_id)
    threading.Thread(target=lambda: reporter.wrote.wait(60) and stop.stop(Detached("as if killed"))).start()
    execute(host, run_id, stop=stop, reporter=reporter)
    return run_id


def on_the_machine(host: Host, run_id: str, command: str) -> bytes:
    machine = host.ledger.machines(run_id)[-1].machine
    access = host.backend(machine.backend).access(machine)
    assert access is not None
    with connect(access, host_key=None) as shell:
        return shell.check(command, what="a test's command")


def looked(host: Host, backend: str) -> list[Finding]:
    return list(adopt.look(host, backend, host.account(backend)))


def test_a_lost_ledgers_run_is_known_again_and_goes_on_to_its_end(
    backend: str, host: Host, anew: Host, control: Control
) -> None:
    run_id = work_begun(host, backend)
    found = looked(anew, backend)
    assert [(one.run_id, one.attempt, one.phase, one.why) for one in found] == [(run_id, 1, "running", "")]
    assert anew.ledger.list_runs() == []  # looking writes nothing
    assert adopt.adopt(anew, found) == found
    assert (adopt.adopt(anew, found), looked(anew, backend)) == ([], [])
    assert reaper.recover(anew) == [run_id]
    on_the_machine(host, run_id, "touch /root/go")
    outcome = execute(anew, run_id, stop=StopToken(), reporter=Memory())
    assert (outcome.state, outcome.error) == ("succeeded", "")
    assert outcome.log.read_bytes() == b"begun\nover\n"
    assert outcome.outputs["kept"].read_text() == "kept\n"
    assert_nothing_left(control)


def test_what_others_rent_is_neither_asked_nor_adopted(
    backend: str, anew: Host, control: Control, cloud_settings: Settings
) -> None:
    rent_by_hand(control, cloud_settings, backend, "gj-other-aaaa111111-1")
    assert looked(anew, backend) == []
    assert control.alive() == ["gj-other-aaaa111111-1"]


def test_a_machine_on_which_no_work_began_is_left_to_the_reaper(
    backend: str, host: Host, anew: Host, control: Control
) -> None:
    run_id = new_run_id()
    open_run(host, recipe_for(backend), run_id=run_id)
    drive_until("push", host, run_id)
    found = looked(anew, backend)
    assert [(one.run_id, one.recipe, one.why) for one in found] == [(run_id, None, "no work began on it")]
    assert adopt.adopt(anew, found) == []
    assert anew.ledger.list_runs() == []
    assert len(control.alive()) == 1


def test_a_machine_that_lies_gets_nothing_of_this_computer(
    backend: str, host: Host, anew: Host, tmp_path: Path
) -> None:
    (tmp_path / "up").mkdir()
    run_id = work_begun(host, backend, workdir=str(tmp_path / "up"))
    lie = {
        **json.loads(host.ledger.get_run(run_id).recipe_json),
        "workdir": "/etc",
        "file_mounts": {"/root/stolen": str(Path.home())},
        "secrets": ["HOME"],
        "retry": {"on": ["machine-lost"], "attempts": 50, "wait": "1d"},
        "on_failure": {"keep": "300d"},
    }
    folder = f"{host.backend(backend).work_root}/gj-tester-{run_id}-1"
    on_the_machine(host, run_id, f"cat >{folder}/run.json <<'END'\n{json.dumps(lie)}\nEND")
    (found,) = looked(anew, backend)
    assert found.recipe is not None
    told = found.recipe
    assert (told.workdir, told.file_mounts, told.secrets) == ("", {}, [])
    assert (told.retry.attempts, told.on_failure.keep) == (1, 0)


def test_the_machine_of_tasks_or_of_a_fleet_is_known_as_such_and_left_to_the_reaper(
    backend: str, host: Host, anew: Host, control: Control
) -> None:
    run_id = work_begun(host, backend, tasks=2, outputs={})
    (found,) = looked(anew, backend)
    assert (found.recipe, "recipe's tasks are done stood in the lost ledger alone" in found.why) == (None, True)
    folder = f"{host.backend(backend).work_root}/gj-tester-{run_id}-1"
    on_the_machine(host, run_id, f"""sed -i 's/"kind": "tasks"/"kind": "fleet"/' {folder}/run.json""")
    (found,) = looked(anew, backend)
    assert (found.recipe, "it is a fleet's" in found.why) == (None, True)
    assert (adopt.adopt(anew, [found]), anew.ledger.list_runs()) == ([], [])
    assert len(control.alive()) == 1


def test_what_cannot_be_believed_is_not_adopted_and_says_why(backend: str, host: Host, anew: Host) -> None:
    run_id = work_begun(host, backend)
    folder = f"{host.backend(backend).work_root}/gj-tester-{run_id}-1"
    for spoil, why in (
        ("head -c 5000000 /dev/zero >run.json", "said more than"),
        ('echo \'{"run": "x"}\' >run.json', "its recipe cannot be read"),
        ("rm run.json", "run.json"),
        ("echo '{}' >exit.json", "cannot be believed"),
    ):
        on_the_machine(host, run_id, f"cd {folder} && {spoil}")
        (found,) = looked(anew, backend)
        assert found.recipe is None
        assert why in found.why
        assert adopt.adopt(anew, [found]) == []


def test_a_ledger_lost_alone_keeps_the_log_that_is_here(backend: str, host: Host, control: Control) -> None:
    run_id = work_begun(host, backend)
    settings = replace(host.settings, database_url=f"sqlite:///{host.settings.home}/other.db")
    with Host.open(settings, dice=random.Random(4), timing=QUICK) as other:
        assert RunFolder(settings.runs / run_id).log.read_bytes() == b"begun\n"
        adopt.adopt(other, looked(other, backend))
        on_the_machine(host, run_id, "touch /root/go")
        outcome = execute(other, run_id, stop=StopToken(), reporter=Memory())
    assert (outcome.state, outcome.log.read_bytes()) == ("succeeded", b"begun\nover\n")
    assert_nothing_left(control)
