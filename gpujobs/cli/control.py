"""up, down, serve: the local controller, which runs recipes whoever closes his terminal."""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from gpujobs import controller
from gpujobs.cli.opening import load_settings
from gpujobs.cli.output import Output


def up(args: Namespace, out: Output) -> int:
    """Start the controller, if it is not up; returns once it answers."""
    found = controller.up(load_settings(), args.wait)
    if args.limit:
        from gpujobs import prefect_api  # noqa: PLC0415 - only where asked for

        prefect_api.limit_runs(found.url, args.limit)
    value: dict[str, Any] = {"url": found.url, "server_pid": found.server_pid, "worker_pid": found.worker_pid}
    out.text(f"the controller is up: {found.url} (its pages: {found.url.removesuffix('/api')})")
    if args.automations:
        from gpujobs import automations  # noqa: PLC0415 - only where asked for

        value["automations"] = automations.set_up(found.url, args.wait)
        for name, became in value["automations"].items():
            out.text(f"automation {became}: {name}")
    out.value(value)
    return 0


def down(args: Namespace, out: Output) -> int:
    """End the controller; machines at work go on, and the next `up` goes on with their runs."""
    ended = controller.down(load_settings())
    fake_ended = False
    if args.fake:
        from gpujobs.cli import fake  # noqa: PLC0415 - only where asked for

        fake_ended = fake.end(Path(os.environ["GPUJOBS_HOME"]))
    out.value({"controller_ended": ended, "fake_ended": fake_ended})
    out.text("the controller has ended" if ended else "no controller was up")
    if fake_ended:
        out.text("the fake cloud has ended")
    return 0


def serve(args: Namespace, out: Output) -> int:
    """Run recipes in this process for the Prefect server that the settings name, until SIGTERM."""
    from gpujobs import worker  # noqa: PLC0415 - brings Prefect

    del out
    os.umask(0o077)  # Prefect makes its files as this says
    return worker.serve(load_settings(), limit=args.limit)
