"""All kinds of cases, and how to try them: a short fixed list in the tests, new ones in run.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fuzz_checkpoints
import fuzz_commands
import fuzz_harness
import fuzz_images
import hypothesis
from fuzz_targets import TARGETS
from fuzz_worker import Case
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis import strategies as st

__all__ = ["CASES", "TARGETS", "fuzz_harness", "sound_cases", "try_cases"]

CASES: dict[str, Any] = {**fuzz_checkpoints.CASES, **fuzz_images.CASES, **fuzz_commands.CASES}


def try_cases(kind: str, num: int, check: Callable[[Case], Any], seed: int | None) -> None:
    """Call ``check`` with ``num`` cases. A case for which it raises is minimized, then the error is raised.

    seed: of the cases; None: the same ones each time.
    """

    @hypothesis.settings(
        max_examples=num,
        derandomize=seed is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        verbosity=Verbosity.quiet,  # cases are kilobytes; the harness keeps a failing one in a file
    )
    @hypothesis.given(st.deferred(CASES[kind]))
    def one(case: Case) -> None:
        check(case)

    if seed is not None:
        one = hypothesis.seed(seed)(one)
    one()


def sound_cases() -> list[Case]:
    """Valid input for every target, which must be accepted."""
    files, commands = fuzz_checkpoints.sound_files(), fuzz_commands.input_files()
    run = {name: files[kind] for name, kind in fuzz_checkpoints.RUN_FILES.items()}
    heads = {name.removeprefix("heads/"): data for name, data in fuzz_commands.heads().items()}
    image = {"a.png": fuzz_images.sound_images()["PNG0"]}
    forms = [("state", "SMALL"), ("state_legacy", "SMALL"), ("module", "SMALL"), ("inference", None), ("checkpoint", None)]
    options = (fuzz_checkpoints.SOUND_OPTIONS, fuzz_checkpoints.PUBLISHED_OPTIONS)
    images = {f"{name}.png": data for name, data in fuzz_images.sound_images().items() if name != "EPS"}
    cases = [
        *[Case("checkpoint.generator", {"g": files[name]}, ("g", curriculum, "ema")) for name, curriculum in forms],
        Case("checkpoint.torch_file", {"w": files["ema_object"]}, ("w",)),
        Case("checkpoint.training", {"w": files["checkpoint"]}, ("w",)),
        Case("checkpoint.weights", {"w": files["state"]}, ("w",)),
        Case("checkpoint.published_run", run, ("",)),
        Case("checkpoint.start_from", run, (".",)),
        Case("checkpoint.resume", {"checkpoint_0000001.pt": files["checkpoint"]}),
        *[Case("checkpoint.options", {"o": text}, ("o",)) for text in options],
        *[Case("image.set", {name: data}, (name, 8, "CelebA", True)) for name, data in images.items()],
        Case("image.cache", image, ([],)),
        Case("image.truth", heads),
        Case("curriculum.set", {}, ("CelebA", ["fov=13", "img_size=16", "name=x"])),
        Case("curriculum.file", {"c.json": commands["c.json"]}, ("c.json",)),
        Case("mesh.images", commands, ("render_meshimg", fuzz_commands.BASES["render_meshimg"]), ("out",)),
        Case(
            "report.page",
            fuzz_commands.quickstart_folder(),
            ("tools.report", ["../input", "--output", "page.html"]),
            ("page.html",),
        ),
    ]
    return cases + [Case("command.line", commands, command, ("out", "out.png")) for command in fuzz_commands.BASES.items()]
