"""Which learning rate is best for reading digits: 24 trainings on 4 rented machines, one bill, and a picture.

    python examples/study.py [--fake] [--infra autodl] [--machines 4] [--epochs 20] [--picture study.svg]

Each cell of the study, a learning rate and a seed, is one call of `train`. The network and its data are those of
recipes/digits, in plain numpy, which the images of both clouds have.
"""

from __future__ import annotations  # a machine's Python may be 3.8

import argparse
import math
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from gpujobs import gpu_job

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
SEEDS = (1, 2, 3, 4)
TENSORFLOW = "images.neolink-ai.com/matrixdc/tensorflow:2.15.0-python3.10-cuda12.1.0-cudnn8-devel-ubuntu22.04"
WIDTH, HEIGHT, MARGIN = 640, 400, 56


@dataclass
class Cell:
    """What one training came to."""

    rate: float
    seed: int
    accuracy: float  # the share of 360 images, never trained on, that are read right
    machine: str


def train(rate: float, seed: int, epochs: int) -> Cell:
    """Train the network of recipes/digits once."""
    here = Path(__file__).resolve().parent
    digits = here / "digits" if (here / "digits").is_dir() else here.parent / "recipes/digits"
    sys.path.insert(0, str(digits))
    import numpy as np
    import train as network

    dice = np.random.RandomState(seed)
    images, held_out = network.split(network.load(digits / "optdigits.csv.gz", dice))
    _, curves = network.train(images, held_out, epochs=epochs, rate=rate, dice=dice)
    return Cell(rate, seed, curves["held out"][-1], os.environ.get("GPUJOBS_MACHINE", "here"))


def draw(cells: Sequence[Cell]) -> str:
    """Draw accuracy over learning rate as an SVG picture: a dot for each training, a line through the means."""
    low, high = (math.log10(rate) for rate in (min(RATES), max(RATES)))
    floor = math.floor(10 * min(cell.accuracy for cell in cells)) / 10

    def at(rate: float, accuracy: float) -> tuple[float, float]:
        across, up = (math.log10(rate) - low) / (high - low), (accuracy - floor) / (1 - floor)
        return MARGIN + (WIDTH - 2 * MARGIN) * across, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * up

    def words(x: float, y: float, text: str) -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" font-size="14" text-anchor="middle">{text}</text>'

    means = [at(rate, statistics.fmean(cell.accuracy for cell in cells if cell.rate == rate)) for rate in RATES]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in means)
    dots = [at(cell.rate, cell.accuracy) for cell in cells]
    levels = [floor + (1 - floor) * step / 5 for step in range(6)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        words(WIDTH / 2, 28, "Handwritten digits: share read right, by learning rate"),
        *(f'<path d="M{MARGIN} {at(RATES[0], one)[1]:.1f}H{WIDTH - MARGIN}" stroke="#dddddd"/>' for one in levels),
        *(words(MARGIN / 2, at(RATES[0], one)[1] + 5, f"{one:.2f}") for one in levels),
        *(words(at(rate, floor)[0], HEIGHT - 30, f"{rate:g}") for rate in RATES),
        f'<polyline points="{line}" fill="none" stroke="#00aa66" stroke-width="2"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#cc5500" fill-opacity="0.6"/>' for x, y in dots),
    ]
    return "\n".join([*parts, "</svg>", ""])


def main(words: Sequence[str] | None = None, *, each: Callable[[Cell], object] = print) -> Sequence[Cell]:
    """Run the study as the command line says; `each` is told of a cell as it is done. Gives all, in order."""
    parser = argparse.ArgumentParser(description="24 trainings on rented machines, one bill, and a picture")
    parser.add_argument("--infra", nargs="*", default=[], help="where to rent; left out: wherever you have a token")
    parser.add_argument("--machines", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--picture", type=Path, default=Path("study.svg"))
    parser.add_argument("--fake", action="store_true", help="rehearse on a fake cloud, renting nothing")
    asked = parser.parse_args(words)
    if asked.fake:
        from fake_server import FakeCloud

        with FakeCloud(environment=True):
            return main([word for word in words or sys.argv[1:] if word != "--fake"], each=each)
    on_gpus = gpu_job(
        accelerators=["RTX 4090", "4090"],
        infra=asked.infra,
        image={
            "autodl": "base-image-l2t43iu6uk",  # PyTorch 2.0.0, Python 3.8, CUDA 11.8
            "matrixdc": TENSORFLOW,
        },
        workdir=".",
        file_mounts={"./digits": "../recipes/digits"},
        max_duration="1h",
        budget=20,
    )(train)
    cells = [(rate, seed, asked.epochs) for rate, seed in product(RATES, SEEDS)]
    results = on_gpus.starmap(cells, machines=asked.machines)
    found: dict[int, Cell] = {}
    for index, cell in results.as_completed():
        found[index] = cell
        each(cell)
    asked.picture.write_text(draw(list(found.values())), encoding="utf-8")
    best = max(RATES, key=lambda rate: statistics.fmean(cell.accuracy for cell in found.values() if cell.rate == rate))
    print(f"best learning rate: {best:g}; picture: {asked.picture}; run {results.run_id}: {results.cost:.4f} CNY")
    return [found[index] for index in range(len(cells))]


if __name__ == "__main__":
    main()
