"""The picture of a run: downtime over memory, both axes logarithmic, as an SVG file that needs nothing to be drawn.

Lines join the medians over the open link, dots are single moves, and diamonds the medians over a bounded link.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from .move import Result

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 40, 60
# So far from its line stands what would lie upon it.
BESIDE = 14
COLOURS = {"godwit": "#0b6e4f", "podman": "#b3541e"}


def write(path: Path, results: Sequence[Result]) -> None:
    """Draws what was measured; nothing if nothing was."""
    if not results:
        return
    scale = _Scale(results)
    parts = [*_axes(scale), *_lines(scale, results), *_legend()]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', *parts, "</svg>"]) + "\n")


class _Scale:
    """From megabytes and milliseconds to the picture."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.sizes = sorted({result.case.n_mib for result in results})
        times = [sample.downtime_ms for result in results for sample in result.samples]
        self.decades = range(math.floor(math.log10(max(1, min(times)))), math.ceil(math.log10(max(times))) + 1)
        self._first, self._last = math.log2(self.sizes[0]) - 1, math.log2(self.sizes[-1]) + 1

    def x(self, n_mib: int) -> float:
        share = (math.log2(n_mib) - self._first) / (self._last - self._first)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, ms: float) -> float:
        share = (math.log10(max(1, ms)) - self.decades[0]) / (self.decades[-1] - self.decades[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _axes(scale: _Scale) -> Iterator[str]:
    yield _text(LEFT, 22, "Downtime that a client sees when a Redis moves", size=15)
    for decade in scale.decades:
        ms = 10**decade
        yield _line([(LEFT, scale.y(ms)), (WIDTH - RIGHT, scale.y(ms))], "#dddddd")
        yield _text(LEFT - 8, scale.y(ms) + 4, f"{ms} ms" if ms < 1000 else f"{ms // 1000} s", anchor="end")
    for size in scale.sizes:
        yield _line([(scale.x(size), TOP), (scale.x(size), HEIGHT - BOTTOM)], "#eeeeee")
        yield _text(scale.x(size), HEIGHT - BOTTOM + 18, f"{size} MB" if size < 1024 else f"{size // 1024} GB", anchor="middle")
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, "memory that Redis holds", anchor="middle")


def _lines(scale: _Scale, results: Sequence[Result]) -> Iterator[str]:
    for name, colour in COLOURS.items():
        medians = []
        for result in results:
            times = result.ours() if name == "godwit" else result.peer()
            x, median = scale.x(result.case.n_mib), statistics.median(times)
            if result.case.megabits is None:
                medians.append((x, scale.y(median)))
                for ms in times:
                    yield f'<circle cx="{x:.1f}" cy="{scale.y(ms):.1f}" r="3" fill="{colour}" fill-opacity="0.45"/>'
            else:
                yield _diamond(x - BESIDE, scale.y(median), colour, filled=result.case.writes is not None)
        if medians:
            yield _line(medians, colour, width=2)
            yield _text(medians[-1][0] + BESIDE, medians[-1][1] + 4, name, colour=colour)


def _legend() -> Iterator[str]:
    left = WIDTH - RIGHT + 16
    yield _line([(left - 6, TOP + 10), (left + 6, TOP + 10)], "#555555", width=2)
    yield _text(left + 12, TOP + 14, "median, open link")
    yield f'<circle cx="{left}" cy="{TOP + 30}" r="3" fill="#555555" fill-opacity="0.45"/>'
    yield _text(left + 12, TOP + 34, "one move")
    yield _diamond(left, TOP + 50, "#555555", filled=False)
    yield _text(left + 12, TOP + 54, "median, 1 Gbit/s")
    yield _diamond(left, TOP + 70, "#555555", filled=True)
    yield _text(left + 12, TOP + 74, "the same, under writes")


def _line(points: Sequence[tuple[float, float]], colour: str, width: int = 1) -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _diamond(x: float, y: float, colour: str, *, filled: bool) -> str:
    inside = colour if filled else "white"
    return f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z" fill="{inside}" stroke="{colour}" stroke-width="2"/>'


def _text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12, colour: str = "#222222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{escape(words)}</text>'
