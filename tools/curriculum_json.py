"""Print a curriculum with all its settings as JSON. Edit it and pass it to any script as ``--curriculum mine.json``.

python -m tools.curriculum_json CelebA > mine.json
python -m tools.curriculum_json CATS --set dataset=Images h_stddev=0.4 > mine.json
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import json

from common.arguments import ArgumentParser, add_settings_argument
from common.program import run_script
from settings.registry import get_curriculum


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    parser.add_argument("curriculum", metavar="CURRICULUM", help="a name from curriculums.py, or a .json file")
    add_settings_argument(parser, "override settings")
    return parser


def main() -> None:
    arguments = make_parser().parse_args()
    curriculum = get_curriculum(arguments.curriculum).with_overrides(arguments.set)
    print(json.dumps(curriculum.to_dict(), indent=1))


if __name__ == "__main__":
    run_script(main)
