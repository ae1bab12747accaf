"""What there is to say of one run: for JSON, and as lines for people."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpujobs.cli.output import Output, money, price
from gpujobs.host import Host
from gpujobs.ledger import Ledger
from gpujobs.ledger_rows import Attempt, MachineRecord, Run
from gpujobs.progress import time_text
from gpujobs.run_folder import TASK
from gpujobs.settings import Settings
from gpujobs.store_folder import stored_files


def outputs_of(run: Run, found: Settings) -> Mapping[str, Path]:
    """Give the outputs of a run that are here, by name."""
    folder = found.runs / run.id / "outputs"
    return {name: folder / name for name in wanted_outputs(run, folder) if (folder / name).exists()}


def wanted_outputs(run: Run, folder: Path) -> Sequence[str]:
    """Name the outputs of a run's recipe; where it makes tasks, those of its tasks that are in the folder `folder`."""
    recipe = json.loads(run.recipe_json)
    if not (recipe.get("matrix") or recipe.get("tasks")):
        return list(recipe.get("outputs") or {})
    return sorted((path.name for path in folder.glob(f"{TASK}*")), key=lambda name: (len(name), name))


def summary(run: Run, ledger: Ledger, found: Settings) -> Mapping[str, Any]:
    """Give how a run stands."""
    log = found.runs / run.id / "output.log"
    elsewhere = {} if log.exists() else stored_files(found, run)
    return {
        "run_id": run.id,
        "name": run.name,
        "state": run.state,
        "exit_code": run.exit_code,
        "error": run.error,
        "outputs": elsewhere.get("outputs") or {name: str(path) for name, path in outputs_of(run, found).items()},
        "log": elsewhere.get("log") or str(log),
        "cost_cny": run.cost_cny if run.ended_at else ledger.cost_cny(run.id),
        "machines_alive": sum(machine.alive for machine in ledger.machines(run.id)),
    }


def show_end(run: Run, value: Mapping[str, Any], out: Output) -> None:
    """Print the end of a run for people: what went wrong on standard error, and all else as the answer."""
    took = f" after {time_text((run.ended_at - run.created_at).total_seconds())}" if run.ended_at else ""
    out.text(f"run {run.id} ({run.name}) {run.state}{took}")
    for line in output_lines(value["outputs"]):
        out.text(f"  {line}")
    alive = value["machines_alive"]
    out.text(f"log: {value['log']}")
    out.text(f"cost: {money(value['cost_cny'])}")
    out.text(f"{alive} machine{'' if alive == 1 else 's'} alive")
    if alive:
        out.text("it may still cost money; release it with: gpujobs reap")
    if run.error and not out.json:
        out.tell(f"gpujobs: {run.error}")


def output_lines(outputs: Mapping[str, object]) -> Sequence[str]:
    """Name the outputs; of tasks, which may be many, the folder alone."""
    folders = {str(path).rpartition("/")[0] for name, path in outputs.items() if name.startswith(TASK)}
    if len(folders) == 1 and all(name.startswith(TASK) for name in outputs):
        return [f"outputs of the tasks: {folders.pop()}"]
    return [f"{name}: {path}" for name, path in outputs.items()]


def show_attempts(attempts: Sequence[Attempt], machines: Sequence[MachineRecord], out: Output) -> None:
    """Print each attempt and whether its machine still costs."""
    records = {machine.name: machine for machine in machines}
    for attempt in attempts:
        machine = records.get(attempt.name)
        where = f"{attempt.name} on {attempt.backend}/{attempt.region}"
        at = f"{price(machine.price_cny_per_h if machine else None)} CNY/h"
        out.text(f"attempt {attempt.number}: {where}, {at}, {'alive' if machine and machine.alive else 'gone'}")
        if attempt.error:
            out.text(f"  {attempt.error}")


def tell_end(host: Host, run_id: str, out: Output) -> int:
    """Print how a followed run ended; give its exit code."""
    run = host.ledger.get_run(run_id)
    value = summary(run, host.ledger, host.settings)
    out.value(value)
    show_end(run, value, out)
    return run.exit_code or 0
