"""What a call of a function costs beside its own work, on the fake cloud: a no-op, and 200 MB there and back.

    python benchmarks/call.py

Seconds by the wall clock, the fake's own time to boot a machine included.
"""

import os
import sys
import tempfile
import time
from typing import Any

import numpy as np

from gpujobs import gpu_job

MEGABYTES = 200
KEYS = {"accelerators": "RTX 4090", "infra": "autodl", "max_duration": "10m", "workdir": "."}


@gpu_job(**KEYS)
def nothing() -> None:
    """Do nothing."""


@gpu_job(**KEYS)
def back(array: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Give the argument back."""
    return array


def main() -> None:
    """Measure and print."""
    from fake_server import FakeCloud  # noqa: PLC0415 - the machine imports this file too, and has no fake

    with tempfile.TemporaryDirectory() as home, FakeCloud(environment=True):
        os.environ.update({"GPUJOBS_HOME": home, "XDG_CONFIG_HOME": home})
        began_s = time.perf_counter()
        nothing.submit().result()
        print(f"a no-op, rented and released: {time.perf_counter() - began_s:.1f} s")
        array = np.ones(MEGABYTES * 125_000)
        began_s = time.perf_counter()
        assert np.array_equal(back.remote(array), array)
        print(f"{MEGABYTES} MB there and back: {time.perf_counter() - began_s:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
