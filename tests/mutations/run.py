"""Introduce each defect of mutants.py into a copy of the tree, and report whether the tests it names detect it.

    python tests/mutations/run.py                      # all of them: some minutes of one core
    python tests/mutations/run.py --only tau interval  # those whose description holds one of the words
    python tests/mutations/run.py --tree OTHER         # of another checkout, for instance an older one

Exit status 0: every mutant was caught. 1: some survived. 2: a mutant's text is not there exactly once, its tests fail without
it, or it could not even be imported: then nothing is said about the tests.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from mutants import MUTANTS, Mutant

REPO = Path(__file__).resolve().parents[2]
PASSED, FAILED = 0, 1  # pytest's exit statuses; others mean that the tests did not run
CACHES = ("__pycache__", ".pytest_cache")
LEFT_OUT = (*CACHES, ".git", ".venv", ".ruff_cache", "outputs", "data")  # at the root


def misplaced(tree: Path, mutants: Sequence[Mutant]) -> list[str]:
    """Describe the mutants whose text does not occur exactly once in their file."""
    found = []
    for mutant in mutants:
        path = tree / mutant.file
        count = path.read_text().count(mutant.old) if path.is_file() else 0
        if count != 1:
            found.append(f"{mutant.breaks}: its text stands {count} times in {mutant.file}")
    return found


def preload() -> None:
    """Import third-party packages once, before the processes that run the tests are forked."""
    import numpy  # noqa: F401
    import PIL.Image  # noqa: F401
    import pytest  # noqa: F401
    import torch._dynamo  # which the first optimizer imports, for seconds
    import torch.distributed
    import torch.utils.data  # noqa: F401


def run_tests(tree: Path, names: Sequence[str], log: Path) -> int:
    """Run pytest in a separate process up to the first failure, and return its exit status. Its output goes to ``log``."""
    files = [str(path) for name in names if (path := tree / "tests" / f"test_{name}.py").is_file()]
    child = os.fork()
    if child == 0:
        status = 70
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(tree)
            os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they import for seconds what no test here uses
            sys.path[:] = [str(tree), *(entry for entry in sys.path if entry not in (str(REPO), str(Path(__file__).parent)))]
            import pytest

            status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files])) if files else 5
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def plant(tree: Path, mutant: Mutant, log: Path) -> int:
    """Return the tests' exit status with the mutant in the tree, and restore the tree."""
    path = tree / mutant.file
    whole = path.read_text()
    path.write_text(whole.replace(mutant.old, mutant.new))
    try:
        return run_tests(tree, mutant.tests, log)
    finally:
        path.write_text(whole)


def copy_of(tree: Path, folder: Path) -> Path:
    copy = folder / "tree"
    shutil.copytree(tree, copy, ignore=lambda path, names: LEFT_OUT if Path(path) == tree else CACHES)
    if (tree.parent / "shared").exists():  # recorded numbers, where they are at hand
        (folder / "shared").symlink_to((tree.parent / "shared").resolve())
    return copy


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="mutants whose description holds one of these words")
    parser.add_argument(
        "--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every N-th mutant from the I-th on"
    )
    parser.add_argument("--tree", type=Path, default=REPO, help="the checkout whose code and tests are taken")
    parser.add_argument("--skip_baseline", action="store_true", help="do not run the tests without a mutant first")
    args = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not args.only or any(word in mutant.breaks for word in args.only)]
    chosen = chosen[args.part[0] :: args.part[1]]
    problems = misplaced(args.tree, chosen)
    if problems or not chosen:
        print("\n".join(problems) or "no mutant has such a description", file=sys.stderr)
        return 2
    preload()
    sys.dont_write_bytecode = True  # a mutated file may have the size and second of the one before
    with tempfile.TemporaryDirectory(prefix="mutations_") as folder:
        copy, log = copy_of(args.tree, Path(folder)), Path(folder) / "log"
        names = sorted({name for mutant in chosen for name in mutant.tests})
        if not args.skip_baseline and run_tests(copy, names, log) != PASSED:
            print(log.read_text()[-3000:], "\nthe tests fail without a mutant", sep="", file=sys.stderr)
            return 2
        counts = {"caught": 0, "SURVIVED": 0, "DID NOT RUN": 0}
        for mutant in chosen:
            start = time.monotonic()
            status = plant(copy, mutant, log)
            verdict = {PASSED: "SURVIVED", FAILED: "caught"}.get(status, "DID NOT RUN")
            counts[verdict] += 1
            print(f"{verdict:<11}  {time.monotonic() - start:5.0f} s  {mutant.file}: {mutant.breaks}", flush=True)
            if verdict == "DID NOT RUN":
                print(log.read_text()[-2000:], flush=True)
    print(", ".join(f"{number} {verdict}" for verdict, number in counts.items()), f"of {len(chosen)}")
    return 2 if counts["DID NOT RUN"] else int(counts["SURVIVED"] > 0)


if __name__ == "__main__":
    sys.exit(main())
