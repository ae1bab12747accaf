"""Runs in every phase at once, on both providers: the host, or the server, is killed, and every run comes to its end.

One host drives them all, each held in its phase by the fake cloud, so that one kill strikes every phase. The judge is
the cloud's own ledger: one machine a run and none of them left, the command started once, and what it wrote at home.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fake_server.server import FakeServer
from gpujobs import prefect_api
from tests.cloud import BACKENDS, Control, recipe_for
from tests.prefect.desk import starts_and_left, until
from tests.prefect.site import FixedDesk, Site, opened
from tests.sshd.proxy import Proxy

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("restarts-phases")]

SENT = b"".join(b"line %d\n" % number for number in range(250_000))
WRITTEN = b"".join(b"%d\n" % number for number in range(1, 400_001))
SCRIPT = """echo begun
while [ -n "$HELD" ] && [ ! -e /tmp/go ]; do sleep 0.2; done
sha256sum < /root/sent | cut -c 1-64
seq 1 400000 > written
echo over
"""
HELD_BYTES = 500_000  # an SSH connection freezes after so many: in the midst of a transfer
HOLDS: Mapping[str, Mapping[str, Any]] = {
    "boot": {"kind": "stuck_in_creating"},
    "push": {"kind": "ssh_half_open", "bytes": HELD_BYTES},
    "pull": {"kind": "ssh_half_open", "bytes": HELD_BYTES},
    "release": {"kind": "release_fails"},
}
OFFERS = ("autodl.gpu_stock", "matrixdc.list_skus")
LISTS = ("autodl.list_deployments", "matrixdc.list_instances")
CREATES = {"autodl": "autodl.create_deployment", "matrixdc": "matrixdc.create_instance"}


class Fleet:
    """The runs of one test, each named by its provider and the phase that it is held in."""

    def __init__(self, site: Site, desk: FixedDesk, truth: Control, folder: Path) -> None:
        """Hand in nothing yet."""
        self.site, self.desk, self.truth = site, desk, truth
        self.runs: dict[tuple[str, str], tuple[str, str]] = {}
        self._sent = folder / "sent"
        self._small = folder / "small"
        self._sent.write_bytes(SENT)
        self._small.write_bytes(b"small")

    def submit(self, backend: str, phase: str) -> None:
        """Hand in a run that will be held in `phase`."""
        more: dict[str, Any] = {"retry": {"wait": "1h"}}
        if phase == "run":
            more["envs"] = {"HELD": "1"}
        if phase == "snapshot":
            more["snapshot"] = {"name": "saved", "on": "success"}
        source = self._sent if phase == "push" else self._small
        recipe = recipe_for(
            backend,
            run=SCRIPT,
            outputs={"written": "written"},
            file_mounts={"/root/sent": str(source)},
            max_duration="30m",
            **more,
        )
        self.runs[backend, phase] = prefect_api.submit(self.desk.settings, self.desk.api, recipe)

    def hold(self, backend: str, phase: str, **fault: Any) -> None:
        """Have the cloud hold the run there."""
        self.truth.ask("POST", "faults", {"count": None, "machine": f"*-{self.runs[backend, phase][0]}-*", **fault})

    def phases(self) -> Mapping[tuple[str, str], str]:
        """The phase of each run, as our ledger has it."""
        found = {run.id: run.phase for run in self.desk.ledger.list_runs()}
        return {key: found.get(run_id, "") for key, (run_id, _) in self.runs.items()}

    def await_phases(self) -> None:
        """Wait until every run is where it is held."""
        wanted = {(backend, phase): phase.partition(",")[0] for backend, phase in self.runs}
        with suppress(AssertionError):
            until(lambda: self.phases() == wanted, within_s=180)
        assert self.phases() == wanted

    def machines(self, backend: str, phase: str) -> Sequence[Mapping[str, Any]]:
        """The machines that were ever made for the run."""
        run_id = self.runs[backend, phase][0]
        return [machine for machine in self.truth.machines() if f"-{run_id}-" in machine["name"]]

    def let_go(self) -> None:
        """Have the cloud hold nothing any longer."""
        self.truth.ask("DELETE", "faults")
        self.truth.ask("POST", "timings", {"matrixdc_snapshot_s": 0.1})
        ground = self.truth.fake.world.ground
        for backend, phase in self.runs:
            if phase == "run":
                [machine] = self.machines(backend, phase)
                [name] = [name for name in ground.containers.running() if name in {machine["name"], machine["id"]}]
                ground.containers.execute(name, "touch /tmp/go", timeout_s=30)

    def ended(self, backend: str, phase: str) -> tuple[str, ...]:
        """How the run ended: in Prefect, in our ledger, in the cloud's, and at home; waits for it."""
        run_id, flow_run_id = self.runs[backend, phase]
        kind, _, message = self.desk.ended(flow_run_id, within_s=360)
        until(lambda: self.desk.run(run_id).state != "running")
        [machine] = self.machines(backend, phase)
        log = (self.desk.settings.runs / run_id / "output.log").read_bytes()
        sent = SENT if phase == "push" else b"small"
        attempt = self.desk.ledger.attempts(run_id)[-1]
        written = (self.desk.settings.runs / run_id / "outputs" / "written").read_bytes()
        starts, left = starts_and_left(self.truth, run_id)
        return (
            kind if kind == "COMPLETED" else message,
            self.desk.run(run_id).state,
            f"{starts} start, {len(left)} left",
            "whole log" if log == f"begun\n{hashlib.sha256(sent).hexdigest()}\nover\n".encode() else repr(log),
            "its hash" if attempt.log_sha256 == hashlib.sha256(log).hexdigest() else "another hash",
            "outputs" if written == WRITTEN else "other outputs",
            "gone" if machine["gone_at"] else "alive",
        )


