"""Coverage-guided fuzzing, with atheris, of the reader of torch files, which is pure Python.

    pip install atheris
    python tests/fuzz/guided.py -max_total_time=300 -rss_limit_mb=2048 -max_len=4096

The options are libFuzzer's. Inputs are torch archives, old torch files, or pickles that are put into an archive. It ends with
a traceback at the first input that is neither read nor refused, or that has Python import or run something.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch  # noqa: E402

with atheris.instrument_imports(include=["pickletools", "zipfile", "safe_pickle", "torch_files", "published_format"]):
    from checkpoints.published import read_published_weights
    from checkpoints.torch_files import LEGACY_START, read_torch_file

from fuzz_bytes import zip_around  # noqa: E402
from fuzz_checkpoints import sound_files  # noqa: E402

from common.errors import UserError  # noqa: E402

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "exec")


def watch(event: str, arguments: object) -> None:
    if event in FORBIDDEN:
        raise AssertionError(f"{event} {arguments!r}"[:300])


def try_input(data: bytes) -> None:
    FILE.write_bytes(zip_around(data) if data[:1] == b"\x80" and not data.startswith(LEGACY_START) else data)
    try:
        content = read_torch_file(FILE)
        read_published_weights(FILE, content)
    except UserError as refusal:
        assert "\n" not in str(refusal)


def main() -> None:
    seeds = FILE.parent / "seeds"
    seeds.mkdir()
    for name, data in sound_files().items():
        (seeds / name).write_bytes(data)
    atheris.Setup([*sys.argv, str(seeds)], try_input)
    torch.set_num_threads(1)
    sys.addaudithook(watch)
    atheris.Fuzz()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="gof_guided_") as folder:
        FILE = Path(folder) / "weights.pth"
        main()
