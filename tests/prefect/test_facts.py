"""What of a run is put into words for its page, and what never is."""

from dataclasses import replace

import pytest

from gpujobs import flow_facts
from gpujobs.clock import StopToken
from gpujobs.flow_facts import amount_text, artifact_key, cost_table, read_facts, summary, without_token
from gpujobs.host import Host
from gpujobs.lifecycle import execute, new_run_id, open_run
from tests.cloud import Control, Memory, recipe_for

TOKEN = "7d27443c5718e75bee2da9f92fe6a50c"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"http://8d40.gw.example/jupyter?token={TOKEN}", "http://8d40.gw.example/jupyter"),
        ("https://region-1.autodl.com:21294", "https://region-1.autodl.com:21294"),
        (f"https://user:{TOKEN}@host.example/lab/tree#{TOKEN}", "https://host.example/lab/tree"),
        (f"https://host.example/proxy/{TOKEN}/lab", "https://host.example/proxy"),
        (f"http://[::1]:8888/{TOKEN[:16]}", "http://[::1]:8888"),
    ],
)
def test_nothing_of_an_address_that_may_be_a_token_is_shown(address: str, shown: str) -> None:
    assert without_token(address) == shown


@pytest.mark.parametrize(("name", "key"), [("digits", "digits-cost"), ("a_b.c--d_", "a-b-c-d-cost")])
def test_keys_are_of_small_letters_digits_and_dashes(name: str, key: str) -> None:
    assert artifact_key(name, "cost") == key


def test_amounts_are_bytes_or_seconds() -> None:
    assert amount_text("uploading workdir", 1_500_000, 3_000_000) == "1.5 MB of 3.0 MB"
    assert amount_text("waiting for SSH", 95, 600) == "1m35s of at most 10m00s"
    assert amount_text("waiting for SSH", 95, None) == "1m35s"


def test_text_of_others_cannot_break_the_summary_nor_bring_html_into_it(host: Host, control: Control) -> None:
    run_id = new_run_id()
    open_run(host, recipe_for("autodl", run="echo '```'\n# <img src=x onerror=alert(1)>"), run_id=run_id)
    evil = "bad | <script>alert(1)</script>\n| [here](http://evil.example) |"
    host.ledger.update_run(run_id, state="failed", error=evil)
    told = summary(read_facts(host, run_id))
    table, _, script = told.partition("````sh\n")
    assert r"failed: bad \| \<script\>alert(1)\</script\> \| \[here\](http://evil.example) \|" in table
    assert "\n| [" not in table
    assert script.endswith("\n````\n")
    assert control.machines() == []


def test_unknown_money_is_said_to_be_unknown(host: Host) -> None:
    run_id = new_run_id()
    open_run(host, recipe_for("autodl", run="true"), run_id=run_id)
    execute(host, run_id, stop=StopToken(), reporter=Memory())
    [bill] = host.ledger.bills(run_id)
    assert [row["CNY"] for row in cost_table(read_facts(host, run_id))] == [f"{bill.cost_cny:.4f}"] * 2
    host.ledger.put_bill(replace(bill, price_cny_per_h=None, cost_cny=None))
    facts = read_facts(host, run_id)
    assert [(row["CNY"], row["seconds"]) for row in cost_table(facts)] == [("unknown", round(bill.seconds or 0))] * 2
    assert "| Bill | unknown |" in summary(facts)


def test_tags_of_an_earlier_attempt_give_way_and_those_of_others_stay(host: Host) -> None:
    run_id = new_run_id()
    open_run(host, recipe_for("autodl", run="true"), run_id=run_id)
    before = ["team:vision", "gpujobs", "backend:matrixdc", "region:x", "nightly"]
    found = flow_facts.tags(read_facts(host, run_id).names, before)
    assert found == ["gpujobs", "team:vision", "nightly", "recipe:t", "owner:tester", f"run:{run_id}"]
