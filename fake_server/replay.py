"""python -m fake_server.replay FILE [--url URL]: play a recording against a fake, and say where it answers differently.

Statuses, AutoDL's codes and the shapes of replies are compared, not their values; ids that the fake made anew stand in
for the recorded ones. Of reads that were put again and again only the last counts, and it is repeated for a while until
it is answered as recorded: machines take their time.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from fake_server.recorder import STARS

_SPEED_LIMIT_S = 60.0
_TIMEOUT_S = 60.0
_IDS = frozenset(
    {"deployment_uuid", "uuid", "deployment_container_uuid", "container_uuid", "machine_id", "name", "id", "uid"}
)
_READS = ("/list", "/gpu_stock")
_PAUSE_S = 0.05


@dataclass(kw_only=True)
class Player:
    """Plays recorded calls against one fake. Idempotent reads wait up to `patience_s` for the recorded shape."""

    url: str
    token: str
    namespace: str
    control_token: str
    speed: float = 1.0
    patience_s: float = 10.0
    ids: dict[str, str] = field(default_factory=dict)
    session: requests.Session = field(default_factory=requests.Session)

    def play(self, calls: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """Yield each difference as a line of text: the call's number, what it was, what differs."""
        began, origin = time.monotonic(), _began(calls)
        for number, call in _without_polls(calls):
            due = (call["seconds"] - origin) / self.speed
            time.sleep(min(_SPEED_LIMIT_S, max(0.0, began + due - time.monotonic())))
            for difference in self._call(call):
                yield f"{number}: {call['method']} {call['path']}: {difference}"

    def _call(self, call: Mapping[str, Any]) -> Sequence[str]:
        deadline = time.monotonic() + (self.patience_s if _reads(call) and call["cut"] is None else 0.0)
        while True:
            given, reply = self._send(call)
            found = list(_differences(call, given, reply))
            if not found or time.monotonic() > deadline:
                self._learn(call["reply"], reply)
                return found
            time.sleep(_PAUSE_S)

    def _send(self, call: Mapping[str, Any]) -> tuple[str, Any]:
        query = f"?{call['query']}" if call["query"] else ""
        body = None if call["body"] is None else self._translated(json.dumps(call["body"], ensure_ascii=False)).encode()
        try:
            got = self.session.request(
                call["method"],
                self.url + self._translated(call["path"] + query),
                data=body,
                headers=self._headers(call["path"]),
                timeout=_TIMEOUT_S,
            )
        except requests.RequestException:
            return "cut", None
        return str(got.status_code), _parsed(got.text)

    def _headers(self, path: str) -> dict[str, str]:
        if path.startswith("/_fake/"):
            return {"X-Fake-Control": self.control_token}
        if path.startswith("/mdc/"):
            return {"Authorization": f"bearer {self.token}", "namespace": self.namespace, **_JSON}
        return {"Authorization": self.token, **_JSON}

    def _translated(self, text: str) -> str:
        for recorded in sorted(self.ids, key=len, reverse=True):
            text = text.replace(recorded, self.ids[recorded])
        return text

    def _learn(self, recorded: Any, given: Any) -> None:
        if isinstance(recorded, dict) and isinstance(given, dict):
            for key in recorded.keys() & given.keys():
                self._learn_one(key, recorded[key], given[key])
        elif isinstance(recorded, list) and isinstance(given, list):
            for old, new in zip(recorded, given, strict=False):
                self._learn(old, new)

    def _learn_one(self, key: str, recorded: Any, given: Any) -> None:
        if key in _IDS and isinstance(recorded, str) and isinstance(given, str) and len(recorded) >= _SHORTEST_ID:
            if recorded != given:
                self.ids[recorded] = given
        else:
            self._learn(recorded, given)


_JSON = {"Content-Type": "application/json"}
_SHORTEST_ID = 8


def _began(calls: Sequence[Mapping[str, Any]]) -> float:
    return float(calls[0]["seconds"]) if calls else 0.0


def _without_polls(calls: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Leave out each read that was put again before anything was changed."""
    again: set[str] = set()
    kept: list[tuple[int, Mapping[str, Any]]] = []
    for number, call in reversed(list(enumerate(calls, start=1))):
        if not _reads(call):
            again.clear()
        elif (question := json.dumps([call["method"], call["path"], call["query"], call["body"]])) in again:
            continue
        else:
            again.add(question)
        kept.append((number, call))
    return iter(kept[::-1])


def _reads(call: Mapping[str, Any]) -> bool:
    return call["method"] == "GET" or str(call["path"]).endswith(_READS)


def _differences(call: Mapping[str, Any], status: str, reply: Any) -> Iterator[str]:
    recorded = "cut" if call["cut"] else str(call["status"])
    if recorded != status:
        yield f"answered {status}, recorded {recorded}"
    elif not call["cut"]:
        yield from _shapes(call["reply"], reply, "reply")


def _shapes(recorded: Any, given: Any, at: str) -> Iterator[str]:
    if isinstance(recorded, dict) and isinstance(given, dict):
        yield from (f"{at} lacks {key}" for key in recorded if key not in given)
        yield from (f"{at} has {key}, which was not recorded" for key in given if key not in recorded)
        for key in recorded.keys() & given.keys():
            yield from _shapes(recorded[key], given[key], f"{at}.{key}")
    elif isinstance(recorded, list) and isinstance(given, list):
        if bool(recorded) != bool(given):
            yield f"{at} has {len(given)} rows, recorded {len(recorded)}"
        elif recorded:
            yield from _shapes(recorded[0], given[0], f"{at}[0]")
    elif at == "reply.code" and recorded != given:
        yield f"{at} is {given}, recorded {recorded}"
    elif _kind(recorded) != _kind(given) and STARS not in (recorded, given):
        yield f"{at} is {_kind(given)}, recorded {_kind(recorded)}"


def _kind(value: Any) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def _parsed(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


def read(file: Path) -> list[dict[str, Any]]:
    """Read a recording: JSON Lines, or the JSON list that the control room gives. ValueError if it is neither."""
    text = file.read_text(encoding="utf-8")
    calls = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines() if line]
    if not all(isinstance(call, dict) and call.keys() >= {"method", "path", "reply", "seconds"} for call in calls):
        raise ValueError(f"{file} is no recording of this fake")
    return list(calls)


def main(argv: Sequence[str] | None = None) -> int:
    """Play the file; 0 if every call is answered as recorded, 1 if not, 2 if it could not be played."""
    asked = _arguments(argv)
    player = Player(
        url=asked.url.rstrip("/"),
        token=asked.token,
        namespace=asked.namespace,
        control_token=asked.control_token,
        speed=asked.speed,
        patience_s=asked.patience,
    )
    try:
        calls = read(asked.file)
        player.session.get(player.url, timeout=_TIMEOUT_S)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"replay: {error}\n")
        return 2
    differences = 0
    for text in player.play(calls):
        differences += 1
        sys.stdout.write(text + "\n")
    sys.stdout.write(f"{len(calls)} calls, {differences} differences\n")
    return 1 if differences else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fake_server.replay", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8700", help="where the fake listens (default %(default)s)")
    parser.add_argument("--token", default="fake-token")
    parser.add_argument("--namespace", default="fake-user")
    parser.add_argument("--control-token", default="fake-control")
    parser.add_argument("--speed", type=float, default=1.0, help="how many times faster than it was recorded")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds that a read may take to look as recorded")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
