"""What AutoDL has free, and at what price: it tells stock alone; a price is found by asking what is free below it."""

import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from gpujobs.backends._autodl_replies import GpuStock
from gpujobs.backends._autodl_wire import AutoDLClient
from gpujobs.backends._reading import gpu_key, nearest, unknown
from gpujobs.clock import Clock
from gpujobs.errors import BadInput, Refused
from gpujobs.models import Offer
from gpujobs.recipe import Recipe, Resources

# Appendix 1 of the API document.
REGIONS = {
    "westDC2": "西北企业区",
    "westDC3": "西北B区",
    "beijingDC1": "北京A区",
    "beijingDC2": "北京B区",
    "beijingDC4": "L20专区",
    "beijingDC3": "V100专区",
    "neimengDC1": "内蒙A区",
    "foshanDC1": "佛山区",
    "chongqingDC1": "重庆A区",
    "yangzhouDC1": "3090专区",
    "neimengDC3": "内蒙B区",
}
CNY = 1000  # prices are sent in CNY × 1000
PRICE_FROM = 10  # as in the document's samples; 0 could mean "not set"
PRICE_CAP_PER_GPU = 50_000  # CNY × 1000 per hour, where the recipe sets no max_price
_CUDA_FROM, _CUDA_TO = 113, 130  # the samples' lowest; the document gives no highest
_CPUS_TO, _MEMORY_TO_GB = 512, 2048
_STEP = 50  # CNY × 1000: prices are found to 0.05 CNY
_PRICED = 4
_AT_ONCE = 8
_KEPT_S = 600.0
_GPUS_A_HOST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    region: str
    said_region: str  # as the recipe writes it
    gpu: str
    count: int
    idle: int  # GPUs


def region_sign(text: str) -> str:
    """Give the region's code for its code in any case, or its Chinese name; raises BadInput with the nearest ones."""
    for sign, title in REGIONS.items():
        if text.casefold() in (sign.casefold(), title.casefold()):
            return sign
    raise unknown("region", text, REGIONS, provider="AutoDL", where="resources.infra")


def ranges(want: Resources, *, gpus: int = 1) -> Mapping[str, int]:
    """Give the ranges of a request that are not of price, for one of `gpus` equal parts of what is wanted."""
    cuda = want.cuda_at_least or _CUDA_FROM
    return {
        "cuda_v_from": cuda,
        "cuda_v_to": max(_CUDA_TO, cuda),
        "cpu_num_from": math.ceil(want.cpus / gpus),
        "cpu_num_to": _CPUS_TO,
        "memory_size_from": math.ceil(want.memory / gpus),
        "memory_size_to": _MEMORY_TO_GB,
    }


