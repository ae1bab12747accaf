"""The request door's rules, against small servers that misbehave."""

import gzip
import json
import random
import re
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from gpujobs.backends._http import Call, Door, Patience, Provider
from gpujobs.errors import (
    Ambiguous,
    BadCredentials,
    GpujobsError,
    NoCapacity,
    NotFound,
    ProviderError,
    Refused,
    Unavailable,
)
from tests.backends.clouds import TOKEN, Answer, Request, canned
from tests.clocks import ManualClock

READ = Call(what="list things in", about="westDC2", method="GET", path="/things")
CREATE = Call(what="create thing", about="gj-a-b-1", method="POST", path="/things", body={"a": 1}, safe=False)
QUICK = Patience(connect_s=0.5, read_s=0.3, act_s=0.3)


def door_to(url: str, *, clock: ManualClock | None = None, patience: Patience | None = None) -> Door:
    provider = Provider(
        name="Cloud",
        setting="CLOUD",
        url=url,
        headers={"Authorization": TOKEN},
        secrets=(TOKEN,),
        no_stock=re.compile("sold out"),
    )
    return Door(provider, clock=clock or ManualClock(runs_by_itself=True), dice=random.Random(7), patience=patience)


def in_turn(*answers: Answer) -> Callable[[Request], Answer]:
    """Answer with each in turn, and with the last one for ever after."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run a server that does what `serve` does with each connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                serve(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def test_a_read_is_repeated_until_it_is_answered() -> None:
    stumbles = [Answer(500), Answer(503), Answer(429), Answer(408), Answer(body=b"{"), Answer(body={"n": 1})]
    with canned(in_turn(*stumbles)) as api:
        assert door_to(api.url).send(READ, json.loads) == {"n": 1}
    assert len(api.asked) == 6


@pytest.mark.parametrize("answer", [Answer(500), Answer(502), Answer(408), Answer(body=b"{"), Answer(body=b"")])
def test_a_create_is_sent_once_and_ambiguous_where_it_may_have_acted(answer: Answer) -> None:
    with canned(lambda _: answer) as api, pytest.raises(Ambiguous, match="create thing gj-a-b-1"):
        door_to(api.url).send(CREATE, json.loads)
    assert len(api.asked) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Refused),
        (401, BadCredentials),
        (403, BadCredentials),
        (404, NotFound),
        (405, Refused),
        (409, Refused),
        (418, Refused),
        (429, Unavailable),
    ],
)
@pytest.mark.parametrize("call", [READ, CREATE])
def test_a_clear_no_has_the_error_that_tells_what_to_do(call: Call, status: int, kind: type[GpujobsError]) -> None:
    with canned(lambda _: Answer(status, {"message": "nope"})) as api, pytest.raises(kind) as caught:
        door_to(api.url).send(call, json.loads)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"Cloud: {call.what} {call.about}: ")
    assert kind is Unavailable or len(api.asked) == 1


def test_words_for_no_stock_make_a_refusal_no_capacity() -> None:
    with canned(lambda _: Answer(400, {"message": "H20 sold out"})) as api, pytest.raises(NoCapacity):
        door_to(api.url).send(CREATE, json.loads)


def test_waits_between_repeats_are_drawn_at_random_and_end_in_time() -> None:
    clock = ManualClock(runs_by_itself=True)
    with canned(lambda _: Answer(500)) as api, pytest.raises(Unavailable):
        door_to(api.url, clock=clock).send(READ, json.loads)
    assert len(set(clock.waits)) == len(clock.waits) >= 8
    bounds = [min(4.0, 0.25 * 2**turn) for turn in range(len(clock.waits))]
    assert all(0 <= wait <= bound for wait, bound in zip(clock.waits, bounds, strict=True))
    assert 15 < clock.monotonic() <= 25


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(form: str) -> None:
    clock = ManualClock(runs_by_itself=True)
    when = "6" if form == "seconds" else format_datetime(clock.now() + timedelta(seconds=6), usegmt=True)
    with canned(in_turn(Answer(429, headers={"Retry-After": when}), Answer(body=1))) as api:
        assert door_to(api.url, clock=clock).send(READ, json.loads) == 1
    assert clock.waits == [6]


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        ("999999999999", 120.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        ("-5", None),
        ("٣", None),
    ],
)
def test_retry_after_is_capped_and_nonsense_is_ignored(header: str, kept: float | None) -> None:
    # http.server cannot send what is not latin-1; the odd digit goes as its UTF-8 bytes
    sent = header.encode().decode("latin-1")
    with canned(lambda _: Answer(429, headers={"Retry-After": sent})) as api, pytest.raises(Unavailable) as caught:
        door_to(api.url).send(Call(what="x", method="POST", path="/", safe=False), json.loads)
    assert caught.value.retry_after_s == kept


def test_a_connection_is_used_again() -> None:
    with canned(lambda _: Answer(body={"n": "x" * 100_000})) as api:
        door = door_to(api.url)
        for _ in range(5):
            door.send(READ, json.loads)
    assert len({asked.connection for asked in api.asked}) == 1


def test_many_threads_share_the_door() -> None:
    with canned(lambda asked: Answer(body=asked.path)) as api:
        door = door_to(api.url)
        found: list[str] = []

        def ask(number: int) -> None:
            call = Call(what="x", method="GET", path=f"/{number}")
            found.extend(door.send(call, json.loads) for _ in range(10))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == sorted(f"/{number}" for number in range(20) for _ in range(10))


def test_a_reset_is_repeated_for_a_read_and_ambiguous_for_a_create() -> None:
    seen: list[bytes] = []

    def reset(connection: socket.socket) -> None:
        seen.append(connection.recv(65536))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with raw_server(reset) as url:
        with pytest.raises(Ambiguous):
            door_to(url).send(CREATE, json.loads)
        assert len(seen) == 1
        with pytest.raises(Unavailable):
            door_to(url).send(READ, json.loads)
        assert len(seen) > 5


def test_silence_ends_at_the_time_limit() -> None:
    done = threading.Event()

    def silent(connection: socket.socket) -> None:
        connection.recv(65536)
        done.wait(5)

    with raw_server(silent) as url:
        with pytest.raises(Ambiguous, match="no answer"):
            door_to(url, patience=QUICK).send(CREATE, json.loads)
        done.set()


def test_a_reply_that_drips_without_end_is_given_up() -> None:
    clock = ManualClock()

    def drip(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        try:
            for _ in range(1000):
                connection.sendall(b"x")
                clock.advance(0.1)
                threading.Event().wait(0.005)
        except OSError:
            return

    with raw_server(drip) as url, pytest.raises(Ambiguous):
        door_to(url, clock=clock, patience=QUICK).send(CREATE, json.loads)
    assert clock.monotonic() < 5


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 20", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_head_that_drips_without_end_is_given_up(head: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.settimeout(0.1)
        with suppress(ConnectionError):
            connection.sendall(head)
            while True:
                connection.sendall(head[-1:])
                with suppress(TimeoutError):
                    if not connection.recv(65536):
                        return

    with raw_server(drip) as url, pytest.raises(Ambiguous, match="may or may not have acted"):
        door_to(url, patience=QUICK).send(CREATE, json.loads)


@pytest.mark.parametrize("length", ["100000", None])
def test_a_reply_cut_in_the_middle_is_no_answer(length: str | None) -> None:
    def cut(connection: socket.socket) -> None:
        connection.recv(65536)
        how = f"Content-Length: {length}" if length else "Transfer-Encoding: chunked"
        body = "123" if length else "3\r\n123\r\n"
        connection.sendall(f"HTTP/1.1 200 OK\r\n{how}\r\n\r\n{body}".encode())

    with raw_server(cut) as url, pytest.raises(Ambiguous):
        door_to(url).send(CREATE, json.loads)


@pytest.mark.parametrize("packed", [False, True])
def test_a_reply_too_big_for_memory_is_given_up(packed: bool) -> None:
    body = b" " * (17 * 2**20) + b"1"
    answer = Answer(body=gzip.compress(body), headers={"Content-Encoding": "gzip"}) if packed else Answer(body=body)
    with canned(lambda _: answer) as api, pytest.raises(Ambiguous):
        door_to(api.url).send(CREATE, json.loads)


def test_json_that_is_nested_too_deeply_is_a_bad_reply() -> None:
    with canned(lambda _: Answer(body=b"[" * 200_000)) as api, pytest.raises(Ambiguous):
        door_to(api.url).send(CREATE, json.loads)


def test_no_connection_is_surely_no_act() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(Unavailable, match=f"no connection to http://127.0.0.1:{port} .*CLOUD_API_URL"):
        door_to(f"http://127.0.0.1:{port}").send(CREATE, json.loads)


def test_an_unknown_host_is_surely_no_act() -> None:
    with pytest.raises(Unavailable, match=r"no connection to http://no-such-host\.invalid"):
        door_to("http://no-such-host.invalid").send(CREATE, json.loads)


def test_what_the_provider_says_is_cut_short_and_cleaned() -> None:
    said = f"{TOKEN} \x1b[31m bad\nrootPassword=hunter2 password: hunter3 " + "x" * 500
    with canned(lambda _: Answer(400, {"message": said})) as api, pytest.raises(Refused) as caught:
        door_to(api.url).send(READ, json.loads)
    text = str(caught.value)
    assert len(text) < 320
    assert text.isprintable()
    assert not any(secret in text for secret in (TOKEN, "hunter2", "hunter3"))
    assert "bad" in text


def test_no_library_error_with_our_token_hangs_on_ours() -> None:
    caught: list[ProviderError] = []

    def ask(url: str) -> None:
        for call in (READ, CREATE):
            with pytest.raises(ProviderError) as error:
                door_to(url).send(call, json.loads)
            caught.append(error.value)

    with canned(in_turn(Answer(500))) as api:
        ask(api.url)
    with canned(in_turn(Answer(body=f"{{{TOKEN}".encode()))) as api:
        ask(api.url)
    ask(api.url)  # nobody is there any more
    assert len(caught) == 6
    for error in caught:
        assert (error.__cause__, error.__context__) == (None, None)
        assert TOKEN not in "".join(traceback.format_exception(error))


def test_netrc_proxies_and_cookies_do_not_come_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with canned(lambda _: Answer(body=1, headers={"Set-Cookie": "a=b"})) as api:
        door = door_to(api.url)
        door.send(READ, json.loads)
        door.send(READ, json.loads)
    assert [asked.headers["Authorization"] for asked in api.asked] == [TOKEN, TOKEN]
    assert not any("Cookie" in asked.headers for asked in api.asked)


def test_a_proxy_is_used_for_what_is_not_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with canned(lambda _: Answer(body="by proxy")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert door_to("http://cloud.invalid").send(READ, json.loads) == "by proxy"


def test_neither_door_nor_call_shows_secrets() -> None:
    door = door_to("http://127.0.0.1:1")
    call = Call(what="x", method="POST", path="/", body={"password": "hunter2"})
    assert TOKEN not in repr(door) + repr(door.provider) + repr(vars(door))
    assert "hunter2" not in repr(call) + str(call)
