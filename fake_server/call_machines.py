"""Which machines a call is about, by id and by the name that their owner gave them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from flask import request

from fake_server.world import World

_FIELDS = ("deployment_uuid", "deployment_container_uuid", "name", "displayName")


def machines_of_call(world: World, values: Mapping[str, str]) -> set[str]:
    """Return every id and name of the machines that the present request names, in its path, query or body."""
    said = {str(value) for value in _said(values) if value}
    with world.ground.lock:
        return said | {name for each in _families(world) if each & said for name in each}


def _said(values: Mapping[str, str]) -> Iterator[Any]:
    yield from values.values()
    yield from (request.args.get(field) for field in _FIELDS)
    body = _body()
    yield from (body.get(field) for field in _FIELDS)


def _body() -> Mapping[str, Any]:
    try:
        body = json.loads(request.get_data() or b"{}")
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _families(world: World) -> Iterator[set[str]]:
    """Yield the names that mean the same: an instance's two, or those of a deployment and all its containers."""
    for instance in world.matrixdc.instances.values():
        yield {instance.name, instance.order.display_name}
    for deployment in world.autodl.deployments.values():
        containers = {each.uuid for each in world.autodl.containers_of(deployment)}
        yield {deployment.uuid, deployment.name} | containers
