"""The network is cut, frozen, slowed or refused wherever a run speaks SSH; the run ends as if nothing had been.

Real SSH through the fake's own proxies, many runs at once in one process. The judge is the cloud's own ledger.
"""

import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fake_server.server import FakeServer
from gpujobs.errors import Cancelled, MachineLost
from gpujobs.host import Host, Timing
from gpujobs.settings import Settings
from tests.clocks import ShiftedClock
from tests.cloud import BACKENDS, Control
from tests.conftest import QUICK
from tests.crash.network import WELL, Journey, Storm, Strike, await_all, execute_on, release_work

PLACES = {  # where a run speaks SSH, and after how many bytes more the network fails there
    "boot: dialling": (r"^before dial log in", (0, 600, 2500)),
    "boot: our key": (r"^before ssh sh -c .*", (0, 200, 500)),
    "push: the runner": (r"^before ssh umask 077 && mkdir -p \S+/work", (0, 400, 5000)),
    "push: the workdir": (r"^before ssh mkdir -p \S+ && cd \S+ && tar -xof -", (0, 300, 200_000)),
    "run: the start": (r"^before ssh .*runner\.sh start$", (0, 150, 300)),
    "run: started": (r"^after ssh .*runner\.sh start$", (0,)),
    "follow: the log": (r"^before ssh .*runner\.sh tail 0$", (0, 300, 200_000)),
    "follow: amid it": (r"^after file add to output\.log", (0, 50_000)),
    "pull: a look": (r"^before ssh if \[ -d ", (0, 200, 400)),
    "pull: a folder": (r"^before ssh cd .*tar", (0, 300, 200_000)),
    "pull: its end is told": (r"^before ssh .*runner\.sh pulled", (0, 150)),
    "release": (r"^before http \w+ (DELETE|POST delete)", (0,)),
}
KINDS = {
    "cut": lambda size: [{"kind": "ssh_cut", "bytes": size, "count": 2}],
    "half-open": lambda size: [{"kind": "ssh_half_open", "bytes": size}],
    "frozen for a moment": lambda size: [{"kind": "ssh_half_open", "bytes": size, "seconds": 1.0}],
    "refused": lambda size: [{"kind": "ssh_refused", "seconds": 1.0}, {"kind": "ssh_cut", "bytes": size}],
}
SLOW = Strike(r"^before dial log in", [{"kind": "ssh_slow", "bytes_per_s": 400_000, "latency_s": 0.1, "count": None}])
LOSES = ("cut", "half-open", "refused")


@pytest.fixture
def patient(host: Host) -> Host:
    """A host that notices a silent machine soon, and waits as long as a real one for a lost one."""
    host.timing = replace(Timing(), silent_s=2.0, reach_s=0.05, guard_s=0.2)
    return host


@pytest.fixture
def storm(fake: FakeServer) -> Storm:
    return Storm(fake)


def strikes_of(kind: str, seed: str) -> list[Strike]:
    dice = random.Random(seed)
    return [Strike(pattern, KINDS[kind](dice.choice(sizes))) for pattern, sizes in PLACES.values()]


def drive(storm: Storm, journeys: Sequence[Journey], folder: Path, **envs: str) -> None:
    for journey in journeys:
        journey.open(folder, **envs)
    with storm.around(journeys):
        pass
    assert [journey.strikes for journey in journeys if journey.strikes] == [], "a place was not passed"


def test_network_that_fails_at_every_phase_costs_no_byte_and_no_second_start(
    patient: Host, storm: Storm, control: Control, tmp_path: Path
) -> None:
    journeys = {
        (backend, kind): Journey(patient, backend, strikes_of(kind, f"{kind} {backend}"))
        for backend in BACKENDS
        for kind in KINDS
    }
    journeys |= {(backend, "slow"): Journey(patient, backend, [SLOW]) for backend in BACKENDS}
    drive(storm, list(journeys.values()), tmp_path)
    truth = control.machines()
    assert {key: one.ended(truth) for key, one in journeys.items()} == dict.fromkeys(journeys, WELL)
    assert [key for key, one in journeys.items() if key[1] in LOSES and one.reconnects() < len(PLACES) / 3] == []
    assert control.left() == []


