"""The shapes of AutoDL's replies: field names, order, units and paging as in the provider's document."""

from collections.abc import Sequence
from typing import Any

from fake_server.autodl_requests import ContainerList, Paged, moment, open_span
from fake_server.autodl_rules import AutodlCloud, image_name
from fake_server.autodl_types import BOOTING, Ban, Container, Deployment, Event, Template
from fake_server.catalog import AUTODL_USER_ID, PrepaidHours, PrivateImage
from fake_server.distortion import events_as_told
from fake_server.wire import timestamp

_GIB = 2**30
_DEFAULT_PAGE_SIZE = 10


def page(rows: Sequence[dict[str, Any]], asked: Paged | ContainerList) -> dict[str, Any]:
    """Return one page of rows that are newest first. Index 0 is the first page, size 0 the default."""
    size = asked.page_size or _DEFAULT_PAGE_SIZE
    start = asked.offset + (max(asked.page_index, 1) - 1) * size
    return {
        "list": list(rows[start : start + size]),
        "page_index": asked.page_index,
        "page_size": size,
        "offset": asked.offset,
        "max_page": max(1, -(-len(rows) // size)),
    }


def private_image(image: PrivateImage) -> dict[str, Any]:
    """One row of image/private/list."""
    at = timestamp(image.created_at)
    return {
        "id": image.id,
        "created_at": at,
        "updated_at": at,
        "image_uuid": image.uuid,
        "image_name": image.name,
        "status": "finished",
    }


def deployment(each: Deployment, containers: Sequence[Container]) -> dict[str, Any]:
    """One row of deployment/list."""
    return {
        "id": each.id,
        "uid": int(AUTODL_USER_ID),
        "uuid": each.uuid,
        "name": each.name,
        "deployment_type": each.kind,
        "status": each.status,
        "replica_num": each.replica_num,
        "parallelism_num": each.parallelism_num,
        "reuse_container": each.reuse_container,
        "service_port_protocol": each.deprecated_port_protocol,
        "service_6006_port_protocol": each.port_protocols[0],
        "service_6008_port_protocol": each.port_protocols[1],
        "starting_num": sum(container.status in BOOTING for container in containers),
        "running_num": sum(container.status == "running" for container in containers),
        "finished_num": each.finished_num,
        "image_uuid": each.template.image_uuid,
        "template": _template(each.template),
        "price_estimates": 0,
        "created_at": timestamp(each.created_at),
        "updated_at": timestamp(each.updated_at),
        "stopped_at": _timestamp_or_null(each.stopped_at),
    }


def _template(template: Template) -> dict[str, Any]:
    return {
        "region_sign": template.deprecated_region_sign,
        "dc_list": list(template.data_centers),
        "gpu_name_set": list(template.gpu_names),
        "gpu_num": template.gpu_count,
        "image_uuid": template.image_uuid,
        "image_name": image_name(template.image_uuid),
        "cmd": template.cmd,
        "cmd_before_shutdown": template.cmd_before_shutdown,
        "memory_size_from": template.memory_gb.low * _GIB,
        "memory_size_to": template.memory_gb.high * _GIB,
        "cpu_num_from": template.cpus.low,
        "cpu_num_to": template.cpus.high,
        "price_from": template.price_milli_cny_per_h.low,
        "price_to": template.price_milli_cny_per_h.high,
        "cuda_v_from": template.cuda_v.low,
        "cuda_v_to": template.cuda_v.high,
    }


def event(each: Event) -> dict[str, Any]:
    """One row of deployment/container/event/list."""
    return {
        "deployment_container_uuid": each.container_uuid,
        "status": each.status,
        "created_at": timestamp(each.at),
    }


def events_of(cloud: AutodlCloud, deployment_uuid: str, container_uuid: str) -> list[dict[str, Any]]:
    """Return a deployment's events, newest first; of ties the later one first."""
    mine = {each.uuid for each in cloud.containers_of(cloud.deployment(deployment_uuid))}
    wanted = mine & {container_uuid} if container_uuid else mine
    return events_as_told([event(each) for each in reversed(cloud.events) if each.container_uuid in wanted])


def container(each: Container) -> dict[str, Any]:
    """One row of deployment/container/list. Memory is in bytes, price in 元 × 1000 an hour."""
    return {
        "id": each.id,
        "uuid": each.uuid,
        "version": each.deployment.version,
        "data_center": each.host.data_center,
        "machine_id": each.host.machine_id,
        "deployment_uuid": each.deployment.uuid,
        "status": each.status,
        "gpu_name": each.host.gpu_name,
        "gpu_num": each.gpu_count,
        "cpu_num": each.cpus,
        "memory_size": each.memory_gb * _GIB,
        "image_uuid": each.deployment.template.image_uuid,
        "price": each.price_milli_cny_per_h,
        "info": _info(each),
        "started_at": _timestamp_or_null(each.started_at),
        "stopped_at": _timestamp_or_null(each.stopped_at),
        "created_at": timestamp(each.created_at),
        "updated_at": timestamp(each.updated_at),
    }


def _info(each: Container) -> dict[str, Any]:
    """How to reach it: empty until it runs. Containers share this host's loopback, so their ports are its ports."""
    to = each.endpoint if each.status in {"running", "shutting_down"} else None
    scheme = "http://" if each.deployment.port_protocols[0] == "http" else ""
    return {
        "ssh_command": f"ssh -p {to.port} root@{to.host}" if to else "",
        "root_password": each.password if to else "",
        "service_6006_port_url": f"{scheme}{to.host}:6006" if to else "",
        "service_6008_port_url": f"{to.host}:6008" if to else "",
        "service_url": "",
        "proxy_host": "",
        "custom_port": 0,
    }


def filtered(containers: Sequence[Container], asked: ContainerList) -> list[Container]:
    """Return the containers that the filters let through, newest first."""
    return [each for each in reversed(containers) if _passes(each, asked)]


def _passes(each: Container, asked: ContainerList) -> bool:
    named = (
        (asked.container_uuid, each.uuid),
        (asked.gpu_name, each.host.gpu_name),
    )
    ranged = (
        (asked.cpu_num_from, asked.cpu_num_to, each.cpus),
        (asked.memory_size_from, asked.memory_size_to, each.memory_gb),
        (asked.price_from, asked.price_to, each.price_milli_cny_per_h),
        (_moment_or_zero(asked.date_from), _moment_or_zero(asked.date_to), each.created_at),
    )
    return (
        each.ended == asked.released
        and (not asked.status or each.status in asked.status)
        and all(wanted in ("", value) for wanted, value in named)
        and all(value in open_span(low, high) for low, high, value in ranged)
    )


def ban(each: Ban) -> dict[str, Any]:
    """One row of GET deployment/blacklist."""
    return {
        "created_at": timestamp(each.created_at),
        "data_center": each.host.data_center,
        "expired_time": timestamp(each.expires_at),
        "machine_id": each.host.machine_id,
        "msg": each.comment,
        "updated_at": timestamp(each.updated_at),
    }


def prepaid(each: PrepaidHours, left_s: int) -> dict[str, Any]:
    """One row of ddp/overview; seconds."""
    return {
        "gpu_type": each.gpu_type,
        "total": each.total_s,
        "balance": left_s,
        "dc_list": ",".join(each.data_centers),
    }


def _moment_or_zero(text: str) -> float:
    return moment(text) if text else 0.0


def _timestamp_or_null(at: float | None) -> str | None:
    return None if at is None else timestamp(at)
