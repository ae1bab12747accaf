"""python -m fake_server: the fake of both clouds, on loopback, until it is told to end."""

import argparse
import importlib
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from fake_server.guess_option import GuessOption
from fake_server.server import FakeServer
from fake_server.store import StateError
from fake_server.timings import Timings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the fake until SIGTERM or SIGINT; the first line on standard output says that it is ready."""
    asked = _arguments(argv)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    try:
        fake = FakeServer(
            host=asked.host,
            port=asked.port,
            speed=asked.speed,
            seed=asked.seed,
            state=asked.state,
            token=asked.token,
            namespace=asked.namespace,
            control_token=asked.control_token,
            disk_gb=asked.disk,
            timings=Timings(list_lag_s=max(0.0, asked.list_lag)),
            record=asked.record,
            guesses=asked.guess,
        ).start()
    except StateError as error:
        sys.stderr.write(f"fake_server: {error}\n")
        return 2
    except (OSError, ValueError) as error:
        sys.stderr.write(f"fake_server: cannot listen on {asked.host}:{asked.port}: {error}\n")
        return 2
    try:
        if fake.world.ground.containers.isolation == "none":
            sys.stderr.write(
                "fake_server: WARNING: no isolation here (neither unshare nor bubblewrap works), this is UNSAFE: "
                "machines see this host's files and processes\n"
            )
        sys.stdout.write(f"fake_server listening on {fake.url}\n")
        sys.stdout.flush()
        threading.Thread(target=importlib.import_module, args=("asyncssh",), daemon=True).start()  # the first machine's
        ending.wait()
    finally:
        fake.stop()
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fake_server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8700, help="0 for any free one (default 8700)")
    parser.add_argument("--speed", type=_speed, default=1.0, help="simulated seconds a real second (default 1)")
    parser.add_argument("--seed", type=int, help="make ids repeatable")
    parser.add_argument("--state", type=Path, help="where disks and snapshots live (default: a temporary folder)")
    parser.add_argument("--record", type=Path, help="write all API calls to this file, for fake_server.replay")
    parser.add_argument(
        "--guess",
        action=GuessOption,
        metavar="NAME=VALUE",
        help="decide otherwise what the providers leave open; GET /_fake/state names them; can be repeated",
    )
    parser.add_argument("--disk", type=_gigabytes, default=30.0, help="GB that a machine may keep (default 30)")
    parser.add_argument("--list-lag", type=float, default=0.0, help="seconds in which lists learn of what was created")
    parser.add_argument("--token", default="fake-token")
    parser.add_argument("--namespace", default="fake-user")
    parser.add_argument("--control-token", default="fake-control")
    return parser.parse_args(argv)


def _gigabytes(text: str) -> float:
    gigabytes = float(text)
    if not gigabytes > 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return gigabytes


def _speed(text: str) -> float:
    speed = float(text)
    if not 0 <= speed <= 1_000_000:  # noqa: PLR2004 -- the same bounds as the control room's
        raise argparse.ArgumentTypeError("must be from 0 to 1000000")
    return speed


if __name__ == "__main__":
    sys.exit(main())
