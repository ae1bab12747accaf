"""AutoDL's backend: what is its own, at the fake and at servers that say odd things."""

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fake_server.server import FakeServer
from gpujobs.backends._autodl_request import BASE_IMAGES
from gpujobs.backends.autodl import AutoDL, open_backend
from gpujobs.errors import BadInput, Refused
from gpujobs.models import ImageRef, MachineStatus, Offer
from gpujobs.settings import Account
from tests.backends.autodl_values import (
    MACHINE,
    NAME,
    NO_REGION,
    OFFER,
    backend_at,
    ok,
    page,
    until,
)
from tests.backends.clouds import Answer, Request, account_on, calls, canned, recipe_of
from tests.clocks import ManualClock


@pytest.fixture
def backend(server: FakeServer, clock: ManualClock) -> AutoDL:
    return open_backend(account_on(server, "autodl"), clock=clock)


def asked_to_create(recipe: Any, offer: Offer = OFFER, image: str = "", count: int = 1) -> Any:
    with canned(lambda _: ok({"deployment_uuid": "d1"})) as api:
        backend_at(api.url).create(recipe, offer, name=NAME, image=image, count=count)
    return api.asked[0].body


# create


def test_a_job_is_asked_for_with_every_required_field() -> None:
    recipe = recipe_of("RTX 4090", resources={"cpus": 4, "memory": 16, "cuda": "11.8+"}, max_duration="1h")
    body = asked_to_create(recipe, count=2)
    cmd = body["container_template"].pop("cmd")
    assert body == {
        "name": NAME,
        "deployment_type": "Job",
        "replica_num": 2,
        "parallelism_num": 2,
        "reuse_container": False,
        "container_template": {
            "dc_list": ["westDC2"],
            "gpu_name_set": ["RTX 4090"],
            "gpu_num": 1,
            "cuda_v_from": 118,
            "cuda_v_to": 130,
            "cpu_num_from": 4,
            "cpu_num_to": 512,
            "memory_size_from": 16,
            "memory_size_to": 2048,
            "price_from": 10,
            "price_to": 2000,
            "image_uuid": "base-image-l2t43iu6uk",
        },
    }
    assert not set(cmd) & set("$'\"`;&\n")
    keeper = base64.b64decode(cmd.split()[1]).decode()
    assert "base=/root/autodl-tmp/gpujobs\n" in keeper
    assert "linger_s=1800\n" in keeper


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("ReplicaSet", {"deployment_type": "ReplicaSet", "replica_num": 1, "reuse_container": True}),
        ("Container", {"deployment_type": "Container", "reuse_container": True}),
    ],
)
def test_the_recipe_chooses_the_deployment_type(kind: str, fields: Any) -> None:
    body = asked_to_create(recipe_of("RTX 4090", autodl={"deployment_type": kind, "reuse_container": True}))
    assert {key: value for key, value in body.items() if key not in ("name", "container_template")} == fields


def test_a_container_is_one_machine() -> None:
    recipe = recipe_of("RTX 4090", autodl={"deployment_type": "Container"})
    with pytest.raises(BadInput, match="Job or ReplicaSet"):
        open_backend(Account(token="x"), clock=ManualClock()).create(recipe, OFFER, name=NAME, image="", count=2)


def test_an_unknown_price_is_bounded_all_the_same() -> None:
    offer = replace(OFFER, price_cny_per_h=None, gpu_count=2)
    assert asked_to_create(recipe_of("RTX 4090"), offer)["container_template"]["price_to"] == 100_000


@pytest.mark.parametrize("kind", ["Job", "ReplicaSet", "Container"])
def test_each_deployment_type_runs_at_the_fake_and_ends(kind: str, backend: AutoDL) -> None:
    recipe = recipe_of("RTX A4000", autodl={"deployment_type": kind})
    machine = backend.create(recipe, backend.offers(recipe)[0], name=NAME, image="")
    until(backend, machine, MachineStatus.RUNNING)
    backend.power_off(machine)
    until(backend, machine, MachineStatus.ENDED)
    assert [found.status for found in backend.find(NAME)] == [MachineStatus.ENDED]
    backend.release(machine)
    until(backend, machine, MachineStatus.GONE)


