"""Telling people that a run has ended, or that a machine cannot be released: to any Apprise URL of the settings.

Trouble with a notice is given back as text, and decides nothing. A notice is sent after the run's machine is released,
by the process that ended the run; where that died before it had, by the reaper, so that one may come twice. The URLs
are secrets: they stand in no log and no text.
"""

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, Self
from urllib.parse import unquote

from gpujobs.crash import Point
from gpujobs.errors import GpujobsError
from gpujobs.ledger_rows import Run
from gpujobs.settings import Settings, is_fake, private_folder, private_opener

_SEND_S = 15.0  # Apprise itself gives up on a connection after 4 s, and on an answer after 4 more
_KEEPS_FAILING = 2  # passes of the reaper that failed to release one machine
_TOLD_CHARS = 600  # of an error: a chat's message has room for about 2,000 bytes
_SHORTEST_SECRET = 4
_ENDS = {1: "failed", 2: "refused", 3: "found no machine", 4: "cancelled", 5: "over budget or time", 6: "lost"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is told: one line, some more, and whether it is good news."""

    title: str
    body: str
    kind: Literal["success", "warning", "failure"]


def end_message(run: Run, *, outputs: Mapping[str, Path], log: Path, machines_alive: int) -> Message:
    """Say how a run ended: result, duration, cost, where its outputs are, what went wrong and what to do."""
    result = "done" if run.state == "succeeded" else _ENDS.get(run.exit_code or 0, run.state)
    where = socket.gethostname()
    lines = [f"run {run.id} ({run.name}): {result}"]
    if run.ended_at and run.started_at:
        lines.append(f"it took {timedelta(seconds=round((run.ended_at - run.started_at).total_seconds()))}")
    lines.append("cost: unknown" if run.cost_cny is None else f"cost: {run.cost_cny:.2f} CNY")
    if run.error:
        lines.append(f"why: {_plain(run.error)}")
    lines += [f"{name}: {path} on {where}" for name, path in outputs.items()]
    lines += [f"from anywhere: gpujobs pull {run.id}"] if outputs else []
    lines.append(f"log: {log} on {where}, or: gpujobs logs {run.id}" if log.exists() else f"log: gpujobs logs {run.id}")
    if machines_alive:
        lines.append(f"machines rented still: {machines_alive}; run: gpujobs reap")
    kind: Literal["success", "warning", "failure"] = "failure"
    if run.state != "failed" and not machines_alive:
        kind = "success" if run.state == "succeeded" else "warning"
    return Message(title=f"{_us()}: {run.name} {result}", body="\n".join(lines), kind=kind)


def send(settings: Settings, names: Sequence[str], message: Message, *, within_s: float = _SEND_S) -> Sequence[str]:
    """Send to each of `names` at once; give what went wrong, a line for each name, within `within_s` seconds."""
    notices = [_Notice(settings, name, message) for name in dict.fromkeys(names)]
    deadline = time.monotonic() + within_s
    for notice in notices:
        notice.thread.start()
    for notice in notices:
        notice.thread.join(max(0.0, deadline - time.monotonic()))
    return [f"{notice.name} was not told: {notice.trouble}" for notice in notices if notice.trouble]


def release_failed(settings: Settings, run: Run, machine: str, why: str) -> None:
    """Note that a pass of the reaper could not release `machine`; once that goes on, tell those of its recipe, once."""
    try:
        path = private_folder(settings.home / "unreleased") / machine
        with open(path, "ab", opener=private_opener) as file:
            file.write(b".")  # one for each pass
            passes = file.tell()
    except OSError as error:
        _log.warning("%s: whom to tell of it is not known: %s", machine, error)
        return
    names = json.loads(run.recipe_json).get("notify") or []
    if passes >= _KEEPS_FAILING:
        _log.error("%s cannot be released, after %d tries, and may still cost money: %s", machine, passes, why)
    if passes == _KEEPS_FAILING and names:
        body = f"{machine} of run {run.id} ({run.name}) may still cost money: {_plain(why)}\nrun: gpujobs reap"
        title = f"{_us()}: {machine} cannot be released"
        for trouble in send(settings, names, Message(title=title, body=body, kind="failure")):
            _log.warning("%s", trouble)


def released(settings: Settings, machine: str) -> None:
    """Forget that releasing `machine` failed before. Idempotent."""
    with suppress(OSError), Point("file", "remove", "unreleased"):
        (settings.home / "unreleased" / machine).unlink()


class _Notice:
    """One message to one URL, sent by a thread of its own, which nobody needs to wait for."""

    def __init__(self, settings: Settings, name: str, message: Message) -> None:
        self.name, self.trouble = name, "no answer in time"
        self._settings, self._message = settings, message
        self.thread = threading.Thread(target=self._run, name=f"notify-{name}", daemon=True)

    def _run(self) -> None:
        try:
            url = self._settings.notice_url(self.name)
        except GpujobsError as error:
            self.trouble = str(error)
            return
        try:
            self.trouble = _send(url, self._message)
        except Exception as error:  # noqa: BLE001 - of Apprise or a plugin of it; its words may hold the URL
            self.trouble = f"{type(error).__name__} inside Apprise"


def _send(url: str, message: Message) -> str:
    """Send one message; give what went wrong, "" where nothing did."""
    from apprise import Apprise, AppriseAsset, NotifyFormat, NotifyType  # noqa: PLC0415 - loads 130 services

    with _Overheard() as said:
        sender = Apprise(asset=AppriseAsset(app_id="gpujobs", app_desc="gpujobs", app_url=""))
        if not sender.add(url):
            return "its URL is none that Apprise knows; mend it in the settings, or in its block"
        with Point("notify"):
            sent = sender.notify(
                body=message.body,
                title=message.title,
                notify_type=NotifyType(message.kind),
                body_format=NotifyFormat.TEXT,
            )
        return "" if sent else _without(url, said.words) or "it was refused; check its URL"


class _Overheard(logging.Filter):
    """Keeps what Apprise logs in this thread out of every log, for it may hold a URL; `words` is the first warning."""

    def __init__(self) -> None:
        super().__init__()
        self._thread, self.words = threading.get_ident(), ""

    def __enter__(self) -> Self:
        logging.getLogger("apprise").addFilter(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("apprise").removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self._thread:
            return True
        if record.levelno >= logging.WARNING:
            self.words = self.words or record.getMessage()
        return False


def _without(url: str, words: str) -> str:
    """Take every part of the URL out of `words`."""
    parts = {piece for text in (url, unquote(url)) for piece in re.split(r"[/:@?&=#,\s]+", text)}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= _SHORTEST_SECRET:
            words = words.replace(part, "***")
    return _plain(words)[:200]


def _plain(text: str) -> str:
    """Give `text` on one line, short, with nothing that a chat could not show."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return line if len(line) <= _TOLD_CHARS else line[: _TOLD_CHARS - 1] + "…"


def _us() -> str:
    return "gpujobs (fake cloud)" if is_fake() else "gpujobs"