WELL = ("COMPLETED", "succeeded", "1 start, 0 left", "whole log", "its hash", "outputs", "gone")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, FixedDesk, Control]]:
    with FakeServer(seed=1) as fake, opened(tmp_path_factory.mktemp("site"), fake) as (site, desk, truth, _):
        yield site, desk, truth


@pytest.fixture
def fleet(place: tuple[Site, FixedDesk, Control], tmp_path: Path) -> Fleet:
    site, desk, truth = place
    return Fleet(site, desk, truth, tmp_path)


def held_everywhere(fleet: Fleet) -> None:
    """Bring a run to each phase, on each provider that has it, and hold it there."""
    phases = [*HOLDS, "run", "provision"]
    keys = [(backend, phase) for backend in BACKENDS for phase in phases] + [("matrixdc", "snapshot")]
    fleet.truth.ask("POST", "timings", {"matrixdc_snapshot_s": "manual"})
    pool = {"is_paused": True}
    until(lambda: fleet.desk.ask("POST", "/work_pools/filter", {}), within_s=60)
    fleet.desk.ask("PATCH", "/work_pools/gpujobs", pool)
    for key in keys:
        fleet.submit(*key)
    for backend in BACKENDS:
        for phase, fault in HOLDS.items():
            fleet.hold(backend, phase, **fault)
        fleet.hold(backend, "provision", kind="timeout", endpoint=CREATES[backend], seconds=600)
    fleet.desk.ask("PATCH", "/work_pools/gpujobs", {"is_paused": False})
    fleet.await_phases()
    for endpoint in OFFERS:
        fleet.truth.fault(endpoint, "error_500", count=None)
    for backend in BACKENDS:
        fleet.submit(backend, "plan")
    fleet.await_phases()


def lose_the_replies(fleet: Fleet) -> None:
    """Have a create call of each provider act, its reply lost, and the machine not to be found yet."""
    for rule in fleet.truth.ask("GET", "faults")["rules"]:
        if rule["endpoint"] in OFFERS:
            fleet.truth.ask("DELETE", f"faults/{rule['id']}")
    for endpoint in LISTS:
        fleet.truth.fault(endpoint, "error_500", count=None)
    for backend in BACKENDS:
        fleet.submit(backend, "provision, reply lost")
        fleet.hold(backend, "provision, reply lost", kind="lost_reply", endpoint=CREATES[backend])
    until(lambda: all(fleet.machines(backend, "provision, reply lost") for backend in BACKENDS), within_s=120)


def test_host_killed_in_every_phase_is_followed_by_one_that_brings_all_to_their_ends(fleet: Fleet) -> None:
    held_everywhere(fleet)
    fleet.site.kill_host()
    fleet.site.start_host()
    lose_the_replies(fleet)
    fleet.site.kill_host()
    fleet.let_go()
    fleet.site.start_host()
    assert {key: fleet.ended(*key) for key in fleet.runs} == dict.fromkeys(fleet.runs, WELL)
    assert fleet.truth.left() == []


def test_server_killed_in_every_phase_comes_back_to_runs_that_go_on(fleet: Fleet) -> None:
    held_everywhere(fleet)
    fleet.site.kill_server()
    fleet.let_go()
    until(lambda: all(now != held for (_, held), now in fleet.phases().items()), within_s=180)
    fleet.site.start_server()
    assert {key: fleet.ended(*key) for key in fleet.runs} == dict.fromkeys(fleet.runs, WELL)
    assert fleet.site.host_lives
    assert fleet.truth.left() == []


def test_end_that_was_lost_on_its_way_to_the_server_is_told_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect's engine would call the run Failed as soon as its client gives up on Completed."""
    with Proxy(fleet.site.port) as proxy:
        fleet.site.kill_host()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{proxy.port}/api")
        monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
        fleet.site.start_host()
        proxy.cut_at(b'"COMPLETED"')
        fleet.submit("autodl", "plan")
        assert fleet.ended("autodl", "plan") == WELL
        assert proxy.has_cut
        fleet.site.kill_host()
