"""How handwritten digits look on average; small enough to show how a package gets into a snapshot."""

from __future__ import annotations

import numpy as np

SHADES = " .:-=+*#%@"


def mean_image(pixels: np.ndarray, digits: np.ndarray, digit: int) -> np.ndarray:
    """Average the images (n, 64, values 0 to 16) of one digit; gives (8, 8)."""
    return pixels[digits == digit].mean(axis=0).reshape(8, 8)


def as_text(image: np.ndarray) -> str:
    """Draw an image (8, 8, values 0 to 16) in letters, two a pixel, so that it is about square."""
    steps = np.clip(image / 16 * len(SHADES), 0, len(SHADES) - 1).astype(int)
    return "\n".join("".join(SHADES[step] * 2 for step in row).rstrip() for row in steps)
