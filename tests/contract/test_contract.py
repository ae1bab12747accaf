"""What every backend promises, each by the same tests; a new file in `gpujobs/backends` is found by itself."""

import logging
import traceback
from collections.abc import Callable, Iterator, Sequence

import pytest

from fake_server.server import FakeServer
from gpujobs import backends
from gpujobs.backends import Backend
from gpujobs.errors import (
    Ambiguous,
    BadCredentials,
    BadInput,
    GpujobsError,
    NoCapacity,
    NotFound,
    Refused,
    Unavailable,
)
from gpujobs.models import ImageRef, Machine, MachineStatus, Offer
from gpujobs.settings import Account
from tests.backends.clouds import (
    TOKEN,
    Answer,
    Request,
    account_on,
    alive,
    calls,
    canned,
    fault,
    quiet_server,
    recipe_of,
)
from tests.clocks import ManualClock, eventually
from tests.contract.bench import Bench, bench_of

NAME = "gj-tester-run1-1"
LOST = ("timeout", "reset", "error_500", "broken_json", "lost_reply", "late_act", "error_envelope")
ACTED = ("broken_json", "lost_reply", "late_act")
SHAKY = ("error_500", "rate_limit_429", "reset", "broken_json")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with quiet_server() as server:
        yield server


@pytest.fixture(params=backends.names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bench(name: str) -> Bench:
    return bench_of(name)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(runs_by_itself=True)


@pytest.fixture
def backend(bench: Bench, name: str, server: FakeServer, clock: ManualClock) -> Backend:
    return bench.open(account_on(server, name), clock)


def offer_of(backend: Backend, bench: Bench) -> Offer:
    return backend.offers(recipe_of(bench.gpu))[0]


def make(backend: Backend, bench: Bench, name: str = NAME) -> Machine:
    return backend.create(recipe_of(bench.gpu), offer_of(backend, bench), name=name, image=bench.image)


def where(backend: Backend, machine: Machine) -> MachineStatus:
    return backend.events([machine])[-1].status


def running(backend: Backend, bench: Bench, name: str = NAME) -> Machine:
    machine = make(backend, bench, name)
    eventually(lambda: where(backend, machine) is MachineStatus.RUNNING, what="running")
    return backend.refresh(machine)


def until_gone(backend: Backend, machine: Machine) -> None:
    eventually(lambda: where(backend, machine) is MachineStatus.GONE, what="gone")


def test_a_machine_is_made_found_runs_and_can_be_reached(backend: Backend, bench: Bench, server: FakeServer) -> None:
    offer = offer_of(backend, bench)
    machine = backend.create(recipe_of(bench.gpu), offer, name=NAME, image=bench.image)
    assert (machine.backend, machine.name, machine.status) == (
        backend.name,
        NAME,
        machine.status if machine.status is MachineStatus.BOOTING else MachineStatus.QUEUED,
    )
    assert machine.price_cny_per_h == offer.price_cny_per_h
    assert [found.id for found in backend.find(NAME)] == [machine.id]
    eventually(lambda: where(backend, machine) is MachineStatus.RUNNING, what="running")
    machine = backend.refresh(machine)
    assert machine.status is MachineStatus.RUNNING
    assert machine.host
    access = backend.access(machine)
    assert access is not None
    assert (access.host, access.user, bool(access.password)) == ("127.0.0.1", "root", True)
    assert 20000 < access.port < 30000
    assert alive(server) == [NAME]
    assert calls(server, bench.create) == 1


def test_there_is_no_access_before_the_machine_runs(backend: Backend, bench: Bench) -> None:
    assert backend.access(make(backend, bench)) is None


def test_offers_fit_and_come_cheapest_first(backend: Backend, bench: Bench) -> None:
    offers = backend.offers(recipe_of(bench.gpu))
    prices = [offer.price_cny_per_h for offer in offers]
    assert offers
    assert all(price and price > 0 for price in prices)
    assert prices == sorted(prices, key=lambda price: price or 0)
    assert all((offer.backend, offer.gpu_count) == (backend.name, 1) and offer.free > 0 for offer in offers)
    cheapest = prices[0] or 0.0
    assert backend.offers(recipe_of(bench.gpu, resources={"max_price": cheapest / 2})) == []
    bounded = backend.offers(recipe_of(bench.gpu, resources={"max_price": cheapest}))
    assert bounded
    assert all((offer.price_cny_per_h or 99) <= cheapest for offer in bounded)


def test_a_backend_that_the_recipe_does_not_allow_offers_nothing(backend: Backend, bench: Bench) -> None:
    assert backend.offers(recipe_of(bench.gpu, resources={"infra": "elsewhere"})) == []


def test_events_are_the_same_when_asked_again_and_end_with_gone(backend: Backend, bench: Bench) -> None:
    machine = running(backend, bench)
    once, again = backend.events([machine]), backend.events([machine])
    assert [event.key for event in once] == [event.key for event in again]
    assert len({event.key for event in once}) == len(once)
    assert {event.machine_id for event in once} == {machine.id}
    backend.release(machine)
    until_gone(backend, machine)
    assert backend.find("gj-") == []
    with pytest.raises(NotFound):
        backend.refresh(machine)


def test_release_of_a_released_machine_succeeds(backend: Backend, bench: Bench, server: FakeServer) -> None:
    machine = running(backend, bench)
    backend.release(machine)
    backend.release(machine)
    until_gone(backend, machine)
    backend.release(machine)
    assert alive(server) == []


def test_release_and_power_off_of_a_machine_that_never_was_succeed(backend: Backend, bench: Bench) -> None:
    offer = offer_of(backend, bench)
    never = Machine(backend=backend.name, id="never-was", name=NAME, region=offer.region, status=MachineStatus.UNKNOWN)
    assert backend.power_off(never) == ""
    backend.release(never)
    assert where(backend, never) is MachineStatus.GONE


def test_power_off_can_be_asked_twice(backend: Backend, bench: Bench) -> None:
    machine = running(backend, bench)
    assert backend.power_off(machine) == ""
    assert backend.power_off(machine) == ""
    over = (MachineStatus.OFF, MachineStatus.ENDED)
    eventually(lambda: backend.refresh(machine).status in over, what="off")
    assert backend.power_off(machine) == ""


def test_machines_of_another_prefix_are_neither_seen_nor_touched(
    backend: Backend, bench: Bench, server: FakeServer
) -> None:
    theirs = running(backend, bench, "somebody-else")
    ours = running(backend, bench)
    assert [machine.name for machine in backend.find("gj-tester-")] == [NAME]
    assert backend.find("gj-other-") == []
    assert [machine.id for machine in backend.find("somebody-")] == [theirs.id]
    backend.release(ours)
    until_gone(backend, ours)
    assert alive(server) == ["somebody-else"]


def test_a_wrong_token_is_named_but_not_shown(bench: Bench, name: str, server: FakeServer, clock: ManualClock) -> None:
    good = account_on(server, name)
    backend = bench.open(Account(api_url=good.api_url, token="wrong-secret-token", namespace="fake-user"), clock)
    with pytest.raises(BadCredentials, match=f"{name.upper()}_TOKEN") as caught:
        backend.find("gj-")
    assert "wrong-secret" not in "".join(traceback.format_exception(caught.value))
    assert calls(server) == 1


@pytest.mark.parametrize("kind", LOST)
def test_an_unclear_create_is_ambiguous_sent_once_and_settled_by_its_name(
    kind: str, backend: Backend, bench: Bench, server: FakeServer
) -> None:
    offer = offer_of(backend, bench)
    fault(server, bench.create, kind, seconds=0.3)
    with pytest.raises(Ambiguous, match=NAME):
        backend.create(recipe_of(bench.gpu), offer, name=NAME, image=bench.image)
    if kind in ACTED:
        eventually(lambda: [machine.name for machine in backend.find(NAME)] == [NAME], what="found by its name")
    else:
        assert backend.find(NAME) == []
    assert calls(server, bench.create) == 1


def test_a_create_that_is_turned_away_unread_is_unavailable_and_sent_once(
    backend: Backend, bench: Bench, server: FakeServer
) -> None:
    offer = offer_of(backend, bench)
    fault(server, bench.create, "rate_limit_429", retry_after=7)
    with pytest.raises(Unavailable) as caught:
        backend.create(recipe_of(bench.gpu), offer, name=NAME, image=bench.image)
    assert caught.value.retry_after_s == 7
    assert calls(server, bench.create) == 1
    assert backend.find("") == []


def test_a_create_that_finds_no_connection_is_unavailable(
    bench: Bench, name: str, server: FakeServer, clock: ManualClock
) -> None:
    backend = bench.open(account_on(server, name), clock)
    offer = offer_of(backend, bench)
    server.stop()
    with pytest.raises(Unavailable, match="no connection"):
        backend.create(recipe_of(bench.gpu), offer, name=NAME, image=bench.image)
    server.start()


def test_nothing_free_is_no_capacity(backend: Backend, bench: Bench, server: FakeServer) -> None:
    offer = offer_of(backend, bench)
    bench.take_all(server)
    with pytest.raises(NoCapacity, match=NAME):
        backend.create(recipe_of(bench.gpu), offer, name=NAME, image=bench.image)
    assert alive(server) == []


def test_an_unknown_region_is_answered_with_the_nearest(backend: Backend, bench: Bench) -> None:
    wrong, meant = bench.near_region
    with pytest.raises(BadInput, match=rf"{wrong}'.*{meant}.*resources\.infra"):
        backend.offers(recipe_of(bench.gpu, resources={"infra": f"{backend.name}/{wrong}"}))


def test_an_unknown_gpu_is_answered_with_the_nearest(backend: Backend, bench: Bench) -> None:
    wrong, meant = bench.near_gpu
    with pytest.raises(BadInput, match=rf"{wrong}'.*{meant}.*resources\.accelerators"):
        backend.offers(recipe_of(wrong))


def test_an_unknown_image_is_refused_and_nothing_is_made(backend: Backend, bench: Bench, server: FakeServer) -> None:
    wrong, meant = bench.near_image or ("nowhere.example/no/image:1", "")
    with pytest.raises(Refused, match=rf"(?s){wrong}.*{meant}") as caught:
        backend.create(recipe_of(bench.gpu), offer_of(backend, bench), name=NAME, image=wrong)
    assert "resources.image" in str(caught.value)
    assert alive(server) == []


@pytest.mark.parametrize("kind", SHAKY)
def test_every_read_is_asked_again_when_the_provider_stumbles(
    kind: str, bench: Bench, name: str, server: FakeServer, clock: ManualClock
) -> None:
    made = running(bench.open(account_on(server, name), clock), bench)
    for endpoint in bench.reads:
        fault(server, endpoint, kind, count=2)
    backend = bench.open(account_on(server, name), clock)  # which keeps nothing of what was asked before
    before = {endpoint: calls(server, endpoint) for endpoint in bench.reads}
    assert backend.offers(recipe_of(bench.gpu))
    assert [machine.id for machine in backend.find(NAME)] == [made.id]
    assert where(backend, made) is MachineStatus.RUNNING
    assert backend.access(made) is not None
    assert backend.refresh(made).status is MachineStatus.RUNNING
    assert backend.images() is not None
    assert all(calls(server, endpoint) >= before[endpoint] + 3 for endpoint in bench.reads)


@pytest.mark.parametrize("kind", [*SHAKY, "lost_reply", "error_envelope", "timeout"])
def test_a_release_is_asked_again_when_the_provider_stumbles(
    kind: str, backend: Backend, bench: Bench, server: FakeServer
) -> None:
    machine = running(backend, bench)
    for endpoint in (bench.power_off, bench.release):
        fault(server, endpoint, kind, count=2, seconds=0.1)
    backend.power_off(machine)
    backend.release(machine)
    until_gone(backend, machine)
    assert alive(server) == []


def test_a_provider_that_stays_down_is_unavailable_after_a_bounded_time(
    backend: Backend, bench: Bench, server: FakeServer, clock: ManualClock
) -> None:
    machine = make(backend, bench)
    fault(server, f"{backend.name}.*", "error_500", count=None)
    asks: Sequence[Callable[[], object]] = (
        lambda: backend.find("gj-"),
        lambda: backend.events([machine]),
        lambda: backend.release(machine),
    )
    for ask in asks:
        began = clock.monotonic()
        with pytest.raises(Unavailable):
            ask()
        assert 5 < clock.monotonic() - began < 30


def test_how_long_a_busy_provider_wants_to_be_left_alone_is_passed_on(
    backend: Backend, server: FakeServer, clock: ManualClock
) -> None:
    fault(server, f"{backend.name}.*", "rate_limit_429", count=None, retry_after=90)
    with pytest.raises(Unavailable) as caught:
        backend.find("gj-")
    assert caught.value.retry_after_s == 90
    assert clock.monotonic() == 0  # it would be too long for one call


def test_no_secret_is_shown_logged_or_raised(
    backend: Backend, bench: Bench, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    machine = running(backend, bench)
    access = backend.access(machine)
    assert access is not None
    seen = [repr(backend), repr(vars(backend)), repr(access), repr(machine), repr(backend.events([machine]))]
    for kind in (*LOST, "rate_limit_429"):
        fault(server, bench.create, kind, seconds=0.1)
        seen.append(_trace_of(lambda: make(backend, bench, "gj-tester-run1-2")))
    fault(server, f"{backend.name}.*", "error_500", count=None)
    seen += [_trace_of(lambda: backend.find("gj-")), caplog.text]
    text = "\n".join(seen)
    assert "gj-tester-run1-2" in text
    assert TOKEN not in text
    assert access.password not in text


def _trace_of(ask: Callable[[], object]) -> str:
    with pytest.raises(GpujobsError) as caught:
        ask()
    return "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_with_our_token(status: int, bench: Bench, clock: ManualClock) -> None:
    with canned(lambda _: Answer(body={})) as elsewhere:

        def redirect(_: Request) -> Answer:
            return Answer(status=status, headers={"Location": f"{elsewhere.url}/steal"})

        with canned(redirect) as api:
            backend = bench.open(Account(api_url=api.url, token=TOKEN, namespace="fake-user"), clock)
            with pytest.raises(Refused, match="redirect"):
                backend.find("gj-")
            assert len(api.asked) == 1
        assert elsewhere.asked == []


def test_a_snapshot_is_saved_at_power_off_or_refused_before_renting(backend: Backend, bench: Bench) -> None:
    snapshot = ImageRef(name="digits-env", tag="v1")
    if not bench.saves:
        with pytest.raises(BadInput, match="cannot save snapshots"):
            backend.check(recipe_of(bench.gpu, snapshot={"name": "digits-env"}))
        return
    backend.check(recipe_of(bench.gpu, snapshot={"name": "digits-env"}))
    machine = running(backend, bench)
    image = backend.power_off(machine, snapshot=snapshot)
    assert image.endswith("digits-env:v1")
    eventually(lambda: backend.refresh(machine).status is MachineStatus.OFF, what="off")
    backend.release(machine)
    until_gone(backend, machine)
    again = backend.create(recipe_of(bench.gpu), offer_of(backend, bench), name="gj-tester-run1-2", image=image)
    eventually(lambda: where(backend, again) is MachineStatus.RUNNING, what="booted from the snapshot")


def test_opening_sends_nothing(bench: Bench, name: str, server: FakeServer, clock: ManualClock) -> None:
    bench.open(account_on(server, name), clock)
    assert calls(server) == 0
