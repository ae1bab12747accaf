"""What a run's page says, as text and tables made of what the ledger knows. No Prefect here, and no secret."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpujobs.host import Host
from gpujobs.ledger_rows import ENDED, Attempt, Bill, MachineRecord, Run, TaskRecord
from gpujobs.progress import size_text, time_text
from gpujobs.recipe import Recipe
from gpujobs.run_folder import RunFolder, names_of_outputs
from gpujobs.task_words import counts_in_words

UNKNOWN = "unknown"
_SCRIPT_CHARS = 2000
_SMALL_CNY = 0.1
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~$])")
_PLAIN_STEP = re.compile(
    r"(?=[A-Za-z0-9_.-]{1,24}\Z)(?![0-9a-fA-F-]{16,}\Z)"
)  # of a URL's path; longer ones are tokens
_OURS = ("recipe:", "owner:", "run:", "backend:", "region:", "gpu:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One run as the ledger has it at one moment."""

    run: Run
    recipe: Recipe
    attempts: Sequence[Attempt]
    machines: Sequence[MachineRecord]
    bills: Sequence[Bill]
    cost_cny: float | None
    log: Path
    outputs: Mapping[str, Path]
    tasks: Sequence[TaskRecord] = ()

    @property
    def over(self) -> bool:
        """Whether the run has come to its end."""
        return self.run.state in ENDED

    @property
    def names(self) -> Mapping[str, str]:
        """What tags, labels and events name the run by."""
        return names_of(self.run, self.attempts)


def read_facts(host: Host, run_id: str) -> Facts:
    """Read what the ledger and the run's folder say of a run."""
    ledger, folder = host.ledger, RunFolder(host.settings.runs / run_id)
    run = ledger.get_run(run_id)
    recipe = Recipe.model_validate_json(run.recipe_json)
    return Facts(
        run=run,
        recipe=recipe,
        attempts=ledger.attempts(run_id),
        machines=ledger.machines(run_id),
        bills=ledger.bills(run_id),
        cost_cny=ledger.cost_cny(run_id),
        log=folder.log,
        outputs=folder.pulled(names_of_outputs(recipe)),
        tasks=ledger.tasks(run_id),
    )


def names_of(run: Run, attempts: Sequence[Attempt]) -> Mapping[str, str]:
    """Name the run's recipe, owner and id, and from its first attempt on the newest one's backend, region and GPU."""
    found = {"recipe": run.name, "owner": run.owner, "run": run.id}
    if attempts:
        newest = attempts[-1]
        found |= {"backend": newest.backend, "region": newest.region, "gpu": _offer(newest).get("gpu", "")}
    return found


def artifact_key(recipe_name: str, kind: str) -> str:
    """Give the key of a recipe's artifacts of one kind: small letters, digits and dashes, as Prefect wants."""
    return f"{re.sub(r'[^a-z0-9]+', '-', recipe_name).strip('-')}-{kind}"


def tags(names: Mapping[str, str], others: Sequence[str]) -> list[str]:
    """Give the flow run's tags: ours anew, and `others` where they are not ours."""
    kept = [tag for tag in others if not tag.startswith(_OURS) and tag != "gpujobs"]
    return ["gpujobs", *kept, *(f"{name}:{value}" for name, value in names.items() if value)]


def labels(names: Mapping[str, str]) -> dict[str, bool | int | float | str]:
    """Give the flow run's labels; they say what the tags say."""
    return {f"gpujobs.{name}": value for name, value in names.items() if value}


def resource(names: Mapping[str, str]) -> dict[str, str]:
    """Describe the run as the resource of Prefect events, `gpujobs.run.<run id>`."""
    who = {"prefect.resource.id": f"gpujobs.run.{names['run']}", "prefect.resource.name": names["recipe"]}
    return {**who, **{name: str(value) for name, value in labels(names).items()}}


def summary(facts: Facts) -> str:
    """Tell in Markdown what ran, where, at what price, with what result, and what it cost."""
    run, recipe = facts.run, facts.recipe
    state = run.state if facts.over else "running"
    rows = {
        "Run": f"`{run.id}` of {_cell(run.owner)}",
        "Result": _cell(f"{state}: {run.error}" if run.error else state),
        "Tasks": counts_in_words(facts.tasks) if facts.tasks else "",
        "Exit code": _exit_code(facts),
        "Where": _where(facts),
        "Price": _price(facts),
        "Estimate": f"at most {_cny(run.estimate_cny)} for {time_text(recipe.max_duration)}",
        "Took": _took(run),
        "Bill": _cny(facts.cost_cny) if facts.over else "not yet known",
        "Machine": _standing(facts),
        "Outputs": _outputs(facts),
        "Log": _cell(str(facts.log)),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value)
    script = "\n".join(part.rstrip() for part in (recipe.setup, recipe.run) if part)
    return f"## {_cell(run.name)}: {state}\n\n| | |\n|---|---|\n{table}\n\n{_fenced(script)}\n"


def in_short(facts: Facts) -> str:
    """Tell in one line what a card shows without being opened: the result, the bill, and where the machine is."""
    told = [f"**{facts.run.state if facts.over else 'running'}**", _standing(facts)]
    if facts.over:
        told.insert(1, _cny(facts.cost_cny))
    return ", ".join(part for part in told if part) + (f": {_cell(facts.run.error)}" if facts.run.error else "")


def cost_in_short(facts: Facts) -> str:
    """Tell in one line what the run cost, and how many attempts it took."""
    count = len(facts.attempts)
    return f"{_cny(facts.cost_cny)} for {count} attempt{'' if count == 1 else 's'}"


