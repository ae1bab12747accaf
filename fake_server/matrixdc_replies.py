"""The shapes of MatrixDC's replies: field names, order and quirks as in the provider's document."""

from typing import Any

from fake_server.catalog import MATRIXDC_REGION, Sku
from fake_server.matrixdc_rules import MatrixdcCloud
from fake_server.matrixdc_types import Instance, Volume
from fake_server.timings import Guesses
from fake_server.wire import timestamp

_NULL_TIME = "0001-01-01T00:00:00Z"
_ANNOTATION_HOST = "demo.cdc.datenfab.com"


def region() -> dict[str, Any]:
    """The one row of GET regions."""
    return {
        "id": MATRIXDC_REGION.id,
        "region": MATRIXDC_REGION.name,
        "clusterName": MATRIXDC_REGION.cluster_name,
        "harborAddr": MATRIXDC_REGION.harbor_addr,
        "howlerID": MATRIXDC_REGION.howler_id,
        "createdAt": MATRIXDC_REGION.created_at,
        "updatedAt": MATRIXDC_REGION.created_at,
    }


def sku(each: Sku, idle: int, guesses: Guesses) -> dict[str, Any]:
    """One row of GET skus/computings. memoryCount and gpuMemory are GB."""
    return {
        "name": each.gpu,
        "regionID": MATRIXDC_REGION.id,
        "cpuArch": "x86-64",
        "cpuSeries": "Inter Xeon",
        "cpucores": each.cpus,
        "memoryCount": each.memory_gb,
        "cpuVendor": "Inter",
        "gpuSeries": each.gpu,
        "gpuProduct": each.gpu,
        "gpuResourceKey": _resource_key(each),
        "gpuCounts": each.gpu_count,
        "gpuMemory": each.gpu_memory_gb,
        "systemstorage": 30,
        "datastorage": 50,
        "skusID": each.id,
        "regionName": MATRIXDC_REGION.name,
        "clusterName": MATRIXDC_REGION.cluster_name,
        "sellingType": each.selling_type,
        "ratio": each.ratio,
        "discountID": "10000",
        "discountStartTime": "2024-08-15T15:26:38+08:00",
        "discountEndTime": "2024-10-01T00:05:00+08:00",
        "price": _whole_if_whole(each.price_cny * guesses.matrixdc_price_per_cny),
        "remainGPUCount": idle,
    }


def instance(each: Instance, cloud: MatrixdcCloud) -> dict[str, Any]:
    """An instance: `servers` and `Pods` only while it runs."""
    order = each.order
    reply = {
        "name": each.name,
        "namespace": cloud.namespace,
        "Region": MATRIXDC_REGION.cluster_name,
        "displayName": order.display_name,
        "description": "",
        "annotations": _annotations(each, cloud.guesses),
        "uid": each.uid,
        "servers": _servers(each),
        "image": order.image,
        "replicas": 1,
        "resources": {
            "cpu": str(order.sku.cpus),
            "memory": f"{order.sku.memory_gb}Gi",
            "GPUNum": str(order.sku.gpu_count),
            "GPUType": order.sku.gpu,
        },
        "volumeMounts": [_SYSTEM_DISK, *(_volume(volume, each) for volume in each.volumes)],
        "creationTimestamp": timestamp(each.created_at),
        "updateTimestamp": _timestamp_or_null(each.updated_at),
        "ScheduleStopTimestamp": _timestamp_or_null(each.stops_at),
        "status": each.status,
        "cost": {
            "CostType": order.sku.selling_type,
            "CostTime": order.cost_time,
            "DiscountID": "",
            "GPUSKUID": order.sku.id,
            "DiskSKUID": order.disk_sku_id,
            "CouponID": order.coupon_id,
        },
        "Pods": [{"Name": each.pod, "Containers": [{"Name": "worker"}], "nodeScheduled": each.node, "ip": each.ip}],
    }
    if each.status != "Running":
        del reply["servers"], reply["Pods"]
    return reply


_SYSTEM_DISK = {
    "PathInContainer": "/",
    "Type": "local-filesystem",
    "Size": 30,
    "PVCName": "",
    "displayName": "系统盘",
    "filesystemType": "system",
}


def _volume(volume: Volume, each: Instance) -> dict[str, Any]:
    return {
        "PathInContainer": volume.path,
        "Type": "shared-filesystem",
        "Size": 0 if each.status == "Creating" else volume.size_gb,
        "PVCName": volume.pvc,
        "displayName": f"磁盘-{volume.pvc}",
        "filesystemType": "data",
    }


def _annotations(each: Instance, guesses: Guesses) -> dict[str, str]:
    order = each.order
    values = {
        "cost-coupon-id": order.coupon_id,
        "cost-discount-id": "",
        "cost-disk-sku-id": order.disk_sku_id,
        "cost-gpu-sku-id": order.sku.id,
        "cost-order-id": each.order_id,
        "cost-time": order.cost_time,
        "cost-type": order.sku.selling_type,
        "description": "",
        "display-name": order.display_name,
        "gpu.machine": order.sku.gpu,
        "gpu.resource.key": _resource_key(order.sku),
        "region": MATRIXDC_REGION.cluster_name,
        "saveDataEnabled": "false",
        "unit-price": str(_whole_if_whole(order.sku.price_cny * guesses.matrixdc_unit_price_per_cny)),
    }
    return {f"{_ANNOTATION_HOST}/{key}": value for key, value in values.items()}


def _servers(each: Instance) -> dict[str, Any]:
    host, port = (each.endpoint.host, each.endpoint.port) if each.endpoint else ("", 0)
    return {
        "Jupyterlab": f"http://{each.uid}.gw.neolink-ai.com/jupyter?token={each.token}",
        "Tensorboard": f"http://{each.uid}.gw.neolink-ai.com/monitor",
        "SSH": {"sshAddr": f"ssh -p{port} root@{host}", "sshPassword": each.password},
    }


def _resource_key(each: Sku) -> str:
    return f"nvidia.com/gpu-{each.gpu.lower()}"


def _whole_if_whole(amount: float) -> float:
    return int(amount) if amount == int(amount) else amount


def _timestamp_or_null(at: float | None) -> str:
    return _NULL_TIME if at is None else timestamp(at)
