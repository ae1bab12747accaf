"""Draw a learning curve as an SVG picture, with nothing but the standard library."""

from __future__ import annotations

WIDTH, HEIGHT, MARGIN = 640, 400, 56
COLOURS = ("#888888", "#00aa66", "#cc5500")
TICKS = 5


def learning_curve(title: str, curves: dict[str, list[float]]) -> str:
    """Draw shares (0 to 1) by epoch, one line a name, from the lowest tenth at most 0.9 up to 1."""
    floor = min(0.9, int(10 * min(min(values) for values in curves.values())) / 10)
    parts = [*frame(title, max(len(values) for values in curves.values())), *grid(floor)]
    for row, (name, values) in enumerate(curves.items()):
        colour = COLOURS[row % len(COLOURS)]
        line = " ".join(
            f"{x_of(epoch, len(values)):.1f},{y_of(value, floor):.1f}" for epoch, value in enumerate(values)
        )
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = HEIGHT - MARGIN - 20 * (len(curves) - row) + 8
        parts.append(text(WIDTH - MARGIN - 8, y, f"{name}: {values[-1]:.3f}", anchor="end", colour=colour))
    return "\n".join([*parts, "</svg>", ""])


def x_of(epoch: int, epochs: int) -> float:
    return MARGIN + (WIDTH - 2 * MARGIN) * epoch / max(1, epochs - 1)


def y_of(value: float, floor: float) -> float:
    return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - floor) / (1 - floor)


def frame(title: str, epochs: int) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(WIDTH / 2, 28, title),
        text(WIDTH / 2, HEIGHT - 14, f"epoch (1 to {epochs})"),
    ]


def grid(floor: float) -> list[str]:
    parts = []
    for step in range(TICKS + 1):
        value = floor + (1 - floor) * step / TICKS
        y = y_of(value, floor)
        parts.append(f'<path d="M{MARGIN} {y:.1f}H{WIDTH - MARGIN}" stroke="#dddddd"/>')
        parts.append(text(MARGIN - 8, y + 5, f"{value:.2f}", anchor="end"))
    return parts


def text(x: float, y: float, words: str, anchor: str = "middle", colour: str = "black") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="14" text-anchor="{anchor}" fill="{colour}">{words}</text>'
