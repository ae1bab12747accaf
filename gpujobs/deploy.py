"""A recipe as a deployment in Prefect: made, or brought up to date, over its REST API; imports no Prefect."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from gpujobs import backends, controller, controller_record
from gpujobs.errors import BadInput, NotFound
from gpujobs.form import Form
from gpujobs.form_schema import form_schema
from gpujobs.prefect_api import DEPLOYMENT, POOL, ask
from gpujobs.recipe import Recipe
from gpujobs.settings import Settings

FLOW = DEPLOYMENT.partition("/")[0]
ENTRYPOINT = "gpujobs.form_flow.run_form"
CALL_ENTRYPOINT = "gpujobs.call_flow.run_call"
FORM_PREFIX = "form-"  # of the deployments that the host makes: an empty form for each cloud
_OURS = "recipe: "  # how the slug of our schedule begins, which the UI shows; others were made there and stay
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}")

_FORM = """Rents a GPU machine on {name}, runs what the form says on it, brings the results home, switches it off.

A recipe that runs more than once is better deployed: `gpujobs deploy recipe.yaml`."""

Made = Literal["created", "updated", "unchanged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A deployment, and what became of it."""

    name: str
    id: str
    made: Made
    dropped: Sequence[str] = ()  # cron lines of ours that it had and has no more


def deploy(settings: Settings, api: str, recipe: Recipe, *, name: str, description: str, pool: str = POOL) -> Deployed:
    """Make the deployment `name` of `recipe`, or bring it up to date; the same again changes nothing.

    What was set in Prefect's UI stays: a pause, a switched-off schedule, schedules that were added there.

    Raises:
        BadInput: a name that is kept for the host, a pool that does not exist, or a controller of our own that was
            started in another environment than this one.
    """
    check_name(name)
    mine = controller_record.status(settings)
    if mine and mine.url == api:
        controller.check_environment(settings, recipe.secrets)
    check_pool(api, pool)
    return put(api, deployment_body(recipe, name=name, description=description, pool=pool))


def check_name(name: str) -> None:
    """Refuse a deployment's name that the host uses, or that would be awkward in a URL; raises BadInput."""
    if name == DEPLOYMENT.rpartition("/")[2] or name.startswith(FORM_PREFIX):
        raise BadInput(f"{name} is the name of a deployment that the host makes; choose another, with --name")
    if not _NAME.fullmatch(name):
        raise BadInput(f"--name {name}: write 1 to 40 small letters, digits, - _ ., a letter or digit first")


def may_run_on(recipe: Recipe) -> tuple[str, ...]:
    """Name the backends that the recipe allows, in its order; raises BadInput for one that there is not."""
    wanted = tuple(dict.fromkeys(place.partition("/")[0] for place in recipe.resources.infra))
    for name in wanted:
        if name not in backends.names():
            raise BadInput(f"resources.infra: there is no backend {name}; {backends.nearest(name)}")
    return wanted or tuple(backends.names())


def deployment_body(recipe: Recipe, *, name: str, description: str, pool: str) -> dict[str, Any]:
    """Give what Prefect's API takes for the deployment; the form starts from the recipe's values."""
    names = may_run_on(recipe)
    form = Form.of(recipe, names)
    return {
        "name": name,
        "entrypoint": ENTRYPOINT,
        "work_pool_name": pool,
        "tags": ["gpujobs", *names, f"recipe:{recipe.name}"],
        "description": description,
        "parameters": form.model_dump(mode="json"),
        "parameter_openapi_schema": form_schema(form, names),
        "enforce_parameter_schema": True,
        "schedules": schedules_of(recipe),
    }


def deploy_forms(settings: Settings, api: str) -> Sequence[Deployed]:
    """Make, for each cloud that has a token here, a form to start from nothing: its own GPUs, regions and options."""
    return [
        put(api, deployment_body(_blank(name), name=FORM_PREFIX + name, description=_FORM.format(name=name), pool=POOL))
        for name in backends.names()
        if settings.account(name).token
    ]


def _blank(backend: str) -> Recipe:
    gpu = backends.catalogue(backend).gpus[0]
    resources = {"infra": backend, "accelerators": gpu}
    return Recipe.model_validate({"name": "job", "resources": resources, "run": "nvidia-smi", "max_duration": "1h"})


def put(api: str, body: Mapping[str, Any]) -> Deployed:
    """Create or update the deployment that `body` describes; `unchanged` where it is so already.

    Raises BadInput where a recipe has a function's name, or a function has a recipe's.
    """
    name = str(body["name"])
    known = _known(api, name)
    if known and {known["entrypoint"], body["entrypoint"]} == {ENTRYPOINT, CALL_ENTRYPOINT}:
        raise BadInput(f"{name} is the deployment of a recipe or a function already; choose another name")
    wanted = {**body, "schedules": _schedules(body["schedules"], known["schedules"] if known else [])}
    if known and _is_so(known, wanted):
        return Deployed(name=name, id=str(known["id"]), made="unchanged")
    flow_id = ask(api, "POST", "/flows/", {"name": FLOW})["id"]
    made = ask(api, "POST", "/deployments/", {**wanted, "flow_id": flow_id})
    dropped = [] if not known or body["schedules"] else [_cron(one) for one in known["schedules"] if _is_ours(one)]
    return Deployed(name=name, id=str(made["id"]), made="updated" if known else "created", dropped=dropped)


def _known(api: str, name: str) -> Mapping[str, Any] | None:
    try:
        found: Mapping[str, Any] = ask(api, "GET", f"/deployments/name/{FLOW}/{name}")
    except NotFound:
        return None
    return found


def check_pool(api: str, pool: str) -> None:
    """See that the pool exists, or raise BadInput; our own is made where no host has been yet, as a host makes it."""
    try:
        ask(api, "GET", f"/work_pools/{pool}")
    except NotFound as error:
        if pool != POOL:
            raise BadInput(f"{api} has no work pool {pool}; make it there, or leave --pool out") from error
        with suppress(BadInput):  # a host has made it this moment
            ask(api, "POST", "/work_pools/", {"name": POOL, "type": POOL})


def schedules_of(recipe: Recipe) -> list[dict[str, Any]]:
    """Give a deployment's schedules: the recipe's, where it has one."""
    schedule = recipe.schedule
    if schedule is None:
        return []
    return [
        {
            "schedule": {"cron": schedule.cron, "timezone": schedule.timezone, "day_or": True},
            "active": True,
            "slug": f"{_OURS}{schedule.cron} ({schedule.timezone})",
            "parameters": {},
        }
    ]


def _schedules(ours: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Join our schedule with those that others made; ours stays switched off where somebody has done so."""
    fields = ("schedule", "active", "slug", "parameters")
    others = [{field: one.get(field) for field in fields} for one in known if not _is_ours(one)]
    off = any(_is_ours(one) and not one["active"] for one in known)
    return [*({**one, "active": not off} for one in ours), *others]


def _is_ours(schedule: Mapping[str, Any]) -> bool:
    return str(schedule.get("slug") or "").startswith(_OURS)


def _cron(schedule: Mapping[str, Any]) -> str:
    return str(schedule["schedule"]["cron"])


def _is_so(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    schedules = _by_slug(known["schedules"]) == _by_slug(wanted["schedules"])
    tags = set(known["tags"]) == set(wanted["tags"])
    return schedules and tags and all(known.get(key) == wanted[key] for key in wanted.keys() - {"schedules", "tags"})


def _by_slug(schedules: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return {str(one["slug"]): (one["schedule"], one["active"]) for one in schedules}
