# ruff: noqa: N815 -- the provider's own field names, as they stand in the JSON
"""The request bodies of MatrixDC's API. A pydantic ValidationError here becomes HTTP 400."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from fake_server.catalog import Sku
from fake_server.matrixdc_money import is_prepaid, periods
from fake_server.matrixdc_types import Order
from fake_server.refusal import Reason, Refused


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


def _check_path(path: str) -> str:
    parts = path.split("/")
    if parts[0] or path == "/" or any(part in {"", ".", ".."} for part in parts[1:]) or "\0" in path:
        raise ValueError("PathInContainer must be an absolute path below /")
    return path


class CostBody(_Body):
    """Cost: 1 by use, 2 by month, 3 by week, 4 by day."""

    CostType: Literal["1", "2", "3", "4"]
    CouponID: str = ""
    DiskSKUID: Literal["1"]
    GPUSKUID: Annotated[str, Field(min_length=1)]
    CostTime: str = ""


class VolumeBody(_Body):
    """A data disk; GB."""

    PathInContainer: Annotated[str, AfterValidator(_check_path)] = "/root/data"
    Size: Annotated[int, Field(ge=1)]
    Type: Literal["shared-filesystem"]


class CreateInstance(_Body):
    """POST instances."""

    Cost: CostBody
    VolumeMount: list[VolumeBody]
    namespace: Annotated[str, Field(min_length=1)]
    displayName: Annotated[str, Field(min_length=1)]
    image: Annotated[str, Field(min_length=1)]
    Region: Literal["", "北京一区", "host-cluster"] = ""

    def order(self, sku: Sku) -> Order:
        """Return it as the rules know it; Refused if its parts do not go together."""
        paths = [volume.PathInContainer for volume in self.VolumeMount]
        if len(set(paths)) != len(paths):
            raise Refused(Reason.BAD_REQUEST, "VolumeMount: 挂载路径重复")
        if self.Cost.CouponID and self.Cost.CostType != "1":
            raise Refused(Reason.BAD_REQUEST, "算力券只能用于按量的消费类型")
        if self.Cost.CostType != sku.selling_type:
            raise Refused(Reason.BAD_REQUEST, f"GPU规格 {sku.id} 不支持消费类型 {self.Cost.CostType}")
        periods, prepaid_s = self._prepaid()
        return Order(
            display_name=self.displayName,
            image=self.image,
            sku=sku,
            volumes=tuple((volume.PathInContainer, volume.Size) for volume in self.VolumeMount),
            coupon_id=self.Cost.CouponID,
            disk_sku_id=self.Cost.DiskSKUID,
            cost_time=self.Cost.CostTime,
            prepaid_cny=periods * sku.price_cny,
            prepaid_s=prepaid_s,
        )

    def _prepaid(self) -> tuple[int, float]:
        if not is_prepaid(self.Cost.CostType):
            return 0, 0.0
        if self.Cost.CostTime.startswith("+"):
            raise Refused(Reason.BAD_REQUEST, f"CostTime 不合法: {self.Cost.CostTime} 仅用于已有实例的续费")
        return periods(self.Cost.CostType, self.Cost.CostTime)


def _as_bool(value: object) -> object:
    words = {"true": True, "false": False, "": False}
    return words.get(value.strip().lower(), value) if isinstance(value, str) else value


def _as_int(value: object) -> object:
    if isinstance(value, str):
        return int(value) if value.strip() else 10
    return value


class PowerOff(_Body):
    """POST power_off. Grace and needSnapshot are typed string but sampled int and bool: both are read."""

    gracePeriodSeconds: Annotated[int, BeforeValidator(_as_int), Field(ge=0, le=3600)] = 10
    needSnapshot: Annotated[bool, BeforeValidator(_as_bool)] = False
    imageName: str = ""
    tag: str = ""
