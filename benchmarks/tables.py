"""Format the JSON of run.py as a table."""

from __future__ import annotations

from typing import Any

Row = tuple[str, str]


def rows(report: dict[str, Any]) -> list[Row]:
    """Return (label, result) for all parts that were run."""
    parts = report["parts"]
    makers = {"queries": _queries, "view": _view, "video": _video, "extraction": _extraction, "training": _training}
    lines: list[Row] = []
    for name, maker in makers.items():
        if name in parts:
            lines += maker(parts[name])
    return [*lines, ("peak memory of the largest item, including the interpreter", f"{report['peak_mb']:.0f} MB")]


def markdown(report: dict[str, Any]) -> str:
    """Format the table, with the machine and the command."""
    machine = report["machine"]
    lines = [
        f"{machine['threads']} threads of {machine['processor']}, float32, torch {machine['torch']}; {report['network']}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {figure} |" for what, figure in rows(report)),
        "",
        f"`{report['command']}`",
    ]
    return "\n".join(lines) + "\n"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def _points(value: float) -> str:
    return f"{value / 1e6:.2f} M points"


def _cost(part: dict[str, Any]) -> str:
    return f"{_seconds(part['seconds'])}, {_points(part['num_points'])}"


def _queries(part: dict[str, Any]) -> list[Row]:
    lines = [("matrix product, best of several shapes", f"{part['gemm_gflops']:.0f} GFLOP/s")]
    for name, what in (("occupancy", "occupancy queries"), ("color", "occupancy and color")):
        ours, plain = part[name], part[f"straightforward_{name}"]
        lines.append(
            (
                f"{what} (straightforward PyTorch)",
                f"{ours['million_points_per_s']:.3f} M/s, {ours['gemm_share']:.0%} of the matrix product "
                f"({plain['million_points_per_s']:.3f} M/s, {plain['gemm_share']:.0%})",
            )
        )
    return lines


def _view(part: dict[str, Any]) -> list[Row]:
    field, surface, plain = part["field"], part["surface_only"], part["straightforward"]
    size = field["size"]
    lines = [
        (f"a {size} px view, doubled samples (straightforward PyTorch)", f"{_cost(field)} ({_seconds(plain['seconds'])})"),
        (f"a {size} px preview (`--surface_only`)", f"{_cost(surface)}, {surface['psnr_db']:.1f} dB"),
    ]
    if part["growth"]:
        lines.append(("views of " + _sizes(part["growth"], "size") + " px", _series(part["growth"])))
    return lines


def _video(part: dict[str, Any]) -> list[Row]:
    depth = part["depth_error"]
    ours = f"{_seconds(part['frame_seconds'])} + 1/36 of {_seconds(part['build_seconds'])}, {_points(part['frame_points'])}"
    plain = f"{_seconds(part['plain_frame_seconds'])}, {_points(part['plain_frame_points'])}"
    return [
        (
            f"a frame of a 36-frame video at {part['size']} px (without the view cache)",
            f"{ours} ({plain}): ratio {part['frame_over_plain']:.3f}",
        ),
        (
            "its difference from the frame without the cache",
            f"{part['psnr_db']:.1f} dB; depth within 1e-4 on {depth['share_within_1e-4']:.3%} of hits, "
            f"largest error {depth['max']:.1e}",
        ),
    ]


def _extraction(part: dict[str, Any]) -> list[Row]:
    lines = []
    for name, what in (("full", "full width"), ("shipped", "pretrained heads_siren")):
        item = part[name]["against_dense"]
        n = item["resolution"]
        lines.append(
            (
                f"{n}³ voxels, {what} (dense queries)",
                f"{_cost(item)} ({_seconds(item['dense_seconds'])}, {_points(item['dense_points'])}): ratio "
                f"{item['over_dense']:.3f}; {item['sign_mismatches']} of {item['signs_compared']} signs differ",
            )
        )
        if part[name]["growth"]:
            figures = _series(part[name]["growth"])
            lines.append((f"{_sizes(part[name]['growth'], 'resolution')} voxels along a side, {what}", figures))
    return lines


def _training(part: dict[str, Any]) -> list[Row]:
    main = part["main"]
    phases = ", ".join(f"{name.replace('_', ' ')} {value / main['batch']:.3f}" for name, value in main["phases_s"].items())
    lines = [
        (
            f"a training iteration, {main['batch']} images of {main['size']} px",
            f"{_seconds(main['seconds'])}, {main['over_floor']:.2f} times the time of its arithmetic "
            f"({main['gflop_per_image']:.1f} GFLOP per image)",
        ),
        ("its phases, seconds per image", phases),
    ]
    if part["growth"]:
        figures = ", ".join(f"{_seconds(item['seconds_per_image'])} ({item['over_floor']:.2f})" for item in part["growth"])
        lines.append((f"per image of {_sizes(part['growth'], 'size')} px (ratio to the time of the arithmetic)", figures))
    return lines


def _sizes(items: list[dict[str, Any]], key: str) -> str:
    return ", ".join(str(item[key]) for item in items)


def _series(items: list[dict[str, Any]]) -> str:
    return "; ".join(_cost(item) for item in items)
