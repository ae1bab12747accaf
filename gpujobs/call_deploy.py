"""A decorated function as a deployment in Prefect, whose form is the function's own signature."""

import inspect
from collections.abc import Callable, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from gpujobs import controller, controller_record, prefect_api, settings
from gpujobs.call_files import name_of
from gpujobs.call_recipe import run_name
from gpujobs.call_source import find_source
from gpujobs.deploy import CALL_ENTRYPOINT, Deployed, check_name, check_pool, may_run_on, put, schedules_of
from gpujobs.errors import BadInput
from gpujobs.recipe import Recipe
from gpujobs.recipe_schedule import Schedule

FROM_FORM: Mapping[str, Callable[[Any], Any]] = {  # what a form gives otherwise than the function takes it
    "number": float,
    "path": Path,
    "date-time": datetime.fromisoformat,
    "date": date.fromisoformat,
}
_START_S = 90.0


def deploy(
    function: Callable[..., Any],
    common: Recipe,
    keys: Mapping[str, Any],
    *,
    name: str,
    schedule: Mapping[str, str],
    pool: str,
) -> Deployed:
    """Make a function's deployment, or bring it up to date; starts the local controller where there is no Prefect.

    Args:
        function: which.
        common: its recipe, without what is of one call.
        keys: the decorator's.
        name: the deployment's; "": the function's.
        schedule: `cron` and `timezone`, where it has one.
        pool: the work pool whose hosts run it.

    Raises:
        BadInput: the function, its arguments, the name, the schedule or the pool will not do.
    """
    name = name or run_name(function.__name__)
    check_name(name)
    source = find_source(function, workdir=keys.get("workdir"))
    called = {"named": name_of(source), "workdir": source.workdir, "trust_remote": keys.get("trust_remote", False)}
    recipe = common.model_copy(update={"schedule": _schedule(schedule)} if schedule else {})
    schema = _form(function, scheduled=bool(schedule))
    found = settings.load()
    api = prefect_api.api_url(found) or controller.up(found, _START_S).url
    mine = controller_record.status(found)
    if mine and mine.url == api:
        controller.check_environment(found, recipe.secrets)
    check_pool(api, pool)
    names = may_run_on(recipe)
    values = {
        **called,
        "python": keys.get("python", ""),
        "recipe": recipe.model_dump(mode="json", exclude_unset=True),
        "kinds": {key: kind for key, field in schema["properties"].items() if (kind := _kind(field)) in FROM_FORM},
    }
    return put(
        api,
        {
            "name": name,
            "entrypoint": CALL_ENTRYPOINT,
            "work_pool_name": pool,
            "tags": ["gpujobs", *names, f"recipe:{recipe.name}"],
            "description": _description(function, source.workdir),
            "parameters": {"arguments": _defaults(schema), "call": values},
            "parameter_openapi_schema": {
                "title": "Parameters",
                "type": "object",
                "properties": {"arguments": {**schema, "title": function.__name__, "default": _defaults(schema)}},
                "required": ["arguments"],
                "definitions": {},
            },
            "enforce_parameter_schema": True,
            "schedules": schedules_of(recipe),
        },
    )


def _schedule(given: Mapping[str, str]) -> Schedule:
    if "cron" not in given:
        raise BadInput('timezone= is of a schedule; add cron="0 2 * * *"')
    try:
        return Schedule.model_validate(dict(given))
    except ValidationError as error:
        words = [f"{one['loc'][0]}=: {one.get('ctx', {}).get('error', one['msg'])}" for one in error.errors()]
        raise BadInput("; ".join(words)) from error


def _form(function: Callable[..., Any], *, scheduled: bool) -> dict[str, Any]:
    """Give the schema of the arguments; raises BadInput for a parameter that cannot be filled in there."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            raise BadInput(f"the parameter {parameter} of {function.__qualname__} cannot be in a form")
        if scheduled and parameter.default is parameter.empty:
            raise BadInput(
                f"a schedule fills in no form: give the parameter {name} of {function.__qualname__} a default"
            )
    schema: dict[str, Any] = parameter_schema(function).model_dump(mode="json")
    for name, field in schema["properties"].items():
        if "$ref" in str(field):
            raise BadInput(
                f"the parameter {name} of {function.__qualname__} is of a class of its own, which a form cannot give; "
                "let it take numbers, texts, lists and dicts, and make the object inside"
            )
    return {"type": "object", "properties": schema["properties"], "required": schema.get("required", [])}


def _defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {name: field["default"] for name, field in schema["properties"].items() if "default" in field}


def _kind(field: Mapping[str, Any]) -> str:
    return str(field.get("format") or field.get("type"))


def _description(function: Callable[..., Any], workdir: str) -> str:
    told = inspect.getdoc(function) or ""
    folder = f" The host needs the folder `{workdir}`." if workdir else ""
    return f"{told}\n\nCalls `{function.__qualname__}` on a rented GPU machine.{folder}".strip()