def test_a_private_image_is_found_by_its_name(backend: AutoDL, server: FakeServer) -> None:
    recipe = recipe_of("RTX A4000")
    machine = backend.create(recipe, backend.offers(recipe)[0], name=NAME, image="digits-env")
    with server.world.ground.lock:
        made = server.world.autodl.deployments[machine.id]
    assert made.template.image_uuid == "image-5f1b9c2a7d"


def test_two_private_images_of_one_name_are_not_guessed_between() -> None:
    rows = [{"image_uuid": f"image-{number}", "image_name": "mine"} for number in range(2)]
    with canned(lambda _: page(*rows)) as api, pytest.raises(Refused, match="2 images named 'mine'"):
        backend_at(api.url).create(recipe_of("RTX 4090"), OFFER, name=NAME, image="mine")


def test_an_image_uuid_that_the_provider_does_not_know_is_answered_with_the_nearest(backend: AutoDL) -> None:
    recipe = recipe_of("RTX A4000")
    with pytest.raises(Refused, match=r"base-image-l2t43iu6ul.*base-image-l2t43iu6uk.*resources\.image"):
        backend.create(recipe, backend.offers(recipe)[0], name=NAME, image="base-image-l2t43iu6ul")


def test_images_are_the_accounts_own_and_the_documented_ones(backend: AutoDL) -> None:
    images = backend.images()
    assert [image.ref for image in images if image.private] == ["image-5f1b9c2a7d", "image-db8346e037"]
    assert {image.ref for image in images if not image.private} == set(BASE_IMAGES)


# check


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"snapshot": {"name": "a"}}, "snapshot"),
        ({"resources": {"volumes": [{"path": "/root/data", "size": 5}]}}, r"resources\.volumes"),
        ({"resources": {"image": "snapshot:a"}}, r"resources\.image"),
        ({"resources": {"image": {"autodl": "snapshot:a"}}}, r"resources\.image"),
    ],
)
def test_what_autodl_cannot_do_is_refused_before_renting(parts: Any, named: str, backend: AutoDL) -> None:
    with pytest.raises(BadInput, match=named):
        backend.check(recipe_of("RTX 4090", **parts))


def test_another_backends_snapshot_is_none_of_its_business(backend: AutoDL) -> None:
    backend.check(recipe_of("RTX 4090", resources={"image": {"matrixdc": "snapshot:a"}}))


def test_power_off_with_a_snapshot_and_power_on_are_refused(backend: AutoDL, server: FakeServer) -> None:
    with pytest.raises(Refused, match="image"):
        backend.power_off(MACHINE, snapshot=ImageRef(name="a", tag="b"))
    with pytest.raises(Refused, match="d1"):
        backend.power_on(MACHINE)
    assert calls(server) == 0


# offers


def test_the_price_found_is_the_lowest_to_five_fen_and_it_is_kept(backend: AutoDL, server: FakeServer) -> None:
    recipe = recipe_of("4090", resources={"infra": ["autodl/westDC2", "autodl/westdc3"]})
    offers = backend.offers(recipe)
    assert [(offer.region, offer.gpu, offer.price_cny_per_h, offer.free) for offer in offers] == [
        ("westDC2", "RTX 4090", 2.0, 36),
        ("westdc3", "RTX 4090", 2.1, 15),
    ]
    first = calls(server, "autodl.gpu_stock")
    assert first <= 2 + 2 * 12
    assert backend.offers(recipe) == offers
    assert calls(server, "autodl.gpu_stock") - first == 2 + 2 * 2


