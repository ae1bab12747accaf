"""Whom a recipe names is told of the run's end, once, after the machine is gone; trouble with it changes nothing."""

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gpujobs import notify, reaper
from gpujobs.clock import StopToken
from gpujobs.crash import armed
from gpujobs.ending import tell_late
from gpujobs.errors import Cancelled, Detached
from gpujobs.host import Host
from gpujobs.ledger_rows import Run
from gpujobs.lifecycle import Outcome, execute, new_run_id, open_run
from gpujobs.notify import Message
from gpujobs.settings import Settings
from tests.cloud import Control, Memory, recipe_for

SECRET = "s3cret-k3y"
HELLO = Message(title="hello", body="you", kind="success")


@dataclass
class Receiver:
    """A chat's web hook on this machine; `answer` is its status, 0 for none until it is closed."""

    answer: int = 200
    heard: list[dict[str, str]] = field(default_factory=list)
    alive: list[int] = field(default_factory=list)  # how many machines there were when a message came
    over: threading.Event = field(default_factory=threading.Event)
    server: ThreadingHTTPServer = field(init=False)
    control: Control | None = None

    def __post_init__(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.heard.append(json.loads(body))
                receiver.alive += [len(receiver.control.left())] if receiver.control else []
                if not receiver.answer:
                    receiver.over.wait(60)
                self.send_response(receiver.answer or 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"json://user:{SECRET}@127.0.0.1:{self.server.server_port}/hooks/{SECRET}"

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    found = Receiver()
    monkeypatch.setenv("GPUJOBS_NOTIFY_TEAM", found.url)
    yield found
    found.close()


def run(host: Host, reporter: Memory, *, stop: StopToken | None = None, **parts: object) -> Outcome:
    run_id = new_run_id()
    open_run(host, recipe_for("autodl", notify=["team"], **parts), run_id=run_id)
    return execute(host, run_id, stop=stop or StopToken(), reporter=reporter)


def test_end_is_told_once_with_what_one_wants_to_know_after_the_machine_is_gone(
    host: Host, control: Control, receiver: Receiver
) -> None:
    receiver.control = control
    reporter = Memory()
    outcome = run(host, reporter, run="echo 42 > answer", outputs={"answer": "answer"})
    [told] = receiver.heard
    ended = host.ledger.get_run(outcome.run_id)
    assert (told["title"], told["type"]) == ("gpujobs: t done", "success")
    for words in (
        f"run {outcome.run_id} (t): done",
        "it took 0:00:",
        f"cost: {ended.cost_cny:.2f} CNY",
        f"answer: {outcome.outputs['answer']} on ",
        f"gpujobs pull {outcome.run_id}",
        f"gpujobs logs {outcome.run_id}",
    ):
        assert words in told["message"]
    assert receiver.alive == [0]
    assert reporter.phases[-2:] == ["release", "notify"]
    assert (reporter.notes, ended.state, ended.phase) == ([], "succeeded", "")


def test_failure_is_told_with_its_reason_and_a_cancel_as_one(host: Host, receiver: Receiver) -> None:
    stop = StopToken()
    run(host, Memory(), run="exit 3")
    run(host, Memory(on_phase=lambda name: name == "run" and stop.stop(Cancelled("enough"))), stop=stop, run="sleep 60")
    failed, cancelled = receiver.heard
    assert (failed["title"], failed["type"]) == ("gpujobs: t failed", "failure")
    assert "why: the command ended with exit code 3" in failed["message"]
    assert (cancelled["title"], cancelled["type"]) == ("gpujobs: t cancelled", "warning")
    assert "why: enough" in cancelled["message"]


def test_process_that_lets_go_tells_nothing_and_the_one_that_ends_the_run_tells_once(
    host: Host, receiver: Receiver
) -> None:
    stop = StopToken()
    outcome = run(host, Memory(on_phase=lambda name: name == "run" and stop.stop(Detached("leaving"))), stop=stop)
    assert (outcome.state, receiver.heard) == ("running", [])
    assert execute(host, outcome.run_id, stop=StopToken(), reporter=Memory()).exit_code == 0
    assert [told["title"] for told in receiver.heard] == ["gpujobs: t done"]


class Killed(BaseException):
    """Ends a process where it stands."""


@pytest.mark.parametrize(
    ("dies", "told"),
    [("after ledger run update state phase detail ended_at", 1), ("before ledger run update phase", 2)],
    ids=["between the end and the message", "between the message and its note"],
)
def test_end_that_a_dead_process_may_not_have_told_is_told_by_the_reaper(
    dies: str, told: int, host: Host, receiver: Receiver
) -> None:
    dead = threading.Event()

    def strike(name: str) -> None:
        if dead.is_set() or (name.startswith(dies) and host.ledger.list_runs()[0].ended_at):
            dead.set()
            raise Killed

    with armed(strike), pytest.raises(Killed):
        run(host, Memory(), run="exit 3")
    [left] = host.ledger.list_runs()
    assert (left.state, left.phase, len(receiver.heard)) == ("failed", "notify", told - 1)
    reaper.reap(host, yes=False, reporter=Memory())
    assert len(receiver.heard) == told - 1, "its process may live, and be at it"
    host.ledger.release_claim(left.id, left.driver)  # as if its lease had run out
    for _ in range(2):
        reaper.reap(host, yes=False, reporter=Memory())
        assert [message["title"] for message in receiver.heard] == ["gpujobs: t failed"] * told
    assert "why: the command ended with exit code 3" in receiver.heard[-1]["message"]


def test_end_is_left_untold_where_no_url_is_known_for_a_host_that_knows_one(
    host: Host, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = run(host, Memory())
    receiver.heard.clear()
    monkeypatch.delenv("GPUJOBS_NOTIFY_TEAM")
    host.ledger.update_run(outcome.run_id, phase="notify")  # as a process leaves it that dies before it has told
    reaper.reap(host, yes=False, reporter=Memory())
    assert host.ledger.get_run(outcome.run_id).phase == "notify"
    monkeypatch.setenv("GPUJOBS_NOTIFY_TEAM", receiver.url)
    reaper.reap(host, yes=False, reporter=Memory())
    tell_late(host, outcome.run_id, Memory())  # by a reaper that had found it untold, and comes second
    assert [message["title"] for message in receiver.heard] == ["gpujobs: t done"]
    assert host.ledger.get_run(outcome.run_id).phase == ""


@pytest.mark.parametrize("answer", [404, 500])
def test_receiver_that_refuses_is_noted_without_the_url_and_changes_nothing(
    answer: int, host: Host, receiver: Receiver, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, logger="apprise")
    receiver.answer, reporter = answer, Memory()
    outcome = run(host, reporter)
    assert (outcome.state, outcome.exit_code, outcome.error) == ("succeeded", 0, "")
    [note] = reporter.notes
    assert note.startswith("team was not told: ")
    assert str(answer) in note
    out, err = capfd.readouterr()
    files = [path.read_bytes() for path in host.settings.home.rglob("*") if path.is_file()]
    assert SECRET not in f"{note}{caplog.text}{out}{err}"
    assert [data for data in files if SECRET.encode() in data] == []


@pytest.mark.parametrize("url", [f"nosuch://{SECRET}", f"json://127.0.0.1:9/{SECRET}"])
def test_url_that_leads_nowhere_is_told_and_not_shown(
    url: str, cloud_settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GPUJOBS_NOTIFY_TEAM", url)
    [trouble] = notify.send(cloud_settings, ["team"], HELLO)
    assert trouble.startswith("team was not told: ")
    assert SECRET not in trouble + caplog.text


def test_name_without_a_url_is_told_and_the_others_get_their_message(
    cloud_settings: Settings, receiver: Receiver
) -> None:
    [trouble] = notify.send(cloud_settings, ["nobody", "team", "team"], HELLO)
    assert "nobody was not told: notify: nobody has no URL; set GPUJOBS_NOTIFY_NOBODY" in trouble
    assert [told["title"] for told in receiver.heard] == ["hello"]


def test_receiver_that_never_answers_holds_nobody_up(cloud_settings: Settings, receiver: Receiver) -> None:
    receiver.answer = 0
    assert notify.send(cloud_settings, ["team"], HELLO, within_s=0.1) == ["team was not told: no answer in time"]


def test_release_that_keeps_failing_is_told_once_until_it_succeeds(
    host: Host, control: Control, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    stop = StopToken()
    outcome = run(host, Memory(on_phase=lambda name: name == "push" and stop.stop(Detached("left"))), stop=stop)
    host.ledger.update_run(outcome.run_id, state="cancelled")
    run_row, name = host.ledger.get_run(outcome.run_id), f"gj-tester-{outcome.run_id}-1"
    told_after = []
    for _ in range(3):
        notify.release_failed(host.settings, run_row, name, "it is still listed; run: gpujobs reap")
        told_after.append(len(receiver.heard))
    assert told_after == [0, 1, 1]
    assert receiver.heard[0]["title"] == f"gpujobs: {name} cannot be released"
    assert f"{name} cannot be released, after 3 tries, and may still cost money" in caplog.text
    assert [machine.name for machine in reaper.reap(host, yes=False, reporter=Memory()).released] == [name]
    assert (control.left(), list((host.settings.home / "unreleased").iterdir())) == ([], [])


def test_provider_that_cannot_be_asked_again_and_again_is_told_for_the_machines_that_nobody_wants(
    host: Host, control: Control, receiver: Receiver
) -> None:
    stop = StopToken()
    outcome = run(host, Memory(on_phase=lambda name: name == "push" and stop.stop(Detached("left"))), stop=stop)
    host.ledger.update_run(outcome.run_id, state="cancelled")
    control.fault("autodl.*", "token_expired", count=None)
    told_after = []
    for _ in range(3):
        assert [name for name, _ in reaper.reap(host, yes=False, reporter=Memory()).failed] == ["autodl"]
        told_after.append([told["title"] for told in receiver.heard])
    assert told_after == [[], *2 * [[f"gpujobs: gj-tester-{outcome.run_id}-1 cannot be released"]]]


def test_message_of_a_run_that_left_a_machine_says_what_to_do(host: Host) -> None:
    ended = Run(id="abcd", name="t", owner="o", recipe_json="{}", state="failed", created_at=host.clock.now())
    told = notify.end_message(ended, outputs={}, log=host.settings.home, machines_alive=1)
    assert (told.kind, "machines rented still: 1; run: gpujobs reap" in told.body) == ("failure", True)


def test_words_of_a_service_that_hold_its_url_are_shown_without_it(
    cloud_settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from apprise.decorators import notify as service  # noqa: PLC0415 - takes a while

    @service(on="leaky")
    def refuse(*_: object, **__: object) -> bool:
        logging.getLogger("apprise").warning("the key %s is unknown at host.example", SECRET)
        return False

    monkeypatch.setenv("GPUJOBS_NOTIFY_TEAM", f"leaky://{SECRET}@host.example/?to=me")
    [trouble] = notify.send(cloud_settings, ["team"], HELLO)
    assert trouble == "team was not told: the key *** is unknown at ***"
    assert SECRET not in caplog.text