def test_failed_command_is_told_as_such_and_its_outputs_come_home_over_a_network_that_fails(
    patient: Host, storm: Storm, control: Control, tmp_path: Path
) -> None:
    journeys = [Journey(patient, backend, strikes_of("cut", backend)) for backend in BACKENDS]
    for journey in journeys:
        del journey.strikes[-2:]  # that all is pulled is not told: the machine might be kept for a look
    drive(storm, journeys, tmp_path, CODE="3")
    failed = {**WELL, "state": "failed"}
    assert [journey.ended(control.machines()) for journey in journeys] == [failed] * len(BACKENDS)
    assert {journey.row().exit_code for journey in journeys} == {1}
    assert control.left() == []


def test_key_whose_installing_was_cut_off_is_installed_by_the_next_login(
    host: Host, storm: Storm, control: Control, tmp_path: Path
) -> None:
    host.timing = replace(QUICK, lost_s=60.0)
    pattern = PLACES["boot: our key"][0]
    only_the_key = [{"kind": "wrong_password", "seconds": 0.0}, {"kind": "ssh_cut"}]
    strikes = [Strike(pattern, KINDS["cut"](0)), Strike(r"^after file add to output\.log", only_the_key)]
    journeys = [Journey(host, backend, list(strikes)) for backend in BACKENDS]
    drive(storm, journeys, tmp_path)
    assert [journey.ended(control.machines()) for journey in journeys] == [WELL] * len(BACKENDS)


def test_cancel_in_a_network_that_is_gone_ends_the_rent(
    host: Host, storm: Storm, control: Control, tmp_path: Path
) -> None:
    host.timing = replace(QUICK, stop_pull_s=2.0)
    gone = [{"kind": "ssh_half_open", "count": None}]
    journeys = [Journey(host, backend, [Strike(r"^after file add to output\.log", gone)]) for backend in BACKENDS]
    for journey in journeys:
        journey.open(tmp_path, HELD="1")
    with storm.around(journeys):
        await_all(journeys, lambda one: not one.strikes, what="the work writes")
        for journey in journeys:
            journey.stop.stop(Cancelled("enough"))
    ended = [journey.ended(control.machines()) for journey in journeys]
    assert [(one["state"], one["outputs"], one["machines"], one["rented"]) for one in ended] == [
        ("cancelled", None, 1, 0)
    ] * len(BACKENDS)
    assert all("could be pulled" in " ".join(journey.reporter.notes) for journey in journeys), "not told"
    assert control.left() == []


def test_cancel_whose_pull_would_never_end_ends_the_rent(
    host: Host, fake: FakeServer, storm: Storm, control: Control, tmp_path: Path
) -> None:
    """The connection is well, and the machine does not answer what it is asked of the outputs."""
    host.timing = replace(QUICK, stop_pull_s=2.0)
    journeys = [Journey(host, backend) for backend in BACKENDS]
    for journey in journeys:
        journey.open(tmp_path, HELD="1")
    with storm.around(journeys):
        await_all(journeys, lambda one: one.reporter.wrote.is_set(), what="the work writes")
        for journey in journeys:
            work = f"{host.backend(journey.backend).work_root}/{host.ledger.attempts(journey.run_id)[-1].name}/work"
            never = "printf '#!/bin/sh\\nexec sleep 6000\\n' >/usr/local/bin/find && chmod 755 /usr/local/bin/find"
            execute_on(fake, journey, f"mkdir {work}/kept && {never}")
            journey.stop.stop(Cancelled("enough"))
    ended = [journey.ended(control.machines()) for journey in journeys]
    assert [(one["state"], one["machines"], one["rented"]) for one in ended] == [("cancelled", 1, 0)] * len(BACKENDS)
    told = [" ".join(journey.reporter.notes) for journey in journeys]
    assert all("could be pulled: not done within 3 s" in one for one in told), told
    assert control.left() == []


