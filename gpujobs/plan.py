"""What a recipe would rent, where and at what price; nothing here rents."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpujobs import backends
from gpujobs.backends import Backend
from gpujobs.errors import BadCredentials, BadInput, ProviderError
from gpujobs.host import Host
from gpujobs.ledger import Ledger
from gpujobs.models import Offer
from gpujobs.recipe import Recipe
from gpujobs.variables import flaw_of_all

SNAPSHOT_PREFIX = "snapshot:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One offer that fits, with the image that it would boot."""

    offer: Offer
    image: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would be rented: `choices` in the order in which they are tried; none means that nothing is free now."""

    choices: Sequence[Choice]
    refused: Sequence[str]
    warnings: Sequence[str]
    estimate_cny: float | None

    @property
    def nothing_free(self) -> str:
        """Say why there are no choices, and what would help."""
        why = "; ".join(self.refused)
        return f"nothing that fits is free now: {why}; or allow other places or GPUs, or set retry.wait, as 2h"


def check_local(host: Host, recipe: Recipe) -> None:
    """Refuse what is missing on this side; raises BadInput that names the file or the secret."""
    for what, path in [("workdir", recipe.workdir), *(("file_mounts", path) for path in recipe.file_mounts.values())]:
        if path and not Path(path).exists():
            raise BadInput(f"{what}: {path} does not exist on this machine; make it, or mend the recipe")
        if path and _holds_all_of_you(Path(path)):
            raise BadInput(
                f"{what}: {path} is your home folder or above it, with keys and tokens that a machine must not have; "
                "name your project's folder, or write a .gpujobsignore there"
            )
    if recipe.workdir and not Path(recipe.workdir).is_dir():
        raise BadInput(f"workdir: {recipe.workdir} is a file; name its folder")
    if flaw := flaw_of_all({**recipe.envs, **{name: host.settings.secret(name) for name in recipe.secrets}}):
        raise BadInput(f"envs and secrets: {flaw}")
    for name in recipe.notify:
        host.settings.notice_url(name)


def _holds_all_of_you(folder: Path) -> bool:
    return Path.home().resolve().is_relative_to(folder.resolve()) and not (folder / ".gpujobsignore").exists()


def make_plan(host: Host, recipe: Recipe) -> Plan:
    """Ask every allowed backend for its offers and order them.

    The recipe's own order of `infra` comes first, then the price; where `infra` is left out, the price alone. Offers
    that are in doubt come behind all others.

    Raises:
        BadInput: no backend can do what the recipe asks; every reason is in the message.
        BadCredentials: a backend that the recipe names refused the token.
        Refused, Unavailable: no backend could be asked.
    """
    choices: list[Choice] = []
    refused: list[str] = []
    warnings: list[str] = []
    errors: list[BadInput | ProviderError] = []
    asked = 0
    host = host.under(recipe.credentials)
    for name in _allowed(host, recipe):
        try:
            backend = host.backend(name)
            found = _choices(host.ledger, backend, recipe)
            choices += found
            refused += [] if found else [f"{name}: {_why_none(backend, recipe)}"]
        except (BadInput, ProviderError) as error:
            errors.append(error)
            refused.append(f"{name}: {error}")
            continue
        asked += 1
        if not backend.ends_itself(recipe):
            warnings.append(f"{name} cannot switch itself off: if this computer dies, run `gpujobs reap` on another")
    if not asked:
        raise _first_worst(errors)
    choices.sort(key=lambda choice: _rank(recipe, choice.offer))
    return Plan(choices=choices, refused=refused, warnings=warnings, estimate_cny=_estimate(recipe, choices))


def price_bound(recipe: Recipe, price_cny_per_h: float | None) -> float | None:
    """Give the most that an hour can cost: the price if it is known, else `max_price`, else None."""
    return price_cny_per_h if price_cny_per_h is not None else recipe.resources.max_price


def _allowed(host: Host, recipe: Recipe) -> Sequence[str]:
    _check_names("credentials", recipe.credentials)
    if recipe.resources.infra:
        wanted = list(dict.fromkeys(place.partition("/")[0] for place in recipe.resources.infra))
        _check_names("resources.infra", wanted)
        return wanted
    if not (found := host.usable()):
        tokens = " or ".join(f"{name.upper()}_TOKEN" for name in backends.names())
        raise BadInput(f"no backend has a token; set {tokens}, or try without any: gpujobs submit --fake")
    return found


def _check_names(key: str, names: Iterable[str]) -> None:
    for name in names:
        if name not in backends.names():
            raise BadInput(f"{key}: there is no backend {name}; {backends.nearest(name)}")


def _choices(ledger: Ledger, backend: Backend, recipe: Recipe) -> Sequence[Choice]:
    backend.check(recipe)
    image = _image(ledger, backend.name, recipe)
    if recipe.budget is not None and recipe.resources.max_price is None:
        offers = [offer for offer in backend.offers(recipe) if offer.price_cny_per_h is not None]
    else:
        offers = list(backend.offers(recipe))
    return [Choice(offer=offer, image=image) for offer in offers]


def _why_none(backend: Backend, recipe: Recipe) -> str:
    """Say what would have to give for an offer: asked only when there is none, by asking again for less."""
    want = recipe.resources
    wanted = ", ".join(want.accelerators)
    if want.max_price is not None and (dearer := backend.offers(_asking(recipe, max_price=None))):
        prices = [offer.price_cny_per_h for offer in dearer if offer.price_cny_per_h is not None]
        least = f"from {min(prices):.2f} CNY/h" if prices else "at a higher price"
        return f"{wanted} is free {least}, above max_price {want.max_price:.2f}; raise resources.max_price"
    if backend.offers(_asking(recipe, max_price=None, cpus=1, memory=1, cuda="")):
        return (
            f"{wanted} is free, but not with cpus {want.cpus}+, memory {want.memory}+"
            f"{f', cuda {want.cuda}' if want.cuda else ''}; lower these in resources"
        )
    return f"no {wanted} is free"


def _asking(recipe: Recipe, **less: object) -> Recipe:
    return recipe.model_copy(update={"resources": recipe.resources.model_copy(update=less)})


def _image(ledger: Ledger, backend: str, recipe: Recipe) -> str:
    wanted = recipe.resources.image_for(backend)
    if not wanted.startswith(SNAPSHOT_PREFIX):
        return wanted
    name, _, tag = wanted.removeprefix(SNAPSHOT_PREFIX).partition(":")
    saved = ledger.find_snapshot(name, tag or None, backend=backend)
    if saved is not None:
        return saved.image
    known = sorted({f"{one.name}:{one.tag}" for one in ledger.snapshots() if one.backend == backend})
    raise BadInput(f"resources.image: no {wanted} on {backend}; known snapshots there: {', '.join(known) or 'none'}")


def _rank(recipe: Recipe, offer: Offer) -> tuple[bool, int, float]:
    price = float("inf") if offer.price_cny_per_h is None else offer.price_cny_per_h
    for place, wanted in enumerate(recipe.resources.infra):
        backend, _, region = wanted.partition("/")
        if backend == offer.backend and region in ("", offer.region):
            return (offer.in_doubt, place, price)
    return (offer.in_doubt, len(recipe.resources.infra), price)


def _estimate(recipe: Recipe, choices: Sequence[Choice]) -> float | None:
    price = price_bound(recipe, choices[0].offer.price_cny_per_h if choices else None)
    return None if price is None else round(price * recipe.machines_at_once * recipe.max_duration / 3600, 2)


def _first_worst(errors: Sequence[BadInput | ProviderError]) -> BadInput | ProviderError:
    if len(errors) == 1:
        return errors[0]
    for error in errors:
        if isinstance(error, BadCredentials):
            return error
    if any(isinstance(error, BadInput) for error in errors):
        return BadInput("; ".join(str(error) for error in errors))
    return errors[0]
