"""Train a small neural network on handwritten digits with plain numpy; runs on Python 3.8 and newer.

Reads EPOCHS, LR (the learning rate) and SEED from the environment. Writes to results/: metrics.json, model.npz and
learning_curve.svg. Prints one line an epoch.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from curve import learning_curve

USUAL = {"EPOCHS": "60", "LR": "0.02", "SEED": "1"}
HIDDEN = 256
BATCH = 16
MOMENTUM = 0.9
DECAY = 1e-4  # of the weights
HELD_OUT = 360  # of 1797 images, drawn by the seed and never trained on

if TYPE_CHECKING:  # Python 3.8 knows no dict[…] at run time
    Arrays = dict[str, np.ndarray]  # weights, their slopes or their speeds, by name
    Images = tuple[np.ndarray, np.ndarray]  # pixels (n, 64) from 0 to 1, and digits (n)
    Curves = dict[str, list[float]]  # accuracy after each epoch, by what it was measured on


def load(path: Path, dice: np.random.RandomState) -> Images:
    """Read rows of 64 pixels (0 to 16) and a digit; give images scaled to 0..1 and digits, shuffled by `dice`."""
    with gzip.open(str(path), "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.float64)
    rows = rows[dice.permutation(len(rows))]
    return rows[:, :-1] / 16.0, rows[:, -1].astype(int)


def split(images: Images) -> tuple[Images, Images]:
    """Give those to train on, and HELD_OUT others to test on."""
    pixels, digits = images
    return (pixels[HELD_OUT:], digits[HELD_OUT:]), (pixels[:HELD_OUT], digits[:HELD_OUT])


def new_model(dice: np.random.RandomState) -> Arrays:
    """Draw the weights of 64 pixels -> HIDDEN units -> 10 digits (He et al. 2015)."""
    return {
        "w1": dice.normal(0.0, np.sqrt(2.0 / 64), (64, HIDDEN)),
        "b1": np.zeros(HIDDEN),
        "w2": dice.normal(0.0, np.sqrt(2.0 / HIDDEN), (HIDDEN, 10)),
        "b2": np.zeros(10),
    }


def forward(model: Arrays, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the hidden units, (n, HIDDEN), and the probability of each digit, (n, 10)."""
    hidden = np.maximum(pixels @ model["w1"] + model["b1"], 0.0)
    scores = hidden @ model["w2"] + model["b2"]
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, powers / powers.sum(axis=1, keepdims=True)


def gradients(model: Arrays, pixels: np.ndarray, digits: np.ndarray) -> Arrays:
    """Give the cross-entropy's slope by each weight, averaged over the batch."""
    hidden, slope = forward(model, pixels)
    slope[np.arange(len(digits)), digits] -= 1.0
    slope /= len(digits)
    inner = (slope @ model["w2"].T) * (hidden > 0)
    return {"w1": pixels.T @ inner, "b1": inner.sum(axis=0), "w2": hidden.T @ slope, "b2": slope.sum(axis=0)}


def train_epoch(model: Arrays, speed: Arrays, images: Images, *, rate: float, dice: np.random.RandomState) -> None:
    """Go once through the images in random batches: gradient descent with momentum, changing `model` and `speed`."""
    pixels, digits = images
    order = dice.permutation(len(digits))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        for name, slope in gradients(model, pixels[batch], digits[batch]).items():
            speed[name] = MOMENTUM * speed[name] - rate * (slope + DECAY * model[name])
            model[name] += speed[name]


def accuracy(model: Arrays, images: Images) -> float:
    """Give the share of images that are read right, 0 to 1."""
    pixels, digits = images
    return float((forward(model, pixels)[1].argmax(axis=1) == digits).mean())


def train(
    images: Images, held_out: Images, *, epochs: int, rate: float, dice: np.random.RandomState
) -> tuple[Arrays, Curves]:
    """Train from random weights; give them with the accuracy after each epoch."""
    model = new_model(dice)
    speed = {name: np.zeros_like(weights) for name, weights in model.items()}
    curves: Curves = {"trained on": [], "held out": []}
    for epoch in range(1, epochs + 1):
        train_epoch(model, speed, images, rate=rate, dice=dice)
        for name, shown in (("trained on", images), ("held out", held_out)):
            curves[name].append(accuracy(model, shown))
        shares = "  ".join(f"{name} {values[-1]:.4f}" for name, values in curves.items())
        print(f"epoch {epoch:3d}/{epochs}  {shares}", flush=True)
    return model, curves


def settings() -> tuple[int, float, int]:
    """Read EPOCHS, LR and SEED; ends with a message where one is of no use."""
    try:
        epochs, rate, seed = (os.environ.get(name, usual) for name, usual in USUAL.items())
        found = int(epochs), float(rate), int(seed)
    except ValueError as error:
        sys.exit(f"EPOCHS, LR and SEED must be numbers: {error}")
    if found[0] < 1:
        sys.exit("EPOCHS must be at least 1")
    return found


def main() -> None:
    """Train, and write down what came of it."""
    epochs, rate, seed = settings()
    dice = np.random.RandomState(seed)
    images, held_out = split(load(Path(__file__).resolve().parent / "optdigits.csv.gz", dice))
    began = time.monotonic()
    model, curves = train(images, held_out, epochs=epochs, rate=rate, dice=dice)
    metrics = {
        "test_accuracy": curves["held out"][-1],
        "train_accuracy": curves["trained on"][-1],
        "epochs": epochs,
        "learning_rate": rate,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 2),
    }
    results = Path("results")
    results.mkdir(exist_ok=True)
    (results / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (results / "learning_curve.svg").write_text(learning_curve("Handwritten digits: accuracy by epoch", curves))
    np.savez(str(results / "model.npz"), **model)
    print(f"test accuracy {metrics['test_accuracy']:.4f} after {metrics['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
