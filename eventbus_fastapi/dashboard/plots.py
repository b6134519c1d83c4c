"""Small plots as the paths of SVG: a line over time, and the area below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 300, 64
"""Of the view box; the page scales it."""
MARGIN = 3
"""Above the highest and below the lowest value."""


class Plot(NamedTuple):
    """A line of values over time."""

    line: str
    area: str
    most: float
    """The value at the top of the plot."""


def plot_of(values: Sequence[tuple[float, float]], *, start: float, end: float) -> Plot:
    """Return the plot of (time, value) pairs between two times. The bottom is 0."""
    inside = [(time, max(0.0, value)) for time, value in values if time >= start]
    most = max((value for _, value in inside), default=0.0)
    if len(inside) < 2 or end <= start:
        return Plot("", "", most)
    scale = (HEIGHT - 2 * MARGIN) / (most or 1.0)
    points = [(WIDTH * (time - start) / (end - start), HEIGHT - MARGIN - value * scale) for time, value in inside]
    line = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Plot(line, f"{line}L{points[-1][0]:.1f},{HEIGHT}L{points[0][0]:.1f},{HEIGHT}Z", most)
