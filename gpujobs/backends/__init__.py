"""The Backend protocol, and finding a backend by its name: one provider is one file in this folder."""

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from typing import Protocol

from gpujobs.clock import Clock
from gpujobs.errors import BadInput
from gpujobs.models import Access, Catalogue, Event, Image, ImageRef, Machine, Offer
from gpujobs.recipe import Recipe
from gpujobs.settings import Account, Settings


class Backend(Protocol):
    """One GPU provider. Each method is one quick exchange with it; none waits.

    Every method may raise BadCredentials, Refused or Unavailable. Safe to call from many threads.
    """

    name: str
    work_root: str
    """The folder on a machine under which each attempt has its own; on the data disk."""

    def ends_itself(self, recipe: Recipe) -> bool:
        """Say whether the machine can end its own rent: where not, the reaper alone is the guard."""
        ...

    def check(self, recipe: Recipe) -> None:
        """Refuse, before anything is rented, what this provider cannot do; raises BadInput with the remedy."""
        ...

    def offers(self, recipe: Recipe) -> Sequence[Offer]:
        """Give what fits `recipe.resources` and is free now, cheapest first, in the regions that it allows.

        Raises BadInput where a region or GPU is unknown here, naming the nearest known ones. Empty: no stock.
        """
        ...

    def create(self, recipe: Recipe, offer: Offer, *, name: str, image: str, count: int = 1) -> Machine:
        """Rent `count` machines of `offer` under `name`, booting `image`. Sent once, never repeated.

        Raises NoCapacity where nothing is free, Refused where the request is wrong (an unknown image),
        Ambiguous where it may or may not have acted.
        """
        ...

    def find(self, prefix: str) -> Sequence[Machine]:
        """List every machine whose name begins with `prefix`, whatever its status: the truth on what costs money."""
        ...

    def events(self, machines: Sequence[Machine]) -> Sequence[Event]:
        """Give what has happened to `machines`, oldest first; one that is no longer listed has a GONE event.

        One list call for all of them where the provider has one, else one call a machine.
        """
        ...

    def access(self, machine: Machine) -> Access | None:
        """Say how to reach it; None while the provider does not tell yet."""
        ...

    def refresh(self, machine: Machine) -> Machine:
        """Describe `machine` anew: unit, host, price, status. Raises NotFound."""
        ...

    def power_off(self, machine: Machine, *, snapshot: ImageRef | None = None) -> str:
        """Ask it to stop, saving its disk under `snapshot`; idempotent. Gives the saved image's reference, or ""."""
        ...

    def power_on(self, machine: Machine) -> None:
        """Start a machine that was powered off and kept; idempotent. Raises Refused where there is no such way."""
        ...

    def release(self, machine: Machine) -> None:
        """Ask for its end: nothing of it is billed afterwards. Idempotent; already gone is success."""
        ...

    def avoid(self, machine: Machine, *, why: str) -> bool:
        """Keep our next machines off its host; False where the provider has no such way."""
        ...

    def images(self) -> Sequence[Image]:
        """List the images that can be booted, as far as the provider lists them."""
        ...


class Factory(Protocol):
    """What each backend's module calls `open_backend`."""

    def __call__(self, account: Account, *, clock: Clock) -> Backend:
        """Make the backend for `account`; sends nothing yet."""
        ...


def names() -> Sequence[str]:
    """Name every backend: the public modules of this folder, by name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def nearest(name: str) -> str:
    """Say which backends are like `name`, for the end of a message."""
    close = difflib.get_close_matches(name, names(), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known are: {', '.join(names())}"


def load(name: str, settings: Settings, *, clock: Clock) -> Backend:
    """Open the backend `name`; raises BadInput where it is unknown, or has no token."""
    if name not in names():
        raise BadInput(f"there is no backend {name}; {nearest(name)}")
    return open_with(name, settings.account(name), clock=clock)


def open_with(name: str, account: Account, *, clock: Clock) -> Backend:
    """Open the backend `name`, which must be known, for one account with it; raises BadInput where it has no token."""
    if not account.token:
        raise BadInput(f"{name.upper()}_TOKEN is not set; get a token in the provider's console and export it")
    factory: Factory = importlib.import_module(f"{__name__}.{name}").open_backend
    return factory(account, clock=clock)


def catalogue(name: str) -> Catalogue:
    """Give the GPUs and regions that the provider's document names; needs no token and asks nobody."""
    found: Catalogue = importlib.import_module(f"{__name__}.{name}").CATALOGUE
    return found
