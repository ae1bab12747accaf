"""What MatrixDC rents, where and at what price: its regions and sizes."""

import threading
from collections.abc import Mapping, Sequence

from gpujobs.backends._matrixdc_wire import MatrixDCClient, Region, Sku
from gpujobs.backends._reading import gpu_key, unknown
from gpujobs.clock import Clock
from gpujobs.errors import BadInput
from gpujobs.models import Offer
from gpujobs.recipe import Recipe
from gpujobs.settings import Account

_BACKEND = "matrixdc"
_REGIONS_KEPT_S = 600.0
_HOURS = {"1": 1, "2": 30 * 24, "3": 7 * 24, "4": 24}


class Market:
    """MatrixDC's offers. Regions are kept for ten minutes. Safe for many threads."""

    def __init__(self, client: MatrixDCClient, *, account: Account, clock: Clock) -> None:
        """Ask through `client`; `account` says how prices are read."""
        self._client = client
        self._account = account
        self._clock = clock
        self._lock = threading.Lock()
        self._regions: tuple[float, Sequence[Region]] | None = None
        self._prices: dict[str, float] = {}  # by size, as the last offers had them

    def offers(self, recipe: Recipe) -> Sequence[Offer]:
        """Give the sizes that fit and are free, cheapest first.

        Raises BadInput where a region is unknown, or where no size could ever fit.
        """
        places = self._places(recipe.resources.regions_for(_BACKEND))
        selling = str(recipe.matrixdc.cost_type)
        sizes = [(word, sku) for word, region in places.items() for sku in self._client.skus(region.id)]
        sold = [(word, sku) for word, sku in sizes if sku.selling_type in ("", selling)]
        if sizes and not sold:
            raise BadInput(f"MatrixDC sells nothing by matrixdc.cost_type {selling} there; leave it out")
        fitting = self._fitting(recipe, sold)
        offers = [self._offer(word, sku) for word, sku in fitting if sku.remain_gpu_count >= sku.gpu_counts]
        affordable = [offer for offer in offers if _within(offer.price_cny_per_h, recipe.resources.max_price)]
        return sorted(affordable, key=lambda one: (one.price_cny_per_h is None, one.price_cny_per_h or 0.0))

    def price_of(self, sku: str) -> float | None:
        """Give the price of a size in CNY per hour, None where no offer has told it yet."""
        return self._prices.get(sku)

    def clusters(self) -> Sequence[str]:
        """Name every cluster once."""
        return list(dict.fromkeys(region.cluster_name for region in self._all_regions()))

    def region(self, word: str) -> Region:
        """Give the region with this name, cluster or id; raises BadInput with the nearest ones."""
        regions = self._all_regions()
        for region in regions:
            if word.casefold() in (region.region.casefold(), region.cluster_name.casefold(), region.id.casefold()):
                return region
        known = [name for region in regions for name in (region.region, region.cluster_name)]
        raise unknown("region", word, known, provider="MatrixDC", where="resources.infra")

    def _all_regions(self) -> Sequence[Region]:
        with self._lock:
            kept = self._regions
        if kept is not None and self._clock.monotonic() - kept[0] < _REGIONS_KEPT_S:
            return kept[1]
        regions = self._client.regions()
        with self._lock:
            self._regions = (self._clock.monotonic(), regions)
        return regions

    def _places(self, wanted: Sequence[str] | None) -> Mapping[str, Region]:
        """Give the regions to ask, each by the word that the recipe has for it."""
        if wanted is None:
            return {}
        if not wanted:
            return {region.cluster_name: region for region in self._all_regions()}
        return {word: self.region(word) for word in wanted}

    def _fitting(self, recipe: Recipe, sizes: Sequence[tuple[str, Sku]]) -> Sequence[tuple[str, Sku]]:
        """Keep the sizes that the recipe fits into; raises BadInput where none ever could."""
        want = recipe.resources
        keys = {(gpu_key(name), count) for name, count in want.wanted}
        named = [(word, sku) for word, sku in sizes if gpu_key(sku.name) in {key for key, _ in keys}]
        if sizes and not named:
            known = {sku.name for _, sku in sizes}
            raise unknown("GPU", want.wanted[0][0], known, provider="MatrixDC", where="resources.accelerators")
        counted = [(word, sku) for word, sku in named if (gpu_key(sku.name), sku.gpu_counts) in keys]
        if named and not counted:
            counts = ", ".join(sorted({f"{sku.name}:{sku.gpu_counts}" for _, sku in named}))
            raise BadInput(f"MatrixDC rents {counts}; mend the count in resources.accelerators")
        fitting = [
            (word, sku) for word, sku in counted if sku.cpucores >= want.cpus and sku.memory_count >= want.memory
        ]
        if counted and not fitting:
            best = max((sku for _, sku in counted), key=lambda sku: (sku.memory_count, sku.cpucores))
            raise BadInput(
                f"MatrixDC's {best.name} x{best.gpu_counts} has {best.cpucores} CPUs and {best.memory_count:g} GB; "
                "lower resources.cpus or resources.memory"
            )
        return fitting

    def _offer(self, word: str, sku: Sku) -> Offer:
        price = self._price(sku)
        if price is not None:
            self._prices[sku.skus_id] = price
        return Offer(
            backend=_BACKEND,
            region=word,
            gpu=sku.name,
            gpu_count=sku.gpu_counts,
            gpu_memory_gb=sku.gpu_memory or None,
            cpus=sku.cpucores,
            memory_gb=sku.memory_count,
            price_cny_per_h=price,
            price_is_estimate=True,
            free=sku.remain_gpu_count // max(sku.gpu_counts, 1),
            sku=sku.skus_id,
        )

    def _price(self, sku: Sku) -> float | None:
        """Read a size's price: the one place that knows what its unit is taken to be.

        It is taken as CNY for the time that the size is sold by, an hour, day, week or month of 30 days.
        """
        return None if sku.price is None else sku.price * self._account.price_scale / _HOURS.get(sku.selling_type, 1)


def _within(price: float | None, most: float | None) -> bool:
    return most is None or (price is not None and price <= most)
