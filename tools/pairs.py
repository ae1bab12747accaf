"""A run killed at every place, and again at every place of its recovery; counts what was covered and what broke.

    python tools/pairs.py [--backend autodl] [--fault create-lost_reply] [--part 1 --parts 4] [--every 1]
    python tools/pairs.py --once [--backend autodl] [--fault create-lost_reply]

With `--once` each run is killed once, and resumed, and again left to the reaper; under each fault where none is given.
Exit code 1 where a promise was broken. A pair that is named is shown again by `live(world, dies_at=FIRST)` and
`recover(world, dies_at=SECOND)`.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

PROJECT = Path(__file__).parent.parent


def main() -> int:
    """Kill, judge, and tell."""
    sys.path.insert(0, str(PROJECT))
    pairs = import_module("tests.crash.pairs")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--backend", choices=("autodl", "matrixdc"), default="autodl")
    parser.add_argument("--fault", choices=sorted(pairs.NAMED), help="what goes wrong at the provider meanwhile")
    parser.add_argument("--part", type=int, default=1, help="judge this part of the states after a second kill")
    parser.add_argument("--parts", type=int, default=1, help="of so many")
    parser.add_argument("--every", type=int, default=1, help="follow each so manieth of the states after a first kill")
    parser.add_argument("--once", action="store_true", help="kill once, at every place, under each fault")
    given = parser.parse_args()
    if given.once:
        faults = [given.fault] if given.fault else [None, *pairs.NAMED]
        return _once(pairs, given.backend, faults, given.every)
    chosen = {"part": given.part, "parts": given.parts, "every": given.every}
    with pairs.kills_of(given.backend, pairs.NAMED.get(given.fault), **chosen) as kills:
        figures = kills.kill(lambda line: print(line, file=sys.stderr, flush=True))
    print("\n".join((f"{given.backend}, {given.fault or 'no fault'}", *figures.lines())))
    return 1 if figures.found else 0


def _once(pairs: ModuleType, backend: str, faults: Sequence[str | None], every: int) -> int:
    broke = 0
    for fault in faults:
        with pairs.kills_of(backend, pairs.NAMED.get(fault)) as kills:
            places, states, found = pairs.kill_once(kills.world, kills.begin, every)
        broke += len(found)
        counts = f"{places} places, {states} states, {len(found)} broke a promise"
        print("\n".join((f"{backend}, {fault or 'no fault'}: {counts}", *found)), flush=True)
    return 1 if broke else 0


if __name__ == "__main__":
    sys.exit(main())
