"""offers, images, snapshots, machines, reap: what the clouds have, and what they have of ours."""

import json
import re

from tests.cli.command import Cli, read_until
from tests.cloud import Control

LONG = """
name: t
resources: {infra: autodl, accelerators: RTX 4090}
run: echo begun; sleep 60
"""
SAVING = """
name: t
resources: {infra: matrixdc, accelerators: H20}
run: echo saved > /root/kept
snapshot: {name: env, tag: v1}
"""


def test_offers_of_every_cloud_cheapest_first(cli: Cli) -> None:
    value = json.loads(cli("offers", "4090", "--json").stdout)
    prices = [offer["price_cny_per_h"] for offer in value["offers"] if offer["price_cny_per_h"] is not None]
    assert prices == sorted(prices)
    assert {offer["backend"] for offer in value["offers"]} == {"autodl", "matrixdc"}


def test_offers_of_one_place_for_people(cli: Cli) -> None:
    done = cli("offers", "H20", "--infra", "matrixdc")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["BACKEND", "REGION", "GPU", "GPU", "GB", "CPUS", "GB", "CNY/H", "FREE"]
    assert re.fullmatch(r"matrixdc +host-cluster +H20 x1 +96 +24 +192 +~\d+\.\d\d +\d+", lines[1])


def test_an_offer_for_no_gpu_is_bad_input(cli: Cli) -> None:
    done = cli("offers", "H20:many")
    assert (done.returncode, done.stderr) == (
        2,
        "gpujobs: 'H20:many' is not a GPU; write NAME or NAME:COUNT, as RTX 4090:1\n",
    )


def test_images_that_a_provider_lists(cli: Cli) -> None:
    found = json.loads(cli("images", "--json").stdout)
    assert {"backend": "autodl", "private": False}.items() <= found[-1].items()
    assert "base-image-l2t43iu6uk" in {image["ref"] for image in found}


def test_a_saved_disk_is_listed_and_booted_from(cli: Cli, control: Control) -> None:
    assert cli("snapshots").stdout == "no snapshots yet\n"
    assert cli("submit", cli.recipe(SAVING), "--here", "--yes").returncode == 0
    found = json.loads(cli("snapshots", "--json").stdout)
    assert [(saved["name"], saved["tag"], saved["backend"]) for saved in found] == [("env", "v1", "matrixdc")]
    assert re.search(r"^snapshot:env:v1 +matrixdc/", cli("snapshots").stdout, re.MULTILINE)
    following = SAVING.partition("snapshot:")[0].replace("echo saved > /root/kept", "cat /root/kept")
    done = cli("submit", cli.recipe(following), "--here", "--yes", "--set", "resources.image=snapshot:env")
    assert (done.returncode, "saved\n" in done.stdout) == (0, True), done.stderr
    assert control.left() == []


def test_a_cloud_that_does_not_answer_hides_no_other_cloud_s_machines_and_is_no_success(
    cli: Cli, control: Control
) -> None:
    process = cli.start("submit", cli.recipe(LONG), "--here", "--yes")
    read_until(process, "begun", of="stdout")
    (machine,) = control.alive()
    control.fault("matrixdc.list_instances", "error_500", count=None)
    shown = cli("machines")
    assert (shown.returncode, machine in shown.stdout, "matrixdc: " in shown.stderr) == (70, True, True), shown.stderr
    control.ask("DELETE", "faults")
    assert cli("cancel", "t").returncode == 0
    process.communicate(timeout=60)
    assert control.left() == []


def test_machines_and_reap_tell_what_is_rented_and_why_it_stays(cli: Cli, control: Control) -> None:
    assert cli("machines").stdout == "no machines: nothing is rented\n"
    process = cli.start("submit", cli.recipe(LONG), "--here", "--yes")
    read_until(process, "begun", of="stdout")
    (machine,) = json.loads(cli("machines", "--json").stdout)
    assert (machine["name"], machine["action"]) == (f"gj-tester-{machine['run_id']}-1", "leave")
    shown = cli("machines").stdout.splitlines()
    assert shown[0].split() == ["MACHINE", "PLACE", "STATUS", "CNY/H", "RUN", "WHY"]
    assert shown[1].startswith(machine["name"])
    reaped = cli("reap", "--yes")
    assert (reaped.returncode, reaped.stdout) == (0, f"left {machine['name']} on autodl: {machine['why']}\n")
    assert control.alive() == [machine["name"]]
    assert cli("cancel", "t").returncode == 0
    process.communicate(timeout=60)
    assert cli("reap").stdout == "nothing to release\n"
    assert control.left() == []
