"""The parts of the benchmark: which measurements are made with which network. Each item runs in its own process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import images, measure, queries, shapes, training_step
from benchmarks.networks import full_network, shipped_network

VIDEO_SIZE, TRAINING_SIZE = 128, 32


class Choice(NamedTuple):
    """The network to measure: a generator file and its curriculum's name, or None for the widened pretrained network."""

    generator: str | None
    curriculum: str | None


class Plan(NamedTuple):
    """The sizes and counts of a run. A quick run has no sizes for the growth of the cost."""

    query_rounds: int
    view_size: int
    view_sizes: tuple[int, ...]
    video: tuple[int, int, int]  # row_step, plain_every, cached_every of images.measure_video
    resolution: int
    sheet_step: int  # of shapes.measure_against_dense, for the network of full width
    resolutions: tuple[int, ...]
    training: tuple[int, int]  # images, rounds
    training_sizes: tuple[tuple[int, int], ...]  # px, images


QUICK = Plan(2, 48, (), (4, 18, 18), 128, 8, (), (3, 1), ())
FULL = Plan(9, 128, (32, 64, 128), (1, 4, 1), 256, 1, (64, 128, 256, 512), (16, 3), ((32, 2), (64, 2), (128, 2)))


def _queries(choice: Choice, plan: Plan) -> dict[str, Any]:
    return measure.in_child(_of_full, choice, queries.measure, plan.query_rounds)


def _view(choice: Choice, plan: Plan) -> dict[str, Any]:
    def of(path: str, size: int) -> dict[str, Any]:
        return measure.in_child(_of_full, choice, images.measure_view, path, size)

    result = {path: of(path, plan.view_size) for path in ("field", "surface_only", "straightforward")}
    return {**result, "growth": [of("field", size) for size in plan.view_sizes]}


def _video(choice: Choice, plan: Plan) -> dict[str, Any]:
    return measure.in_child(_of_full, choice, images.measure_video, VIDEO_SIZE, *plan.video)


def _extraction(choice: Choice, plan: Plan) -> dict[str, Any]:
    result = {}
    for name, of, sheet_step in (("full", _of_full, plan.sheet_step), ("shipped", _of_shipped, 1)):
        dense = measure.in_child(of, choice, shapes.measure_against_dense, plan.resolution, sheet_step)
        growth = [measure.in_child(of, choice, shapes.measure_sparse, resolution) for resolution in plan.resolutions]
        result[name] = {"against_dense": dense, "growth": growth}
    plain = measure.in_child(_of_full, choice, shapes.measure_straightforward, plan.resolution, 1 << 14)
    return {**result, "straightforward": plain}


def _training(choice: Choice, plan: Plan) -> dict[str, Any]:
    main_item = measure.in_child(_of_full, choice, training_step.measure, TRAINING_SIZE, *plan.training)
    growth = [measure.in_child(_of_full, choice, training_step.measure, size, num, 1) for size, num in plan.training_sizes]
    return {"main": main_item, "growth": growth}


def _of_full(choice: Choice, call: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    network = full_network(*choice)
    return {**call(network, *arguments), "network": network.description}


def _of_shipped(choice: Choice, call: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    network = shipped_network()
    return {**call(network, *arguments), "network": network.description}


PARTS: dict[str, Callable[[Choice, Plan], dict[str, Any]]] = {
    "queries": _queries,
    "view": _view,
    "video": _video,
    "extraction": _extraction,
    "training": _training,
}
