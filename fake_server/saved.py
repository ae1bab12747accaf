"""What of a world is written into its state folder, and how a world goes on from there."""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter

from fake_server.autodl_fleet import CachedDisk
from fake_server.autodl_types import Ban, Container, Deployment, Event
from fake_server.call_log import KEPT_CALLS
from fake_server.matrixdc_types import Instance
from fake_server.store import FORMAT, Key, Store
from fake_server.truth import Command, MachineTruth

if TYPE_CHECKING:
    from fake_server.world import World

_Thing = TypeVar("_Thing")


class Keeper:
    """Writes a world down and reads it back. Called with the world's lock held."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._commands_saved: dict[str, int] = {}
        self._calls_saved = 0
        self._texts: dict[Key, tuple[Any, str]] = {}  # by the values that the text was made of
        clock = dict(store.things("meta")).get("clock")
        self.empty = clock is None
        self.lives = 1 if clock is None else clock["lives"] + 1
        """The how-manieth start of a fake on this folder it is."""

    def start_at(self) -> float:
        """Return the time at which the world goes on.

        While no fake runs its clock goes on as real time does, or slower if it went slower; a standing one stands.
        """
        clock = dict(self._store.things("meta")).get("clock")
        if clock is None:
            return time.time()
        away_s = max(0.0, time.time() - clock["real_at"])
        return float(clock["at"] + away_s * min(clock["speed"], 1.0))

    def save(self, world: "World") -> None:
        """Write what has changed; once it returns, it stays, even if this process is killed."""
        truth = world.ground.truth.machines
        log = world.ground.call_log
        calls = list(log.calls)[-(log.total - self._calls_saved) :] if log.total > self._calls_saved else []
        things = dict(self._things(world))
        self._store.save(
            things,
            commands=list(self._new_commands(truth.values())),
            calls=[json.dumps(call, ensure_ascii=False) for call in calls],
        )
        self._calls_saved = log.total
        self._commands_saved.update((machine.id, len(machine.commands)) for machine in truth.values())
        if len(self._texts) > len(things):
            self._texts = {key: text for key, text in self._texts.items() if key in things}

    def load(self, world: "World") -> None:
        """Let an empty world be what was saved, and go on."""
        if self.empty:
            return
        self._load_truth(world)
        self._load_autodl(world)
        self._load_matrixdc(world)

    def close(self) -> None:
        """Let go of the file."""
        self._store.close()

    def _things(self, world: "World") -> Iterator[tuple[Key, str]]:
        ground, autodl, matrixdc = world.ground, world.autodl, world.matrixdc
        clock = {
            "at": ground.timeline.now(),
            "real_at": time.time(),
            "speed": ground.timeline.speed,
            "lives": self.lives,
        }
        idle, bans, cache = autodl.fleet.saved()
        packages = autodl.packages.saved(clock["at"])
        yield ("meta", "format"), FORMAT
        yield ("meta", "clock"), json.dumps(clock)
        yield ("meta", "calls"), json.dumps(ground.calls)
        yield ("meta", "autodl"), json.dumps({"serial": autodl.serial, "idle": idle, "packages": packages})
        yield ("meta", "matrixdc"), json.dumps({"idle": matrixdc.idle, "coupons": matrixdc.coupons})
        for deployment in autodl.deployments.values():
            yield self._text(("deployment", deployment.uuid), deployment, _deployment_text)
        container_text = _ContainerText(autodl.events)
        for container in autodl.containers.values():
            yield self._text(("container", container.uuid), container, container_text)
        for ban in bans:
            yield ("ban", ban.host.machine_id), json.dumps(_row(_BAN, ban, exclude={"host"}))
        for cached in cache:
            row = _row(_CACHED, cached, exclude={"host"}) | {"host": cached.host.machine_id}
            yield ("cached", cached.container_uuid), json.dumps(row)
        for instance in matrixdc.instances.values():
            yield self._text(("instance", instance.name), instance, _instance_text)
        for image, folder in matrixdc.images.items():
            yield ("image", image), json.dumps(folder.name)
        for machine in ground.truth.machines.values():
            yield self._text(("machine", machine.id), machine, _machine_text)

    def _text(self, key: Key, value: _Thing, encode: Callable[[_Thing], str]) -> tuple[Key, str]:
        """Return key and text of a thing, made anew only if one of its fields is not what it was."""
        values = _FIELDS[type(value)](value)
        seen = self._texts.get(key)
        if seen is None or seen[0] != values:
            seen = self._texts[key] = values, encode(value)
        return key, seen[1]

    def _new_commands(self, machines: Iterable[MachineTruth]) -> Iterator[tuple[str, str]]:
        for machine in machines:
            for command in machine.commands[self._commands_saved.get(machine.id, 0) :]:
                yield machine.id, json.dumps(asdict(command), ensure_ascii=False)

    def _load_truth(self, world: "World") -> None:
        ground = world.ground
        for _, row in self._store.things("machine"):
            ground.truth.made(_MACHINE.validate_python(row))
        for machine, row in self._store.commands():
            ground.truth.machines[machine].commands.append(Command(**row))
        for call in self._store.calls(latest=KEPT_CALLS):
            ground.call_log.add(call)
        ground.calls.update(dict(self._store.things("meta"))["calls"])
        self._calls_saved = ground.call_log.total
        self._commands_saved = {machine.id: len(machine.commands) for machine in ground.truth.machines.values()}

    def _load_autodl(self, world: "World") -> None:
        autodl = world.autodl
        hosts = {host.machine_id: host for host in autodl.fleet.hosts}
        saved = dict(self._store.things("meta"))["autodl"]
        deployments = {uuid: _DEPLOYMENT.validate_python(row) for uuid, row in self._store.things("deployment")}
        containers: dict[str, Container] = {}
        events: list[Event] = []
        for uuid, row in self._store.things("container"):
            body = row["container"]
            parts = {"deployment": deployments[body["deployment"]], "host": hosts[body["host"]]}
            containers[uuid] = _CONTAINER.validate_python(body | parts)
            events += [Event(container_uuid=uuid, status=status, at=at) for status, at in row["events"]]
        bans = [_BAN.validate_python(row | {"host": hosts[host]}) for host, row in self._store.things("ban")]
        cache = [_CACHED.validate_python(row | {"host": hosts[row["host"]]}) for _, row in self._store.things("cached")]
        autodl.fleet.restore(saved["idle"], bans, cache)
        autodl.packages.restore(saved["packages"], dict(self._store.things("meta"))["clock"]["at"])
        disks = {each.disk for each in containers.values() if not each.ended} | {each.disk for each in cache}
        for kind in ("disks", "tmp"):
            _sweep(world.ground.folder / "autodl" / kind, disks)
        autodl.restore(deployments, containers, sorted(events, key=lambda event: event.at), saved["serial"])

    def _load_matrixdc(self, world: "World") -> None:
        matrixdc, folder = world.matrixdc, world.ground.folder / "matrixdc"
        instances = {name: _INSTANCE.validate_python(row) for name, row in self._store.things("instance")}
        images = {image: folder / "images" / name for image, name in self._store.things("image")}
        _sweep(folder / "disks", set(instances))
        _sweep(folder / "images", {image.name for image in images.values()})
        _sweep(folder / "volumes", {volume.pvc for each in instances.values() for volume in each.volumes})
        saved = dict(self._store.things("meta"))["matrixdc"]
        matrixdc.restore(instances, images, saved["idle"], saved["coupons"])


def _sweep(folder: Path, known: set[str]) -> None:
    """Remove what a killed fake was about to remove, or had half copied."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in known:
            shutil.rmtree(path, ignore_errors=True)


