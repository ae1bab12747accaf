"""offers, machines, images, snapshots, reap: what the clouds have, and what they have of ours."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TypeVar

from pydantic import ValidationError

from gpujobs import backends, reaper
from gpujobs.backends import Backend
from gpujobs.cli.opening import ledger_of, load_settings
from gpujobs.cli.output import Output, amount, price
from gpujobs.errors import BadInput, GpujobsError, NoCapacity
from gpujobs.host import Host
from gpujobs.plan import make_plan
from gpujobs.recipe import Recipe
from gpujobs.settings import Account

Asked = TypeVar("Asked")


def offers(args: Namespace, out: Output) -> int:
    """List what could be rented now, cheapest first; exit code 3 where nothing is free."""
    try:
        recipe = Recipe.model_validate(
            {"name": "offers", "resources": {"accelerators": args.gpu, "infra": args.infra}, "run": "true"}
        )
    except ValidationError as error:
        raise BadInput(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
    with Host.open(load_settings()) as host:
        plan = make_plan(host, recipe)
    found = [choice.offer for choice in plan.choices]
    out.value({"offers": [asdict(offer) for offer in found], "refused": list(plan.refused)})
    rows = (
        (
            offer.backend,
            offer.region,
            f"{offer.gpu} x{offer.gpu_count}",
            amount(offer.gpu_memory_gb),
            amount(offer.cpus),
            amount(offer.memory_gb),
            price(offer.price_cny_per_h, estimate=offer.price_is_estimate),
            offer.free,
        )
        for offer in found
    )
    head = ("BACKEND", "REGION", "GPU", "GPU GB", "CPUS", "GB", "CNY/H", "FREE")
    out.table(head, rows, none="nothing of it is free now")
    for line in plan.refused:
        out.text(f"left out: {line}")
    return 0 if found else NoCapacity.exit_code


def machines(_: Namespace, out: Output) -> int:
    """List the machines under our owner's name, as the providers tell it, with what the ledger knows of them.

    What a provider that does not answer has of ours is unknown: then the others' are listed, and the command fails.
    """
    with Host.open(load_settings()) as host:
        found, trouble = _of_all(host, out, lambda backend: reaper.survey(host, backend))
    out.value([{**asdict(one.machine), "run_id": one.run_id, "why": one.why, "action": one.action} for one in found])
    rows = (
        (
            one.machine.name,
            f"{one.machine.backend}/{one.machine.region}",
            one.machine.raw_status or one.machine.status,
            price(one.machine.price_cny_per_h),
            one.run_id or "-",
            one.why,
        )
        for one in found
    )
    none = "none on those that answered" if trouble else "no machines: nothing is rented"
    out.table(("MACHINE", "PLACE", "STATUS", "CNY/H", "RUN", "WHY"), rows, none=none)
    return trouble[0].exit_code if trouble else 0


def images(_: Namespace, out: Output) -> int:
    """List the images that can be booted, as far as the providers list them."""
    with Host.open(load_settings()) as host:
        found, _trouble = _of_all(host, out, lambda backend: backend.images())
    out.value([asdict(image) for image in found])
    rows = ((image.backend, image.ref, image.title, "private" if image.private else "public") for image in found)
    out.table(("BACKEND", "IMAGE", "TITLE", "KIND"), rows, none="the providers list no images of yours")
    return 0


def snapshots(_: Namespace, out: Output) -> int:
    """List the disks that gpujobs saved as images."""
    with ledger_of(load_settings()) as ledger:
        found = ledger.snapshots()
    out.value([asdict(saved) for saved in found])
    rows = (
        (
            f"snapshot:{saved.name}:{saved.tag}",
            f"{saved.backend}/{saved.region}",
            f"{saved.made_at.astimezone():%Y-%m-%d %H:%M}",
            saved.run_id or "-",
            saved.image,
        )
        for saved in found
    )
    out.table(("SNAPSHOT", "PLACE", "MADE", "RUN", "IMAGE"), rows, none="no snapshots yet")
    return 0


def reap(args: Namespace, out: Output) -> int:
    """Release what no living run owns; what the ledger does not know only with --yes."""
    with Host.open(load_settings()) as host:
        _accounts(host, out, [])
        done = reaper.reap(host, yes=args.yes, reporter=out.reporter())
        waiting = reaper.recover(host)
    out.value(
        {
            "released": [machine.name for machine in done.released],
            "left": [{"name": one.machine.name, "why": one.why, "action": one.action} for one in done.left],
            "failed": [{"name": name, "error": error} for name, error in done.failed],
            "resumable_runs": list(waiting),
        }
    )
    for machine in done.released:
        out.text(f"released {machine.name} on {machine.backend}")
    for one in done.left:
        hint = "; release it with: gpujobs reap --yes" if one.action == "ask" else ""
        out.text(f"left {one.machine.name} on {one.machine.backend}: {one.why}{hint}")
    for run_id in waiting:
        out.text(f"run {run_id} has no driver; go on with it: gpujobs resume {run_id}, or gpujobs up")
    if not (done.released or done.left or done.failed):
        out.text("nothing to release")
    if done.failed:
        raise GpujobsError("; ".join(f"{name}: {error}" for name, error in done.failed))
    return 0


def _accounts(host: Host, out: Output, errors: list[GpujobsError]) -> Sequence[tuple[str, Account]]:
    """Give every account by its backend; where Prefect's blocks cannot be read, the host's own."""
    found: list[tuple[str, Account]] = []
    for name in backends.names():
        try:
            accounts = host.settings.accounts(name)
        except GpujobsError as error:
            out.tell(f"{name}: accounts that Prefect blocks keep are left out: {error}")
            errors.append(error)
            accounts = replace(host.settings, blocks=None).accounts(name)
        found += [(name, account) for account in accounts]
    if not found:
        tokens = " or ".join(f"{name.upper()}_TOKEN" for name in backends.names())
        raise errors[0] if errors else BadInput(f"no backend has a token; set {tokens}, or use the fake cloud: --fake")
    return found


def _of_all(
    host: Host, out: Output, ask: Callable[[Backend], Sequence[Asked]]
) -> tuple[Sequence[Asked], Sequence[GpujobsError]]:
    """Ask every backend; one that cannot answer is told of, and only fails the command if all of them do."""
    found: list[Asked] = []
    errors: list[GpujobsError] = []
    answered = False
    for name, account in _accounts(host, out, errors):
        try:
            found += ask(host.backend_of(name, account))
            answered = True
        except GpujobsError as error:
            out.tell(f"{name}: {error}")
            errors.append(error)
    if not answered:
        raise errors[0]
    return found, errors
