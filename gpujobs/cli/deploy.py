"""deploy: recipes into Prefect, each with a form to start it by hand, and a schedule where it has one."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpujobs import controller, prefect_api
from gpujobs.cli.opening import load_settings
from gpujobs.cli.output import Output
from gpujobs.deploy import Deployed, check_name
from gpujobs.deploy import deploy as put
from gpujobs.deploy_page import description, look, needs
from gpujobs.errors import BadInput
from gpujobs.host import Host
from gpujobs.recipe import Recipe
from gpujobs.recipe_file import load_recipe
from gpujobs.recipe_schedule import Schedule
from gpujobs.settings import Settings

_START_S = 90.0


def deploy(args: Namespace, out: Output) -> int:
    """Make or update the deployments; all recipes are read and checked before the first is deployed."""
    recipes = _recipes(args)
    for name in recipes:
        check_name(name)
    settings = load_settings()
    with Host.open(settings) as host:
        plans = {name: look(host, recipe) for name, recipe in recipes.items()}
    api = _api(settings, out)
    made = []
    for name, recipe in recipes.items():
        text = description(recipe, plans[name])
        found = put(settings, api, recipe, name=name, description=text, pool=args.pool)
        made.append(_value(api, found, recipe, plans[name]))
        _tell(made[-1], out)
    out.value({"deployments": made})
    return 0


def _recipes(args: Namespace) -> Mapping[str, Recipe]:
    """Read the recipes, by the names of their deployments; raises BadInput."""
    if not args.all:
        recipe = _scheduled(load_recipe(args.recipe, args.overrides).recipe, args.cron, args.timezone)
        return {args.name or recipe.name: recipe}
    if args.name or args.cron or args.timezone:
        raise BadInput(
            "--name, --cron and --timezone are for one recipe, not for --all; put a schedule into each recipe"
        )
    found: dict[str, Recipe] = {}
    for path in _files(Path(args.recipe)):
        recipe = load_recipe(path, args.overrides).recipe
        if recipe.name in found:
            raise BadInput(f"{path}: another recipe there is named {recipe.name} too; rename one")
        found[recipe.name] = recipe
    return found


def _files(folder: Path) -> Sequence[Path]:
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder; leave --all out to deploy one recipe")
    found = sorted(path for path in folder.iterdir() if path.suffix in {".yaml", ".yml"} and path.is_file())
    if not found:
        raise BadInput(f"{folder} holds no recipe, no file that ends in .yaml")
    return found


def _scheduled(recipe: Recipe, cron: str | None, timezone: str | None) -> Recipe:
    """Lay --cron and --timezone over the recipe's own schedule."""
    given = {key: value for key, value in (("cron", cron), ("timezone", timezone)) if value is not None}
    if not given:
        return recipe
    if cron is None and recipe.schedule is None:
        raise BadInput('--timezone is of a schedule, and this recipe has none; add --cron "0 2 * * *"')
    own = recipe.schedule.model_dump(mode="json") if recipe.schedule else {}
    try:
        schedule = Schedule.model_validate({**own, **given})
    except ValidationError as error:
        raise BadInput("; ".join(f"--{one['loc'][0]}: {_said(one)}" for one in error.errors())) from error
    return recipe.model_copy(update={"schedule": schedule})


def _said(error: Any) -> str:
    return str(error["ctx"]["error"]) if error["type"] == "value_error" else str(error["msg"])


def _api(settings: Settings, out: Output) -> str:
    if url := prefect_api.api_url(settings):
        return url
    out.tell("starting the local controller; it stays until: gpujobs down")
    return controller.up(settings, _START_S).url


def _value(api: str, found: Deployed, recipe: Recipe, plan: object) -> Mapping[str, Any]:
    schedule = recipe.schedule
    return {
        "name": found.name,
        "id": found.id,
        "made": found.made,
        "url": f"{api.removesuffix('/api')}/deployments/deployment/{found.id}",
        "cron": schedule.cron if schedule else None,
        "timezone": schedule.timezone if schedule else None,
        "dropped_cron": list(found.dropped),
        "next_at": schedule.next_after(datetime.now(UTC)) if schedule else None,
        "host_needs": list(needs(recipe)),
        "plan_trouble": plan if isinstance(plan, str) else None,
    }


def _tell(made: Mapping[str, Any], out: Output) -> None:
    out.text(f"{made['name']}: {made['made']}; start it with other values, or watch it: {made['url']}")
    if made["cron"]:
        out.text(f"  runs at {made['cron']}, {made['timezone']}; next {made['next_at']:%Y-%m-%d %H:%M}")
    for line in made["dropped_cron"]:
        out.text(f"  its schedule {line} is taken off: neither the recipe nor --cron names it now")
    if made["plan_trouble"]:
        out.text(f"  without a plan: {made['plan_trouble']}")
    out.text(f"  the host that runs it needs: {'; '.join(made['host_needs'])}")
