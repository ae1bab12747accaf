"""How a provider's words are read."""

import logging
import shlex
import string
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from gpujobs.backends._reading import (
    Moment,
    Recent,
    Reply,
    StatusTable,
    gpu_key,
    link,
    nearest,
    ssh_address,
    unknown,
)
from gpujobs.errors import Refused
from gpujobs.models import MachineStatus
from tests.clocks import ManualClock

AT = datetime(2024, 9, 2, 10, 34, 33, tzinfo=UTC)


@pytest.mark.parametrize(
    ("command", "address"),
    [
        ("ssh -p 21305 root@region-1.autodl.com", ("root", "region-1.autodl.com", 21305)),
        ("ssh -p30099 root@8d40-a0b0.gw.demo.cdc.datenfab.com", ("root", "8d40-a0b0.gw.demo.cdc.datenfab.com", 30099)),
        ("  ssh  -p 22  me_2@10.0.0.7 ", ("me_2", "10.0.0.7", 22)),
        ("ssh -p 22 host", ("root", "host", 22)),
        ("ssh -p 22 root@::1", ("root", "::1", 22)),
    ],
)  # fmt: skip
def test_an_ssh_command_is_read(command: str, address: tuple[str, str, int]) -> None:
    assert ssh_address(command, of="x") == address


@pytest.mark.parametrize(
    "command",
    [
        "",
        "ssh",
        "ssh root@host",
        "ssh -p 22",
        "ssh -p 0 root@host",
        "ssh -p 65536 root@host",
        "ssh -p 99999999999 root@host",
        "ssh -p ２２ root@host",
        "ssh -p -1 root@host",
        "ssh -p 22 root@host extra",
        "ssh -p 22 -o ProxyCommand=x root@host",
        "ssh -oProxyCommand=x root@host",
        "ssh -p 22 -oProxyCommand=x",
        "ssh -p 22 root@-oProxyCommand",
        "ssh -p 22 root@host;reboot",
        "ssh -p 22 root@host$(x)",
        "ssh -p 22 root@host\nreboot",
        "ssh -p 22 root@ho st",
        "ssh -p 22 root@host..name",
        "ssh -p 22 root@300.1.1.1",
        "ssh -p 22 root@1.2",
        "ssh -p 22 root@fe80::1%eth0",
        "ssh -p 22 Root@host",
        "ssh -p 22 @host",
        "ssh -p 22 a@b@host",
        "ssh -p 22 'root@host",
        "scp -p 22 root@host",
        "/tmp/ssh -p 22 root@host",
        "ssh -p 22 root@" + "a" * 64,
        "ssh -p 22 root@" + "a." * 200 + "a",
        "ssh -p 22 root@host" + " " * 1000,
        "ssh -p 22 root@host\x1b[31m",
    ],
)
def test_anything_else_is_refused_and_not_echoed(command: str) -> None:
    with pytest.raises(Refused, match="of container c-1 is not of the form") as caught:
        ssh_address(command, of="container c-1")
    assert str(caught.value).isprintable()
    assert "ProxyCommand" not in str(caught.value)


@given(st.text(max_size=60))
def test_whatever_is_read_as_an_address_is_plain(text: str) -> None:
    for command in (text, f"ssh -p 22 {text}", f"ssh -p 22 root@{text}", f"ssh -p{text} root@host"):
        try:
            user, host, port = ssh_address(command, of="x")
        except Refused:
            continue
        assert set(user) <= set(string.ascii_lowercase + string.digits + "_-")
        assert set(host) <= set(string.ascii_letters + string.digits + ".-:")
        assert not host.startswith("-")
        assert 1 <= port <= 65535
        assert shlex.quote(host) == host


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-09-02T18:34:33+08:00", AT),
        ("2024-09-02T18:34:33", AT),
        ("2024-09-02T10:34:33Z", AT),
        (AT.timestamp(), AT),
        ("0001-01-01T00:00:00Z", None),
        ("", None),
        (None, None),
        (0, None),
    ],
)
def test_times_are_aware_and_nothing_is_none(text: object, moment: datetime | None) -> None:
    assert TypeAdapter(Moment).validate_python(text) == moment


def test_a_status_that_is_not_known_is_unknown_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    table = StatusTable("cloudy", {"Shutting Down": MachineStatus.STOPPING})
    same = [table.read(word) for word in ("Shutting Down", "shutting_down", "ShuttingDown", "SHUTTING-DOWN")]
    assert same == [MachineStatus.STOPPING] * 4
    with caplog.at_level(logging.WARNING, "gpujobs.backends.cloudy"):
        assert [table.read("Melting\x1b") for _ in range(3)] == [MachineStatus.UNKNOWN] * 3
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().isprintable()


def test_gpu_names_match_without_their_brand_but_never_another_model() -> None:
    assert len({gpu_key(name) for name in ("RTX 4090", "4090", "rtx4090", "NVIDIA GeForce RTX 4090")}) == 1
    assert gpu_key("Tesla V100-SXM2-32GB") == gpu_key("v100 sxm2 32gb")
    names = [
        "RTX 4090",
        "RTX 4090D",
        "RTX 3080",
        "RTX 3080 Ti",
        "A100",
        "A10",
        "H20",
        "H200",
        "L20",
        "RTX A4000",
        "RTX",
    ]
    assert len({gpu_key(name) for name in names}) == len(names)


def test_the_nearest_names_are_few_and_where_none_is_near_some_are_named() -> None:
    known = ["RTX 4090", "RTX 3090", "RTX A4000", "H20", "L20", "TITAN Xp"]
    assert nearest("RTX 4099", known)[0] == "RTX 4090"
    assert len(nearest("zzz", known)) == 5
    assert "none at all" in str(unknown("GPU", "x", [], provider="Cloud", where="resources.accelerators"))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://region-1.autodl.com:21294", "https://region-1.autodl.com:21294"),
        ("region-1.autodl.com:21295", "https://region-1.autodl.com:21295"),
        ("http://uid.gw.neolink-ai.com/jupyter?token=7d", "http://uid.gw.neolink-ai.com/jupyter?token=7d"),
        ("javascript:alert(1)", None),
        ("file:///etc/passwd", None),
        ("https://", None),
        ("https://host:99999/", None),
        ("https://ho st/", None),
        ("https://host/\x1b[31m", None),
        ("https://[::1", None),
    ],
)
def test_only_plain_web_addresses_become_links(text: str, url: str | None) -> None:
    assert link(text) == url


class Thing(Reply):
    shown = frozenset({"name"})
    name: str
    password: str = ""


def test_a_reply_keeps_unknown_fields_and_shows_only_what_is_safe() -> None:
    thing = Thing.model_validate({"name": "a", "password": "hunter2", "brand_new": "hunter3"})
    assert (repr(thing), str(thing)) == ("Thing(name='a')", "name='a'")
    assert thing.model_extra == {"brand_new": "hunter3"}


def test_a_reply_that_does_not_fit_is_told_without_its_values() -> None:
    with pytest.raises(ValidationError) as caught:
        Thing.model_validate({"password": ["hunter2"]})
    assert "hunter2" not in str(caught.value)


def test_what_is_recent_is_forgotten_in_time() -> None:
    clock = ManualClock()
    recent = Recent(clock, kept_s=30)
    recent.add("a")
    clock.advance(29)
    assert "a" in recent
    assert "b" not in recent
    clock.advance(1)
    assert "a" not in recent
