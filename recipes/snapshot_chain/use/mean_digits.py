"""Write what each handwritten digit looks like on average: python mean_digits.py DATA.csv.gz RESULT.txt."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
from inkstats import as_text, mean_image


def main(data: str, result: str) -> None:
    """Read rows of 64 pixels and a digit; write ten pictures, and show the last."""
    with gzip.open(data, "rt") as file:
        rows = np.loadtxt(file, delimiter=",")
    pixels, digits = rows[:, :-1], rows[:, -1].astype(int)
    pictures = [
        f"{digit}, the mean of {(digits == digit).sum()}:\n{as_text(mean_image(pixels, digits, digit))}\n"
        for digit in range(10)
    ]
    Path(result).write_text("\n".join(pictures))
    print(pictures[-1], flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