def cost_table(facts: Facts) -> list[dict[str, Any]]:
    """Give the bill by attempt, and its sum: seconds × price; unknown is said, and never 0."""
    bills = {bill.attempt: bill for bill in facts.bills}
    rows = [_cost_row(attempt, bills.get(attempt.number)) for attempt in facts.attempts]
    known = [bill.seconds for bill in facts.bills]
    seconds = None if None in known else sum(second for second in known if second is not None)
    total = {
        "attempt": "total",
        "CNY": _money(facts.cost_cny),
        "seconds": UNKNOWN if seconds is None else round(seconds),
        "CNY per hour": "",
        "result": facts.run.state,
        "GPU": "",
        "where": "",
        "machine": "",
    }
    return [*rows, total]


def links(facts: Facts, addresses: Mapping[str, str]) -> str:
    """List a machine's services in Markdown; what may be a token in an address is left out, and said to be."""
    if facts.over:
        return "The machine is released; its services are gone.\n"
    shown = {name: without_token(address) for name, address in addresses.items()}
    lines = [f"- [{_cell(_SERVICES.get(name, f'port {name}'))}]({address})" for name, address in shown.items()]
    if any(shown[name] != address for name, address in addresses.items()):
        lines.append("\nAddresses stand here without their tokens, which are secrets: the provider's console has them.")
    return "\n".join(lines) + "\n"


def without_token(address: str) -> str:
    """Cut an address down to what can be no secret: no user, query or fragment, and no path that looks like a token."""
    parts = urlsplit(address)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    steps = []
    for step in parts.path.split("/")[1:]:
        if step and not _PLAIN_STEP.match(step):
            break
        steps.append(step)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{''.join(f'/{step}' for step in steps)}"


def amount_text(what: str, done: int, total: int | None) -> str:
    """Say how far it is: bytes for what is uploaded or downloaded, else seconds of a wait's bound."""
    if what.startswith(("uploading", "downloading")):
        return size_text(done) if total is None else f"{size_text(done)} of {size_text(total)}"
    return time_text(done) if total is None else f"{time_text(done)} of at most {time_text(total)}"


_SERVICES = {"jupyter": "Jupyter", "tensorboard": "TensorBoard"}


def _cell(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _fenced(script: str) -> str:
    text = script if len(script) <= _SCRIPT_CHARS else f"{script[:_SCRIPT_CHARS]}\n…"
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return f"{fence}sh\n{text}\n{fence}"


def _offer(attempt: Attempt) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(attempt.offer_json)
    return found


def _outputs(facts: Facts) -> str:
    if facts.tasks and facts.outputs:
        folder = next(iter(facts.outputs.values())).parent
        return _cell(f"what {len(facts.outputs)} of the tasks left: {folder}")
    return "<br>".join(f"{_cell(name)}: {_cell(str(path))}" for name, path in facts.outputs.items())


def _exit_code(facts: Facts) -> str:
    codes = [attempt.exit_code for attempt in facts.attempts if attempt.exit_code is not None]
    return str(codes[-1]) if codes else ""


def _where(facts: Facts) -> str:
    if not facts.attempts:
        return ""
    newest, of = facts.attempts[-1], facts.recipe.retry.attempts
    offer = _offer(newest)
    place = f"{offer.get('gpu')} ×{offer.get('gpu_count')} on {newest.backend}/{newest.region}, as {newest.name}"
    return _cell(f"{place} (attempt {newest.number}, of {of} in one go)" if newest.number > 1 else place)


def _price(facts: Facts) -> str:
    prices = [machine.price_cny_per_h for machine in facts.machines]
    return "" if not prices else UNKNOWN if prices[-1] is None else f"{prices[-1]:.2f} CNY/h"


def _took(run: Run) -> str:
    if run.started_at is None or run.ended_at is None:
        return f"since {_clock(run.started_at)}" if run.started_at else ""
    return f"{time_text((run.ended_at - run.started_at).total_seconds())}, until {_clock(run.ended_at)}"


def _standing(facts: Facts) -> str:
    alive = [machine.name for machine in facts.machines if machine.alive]
    if alive and facts.over:
        return _cell(f"{', '.join(alive)} may still cost money: gpujobs reap")
    if alive:
        return _cell(f"{', '.join(alive)} is rented")
    gone = [machine.gone_at for machine in facts.machines if machine.gone_at]
    return f"gone at {_clock(max(gone))}" if gone else "none was rented" if facts.over else ""


def _clock(at: datetime) -> str:
    return f"{at.astimezone():%H:%M %Z on %Y-%m-%d}"


def _cost_row(attempt: Attempt, bill: Bill | None) -> dict[str, Any]:
    seconds = bill.seconds if bill else None
    return {  # the money first: a page shows some five columns
        "attempt": attempt.number,
        "CNY": _money(bill.cost_cny if bill else None),
        "seconds": UNKNOWN if seconds is None else round(seconds),
        "CNY per hour": _money(bill.price_cny_per_h if bill else None),
        "result": attempt.error or attempt.state,
        "GPU": _offer(attempt).get("gpu", ""),
        "where": f"{attempt.backend}/{attempt.region}",
        "machine": attempt.name,
    }


def _money(amount: float | None) -> str:
    return UNKNOWN if amount is None else f"{amount:.4f}" if 0 < amount < _SMALL_CNY else f"{amount:.2f}"


def _cny(amount: float | None) -> str:
    return UNKNOWN if amount is None else f"{_money(amount)} CNY"
