"""What a deployment's page in Prefect says: what would be rented, at what cost, when it runs, what the host needs."""

from collections.abc import Sequence

from gpujobs.deploy import may_run_on
from gpujobs.errors import BadInput, ProviderError
from gpujobs.form import duration
from gpujobs.host import Host
from gpujobs.plan import Choice, Plan, make_plan
from gpujobs.recipe import Recipe

_MOST_ROWS = 8


def look(host: Host, recipe: Recipe) -> Plan | str:
    """Make the plan, or say why the clouds cannot be asked from here: a deployment needs no token, its host does.

    Raises BadInput where a cloud that could be asked says that this recipe never runs.
    """
    names = may_run_on(recipe)
    try:
        return make_plan(host, recipe)
    except ProviderError as error:
        return str(error)
    except BadInput as error:
        if recipe.resources.infra and all(host.settings.account(name).token for name in names):
            _check_without_image(host, recipe)
        return str(error)


def _check_without_image(host: Host, recipe: Recipe) -> None:
    """Raise what is wrong beside the image: a snapshot that is not there yet may be there tonight."""
    anything = recipe.resources.model_copy(update={"image": ""})
    try:
        make_plan(host, recipe.model_copy(update={"resources": anything}))
    except ProviderError:
        return


def needs(recipe: Recipe) -> Sequence[str]:
    """Say what must be on the host that runs the recipe."""
    found = [f"the folder {recipe.workdir}"] if recipe.workdir else []
    found += [f"the file or folder {path}" for path in dict.fromkeys(recipe.file_mounts.values())]
    found += [f"the secret {name}, in its environment or settings" for name in recipe.secrets]
    tokens = " or ".join(f"{name.upper()}_TOKEN" for name in may_run_on(recipe))
    return [*found, f"{tokens}, in its environment or settings"]


def description(recipe: Recipe, found: Plan | str) -> str:
    """Write the deployment's description, in Markdown."""
    parts = [f"Rents a GPU machine, runs `{recipe.name}` on it, brings the results home, switches it off."]
    parts += _plan(recipe, found)
    if recipe.schedule:
        parts.append(
            f"**Schedule**: `{recipe.schedule.cron}`, {recipe.schedule.timezone}. A run is skipped while the one "
            f"before it lives, and when it would start more than {duration(recipe.schedule.max_lateness)} late."
        )
    parts.append("**The host needs**\n\n" + "\n".join(f"- {_code(line)}" for line in needs(recipe)))
    return "\n\n".join(parts)


def _plan(recipe: Recipe, found: Plan | str) -> Sequence[str]:
    if isinstance(found, str):
        return [f"**Plan**: not made, as the clouds could not be asked when this was deployed: {_plain(found)}"]
    if not found.choices:
        return [f"**Plan**: {_plain(found.nothing_free)} (when this was deployed)"]
    rows = ["| | place | GPU | CNY per hour |", "|---|---|---|---|"]
    rows += [_row(choice, first=not number) for number, choice in enumerate(found.choices[:_MOST_ROWS])]
    cost = "unknown" if found.estimate_cny is None else f"at most about {found.estimate_cny:.2f} CNY"
    longest = duration(recipe.max_duration)
    lines = ["**Plan**, as it was when this was deployed; the first that is free is rented", "\n".join(rows)]
    if len(found.choices) > _MOST_ROWS:
        lines.append(f"… and {len(found.choices) - _MOST_ROWS} more")
    lines.append(f"**Cost of a run**: {cost}, if it takes all of its {longest}")
    return [*lines, *(f"Note: {_plain(warning)}" for warning in (*found.refused, *found.warnings))]


def _row(choice: Choice, *, first: bool) -> str:
    offer = choice.offer
    price = "unknown" if offer.price_cny_per_h is None else f"{offer.price_cny_per_h:.2f}"
    about = "~" if offer.price_is_estimate else ""
    place = f"{offer.backend}/{offer.region}"
    return f"| {'→' if first else ''} | {_cell(place)} | {_cell(offer.gpu)} × {offer.gpu_count} | {about}{price} |"


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """Keep what a provider said from being read as Markdown or as markup."""
    return "".join(f"\\{char}" if char in "\\`*_[]<>" else char for char in text).replace("\n", " ")


def _code(text: str) -> str:
    head, slash, path = text.partition("/")
    return f"{head}`{slash}{path}`" if slash else text
