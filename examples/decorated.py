"""Fit a line on a rented GPU machine, from Python: python examples/decorated.py [--fake]."""

import random
import sys
from dataclasses import dataclass

from gpujobs import gpu_job


@dataclass
class Fit:
    """The line that was found, and how far it is from the points."""

    slope: float
    offset: float
    loss: float


@gpu_job(accelerators=["RTX 4090", "4090"], max_duration="10m", budget=5, workdir=".")
def fit(points: "list[tuple[float, float]]", learning_rate: float, steps: int = 200) -> Fit:
    """Descend the mean squared error of a line through `points`."""
    slope = offset = loss = 0.0
    for step in range(steps):
        errors = [(slope * x + offset - y, x) for x, y in points]
        loss = sum(error**2 for error, _ in errors) / len(points)
        slope -= learning_rate * 2 * sum(error * x for error, x in errors) / len(points)
        offset -= learning_rate * 2 * sum(error for error, _ in errors) / len(points)
        if step % 50 == 0:
            print(f"step {step}: loss {loss:.4f}")
    return Fit(slope, offset, loss)


def main() -> None:
    """Fit on a machine, two learning rates side by side, and print the better line."""
    dice = random.Random(7)
    points = [(x / 50, 3 * x / 50 + 1 + dice.gauss(0, 0.1)) for x in range(100)]
    jobs = [fit.submit(points, rate) for rate in (0.01, 0.1)]
    best = min((job.result() for job in jobs), key=lambda found: found.loss)
    print(f"y = {best.slope:.2f} x + {best.offset:.2f}, loss {best.loss:.4f}")
    for job in jobs:
        print(f"run {job.run_id}: {job.cost:.4f} CNY")


if __name__ == "__main__":
    if "--fake" in sys.argv:
        from fake_server import FakeCloud

        with FakeCloud(environment=True):
            main()
    else:
        main()
