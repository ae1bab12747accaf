"""doctor: whether everything that a run needs is there; each line says what to do where it is not."""

import os
import shutil
import ssl
import stat
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from gpujobs import backends, controller_record, prefect_api
from gpujobs.cli.opening import ledger_of, load_settings
from gpujobs.cli.output import Output
from gpujobs.clock import SystemClock
from gpujobs.errors import BadInput, GpujobsError
from gpujobs.settings import DEFAULT_BLOCK, Settings

_PROBE_PREFIX = "gj-doctor-"  # no machine is ever called so: the list is asked for, and is empty
_SKEW_S = 30.0
_CLOCK_TIMEOUT_S = 5.0


class Finding(NamedTuple):
    """One check's result, with the remedy where it is not ok."""

    check: str
    state: Literal["ok", "warn", "fail"]
    text: str


def doctor(_: Namespace, out: Output) -> int:
    """Check everything; exit code 2 where something must be mended before a run can work."""
    found: list[Finding] = []
    for finding in _checks():
        found.append(finding)
        out.text(f"{finding.state:<4}  {finding.check}: {finding.text}")
    out.value([finding._asdict() for finding in found])
    return BadInput.exit_code if any(finding.state == "fail" for finding in found) else 0


def _checks() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok", f"{version} at {sys.executable}")
    try:
        settings = load_settings()
    except BadInput as error:
        yield Finding("settings", "fail", str(error))
        return
    yield Finding("settings", "ok", f"home {settings.home}, machines are called gj-{settings.owner}-…")
    yield _home(settings)
    yield _guarded("ledger", lambda: _ledger(settings))
    yield _ssh_client()
    yield _guarded("controller", lambda: _controller(settings))
    tokens = 0
    for name in backends.names():
        for finding in _backend(settings, name):
            tokens += finding.check == f"{name} token" and finding.state == "ok"
            yield finding
    if not tokens:
        names = " or ".join(f"{name.upper()}_TOKEN" for name in backends.names())
        yield Finding("tokens", "fail", f"no cloud can be used; set {names}, or rehearse with --fake")


def _home(settings: Settings) -> Finding:
    mode = stat.S_IMODE(settings.home.stat().st_mode)
    if mode & 0o077:
        return Finding("home", "fail", f"others can read {settings.home}; run: chmod 700 {settings.home}")
    if not os.access(settings.home, os.W_OK):
        return Finding("home", "fail", f"{settings.home} cannot be written; set GPUJOBS_HOME to a folder of yours")
    free_gb = shutil.disk_usage(settings.home).free / 1e9
    if free_gb < 1:
        return Finding("home", "warn", f"only {free_gb:.1f} GB are free at {settings.home}, where outputs go")
    return Finding("home", "ok", f"private, {free_gb:.0f} GB free")


def _ledger(settings: Settings) -> Finding:
    with ledger_of(settings) as ledger:
        alive = len(ledger.machines_alive(settings.owner))
    if alive:
        return Finding("ledger", "ok", f"opens; {alive} machines may be alive, see: gpujobs machines")
    return Finding("ledger", "ok", "opens; no machine of ours is alive")


def _ssh_client() -> Finding:
    program = shutil.which("ssh")
    if program is None:
        return Finding("ssh", "warn", "no ssh program, which only `gpujobs ssh` needs; apt install openssh-client")
    return Finding("ssh", "ok", program)


def _controller(settings: Settings) -> Finding:
    url, ours = prefect_api.api_url(settings), controller_record.status(settings)
    if url is not None:
        return Finding("controller", "ok", url)
    if ours is None:
        return Finding("controller", "ok", "none is up; submit starts one, or: gpujobs up")
    return Finding("controller", "warn", "it has ended without being told to; start it again: gpujobs up")


def _backend(settings: Settings, name: str) -> Iterator[Finding]:
    try:
        account = settings.account(name)
        if not account.token:
            yield Finding(f"{name} token", "warn", f"{name.upper()}_TOKEN is not set, so {name} is left out")
            return
        backend = backends.load(name, settings, clock=SystemClock())
    except GpujobsError as error:
        yield Finding(f"{name} token", "fail", str(error))
        return
    own = replace(settings, blocks=None).account(name).token
    where = f"{name.upper()}_TOKEN is set" if own else f"from the Prefect block {name}-credentials/{DEFAULT_BLOCK}"
    yield Finding(f"{name} token", "ok", where)
    yield _guarded(f"{name} API", lambda: _asked(backend, name))
    if account.api_url:
        yield _clock(name, account.api_url)


def _asked(backend: backends.Backend, name: str) -> Finding:
    backend.find(_PROBE_PREFIX)
    return Finding(f"{name} API", "ok", "answers, and the token is accepted")


def _clock(name: str, url: str) -> Finding:
    """Compare our clock with the provider's, by the Date header of any answer; nothing secret is sent."""
    check = f"{name} clock"
    try:
        skew_s = _skew_s(url)
    except (OSError, HTTPException, ssl.SSLError, ValueError) as error:
        return Finding(check, "warn", f"the provider's clock could not be read ({type(error).__name__})")
    if skew_s is None:
        return Finding(check, "ok", "the provider tells no time")
    if abs(skew_s) > _SKEW_S:
        return Finding(check, "warn", f"this machine's clock is {skew_s:+.0f} s off the provider's; set it by NTP")
    return Finding(check, "ok", f"within {_SKEW_S:.0f} s of the provider's")


def _skew_s(url: str) -> float | None:
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    with closing(kind(parts.hostname or "", parts.port, timeout=_CLOCK_TIMEOUT_S)) as line:
        line.request("HEAD", "/")
        told = line.getresponse().headers.get("Date")
    return (datetime.now(UTC) - parsedate_to_datetime(told)).total_seconds() if told else None


def _guarded(check: str, act: Callable[[], Finding]) -> Finding:
    try:
        return act()
    except GpujobsError as error:
        return Finding(check, "fail", str(error))
