"""Try thousands of new cases of untrusted input.

    python tests/fuzz/run.py --minutes 10

The last line is a JSON object: for each kind of target the number of cases, of rejected ones and of failures, the peak memory
in MB above the idle process, the seconds of computation, and those of the slowest case. If a case fails, the exit status is 1
and the case is written to a file. To try it again:

    python tests/fuzz/run.py --case FILE
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import fuzz_kinds  # noqa: E402
from fuzz_harness import WORKER, CaseFailed  # noqa: E402
from fuzz_worker import Case  # noqa: E402
from hypothesis.errors import Flaky  # noqa: E402

ROUND = 100  # cases of a kind, then the next kind's turn
FEWER = {"command lines": 20}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kinds", nargs="+", choices=fuzz_kinds.CASES, default=list(fuzz_kinds.CASES))
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the first round (default: a new one)")
    parser.add_argument("--case", type=Path, help="one case that was kept, instead of new ones")
    args = parser.parse_args()
    if args.case is not None:
        outcome = WORKER.attempt(Case.from_json(args.case.read_text()))
        print(f"{outcome.kind}: {outcome.detail}\n{outcome.peak_mb:.0f} MB, {outcome.cpu_seconds:.2f} s")
        return outcome.kind == "failed"
    failed, started, turn = [], time.monotonic(), 0
    while time.monotonic() - started < 60 * args.minutes:
        kind = args.kinds[turn % len(args.kinds)]
        try:
            fuzz_kinds.try_cases(kind, FEWER.get(kind, ROUND), WORKER.check, args.seed + turn)
        except CaseFailed as failure:
            failed.append(str(failure))
            print(f"{kind}, seed {args.seed + turn}: {failure}", flush=True)
        except Flaky:  # its message shows the whole case, but the harness keeps a failing one in a file
            failed.append("once")
            print(f"{kind}, seed {args.seed + turn}: a case failed the first time and passed the second", flush=True)
        turn += 1
    counts = {
        name: {key: round(value, 1) for key, value in asdict(count).items()} for name, count in sorted(WORKER.counts.items())
    }
    totals = {key: sum(count[key] for count in counts.values()) for key in ("cases", "refused", "failures")}
    totals["peak_mb"] = max(count["peak_mb"] for count in counts.values())
    print(json.dumps({"minutes": args.minutes, "seed": args.seed, "failed": len(failed), **totals, "targets": counts}))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
