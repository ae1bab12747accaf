"""Where every command begins and ends: parsed, called, and whatever goes wrong told in a line or two."""

import importlib
import json
import os
import re
import signal
import sys
import tempfile
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from gpujobs.cli.output import Output, close_quietly, steady_streams
from gpujobs.cli.parser import Command, parse
from gpujobs.errors import Cancelled, GpujobsError
from gpujobs.progress import clean, drop

_SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|NOTIFY", re.IGNORECASE)
_PASSWORD_IN_URL = re.compile(r"(://[^/\s:@]*:)[^@\s]+@")
_LONGEST_MESSAGE = 2000
_SHORTEST_SECRET = 4  # shorter ones stand in every text


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; give its exit code (design: 0 to 6, 70). No exception ever leaves."""
    argv = sys.argv[1:] if argv is None else argv
    steady_streams()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a command as Ctrl-C does
    try:
        return close_quietly(lambda: _run(argv))
    except SystemExit:  # argparse has printed help, or the version
        return close_quietly(lambda: 0)
    except KeyboardInterrupt:
        return _fail(argv, Cancelled("interrupted"))
    except GpujobsError as error:
        return _fail(argv, error)
    except Exception as error:  # noqa: BLE001 - the last resort: a traceback goes into a file, never onto a terminal
        return _fail(argv, _bug(error))


def _run(argv: Sequence[str]) -> int:
    command, args = parse(argv)
    out = Output(json=args.json)
    if getattr(args, "fake", False):
        from gpujobs.cli.fake import enter  # noqa: PLC0415 - only where asked for

        enter(out, serve=command.cloud, aloud=command.name == "submit")
    return _function(command)(args, out)


def _function(command: Command) -> Callable[[Namespace, Output], int]:
    function: Callable[[Namespace, Output], int]
    function = getattr(importlib.import_module(f"gpujobs.cli.{command.module}"), command.name)
    return function


def _fail(argv: Sequence[str], error: GpujobsError) -> int:
    message = clean(str(error))[:_LONGEST_MESSAGE]
    try:
        if "--json" in argv[: argv.index("--")] if "--" in argv else "--json" in argv:
            print(json.dumps({"error": message, "exit_code": error.exit_code}, ensure_ascii=False))  # noqa: T201
        else:
            sys.stdout.flush()
            print(f"gpujobs: {message}", file=sys.stderr)  # noqa: T201
        sys.stdout.flush()
    except OSError:
        drop(sys.stdout)
    return error.exit_code


def _bug(error: Exception) -> GpujobsError:
    said = f"{type(error).__name__}: {_without_secrets(str(error))}".splitlines()[0][:300]
    return GpujobsError(f"{said}\nthis is a bug; details in {_write_down(error)}")


def _write_down(error: Exception) -> Path:
    """Keep the traceback in a file of 0600 under the home, or with the temporary files where there is no home."""
    try:
        from gpujobs import settings  # noqa: PLC0415 - it may be what is broken

        folder: Path | None = settings.private_folder(settings.load().home / "bugs")
    except (GpujobsError, OSError, ImportError):
        folder = None
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S-")
    handle, path = tempfile.mkstemp(prefix=f"gpujobs-{stamp}", suffix=".txt", dir=folder)
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(_without_secrets("".join(traceback.format_exception(error))))
    return Path(path)


def _without_secrets(text: str) -> str:
    for value in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(value, "***")
    return _PASSWORD_IN_URL.sub(r"\1***@", text)


def _secrets() -> Iterator[str]:
    """Give what the environment and the settings' file hold under the name of a secret."""
    tables: list[Mapping[str, object]] = [os.environ]
    try:
        from gpujobs import settings  # noqa: PLC0415 - it may be what is broken

        config = settings.load().config
    except (GpujobsError, OSError, ImportError):
        config = {}
    tables += [config, *(table for table in config.values() if isinstance(table, dict))]
    yield from (str(value) for table in ("secrets", "notify") for value in config.get(table, {}).values())
    for table in tables:
        for name, value in table.items():
            if _SECRET_NAME.search(name) and isinstance(value, str) and len(value) >= _SHORTEST_SECRET:
                yield value
