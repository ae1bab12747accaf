"""pull: a run's outputs into a folder of the user's, from here once it has ended, from its machine while it works."""

import json
import os
import posixpath
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from gpujobs.cli.opening import find_run, load_settings
from gpujobs.cli.output import Output
from gpujobs.cli.reaching import reach
from gpujobs.cli.summary import outputs_of
from gpujobs.errors import BadInput
from gpujobs.host import Host
from gpujobs.ledger_rows import ENDED, Run
from gpujobs.run_folder import TASK


def pull(args: Namespace, out: Output) -> int:
    """Copy the outputs; the folder appears whole or not at all, and one that exists is never written into."""
    with Host.open(load_settings()) as host:
        run = find_run(host.ledger, args.run)
        tasks = {f"{TASK}{row.number}": row.state for row in host.ledger.tasks(run.id)}
        wanted: Mapping[str, str] = tasks or json.loads(run.recipe_json).get("outputs") or {}
        if not wanted:
            raise BadInput(f"the recipe of run {run.id} names no outputs; what it wrote is in: gpujobs logs {run.id}")
        target = Path(args.to or f"{run.name}-{run.id}").absolute()
        if os.path.lexists(target):
            raise BadInput(f"{target} exists already; name a new folder: gpujobs pull {run.id} --to DIR")
        try:
            fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        except OSError as error:
            raise BadInput(
                f"{target.parent} cannot be written: {error.strerror}; name another folder: --to DIR"
            ) from error
        try:
            names = (
                _copy(run, host, fresh, len(wanted))
                if tasks or run.state in ENDED
                else _fetch(run, host, wanted, fresh, out)
            )
            fresh.rename(target)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    pulled = {name: str(target / name) for name in names}
    out.value({"run_id": run.id, "state": run.state, "outputs": pulled, "missing": sorted(set(wanted) - set(names))})
    for name, path in pulled.items():
        out.text(f"{name}: {path}")
    for name in sorted(set(wanted) - set(names)):
        out.tell(f"{name} is not there: {wanted[name]}")
    return 0


def _copy(run: Run, host: Host, fresh: Path, wanted: int) -> list[str]:
    found = outputs_of(run, host.settings)
    if len(found) < wanted and host.settings.store:
        from gpujobs.store_folder import fetch_outputs  # noqa: PLC0415 - brings fsspec, which few need

        if names := fetch_outputs(host.settings, run, fresh):
            return names
    if not found:
        raise BadInput(f"run {run.id} is {run.state}, and has no outputs here; its log: gpujobs logs {run.id}")
    for name, path in found.items():
        if path.is_dir():
            shutil.copytree(path, fresh / name, symlinks=True)
        else:
            shutil.copy2(path, fresh / name)
    return list(found)


def _fetch(run: Run, host: Host, wanted: Mapping[str, str], fresh: Path, out: Output) -> list[str]:
    """Take what a job that still works has written so far."""
    from gpujobs import shell, transfer  # noqa: PLC0415 - paramiko, which an ended run does not need

    reached, reporter, names = reach(host, run), out.reporter(), list[str]()
    root = posixpath.join(reached.backend.work_root, reached.name, "work")
    with shell.connect(reached.access, host_key=reached.host_key, pkey_path=reached.key) as line:
        for name, remote in wanted.items():
            progress = partial(reporter.progress, f"downloading {name}")
            try:
                transfer.pull(line, posixpath.join(root, remote), fresh / name, progress=progress)
            except BadInput:
                continue
            names.append(name)
    if not names:
        raise BadInput(f"run {run.id} has written none of its outputs yet; try again later")
    return names