def test_network_that_swallows_all_that_is_large_ends_the_rent_and_says_so(
    host: Host, storm: Storm, control: Control, tmp_path: Path
) -> None:
    host.timing = replace(QUICK, silent_s=2.0, lost_s=10.0)
    swallows = [{"kind": "ssh_half_open", "bytes": 60_000, "count": None}, {"kind": "ssh_cut"}]
    places = [PLACES[phase][0] for phase in ("push: the workdir", "pull: a folder")]
    journeys = [Journey(host, backend, [Strike(place, swallows)]) for backend in BACKENDS for place in places]
    drive(storm, journeys, tmp_path)
    assert [(one.row().state, one.row().exit_code) for one in journeys] == [("failed", MachineLost.exit_code)] * 4
    assert control.left() == []


OUTAGES = {
    "cut": [{"kind": "ssh_cut"}, {"kind": "ssh_refused", "seconds": 0.0}],
    "half-open": [{"kind": "ssh_half_open", "count": None}],
}


def outage(storm: Storm, fake: FakeServer, journeys: dict[tuple[str, str], Journey]) -> None:
    """Take away the whole network: SSH to every machine, and both providers."""
    for backend in BACKENDS:
        fake.faults.arm("reset", endpoint=f"{backend}.*", count=None)
    for (_, kind), journey in journeys.items():
        for rule in OUTAGES[kind]:
            storm.arm(journey, rule)


def journeys_of(host: Host, folder: Path) -> dict[tuple[str, str], Journey]:
    journeys = {(backend, kind): Journey(host, backend) for backend in BACKENDS for kind in OUTAGES}
    for journey in journeys.values():
        journey.open(folder, HELD="1")
    return journeys


def test_healthy_job_survives_twenty_seconds_without_a_network(
    cloud_settings: Settings, fake: FakeServer, storm: Storm, control: Control, tmp_path: Path
) -> None:
    with Host.open(cloud_settings) as host:
        journeys = journeys_of(host, tmp_path)
        with storm.around(list(journeys.values())):
            await_all(list(journeys.values()), lambda one: one.reporter.wrote.is_set(), what="the work writes")
            outage(storm, fake, journeys)
            threading.Event().wait(20)
            fake.faults.remove()
            release_work(fake, list(journeys.values()))
        truth = control.machines()
        assert {key: one.ended(truth) for key, one in journeys.items()} == dict.fromkeys(journeys, WELL)
        assert control.left() == []


def test_healthy_job_survives_ten_minutes_without_a_network(
    cloud_settings: Settings, fake: FakeServer, storm: Storm, control: Control, tmp_path: Path
) -> None:
    """Five minutes without anything, five more in which only the providers answer, on a clock that is moved."""
    clock = ShiftedClock()
    with Host.open(cloud_settings, clock=clock, timing=Timing(silent_s=2.0)) as host:
        journeys = journeys_of(host, tmp_path)
        cut = [one for (_, kind), one in journeys.items() if kind == "cut"]
        with storm.around(list(journeys.values())):
            await_all(list(journeys.values()), lambda one: one.reporter.wrote.is_set(), what="the work writes")
            outage(storm, fake, journeys)
            await_all(list(journeys.values()), Journey.reconnects, what="the loss is noticed")
            pass_time(clock, list(journeys.values()))
            release_work(fake, cut)  # that its work ends meanwhile harms a run no more than that it goes on
            for rule in fake.faults.as_json()["rules"]:
                if rule["kind"] == "reset":
                    fake.faults.remove(rule["id"])
            pass_time(clock, cut)
            fake.faults.remove()
            release_work(fake, [one for one in journeys.values() if one not in cut])
        truth = control.machines()
        assert {key: one.ended(truth) for key, one in journeys.items()} == dict.fromkeys(journeys, WELL)
        assert control.left() == []


def pass_time(clock: ShiftedClock, journeys: Sequence[Journey]) -> None:
    """Move the clock by five minutes, and see that each run has tried to reach its machine all that time."""
    before = [len(one.reporter.moved) for one in journeys]
    for _ in range(60):
        clock.advance(5.0, threads=[one.thread for one in journeys])
    tries = [len(one.reporter.moved) - begun for one, begun in zip(journeys, before, strict=True)]
    assert min(tries) >= 3
