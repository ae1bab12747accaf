"""init, plan, schema: what to do with a recipe before it runs."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpujobs.cli.opening import load_settings
from gpujobs.cli.output import Output, amount, money, price
from gpujobs.errors import BadInput, NoCapacity
from gpujobs.host import Host
from gpujobs.plan import Plan, check_local, make_plan
from gpujobs.progress import time_text
from gpujobs.recipe import Recipe
from gpujobs.recipe_file import INIT_TEXT, load_recipe
from gpujobs.recipe_file import schema as recipe_schema


def init(args: Namespace, out: Output) -> int:
    """Write a commented recipe; a file that exists is never overwritten."""
    if args.file == "-":
        out.value({"recipe": INIT_TEXT})
        out.text(INIT_TEXT.rstrip("\n"))
        return 0
    path = Path(args.file)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(INIT_TEXT)
    except FileExistsError as error:
        raise BadInput(f"{path} exists already; name another file: gpujobs init FILE") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}; name a file in a folder that is there") from error
    out.value({"file": str(path)})
    out.text(f"{path} is written; edit it, then: gpujobs plan {path}")
    return 0


def schema(_: Namespace, out: Output) -> int:
    """Print the recipe's JSON schema, with and without --json alike."""
    out._replace(json=True).value(recipe_schema())
    return 0


def plan(args: Namespace, out: Output) -> int:
    """Show what a recipe would rent; exit code 3 where nothing is free now."""
    recipe = load_recipe(args.recipe, args.overrides).recipe
    with Host.open(load_settings()) as host:
        check_local(host, recipe)
        found = make_plan(host, recipe)
    out.value(plan_value(recipe, found))
    show_plan(recipe, found, out)
    return 0 if found.choices else NoCapacity.exit_code


def plan_value(recipe: Recipe, found: Plan) -> Mapping[str, Any]:
    """Give the plan as JSON carries it."""
    return {
        "name": recipe.name,
        "choices": [{**asdict(choice.offer), "image": choice.image} for choice in found.choices],
        "refused": list(found.refused),
        "warnings": list(found.warnings),
        "max_duration_s": recipe.max_duration,
        "tasks": len(recipe.wanted_tasks),
        "machines": recipe.machines_at_once,
        "estimate_cny": found.estimate_cny,
    }


def show_plan(recipe: Recipe, found: Plan, out: Output) -> None:
    """Print the plan for people: the offers in the order in which they are tried, and what the first would cost."""
    rows = [
        (
            "->" if not number else "",
            f"{offer.backend}/{offer.region}",
            f"{offer.gpu} x{offer.gpu_count}",
            amount(offer.cpus),
            amount(offer.memory_gb),
            price(offer.price_cny_per_h, estimate=offer.price_is_estimate),
            offer.free,
        )
        for number, offer in enumerate(choice.offer for choice in found.choices)
    ]
    head = ("", "PLACE", "GPU", "CPUS", "GB", "CNY/H", "FREE")
    out.table(head, rows, none=f"nothing that {recipe.name} could use is free now")
    for line in found.refused:
        out.text(f"left out: {line}")
    for line in found.warnings:
        out.text(f"warning: {line}")
    if recipe.wanted_tasks:
        out.text(f"{_counted(len(recipe.wanted_tasks), 'task')} on {up_to(recipe)} at a time")
    if rows:
        longest = time_text(recipe.max_duration)
        out.text(
            f"estimated cost: {money(found.estimate_cny)} if it takes all of max_duration, {longest} (~: an estimate)"
        )


def up_to(recipe: Recipe) -> str:
    """Say how many machines a recipe may rent at a time."""
    most = recipe.machines_at_once
    return "1 machine" if most == 1 else f"up to {most} machines"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
