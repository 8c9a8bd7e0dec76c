"""Write an HTML report of a quickstart folder: commands, curves, samples, views, videos, meshes, a photo in 3D, scores.

    python -m tools.report quickstart

Images and videos are embedded, so the page works offline and as a single file. Missing parts of the folder are omitted. See
auto_bash/quickstart.sh for the layout of the folder.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from common.arguments import ArgumentParser
from common.errors import UserError
from common.files import read_json, require_file, write_atomically
from common.program import run_script
from tools.report_html import Curve, chart, figure, inline, page, section, table, video_figure
from visualization.images import QUANTITIES

CHARTS: dict[str, dict[str, str]] = {
    "GAN losses": {"D/gan": "discriminator", "G/gan": "generator"},
    "Pose predicted from an image (MSE)": {"D/pose": "discriminator", "G/pose": "generator"},
    "Hit rate: share of rays with a surface": {"G/hit_rate": "hit rate"},
    "Surface terms": {"G/opacity_prior": "opacity prior", "G/normal": "normal smoothness", "G/ball_hold": "ball regularization"},
}
IMAGE_SCORES = (
    ("fd", "Perceptual Fréchet distance of images (lower is better)"),
    ("precision", "Precision: share of generated images close to a real one"),
    ("recall", "Recall: share of real images close to a generated one"),
    ("swd", "SWD of images, × 10³ (lower is better)"),
)
MAX_POINTS = 300  # of a curve
MAX_NUMBER = 1e100
MAX_LOG_BYTES = 1 << 28
LIVE_PAGE = "live.html"  # of export_web.py
MAX_INLINE_BYTES = 1 << 26  # of an image or a video


@dataclass(frozen=True)
class Step:
    """A command of the quickstart. ``status``: ok, or a description of the error."""

    title: str
    seconds: int
    status: str
    command: str


def read_steps(path: Path) -> list[Step]:
    """Read lines of ``title, seconds, status, command``, separated by tabs; malformed lines are skipped."""
    steps = []
    for line in read_lines(path):
        fields = line.split("\t", 3)
        if len(fields) == 4 and fields[1].isdecimal() and len(fields[1]) < 10:
            steps.append(Step(fields[0], int(fields[1]), fields[2], fields[3]))
    return steps


def read_record(path: Path) -> dict[str, Any]:
    """Return the dictionary in ``path``, empty if it cannot be read."""
    try:
        return read_json(path)
    except UserError:
        return {}


def part_of(record: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the dictionary under ``key``, empty if there is none."""
    part = record.get(key)
    return part if isinstance(part, dict) else {}


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file, empty if it cannot be read or has more than MAX_LOG_BYTES."""
    try:
        if require_file(path).stat().st_size <= MAX_LOG_BYTES:
            return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (UserError, OSError):
        pass
    return []


def read_log(path: Path) -> dict[int, dict[str, float]]:
    """Return the scalars of a log.jsonl by step. Truncated lines are skipped; of a repeated step, the last values count."""
    log: dict[int, dict[str, float]] = {}
    for line in read_lines(path):
        try:
            scalars = {name: value for name, value in json.loads(line).items() if is_number(value)}
            log.setdefault(int(scalars["step"]), {}).update(scalars)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return dict(sorted(log.items()))


def commands_section(steps: list[Step]) -> str:
    if not steps:
        return ""
    rows = []
    for step in steps:
        bad = step.status != "ok"
        shown = f'<span class="{"bad" if bad else "good"}">{escape(step.status)}</span>'
        rows.append([escape(step.title), f"<code>{escape(step.command)}</code>", f"{step.seconds} s", shown])
    total = sum(step.seconds for step in steps)
    duration = f"{total // 60} min {total % 60} s"
    note = f"<p>{len(steps)} commands, {duration}. Each can be repeated separately from the project's folder.</p>"
    return section("Commands", note + table(["step", "command", "time", "result"], rows))


def data_section(folder: Path) -> str:
    sheet, meta = folder / "data.png", read_record(folder / "heads" / "meta.json")
    if not files_in(folder, sheet.name):
        return ""
    count = (
        f"{whole(meta['num_images'])} procedural heads at {whole(meta['image_size'])} px"
        if {"num_images", "image_size"} <= set(meta)
        else ""
    )
    caption = f"{count or 'Real images'}, each with its exact depth, normals, mask and pose. Training uses only the images."
    return section("The data", figure(sheet, caption, pixelated=True))


def training_section(folder: Path) -> str:
    own = read_log(folder / "train" / "log.jsonl")
    history = read_log(folder / "history.jsonl")
    first_own = min(own) if own and history else None
    log = {step: scalars for step, scalars in history.items() if first_own is None or step < first_own} | own
    parts = []
    if len(log) > 1:
        charts = []
        for title, names in CHARTS.items():
            curves = [Curve(label, thinned([(s, v[key]) for s, v in log.items() if key in v])) for key, label in names.items()]
            charts.append(chart(title, [curve for curve in curves if len(curve.points) > 1], mark=first_own))
        mark = " The dashed line marks where the quickstart continued from the pretrained checkpoint." if first_own else ""
        parts.append(f"<p>Steps {min(log)} to {max(log)}.{mark}</p><div class='charts'>{''.join(charts)}</div>")
    samples = files_in(folder / "train" / "samples", "*.png")
    if samples:
        legend = "Six latents (rows), three views each: image, depth, normals, mask. No truncation (psi 1)."
        parts.append(figure(samples[0], f"Before: step {int_or_name(samples[0])}. {legend}", pixelated=True))
    if len(samples) > 1:
        parts.append(figure(samples[-1], f"After: step {int_or_name(samples[-1])}, the same latents.", pixelated=True))
    return section("Training", "".join(parts)) if parts else ""


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Reduce a curve to at most MAX_POINTS by averaging over equal intervals."""
    run = -(-len(points) // MAX_POINTS)
    groups = [points[i : i + run] for i in range(0, len(points), max(run, 1))]
    return [(group[len(group) // 2][0], sum(value for _, value in group) / len(group)) for group in groups]


def files_in(folder: Path, pattern: str) -> list[Path]:
    """Return the regular files matching ``pattern``, sorted, of at most MAX_INLINE_BYTES."""
    found = (path for path in folder.glob(pattern) if path.is_file())
    return sorted(path for path in found if path.stat().st_size <= MAX_INLINE_BYTES)


def int_or_name(path: Path) -> str:
    return str(int(path.stem)) if path.stem.isdecimal() else path.stem


def views_section(folder: Path) -> str:
    grids = files_in(folder / "imgs", "grid_*.png")
    if not grids:
        return ""
    labels = "".join(f"<span>{name.replace('_', ' ')}</span>" for name in QUANTITIES)
    figures = []
    for grid in grids:
        image = figure(grid, f"seed {grid.stem.removeprefix('grid_')}")
        figures.append(f"<div class='labeled'><div class='labels'>{labels}</div>{image}</div>")
    note = (
        "<p>One latent from five views. <b>Surface depth</b>, <b>mask</b> and <b>normals</b> describe the surface found by root"
        " finding. The <b>surface image</b> shows the color at that point only. If it looks like the image, the volume has"
        " become a surface.</p>"
    )
    return section("Views", note + f"<div class='pair'>{''.join(figures)}</div>")


def videos_section(folder: Path) -> str:
    turning = [path for path in files_in(folder / "vids", "*.mp4") if not path.stem.startswith("interpolation")]
    walking = files_in(folder / "vids", "interpolation*.mp4")
    parts = []
    for title, paths in (("Camera orbit", turning), ("Interpolation", walking)):
        if paths:
            parts.append(
                f"<h3>{title}</h3><div class='thirds'>{''.join(video_figure(path, video_caption(path)) for path in paths)}</div>"
            )
    return section("Videos", "".join(parts)) if parts else ""


def video_caption(path: Path) -> str:
    quantity = next((name for name in sorted(QUANTITIES, key=len, reverse=True) if path.stem.endswith(f"_{name}")), "image")
    seeds = path.stem.removeprefix("interpolation_").removesuffix(f"_{quantity}").removesuffix("_front").removesuffix("_orbit")
    return f"{quantity.replace('_', ' ')}, seed{'s' if '_' in seeds else ''} {seeds.replace('_', ', ')}"


def meshes_section(folder: Path) -> str:
    images = files_in(folder / "mesh_images", "*_views.png")
    if not images:
        return ""
    figures = "".join(figure(path, f"seed {path.stem.split('_')[0]}") for path in images)
    glbs = [f"<code>{escape(path.name)}</code>" for path in sorted((folder / "shapes").glob("*.glb"))]
    where = escape(str(folder / "shapes"))
    note = f"<p>With colors, for Blender or other viewers: {', '.join(glbs)} in <code>{where}</code>.</p>" if glbs else ""
    return section("Meshes", f"<p>The surface at occupancy 0.5, without its colors.</p>{figures}{note}")


def photo_section(folder: Path) -> str:
    sheets = files_in(folder / "inverted", "*.png")
    if not sheets:
        return ""
    caption = (
        "Top: photo, reconstruction, and five views of it. Middle: the normals of the reconstruction and of the views."
        " Bottom: the mesh, from the photo's pose and from the five views."
    )
    text = "A head that was not among the training images, reconstructed by <code>invert.py</code>: latent and camera."
    return section("A photo in 3D", f"<p>{text}</p>{figure(sheets[0], caption, pixelated=True)}")


def scores_section(folder: Path) -> str:
    scores = folder / "scores"
    rows = [*image_rows(read_record(scores / "images.json")), *variance_rows(read_record(scores / "weighted_variance.json"))]
    rows += geometry_rows(read_record(scores / "geometry.json"))
    if not rows:
        return ""
    note = (
        "<p>See <code>docs/metrics.md</code> for the meaning and limits of each number. The counts of images and seeds are enough"
        " to see that training works, but not to compare methods.</p>"
    )
    return section("Scores", note + table(["score", "value", "reference", "measured on"], rows))


def image_rows(record: dict[str, Any]) -> list[list[str]]:
    metrics, protocol = part_of(record, "metrics"), part_of(record, "protocol")
    fake, real, size = (whole(protocol.get(name)) for name in ("num_fake", "num_real", "image_size"))
    counts = f"{fake} generated, {real} real images at {size} px"
    rows = []
    for name, label in IMAGE_SCORES:
        if name in metrics:
            halves = number(metrics.get(f"{name}_real_halves"))
            scale = f"{halves} between two halves of the real images"
            rows.append([label, number(metrics[name]), scale if f"{name}_real_halves" in metrics else "", counts])
    for name in ("fid", "kid", "is"):
        if name in metrics:
            rows.append([name.upper(), number(metrics[name]), "", counts])
    return rows


def variance_rows(record: dict[str, Any]) -> list[list[str]]:
    metrics, protocol = part_of(record, "metrics"), part_of(record, "protocol")
    if "weighted_variance_1e4" not in metrics:
        return []
    counts = f"{whole(metrics.get('num_seeds'))} seeds at {whole(protocol.get('image_size'))} px"
    value = f"{number(metrics['weighted_variance_1e4'])} ± {number(metrics.get('std_over_seeds_1e4'))}"
    return [["Surface thickness: weighted variance, × 10⁴ (lower is thinner)", value, "about 0.03 for a perfect surface", counts]]


def geometry_rows(record: dict[str, Any]) -> list[list[str]]:
    score, floor, baselines = (part_of(record, name) for name in ("score", "noise_floor", "baselines"))
    counts = f"{whole(score.get('num_views'))} generated views"
    rows = []
    for key, label in (
        ("depth_mae_aligned", "Depth error (lower is better)"),
        ("normal_mean_degrees", "Normal error in degrees (lower is better)"),
    ):
        if key in score:
            twins = [
                f"{escape(name)} {number(part_of(baselines, name)[key])}" for name in baselines if key in part_of(baselines, name)
            ]
            scale = ", ".join([f"predictor's own {number(floor.get(key))}", *twins])
            rows.append([f"{label}, against geometry predicted from the images", number(score[key]), scale, counts])
    if "depth_correlation" in score:
        direction = "faces bulge outward" if score.get("bulges_outward") else '<b class="bad">faces are hollow</b>'
        rows.append(
            ["Depth correlation", number(score["depth_correlation"]), f"1 is perfect, negative is hollow: {direction}", counts]
        )
    if "mask_iou" in score:
        rows.append(
            [
                "Silhouette overlap (IoU)",
                number(score["mask_iou"]),
                f"predictor's own {number(floor.get('mask_iou'))}",
                counts,
            ]
        )
    return rows


def number(value: Any) -> str:
    return f"{value:.3g}" if is_number(value) else "–"


def whole(value: Any) -> str:
    return f"{value:.0f}" if is_number(value) else "–"


def is_number(value: Any) -> bool:
    """Return whether ``value`` is a number small enough to be displayed."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def next_section(folder: Path) -> str:
    train, photos = escape(str(folder / "train")), "photos/"
    items = [
        (f"bash auto_bash/quickstart.sh {escape(str(folder))}", "continues training and writes this page again"),
        (f"tensorboard --logdir {train}", "curves and samples during a run"),
        (f"python dataset.py --check {photos}", "checks a folder of your own photos"),
        (
            f"python train.py --curriculum CelebA --dataset_path {photos} --dataset Images --output_dir outputs/mine",
            "trains on them",
        ),
    ]
    rows = "".join(f"<li><code>{command}</code><br>{text}</li>" for command, text in items)
    return section("Next", f"<ul>{rows}</ul><p>The README explains training on your own photos step by step.</p>")


def summary(folder: Path, steps: list[Step]) -> str:
    curriculum = part_of(read_record(folder / "train" / "run.json"), "curriculum")
    failed = [step.title for step in steps if step.status != "ok"]
    text = "A generator that learns solid 3D heads from 2D images, without poses or shapes."
    name = curriculum.get("name", "")
    facts = [f"curriculum {name}" if name else "", f"created {datetime.now().astimezone():%Y-%m-%d %H:%M}"]
    problem = (
        f"<p class='bad'>Some commands failed: {escape(', '.join(failed))}. The other results are below.</p>" if failed else ""
    )
    return f"<p class='lead'>{text}</p><p class='facts'>{escape(' · '.join(filter(None, facts)))}</p>{problem}"


def hero(folder: Path) -> str:
    """Return the top of the page: the live generator, or videos of rotating heads if its page is missing."""
    live = files_in(folder, LIVE_PAGE)
    if live:
        document = escape(live[0].read_text(encoding="utf-8", errors="replace"))
        rights = "allow-scripts allow-downloads"
        return f'<iframe class="live" title="The generator, live" sandbox="{rights}" srcdoc="{document}"></iframe>'
    paths = [path for path in files_in(folder / "vids", "*.mp4") if path.stem.isdecimal()]
    if not paths:
        return ""
    videos = "".join(f'<video autoplay loop muted playsinline src="{inline(path)}"></video>' for path in paths)
    return f"<div class='hero'>{videos}</div>"


def write_report(folder: Path, output: Path) -> None:
    """Write the report of ``folder``. Raises UserError if there is nothing to show or the page cannot be written."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; run bash auto_bash/quickstart.sh {folder} first")
    steps = read_steps(folder / "steps.tsv")
    body = [
        training_section(folder),
        views_section(folder),
        videos_section(folder),
        meshes_section(folder),
        photo_section(folder),
        scores_section(folder),
        data_section(folder),
        commands_section(steps),
    ]
    if not any(body):
        raise UserError(f"{folder} holds nothing to report; run bash auto_bash/quickstart.sh {folder} first")
    html = page("Generative Occupancy Fields", summary(folder, steps) + hero(folder), [*filter(None, body), next_section(folder)])
    write_atomically(output, html.encode(errors="replace"))


def main(argv: Sequence[str] | None = None) -> None:
    parser: argparse.ArgumentParser = ArgumentParser(__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="output folder of auto_bash/quickstart.sh")
    parser.add_argument("--output", help="output file (default: FOLDER/index.html)")
    args = parser.parse_args(argv)
    folder = Path(args.folder)
    output = Path(args.output) if args.output else folder / "index.html"
    write_report(folder, output)
    print(f"report: {output.resolve()}")


if __name__ == "__main__":
    run_script(main)
