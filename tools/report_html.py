"""HTML parts of tools/report.py's page: figures with embedded files, tables, line charts, and the page with its style."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".mp4": "video/mp4"}
CHART_WIDTH, CHART_HEIGHT = 360, 170
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 22  # margins of a chart, for its labels

STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #626b7d; --paper: #fbfaf8; --card: #fff; --line: #e4e1dc;
  --a: #c2512b; --b: #2f6f9f; --good: #2e7d4f; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e1; --soft: #9aa2b1; --paper: #15171c; --card: #1d2027; --line: #30343d;
  --a: #f08a5d; --b: #6db3e0; --good: #6cc091; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
h1 { font-size: 2.3rem; line-height: 1.15; margin: 0 0 .5rem; letter-spacing: -.02em; }
h2 { font-size: 1.35rem; margin: 0 0 .75rem; } h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
.lead { font-size: 1.15rem; margin: 0; } .facts, figcaption { color: var(--soft); font-size: .88rem; }
nav { margin: 1.5rem 0 0; display: flex; flex-wrap: wrap; gap: .4rem 1.1rem; } nav a { color: var(--b); text-decoration: none; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 1.5rem; margin-top: 1.5rem; }
figure { margin: .9rem 0 0; min-width: 0; } figure img, figure video { width: 100%; display: block; border-radius: 8px; }
figcaption { margin-top: .35rem; } .pixelated { image-rendering: pixelated; }
.thirds { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 0 1rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: .5rem 1.5rem; }
.labeled { display: grid; grid-template-columns: 4.2rem 1fr; gap: .6rem; }
.labels { display: grid; grid-template-rows: repeat(6, 1fr); margin: .9rem 0 1.75rem; }
.labels span { align-self: center; text-align: right; color: var(--soft); font-size: .78rem; line-height: 1.2; }
.hero { display: flex; gap: .5rem; margin-top: 1.5rem; }
.hero video { flex: 1; min-width: 0; max-width: 360px; border-radius: 14px; }
.live { display: block; width: 100%; height: 46rem; margin-top: 1.5rem; border: 0; }
@media (max-width: 52rem) { .live { height: 68rem; } }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 1rem 1.5rem; }
.chart b { font-size: .9rem; font-weight: 600; } .chart svg { width: 100%; height: auto; display: block; }
.chart text { fill: var(--soft); font-size: 11px; } .chart .frame { stroke: var(--line); fill: none; }
.chart .mark { stroke: var(--soft); stroke-dasharray: 4 4; }
.chart polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.key { font-size: .82rem; margin-left: .8rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: .45rem .9rem .45rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
code { font: .85em/1.5 ui-monospace, "SF Mono", Consolas, monospace; overflow-wrap: anywhere; }
li { margin-bottom: .6rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
"""


class Curve(NamedTuple):
    """A line of a chart: ``points`` are (step, value)."""

    label: str
    points: Sequence[tuple[float, float]]


def inline(path: Path) -> str:
    """Return the file as a data: URL."""
    return f"data:{MEDIA_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def figure(path: Path, caption: str, pixelated: bool = False) -> str:
    """Return a full-width image. ``pixelated``: enlarge without smoothing, for low resolutions."""
    kind = ' class="pixelated"' if pixelated else ""
    return f'<figure><img{kind} src="{inline(path)}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'


def video_figure(path: Path, caption: str) -> str:
    """Return a looping video."""
    video = f'<video autoplay loop muted playsinline controls src="{inline(path)}"></video>'
    return f"<figure>{video}<figcaption>{escape(caption)}</figcaption></figure>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table. ``head`` is text; ``rows`` are HTML."""
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def section(title: str, body: str) -> str:
    return f'<section id="{anchor(title)}"><h2>{escape(title)}</h2>{body}</section>'


def anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def chart(title: str, curves: Sequence[Curve], mark: float | None = None) -> str:
    """Return an SVG line chart over steps, labeled with the axes' extremes; empty without points. ``mark``: a step to mark."""
    points = [(x, y) for curve in curves for x, y in curve.points if math.isfinite(y)]
    if not points:
        return ""
    xs, ys = zip(*points, strict=True)
    x_low, x_high, y_low, y_high = min(xs), max(xs), min(0.0, *ys), max(ys)
    x_scale = (CHART_WIDTH - LEFT - RIGHT) / ((x_high - x_low) or 1)
    y_scale = (CHART_HEIGHT - TOP - BOTTOM) / ((y_high - y_low) or 1)
    base = CHART_HEIGHT - BOTTOM

    def place(x: float, y: float) -> str:
        return f"{LEFT + (x - x_low) * x_scale:.1f},{base - (y - y_low) * y_scale:.1f}"

    lines, keys = [], []
    for curve, color in zip(curves, ("var(--a)", "var(--b)", "var(--good)"), strict=False):
        path = " ".join(place(x, y) for x, y in curve.points if math.isfinite(y))
        lines.append(f'<polyline points="{path}" style="stroke: {color}"/>')
        keys.append(f'<span class="key" style="color: {color}">{escape(curve.label)}</span>')
    if mark is not None:
        x = place(mark, y_low).split(",")[0]
        lines.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{TOP}" y2="{base}"/>')
    frame = f'<path class="frame" d="M{LEFT} {TOP}V{base}H{CHART_WIDTH - RIGHT}"/>'
    labels = (
        f'<text x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{y_high:.3g}</text>'
        f'<text x="{LEFT - 6}" y="{base}" text-anchor="end">{y_low:.3g}</text>'
        f'<text x="{LEFT}" y="{CHART_HEIGHT - 6}">{x_low:g}</text>'
        f'<text x="{CHART_WIDTH - RIGHT}" y="{CHART_HEIGHT - 6}" text-anchor="end">step {x_high:g}</text>'
    )
    svg = f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" aria-label="{escape(title)}">'
    return f'<div class="chart"><b>{escape(title)}</b>{"".join(keys)}{svg}{frame}{labels}{"".join(lines)}</svg></div>'


def page(title: str, introduction: str, sections: Sequence[str]) -> str:
    """Return the whole document, with links to the sections at the top."""
    titles = [part.split("<h2>", 1)[1].split("</h2>", 1)[0] for part in sections]
    links = "".join(f'<a href="#{anchor(name)}">{name}</a>' for name in titles)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><main><h1>{escape(title)}</h1>{introduction}<nav>{links}</nav>\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )
