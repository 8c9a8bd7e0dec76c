"""Write docs/curriculums.md: all curricula side by side, with a description of each setting.

    python -m tools.curriculum_table

The descriptions and the headings are the comments in ``COMMON`` (curriculums.py).
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import ast
import io
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import curriculums
from common.arguments import ArgumentParser
from common.errors import UserError
from common.files import write_atomically
from common.program import run_script
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "curriculums.md"
INTRODUCTION = """\
# Curricula

Every setting of every curriculum in [`curriculums.py`](../curriculums.py). The lists say what a setting does and its value in
`COMMON`, which holds wherever a curriculum states none of its own. The tables show the settings in which curricula differ,
side by side; **bold** values are a curriculum's own. Angles are radians, except `fov`; distances are world units along the
ray. This page is written by `python -m tools.curriculum_table`; a test compares it with the code.
"""
STAGES = """\
## Stages

What holds from a step on: batch size per process × image size in pixels, learning rate of G / of D, and in parentheses the
number of sub-batches (`batch_split`), if there are several.
"""


class Described(NamedTuple):
    """A setting of ``COMMON``: the heading of its group, its name and its description."""

    group: str
    key: str
    description: str


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="output file (default: docs/curriculums.md)")
    return parser


def described_settings(source: str) -> list[Described]:
    """Return the settings of ``COMMON`` in the source of curriculums.py, in order, with their comments and group headings.

    Raises UserError for a setting without a comment.
    """
    comments = {
        token.start[0]: token.string.removeprefix("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found, group, last_line = [], "", _common(source).lineno
    for key, value in zip(_common(source).keys, _common(source).values, strict=True):
        assert key is not None
        group = next((comments[line] for line in range(last_line + 1, key.lineno) if line in comments), group)
        last_line = value.end_lineno or value.lineno
        name = ast.literal_eval(key)
        if last_line not in comments:
            raise UserError(f"curriculums.py, line {last_line}: {name} has no comment; describe it in one on the same line")
        found.append(Described(group, name, comments[last_line]))
    return found


def _common(source: str) -> ast.Dict:
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and [getattr(target, "id", None) for target in statement.targets] == ["COMMON"]:
            assert isinstance(statement.value, ast.Dict)
            return statement.value
    raise UserError("curriculums.py does not define the dictionary COMMON")


def markdown_page(settings: list[Described], curricula: Mapping[str, Curriculum]) -> str:
    """Return the page in Markdown."""
    parts = [INTRODUCTION, STAGES + "\n" + _table(["curriculum", "dataset", "from step: stage", "end"], _stage_rows(curricula))]
    for group in dict.fromkeys(setting.group for setting in settings):
        members = [setting for setting in settings if setting.group == group]
        lines = [f"- `{key}` = {_value(curriculums.COMMON[key])}: {description}\n" for _, key, description in members]
        varying = [setting.key for setting in members if any(_is_own(name, setting.key) for name in curricula)]
        rows = [[f"`{key}`", *(_cell(name, c, key) for name, c in curricula.items())] for key in varying]
        parts.append(f"## {group}\n\n{''.join(lines)}" + ("\n" + _table(["", *curricula], rows) if rows else ""))
    return "\n".join(parts)


def _stage_rows(curricula: Mapping[str, Curriculum]) -> Iterable[list[str]]:
    for name, curriculum in curricula.items():
        stages = []
        for stage in curriculum.stages:
            split = f" ({stage.batch_split})" if stage.batch_split > 1 else ""
            rates = f"{_value(stage.gen_lr)} / {_value(stage.disc_lr)}"
            stages.append(f"{stage.start_step}: {stage.batch_size} × {stage.img_size}{split}, {rates}")
        yield [f"`{name}`", curriculum.dataset, "<br>".join(stages), str(curriculum.end_step)]


def _is_own(name: str, key: str) -> bool:
    """Return whether a curriculum sets the value itself."""
    return key in getattr(curriculums, name)


def _cell(name: str, curriculum: Curriculum, key: str) -> str:
    text = _value(getattr(curriculum, key))
    return f"**{text}**" if _is_own(name, key) else text


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_value, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    arguments = make_parser().parse_args()
    settings = described_settings(Path(curriculums.__file__).read_text(encoding="utf-8"))
    write_atomically(arguments.output, markdown_page(settings, CURRICULUMS).encode())
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    run_script(main)