def test_a_price_is_sought_anew_when_it_is_old_or_sold_out(
    backend: AutoDL, server: FakeServer, clock: ManualClock
) -> None:
    recipe = recipe_of("RTX 3090", resources={"infra": ["autodl/yangzhouDC1"]})
    assert [offer.price_cny_per_h for offer in backend.offers(recipe)] == [1.45]
    with server.world.ground.lock:
        fleet = server.world.autodl.fleet
        fleet.hosts = tuple(replace(host, price_milli_cny_per_h=1300) for host in fleet.hosts)
    assert [offer.price_cny_per_h for offer in backend.offers(recipe)] == [1.45]
    clock.advance(601)
    assert [offer.price_cny_per_h for offer in backend.offers(recipe)] == [1.3]
    with server.world.ground.lock:
        fleet.hosts = tuple(replace(host, price_milli_cny_per_h=1700) for host in fleet.hosts)
    assert [offer.price_cny_per_h for offer in backend.offers(recipe)] == [1.7]


def test_several_gpus_cost_as_much_more_and_are_counted_together(backend: AutoDL) -> None:
    recipe = recipe_of("RTX 4090:4", resources={"infra": "autodl/westDC2", "cpus": 40, "memory": 300})
    (offer,) = backend.offers(recipe)
    assert (offer.gpu_count, offer.price_cny_per_h, offer.free) == (4, 8.0, 9)
    machine = backend.create(recipe, offer, name=NAME, image="")
    until(backend, machine, MachineStatus.RUNNING)


def test_what_needs_more_than_a_host_has_is_not_offered(backend: AutoDL) -> None:
    assert backend.offers(recipe_of("RTX 4090", resources={"cpus": 400})) == []
    assert backend.offers(recipe_of("RTX A4000", resources={"cuda": "12.8"})) == []


def test_only_the_fullest_places_are_priced_and_the_others_come_last(backend: AutoDL) -> None:
    offers = backend.offers(recipe_of("RTX 4090"))
    assert [offer.price_cny_per_h is None for offer in offers] == [False] * 4 + [True]
    bounded = backend.offers(recipe_of("RTX 4090", resources={"max_price": 2.5}))
    assert max(offer.price_cny_per_h or 0 for offer in bounded) == 2.5


def test_a_region_is_found_by_its_chinese_name(backend: AutoDL) -> None:
    recipe = recipe_of("RTX 4090", resources={"infra": "autodl/内蒙A区"})
    (offer,) = backend.offers(recipe)
    assert offer.region == "内蒙A区"
    assert backend.create(recipe, offer, name=NAME, image="").region == "neimengDC1"


def test_a_gpu_of_another_region_is_answered_with_what_is_there(backend: AutoDL) -> None:
    with pytest.raises(BadInput, match=r"'L20' in yangzhouDC1; nearest: RTX 3090; mend .*resources\.infra"):
        backend.offers(recipe_of("L20", resources={"infra": "autodl/yangzhouDC1"}))


def test_any_of_several_gpus_may_be_unknown_here(backend: AutoDL) -> None:
    recipe = recipe_of("L20").model_copy(
        update={"resources": recipe_of("L20").resources.model_copy(update={"accelerators": ["L20", "B200"]})}
    )
    assert {offer.gpu for offer in backend.offers(recipe)} == {"L20"}


def stock_but_in(*closed: str) -> Callable[[Request], Answer]:
    def answer(asked: Request) -> Answer:
        if asked.method == "GET":
            return NO_REGION  # the blocked hosts: without them it is not known which offers are in doubt
        if asked.body["region_sign"] in closed:
            return NO_REGION
        return ok({"L20": {"idle_gpu_num": 2, "total_gpu_num": 4}})

    return answer


def test_a_region_that_autodl_closed_does_not_hide_the_others() -> None:
    with canned(stock_but_in("westDC2", "foshanDC1")) as api:
        offers = backend_at(api.url).offers(recipe_of("L20"))
    assert len(offers) == 9
    assert not {"westDC2", "foshanDC1"} & {offer.region for offer in offers}


def test_a_refusal_of_the_region_that_the_recipe_names_or_of_all_is_told() -> None:
    with canned(stock_but_in("westDC2")) as api, pytest.raises(Refused, match="westDC2"):
        backend_at(api.url).offers(recipe_of("L20", resources={"infra": ["autodl/westDC2", "autodl/westDC3"]}))
    with canned(lambda _: NO_REGION) as api, pytest.raises(Refused):
        backend_at(api.url).offers(recipe_of("L20"))