def _row(adapter: TypeAdapter[Any], value: object, *, exclude: set[str]) -> dict[str, Any]:
    row: dict[str, Any] = adapter.dump_python(value, mode="json", exclude=exclude)
    return row


class _ContainerText:
    """Encodes containers with their events, which change only when a container's status does."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._all = events

    def __call__(self, container: Container) -> str:
        row = _row(_CONTAINER, container, exclude={"deployment", "host"})
        row |= {"deployment": container.deployment.uuid, "host": container.host.machine_id}
        return json.dumps({"container": row, "events": self._events.get(container.uuid, [])})

    @cached_property
    def _events(self) -> dict[str, list[tuple[str, float]]]:
        found: dict[str, list[tuple[str, float]]] = {}
        for event in self._all:
            found.setdefault(event.container_uuid, []).append((event.status, event.at))
        return found


def _deployment_text(deployment: Deployment) -> str:
    return _DEPLOYMENT.dump_json(deployment).decode()


def _instance_text(instance: Instance) -> str:
    return _INSTANCE.dump_json(instance).decode()


def _machine_text(machine: MachineTruth) -> str:
    return json.dumps(_row(_MACHINE, machine, exclude={"commands"}))


def _fields_of(kind: type[Any], *, but: str = "") -> Callable[[Any], tuple[Any, ...]]:
    """Return what reads all fields of a dataclass; each of their values is immutable, or written elsewhere."""
    return attrgetter(*(each.name for each in fields(kind) if each.name != but))


_DEPLOYMENT = TypeAdapter(Deployment)
_CONTAINER = TypeAdapter(Container)
_BAN = TypeAdapter(Ban)
_CACHED = TypeAdapter(CachedDisk)
_INSTANCE = TypeAdapter(Instance)
_MACHINE = TypeAdapter(MachineTruth)
_FIELDS: dict[type[Any], Callable[[Any], tuple[Any, ...]]] = {
    Deployment: _fields_of(Deployment),
    Container: _fields_of(Container, but="deployment"),
    Instance: _fields_of(Instance),
    MachineTruth: _fields_of(MachineTruth, but="commands"),
}
