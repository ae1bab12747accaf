"""The nouns of MatrixDC, in the fake's own units."""

from dataclasses import dataclass, field
from typing import Literal

from fake_server.catalog import Sku
from fake_server.spec import Endpoint

Status = Literal["Creating", "Running", "Starting", "Shutting Down", "Shutdown", "Deleting", "Failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A data disk of an instance. pvc names it and its folder."""

    path: str
    size_gb: int
    pvc: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a create call asks for. cost_time is "" when paid by use, else a count and D, W or M."""

    display_name: str
    image: str
    sku: Sku
    volumes: tuple[tuple[str, int], ...]
    coupon_id: str
    disk_sku_id: str
    cost_time: str
    prepaid_cny: float
    prepaid_s: float


@dataclass(slots=True, kw_only=True)
class Instance:
    """One instance. Times are simulated seconds since 1970."""

    name: str
    uid: str
    order: Order
    order_id: str
    volumes: tuple[Volume, ...]
    pod: str
    node: str
    ip: str
    token: str = field(repr=False)
    created_at: float
    status: Status = "Creating"
    updated_at: float | None = None
    stops_at: float | None = None
    password: str = field(default="", repr=False)
    endpoint: Endpoint | None = None
    holds_gpus: bool = False
    saving: tuple[str, str] | None = None
