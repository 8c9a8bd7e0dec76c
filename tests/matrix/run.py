"""Try combinations of model, field, poses and background in every script, at tiny size.

    python tests/matrix/run.py               # each script on every combination of the values that its code depends on
    python tests/matrix/run.py --exhaustive  # each script on every combination (an hour on one core)
    python tests/matrix/run.py --quick       # the same as the first, of so few combinations that each pair of values occurs
    python tests/matrix/run.py --only training --model TRIPLANE --keep /tmp/matrix

Each combination must give right outputs or be refused by name. Prints a line per failure and a summary; exit status 1 if any.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests"), str(Path(__file__).resolve().parent)]
os.environ.setdefault("PYOPENGL_PLATFORM", "egl")

import torch  # noqa: E402
from matrix_checks import CHECKS, FACTORS, Case, check_refused  # noqa: E402
from matrix_combinations import Combination, all_combinations, pairwise  # noqa: E402
from matrix_generators import make_generator, small_sizes  # noqa: E402
from matrix_inputs import make_heads, make_photos  # noqa: E402

from small_models import save_generator  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only so many combinations that every pair of values occurs")
    parser.add_argument("--exhaustive", action="store_true", help="every check on every combination")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), help="only these checks, on every combination")
    parser.add_argument("--model", help="only combinations of this model")
    parser.add_argument("--full_sizes", action="store_true", help="feature grids, meshes, pages and videos of full size")
    parser.add_argument("--keep", type=Path, help="folder for the outputs, which is kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [Combination(*row) for row in pairwise()] if args.quick else all_combinations()
    chosen = [combination for combination in chosen if args.model in (None, combination.model)]
    random.Random(0).shuffle(chosen)  # each kind of failure shows early
    folder = args.keep or Path(tempfile.mkdtemp(prefix="matrix_"))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("GOF_CACHE", str(folder / "cache"))
    try:
        with contextlib.nullcontext() if args.full_sizes else small_sizes():
            return try_all(chosen, args.only or list(CHECKS), folder, args)
    finally:
        if args.keep is None:
            shutil.rmtree(folder)


def try_all(chosen: list[Combination], names: list[str], folder: Path, args: argparse.Namespace) -> int:
    """Return 1 if a check failed, else 0."""
    photos, heads = make_photos(folder / "photos"), make_heads(folder / "heads")
    any_generator = save_generator(
        make_generator(Combination("SPATIALSIRENBASELINE", "occupancy", None, "black")), folder / "any.safetensors"
    )
    seconds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    seen: set[tuple[object, ...]] = set()
    num_failed = 0
    for number, combination in enumerate(chosen):
        place = folder / f"{number:03d}"
        place.mkdir(exist_ok=True)
        case = Case(combination, place, photos, heads)
        checks: dict[str, Callable[[], None]] = {
            name: partial(CHECKS[name], case) for name in names if args.exhaustive or is_new(name, combination, seen)
        }
        if combination.refusal:
            checks = {"refusal": partial(check_refused, combination, place, photos, any_generator)}
        for name, check in checks.items():
            started = time.process_time()
            num_failed += not passes(check, f"{number:03d} ({combination}), {name}")
            seconds[name] += time.process_time() - started
            counts[name] += 1
        if args.keep is None:
            shutil.rmtree(place)
        print(f"{number + 1} of {len(chosen)}: {combination}: {' '.join(checks)}", file=sys.stderr, flush=True)
    print(f"{counts.total()} checks of {len(chosen)} combinations, {num_failed} failed")
    print(", ".join(f"{name} {counts[name]} in {value:.0f} s" for name, value in seconds.most_common()))
    return int(num_failed > 0)


def is_new(name: str, combination: Combination, seen: set[tuple[object, ...]]) -> bool:
    """Return whether a check has not yet met one of its FACTORS' values, and note them in ``seen``."""
    if combination.refusal:
        return False
    met = {(name, factors, *(getattr(combination, factor) for factor in factors)) for factors in FACTORS[name]}
    is_any_new = bool(met - seen)
    seen |= met
    return is_any_new


def passes(check: Callable[[], None], what: str) -> bool:
    """Run a check. Print the failure if there is one, with a traceback unless an output was merely wrong."""
    try:
        check()
    except AssertionError as error:
        print(f"FAILED {what}: {error}", flush=True)
        return False
    except Exception as error:
        print(f"FAILED {what}: {type(error).__name__}: {error}", flush=True)
        traceback.print_exc()
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