class StockBook:
    """AutoDL's offers. Prices found are kept for ten minutes and checked with one call when used again.

    Stock is counted in single GPUs, so for several of them in one container it may lie on several hosts, and a
    deployment may wait all the same. A container's price is taken to be that of the whole container.
    """

    def __init__(self, client: AutoDLClient, *, clock: Clock) -> None:
        """Ask through `client`."""
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._steps: dict[tuple[Any, ...], tuple[float, int]] = {}

    def offers(self, recipe: Recipe) -> Sequence[Offer]:
        """Give what is free for `recipe`, cheapest first.

        The four places with the most stock are priced, to 0.05 CNY upwards; of others the price stays at
        `max_price`, or unknown. AutoDL counts the hosts that we had blocked among what is free: where there may be no
        other, the offer is in doubt. Raises BadInput where a region or each of the GPUs is unknown.
        """
        want = recipe.resources
        places = _places(want)
        named = bool(want.regions_for("autodl"))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            stocks = _paired(places, list(pool.map(self._stock_of, places)), named=named)
            found = sorted(_candidates(want, places, stocks), key=lambda one: -one.idle)
            priced = pool.map(lambda pair: self._offer(want, pair[1], priced=pair[0] < _PRICED), enumerate(found))
            offers = [offer for offer in priced if offer is not None]
        if offers:
            blocked = self._blocked()
            offers = [_doubted(offer, blocked[region_sign(offer.region)]) for offer in offers]
        return sorted(offers, key=lambda one: (one.price_cny_per_h is None, one.price_cny_per_h or 0.0, -one.free))

    def _stock_of(self, region: str) -> Mapping[str, GpuStock] | Refused:
        try:
            return self._client.gpu_stock(region)
        except Refused as error:
            return error

    def _blocked(self) -> Mapping[str, int]:
        """Count the hosts that we had blocked, by region; none where AutoDL refuses to tell."""
        try:
            return Counter(host.data_center for host in self._client.blocked_hosts())
        except Refused:
            return Counter()

    def _offer(self, want: Resources, at: _Candidate, *, priced: bool) -> Offer | None:
        top = PRICE_CAP_PER_GPU if want.max_price is None else math.floor(want.max_price * CNY / at.count)
        step = self._cheapest_step(want, at, top) if priced else math.ceil(top / _STEP)
        idle = 0 if step is None else self._idle(want, at, min(step * _STEP, top))
        if step is None or idle < at.count:
            return None
        price = None if not priced and want.max_price is None else min(step * _STEP, top) * at.count / CNY
        return Offer(
            backend="autodl",
            region=at.said_region,
            gpu=at.gpu,
            gpu_count=at.count,
            gpu_memory_gb=None,
            cpus=None,
            memory_gb=None,
            price_cny_per_h=price,
            price_is_estimate=True,
            free=idle // at.count,
        )

    def _cheapest_step(self, want: Resources, at: _Candidate, top: int) -> int | None:
        """Find the lowest price, in steps up to `top`, below which enough is idle; None where there is none."""
        key = (at.region, at.gpu, at.count, tuple(ranges(want).values()))
        with self._lock:
            found_at, low = self._steps.get(key, (-math.inf, 0))
        if self._clock.monotonic() - found_at > _KEPT_S:
            low = 0
        elif low * _STEP <= top and self._idle(want, at, low * _STEP) >= at.count:
            return low
        high = math.ceil(top / _STEP)
        if self._idle(want, at, top) < at.count:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            if self._idle(want, at, middle * _STEP) >= at.count:
                high = middle
            else:
                low = middle
        with self._lock:
            self._steps[key] = (self._clock.monotonic(), high)
        return high

    def _idle(self, want: Resources, at: _Candidate, price_to: int) -> int:
        asked = {**ranges(want, gpus=at.count), "gpu_name_set": [at.gpu]}
        stock = self._client.gpu_stock(at.region, {**asked, "price_from": PRICE_FROM, "price_to": price_to})
        return stock.get(at.gpu, GpuStock()).idle_gpu_num


def _doubted(offer: Offer, blocked: int) -> Offer:
    """Mark an offer that no host may be behind but the `blocked` ones of its region; their GPUs are not told."""
    return replace(offer, in_doubt=offer.free * offer.gpu_count <= blocked * _GPUS_A_HOST) if blocked else offer


def _places(want: Resources) -> Mapping[str, str]:
    """Give the regions to ask, each with the word that the recipe has for it."""
    wanted = want.regions_for("autodl")
    if wanted is None:
        return {}
    return {region_sign(word): word for word in wanted} if wanted else {sign: sign for sign in REGIONS}


def _paired(
    places: Iterable[str], answers: Sequence[Mapping[str, GpuStock] | Refused], *, named: bool
) -> Mapping[str, Mapping[str, GpuStock]]:
    """Pair regions with their stock; one that AutoDL refuses counts as empty, unless the recipe names it."""
    refusals = [answer for answer in answers if isinstance(answer, Refused)]
    if refusals and (named or len(refusals) == len(answers)):
        raise refusals[0]
    return {
        region: {} if isinstance(answer, Refused) else answer for region, answer in zip(places, answers, strict=True)
    }


def _candidates(
    want: Resources, places: Mapping[str, str], stocks: Mapping[str, Mapping[str, GpuStock]]
) -> Sequence[_Candidate]:
    known = {gpu for stock in stocks.values() for gpu in stock}
    keys = {gpu_key(name) for name, _ in want.wanted}
    if places and not any(gpu_key(gpu) in keys for gpu in known):
        name = want.wanted[0][0]
        where = ", ".join(want.regions_for("autodl") or ()) or "any region"
        raise BadInput(
            f"AutoDL has no GPU {name!r} in {where}; nearest: {', '.join(nearest(name, known)) or 'none at all'}; "
            "mend resources.accelerators or resources.infra"
        )
    return [
        _Candidate(region=sign, said_region=word, gpu=gpu, count=count, idle=stock.idle_gpu_num)
        for sign, word in places.items()
        for gpu, stock in stocks[sign].items()
        for name, count in dict.fromkeys(want.wanted)
        if gpu_key(gpu) == gpu_key(name) and stock.idle_gpu_num >= count
    ]
