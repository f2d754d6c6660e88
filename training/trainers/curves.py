"""A picture of how a training went."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PANEL, MARGIN, COLUMNS = (480, 300), 50, 2
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b")

Curve = tuple[str, list[float], list[float]]  # (name, steps, values)


def read_curve(log_history: Sequence[dict], name: str) -> Curve:
    """The finite values of one metric in a trainer's log."""
    points = [(entry["step"], entry[name]) for entry in log_history if math.isfinite(entry.get(name, math.nan))]
    return name, [step for step, _ in points], [value for _, value in points]


def draw_curves(log_history: Sequence[dict], panels: dict[str, Sequence[str]], path: Path) -> Path | None:
    """
    Draws metrics over steps as a PNG.

    Args:
        log_history (sequence of `dict`): `trainer.state.log_history`.
        panels (`dict[str, Sequence[str]]`): title of a panel → metrics in it. Panels without any value are left out.
        path (`Path`): the file.

    Returns:
        `Path | None`: the file, or `None` where there was nothing to draw.
    """
    drawn = {title: [read_curve(log_history, name) for name in names] for title, names in panels.items()}
    drawn = {title: kept for title, curves in drawn.items() if (kept := [curve for curve in curves if curve[1]])}
    if not drawn:
        return None
    rows = math.ceil(len(drawn) / COLUMNS)
    picture = Image.new("RGB", (PANEL[0] * min(COLUMNS, len(drawn)), PANEL[1] * rows), "white")
    for place, (title, curves) in enumerate(drawn.items()):
        panel = Image.new("RGB", PANEL, "white")
        _draw_panel(ImageDraw.Draw(panel), title, curves)
        picture.paste(panel, (place % COLUMNS * PANEL[0], place // COLUMNS * PANEL[1]))
    picture.save(path)
    return path


def _draw_panel(draw: ImageDraw.ImageDraw, title: str, curves: list[Curve]) -> None:
    left, top, right, bottom = MARGIN, 40, PANEL[0] - 15, PANEL[1] - 30
    steps = [step for _, of_curve, _ in curves for step in of_curve]
    values = [value for _, _, of_curve in curves for value in of_curve]
    low_x, high_x, low_y, high_y = min(steps), max(steps), min(values), max(values)

    def position(step: float, value: float) -> tuple[float, float]:
        x = (step - low_x) / (high_x - low_x or 1)
        y = (value - low_y) / (high_y - low_y or 1)
        return left + x * (right - left), bottom - y * (bottom - top)

    font = ImageFont.load_default(12)
    draw.rectangle((left, top, right, bottom), outline="#999999")
    draw.text((left, 4), title, fill="black", font=ImageFont.load_default(14))
    for value, y in ((high_y, top), (low_y, bottom - 12)):
        draw.text((4, y), f"{value:.3g}", fill="black", font=font)
    draw.text((left, bottom + 5), f"{low_x:g}", fill="black", font=font)
    draw.text((right, bottom + 5), f"step {high_x:g}", fill="black", font=font, anchor="ra")
    x = left
    for (name, of_steps, of_values), colour in zip(curves, COLOURS * 2, strict=False):
        points = [position(*point) for point in zip(of_steps, of_values, strict=True)]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2)
        for centre_x, centre_y in points if len(points) < 30 else ():
            draw.ellipse((centre_x - 2, centre_y - 2, centre_x + 2, centre_y + 2), fill=colour)
        shown = name.rpartition("/")[2]
        draw.text((x, 22), shown, fill=colour, font=font)
        x += draw.textlength(shown, font=font) + 12
