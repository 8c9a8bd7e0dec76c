"""Settings in pairs: each pair of values of model, field, poses and background is in a combination that one script is run on.

tests/matrix/run.py runs every script on many more combinations.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parent / "matrix")]

from matrix_checks import CHECKS, Case, check_refused  # noqa: E402
from matrix_combinations import VALUES, Combination, pairwise  # noqa: E402
from matrix_generators import make_generator, small_sizes  # noqa: E402
from matrix_inputs import make_heads, make_photos  # noqa: E402

from small_models import save_generator  # noqa: E402

QUICK = ("multiview", "surface_only", "viewer", "page")


def selection() -> list[tuple[Combination, str]]:
    """Return combinations, each with the name of a check: every check once, then the quick ones in turn."""
    names = itertools.chain(CHECKS, itertools.cycle(QUICK))
    combinations = [Combination(*row) for row in pairwise(VALUES)]
    return [(combination, "refusal" if combination.refusal else next(names)) for combination in combinations]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with photos, heads with their geometry, and a generator."""
    folder = tmp_path_factory.mktemp("matrix")
    with small_sizes():
        make_photos(folder / "photos")
        make_heads(folder / "heads")
        save_generator(
            make_generator(Combination("SPATIALSIRENBASELINE", "occupancy", None, "black")), folder / "any.safetensors"
        )
        yield folder


@pytest.mark.parametrize(("combination", "name"), selection(), ids=str)
def test_combination(combination: Combination, name: str, inputs: Path, tmp_path: Path) -> None:
    if combination.refusal:
        check_refused(combination, tmp_path, inputs / "photos", inputs / "any.safetensors")
    else:
        CHECKS[name](Case(combination, tmp_path, inputs / "photos", inputs / "heads"))


def test_all_pairs_and_all_checks_are_selected() -> None:
    rows = selection()
    assert {name for _, name in rows} == {*CHECKS, "refusal"}
    for first, second in itertools.combinations(("model", "field", "sample_dist", "background"), 2):
        values = {(getattr(row, first), getattr(row, second)) for row, _ in rows}
        sizes = [len(VALUES[("model", "field", "sample_dist", "background").index(name)]) for name in (first, second)]
        assert len(values) == sizes[0] * sizes[1]
