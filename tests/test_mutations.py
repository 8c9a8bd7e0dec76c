"""The mutants (tests/mutations): each can still be introduced, and names tests that exist."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "mutations"))
from mutants import MUTANTS, REVIEWED
from run import misplaced


def test_every_mutant_can_be_planted(repo: Path) -> None:
    assert misplaced(repo, MUTANTS) == []
    assert len(REVIEWED) == 30 and len(MUTANTS) >= 60
    assert len({mutant.breaks for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        ast.parse((repo / mutant.file).read_text().replace(mutant.old, mutant.new))  # a mutant is a program
        assert mutant.new != mutant.old and mutant.tests
        assert all((repo / "tests" / f"test_{name}.py").is_file() for name in mutant.tests)


def test_missing_text_is_reported(tmp_path: Path) -> None:
    mutant = MUTANTS[0]
    assert misplaced(tmp_path, [mutant]) == [f"{mutant.breaks}: its text stands 0 times in {mutant.file}"]
    path = tmp_path / mutant.file
    path.parent.mkdir(parents=True)
    path.write_text(mutant.old * 2)
    assert "stands 2 times" in misplaced(tmp_path, [mutant])[0]


def test_the_runner_fails_if_a_text_is_missing(repo: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repo / "tests" / "mutations" / "run.py"), "--tree", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("its text stands 0 times") == len(MUTANTS)
