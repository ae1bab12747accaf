"""The plan: what would be rented, in which order, at what price, and why not."""

import re
from pathlib import Path

import pytest

from fake_server.server import FakeServer
from gpujobs import errors
from gpujobs.host import Host
from gpujobs.plan import check_local, make_plan
from gpujobs.recipe import Recipe
from tests.cloud import recipe_for


def recipe(**resources: object) -> Recipe:
    return Recipe.model_validate({"name": "t", "run": "true", "resources": {"accelerators": "RTX 4090", **resources}})


def test_without_infra_every_cloud_with_a_token_is_asked_and_the_cheapest_is_first(host: Host) -> None:
    choices = make_plan(host, recipe()).choices
    assert {choice.offer.backend for choice in choices} == {"autodl", "matrixdc"}
    known = [price for choice in choices if (price := choice.offer.price_cny_per_h) is not None]
    assert known == sorted(known)


def test_infra_is_an_order_that_comes_before_the_price(host: Host) -> None:
    choices = make_plan(host, recipe(infra=["matrixdc", "autodl/westDC3", "autodl/westDC2"])).choices
    places = [(choice.offer.backend, choice.offer.region) for choice in choices]
    assert places == [("matrixdc", "host-cluster"), ("autodl", "westDC3"), ("autodl", "westDC2")]


def test_a_place_whose_free_hosts_may_all_be_blocked_comes_last(host: Host, fake: FakeServer) -> None:
    wanted = recipe(infra=["autodl/neimengDC1", "autodl/westDC2"])
    with fake.world.ground.lock:
        fleet = fake.world.autodl.fleet
        (only,) = (one for one in fleet.hosts if (one.data_center, one.gpu_name) == ("neimengDC1", "RTX 4090"))
        fleet.ban(only, minutes=60, comment="", now=fake.world.ground.timeline.now())
    assert [one.offer.region for one in make_plan(host, wanted).choices] == ["westDC2", "neimengDC1"]


def test_the_estimate_is_the_first_choices_price_for_all_of_max_duration(host: Host) -> None:
    plan = make_plan(host, Recipe.model_validate({**recipe().model_dump(), "max_duration": "2h"}))
    price = plan.choices[0].offer.price_cny_per_h
    assert price is not None
    assert plan.estimate_cny == pytest.approx(2 * price)


def test_a_backend_without_a_token_is_left_out_and_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTODL_TOKEN")
    plan = make_plan(host, recipe(infra=["autodl", "matrixdc"]))
    assert [choice.offer.backend for choice in plan.choices] == ["matrixdc"]
    assert plan.refused == ["autodl: AUTODL_TOKEN is not set; get a token in the provider's console and export it"]


def test_without_any_token_both_ways_out_are_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTODL_TOKEN")
    monkeypatch.delenv("MATRIXDC_TOKEN")
    with pytest.raises(errors.BadInput, match=r"set AUTODL_TOKEN or MATRIXDC_TOKEN, or try .* --fake"):
        make_plan(host, recipe())


@pytest.mark.parametrize(
    ("backend", "resources", "said"),
    [
        ("autodl", {"max_price": 0.5}, r"free from 1.90 CNY/h, above max_price 0.50"),
        ("matrixdc", {"max_price": 0.5}, r"free from 2.50 CNY/h, above max_price 0.50"),
        ("autodl", {"cpus": 500}, r"free, but not with cpus 500\+"),
        ("autodl", {"infra": "autodl/neimengDC1", "accelerators": "H800"}, r"no H800 is free"),
    ],
)
def test_where_nothing_is_free_the_plan_says_what_would_have_to_give(
    backend: str, resources: dict[str, object], said: str, host: Host
) -> None:
    plan = make_plan(host, recipe_for(backend, resources=resources))
    assert plan.choices == []
    assert re.search(said, plan.nothing_free)


def test_a_budget_without_any_price_bound_takes_only_offers_with_a_price(host: Host) -> None:
    choices = make_plan(host, Recipe.model_validate({**recipe().model_dump(), "budget": 5})).choices
    assert choices
    assert all(choice.offer.price_cny_per_h is not None for choice in choices)


def test_what_is_missing_here_is_refused_by_name(host: Host) -> None:
    for parts, said in [
        ({"workdir": "/nowhere"}, "workdir: /nowhere does not exist"),
        ({"workdir": __file__}, "is a file; name its folder"),
        ({"file_mounts": {"/root/x": "/nowhere/x"}}, "file_mounts: /nowhere/x does not exist"),
        ({"secrets": ["NO_SUCH_SECRET"]}, "secret NO_SUCH_SECRET has no value"),
    ]:
        with pytest.raises(errors.BadInput, match=said):
            check_local(host, Recipe.model_validate({**recipe().model_dump(), **parts}))


def test_a_whole_home_folder_does_not_go_up_unless_its_owner_said_what_of_it(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "somebody"
    (home / "project").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    whole = [
        {"workdir": str(home)},
        {"workdir": str(tmp_path)},
        {"file_mounts": {"./all": str(home)}},
    ]
    for parts in whole:
        with pytest.raises(errors.BadInput, match="is your home folder or above it"):
            check_local(host, Recipe.model_validate({**recipe().model_dump(), **parts}))
    check_local(host, Recipe.model_validate({**recipe().model_dump(), "workdir": str(home / "project")}))
    (home / ".gpujobsignore").write_text(".ssh\n")
    check_local(host, Recipe.model_validate({**recipe().model_dump(), "workdir": str(home)}))
