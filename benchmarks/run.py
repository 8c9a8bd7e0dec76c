"""Measure speed on the CPU: field queries, views, videos, extraction of shapes, a training iteration.

    python benchmarks/run.py --json speed.json --markdown speed.md      # about 8 minutes on 2 cores
    python benchmarks/run.py --quick --json speed.json                  # within 50 seconds: smaller sizes, the same keys

Ratios are formed from times measured alternately in the same run, relative to the rate of the matrix product at that moment
(measure.py). Each item runs in its own process, and the peak memory of that process is recorded. The network is the
pretrained one, widened and deepened to the size of the published curricula (networks.py), or that of --generator. Extraction
is also measured with the pretrained network itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as if run from the repository's root

import torch

from benchmarks import tables
from benchmarks.items import FULL, PARTS, QUICK, Choice
from common.arguments import ArgumentParser
from common.errors import UserError
from common.program import run_script


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    started = time.perf_counter()
    names = arguments.only or list(PARTS)
    parts: dict[str, Any] = {}
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        parts[name] = PARTS[name](Choice(arguments.generator, arguments.curriculum), QUICK if arguments.quick else FULL)
    report = build_report(parts, arguments, time.perf_counter() - started)
    for what, figure in tables.rows(report):
        print(f"{what:<62} {figure}")
    write(arguments.json, json.dumps(report, indent=2) + "\n")
    write(arguments.markdown, tables.markdown(report))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, the same keys; within 50 seconds on 2 cores")
    parser.add_argument("--json", type=Path, help="write all results as JSON")
    parser.add_argument("--markdown", type=Path, help="write the table as Markdown")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="run only these parts")
    parser.add_argument("--generator", help="a generator file (default: the pretrained network, widened)")
    parser.add_argument("--curriculum", help="name or .json file; required if the generator file does not contain its settings")
    return parser.parse_args(argv)


def write(path: Path | None, text: str) -> None:
    try:
        if path is not None:
            path.write_text(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another path") from None


# -- the report ----------------------------------------------------------------------------------------------------------


def build_report(parts: dict[str, Any], arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Assemble the report: headline results first, then all measurements."""
    items = list(_items(parts))
    report = {
        "quick": arguments.quick,
        "command": shlex.join(["python", "benchmarks/run.py", *(["--quick"] if arguments.quick else []), "--json", "OUT"]),
        "seconds": seconds,
        "network": next(item["network"] for item in items),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
            "torch": torch.__version__,
            "dtype": "float32",
        },
    }
    for name, headline in HEADLINES.items():
        if name in parts:
            report |= headline(parts[name])
    report["peak_mb"] = max(item["peak_mb"] for item in items)
    return {**report, "parts": parts}


def _query_keys(part: dict[str, Any]) -> dict[str, Any]:
    shares = {f"{name}_gemm_share": part[name]["gemm_share"] for name in ("occupancy", "color")}
    return {"gemm_gflops": part["gemm_gflops"], **shares}


def _view_keys(part: dict[str, Any]) -> dict[str, Any]:
    return {
        "view_size": part["field"]["size"],
        "view_over_straightforward": part["field"]["work_gflop"] / part["straightforward"]["work_gflop"],
        "surface_over_volume_psnr_db": part["surface_only"]["psnr_db"],
    }


def _video_keys(part: dict[str, Any]) -> dict[str, Any]:
    return {
        "video_size": part["size"],
        "video_rows_rendered": 1 / part["row_step"],
        "video_frame_over_plain": part["frame_over_plain"],
        "video_psnr_db": part["psnr_db"],
        "video_depth_error": part["depth_error"],
    }


def _extraction_keys(part: dict[str, Any]) -> dict[str, Any]:
    full, shipped = part["full"], part["shipped"]
    keys = {
        "extract_size": full["against_dense"]["resolution"],
        "extract_256_over_dense": full["against_dense"]["over_dense"],
        "extract_sign_mismatch": max(
            item["against_dense"]["sign_mismatches"] / item["against_dense"]["signs_compared"] for item in (full, shipped)
        ),
        "extract_shipped_over_dense": shipped["against_dense"]["over_dense"],
    }
    for key, item in (("extract_512_over_256", full), ("extract_shipped_512_over_256", shipped)):
        work = {entry["resolution"]: entry["work_gflop"] for entry in item["growth"]}
        if 512 in work:
            keys[key] = work[512] / work[256]
    return keys


def _training_keys(part: dict[str, Any]) -> dict[str, Any]:
    return {"train_step_over_floor": part["main"]["over_floor"], "train_batch": part["main"]["batch"]}


HEADLINES = {
    "queries": _query_keys,
    "view": _view_keys,
    "video": _video_keys,
    "extraction": _extraction_keys,
    "training": _training_keys,
}


def _items(parts: Any) -> Any:
    """Yield the results of all items, at any depth."""
    if isinstance(parts, dict):
        if "peak_mb" in parts:
            yield parts
        else:
            for value in parts.values():
                yield from _items(value)
    elif isinstance(parts, list):
        for value in parts:
            yield from _items(value)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    run_script(main)
