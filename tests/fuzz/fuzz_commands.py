"""Cases of settings (--set, curriculum files), of files that scripts read, and of command lines."""

from __future__ import annotations

import argparse
import functools
import importlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import fuzz_bytes as fb
import fuzz_images
import numpy as np
from fuzz_checkpoints import SOUND_OPTIONS, entries, sound_files
from fuzz_targets import SCRIPTS, SMALL, SMALL_SETTINGS
from fuzz_worker import ANYWHERE, Case
from hypothesis import strategies as st

from common.arguments import ArgumentParser
from settings.registry import CURRICULUMS

# ------------------------------------------------------------------------------------------------ settings

NUMBER_TEXTS = (
    *("0", "-1", "1", "2", "3", "7", "8", "16", "1e3", "1.5", "nan", "inf", "-inf", "1e999", "1e-320", "1e308", "-0.0"),
    *("0x10", "1_0"),
    *("2147483647", "2147483648", "9223372036854775807", "9223372036854775808", "1" * 30, "9" * 5000, "0x" + "f" * 5000, "١"),
    *("½",),
)
VALUE_TEXTS = (
    *("", " ", "None", "True", "[]", "()", "{}", "'x'", "b'x'", "{1}", "[1, 2]", "(0, 0.9)", "(0.5, 1e999)", "1+2j", "..."),
    *("x y",),
    *("(" * 300, "-" * 5000 + "1", "~" * 100_000, "[" * 100_000, "1" + "+1" * 50_000, "'" * 3, "\\", "#", "\n", "\t1", "1;1"),
    *("__import__('os').system('touch canary')", "open('canary','w')", "(2, 2, 2, 2, 2, 2, 2, 2, 2)", "[{'start_step': 0}]"),
    *("[3]",),
    *("hidden_dim", "\u202e", "\x1b[31m", "\udcff", "a" * 3000, "[{'start_step': 0, 'batch_size': 1, 'img_size': 4}]"),
)


def value_texts() -> st.SearchStrategy[str]:
    return st.one_of(st.sampled_from(NUMBER_TEXTS), st.sampled_from(VALUE_TEXTS), st.text(max_size=20).map(without_null))


def without_null(text: str) -> str:
    """An argument of a program cannot hold a null character."""
    return text.replace("\0", "")


@functools.cache
def setting_names() -> tuple[str, ...]:
    return (*SMALL.to_dict(), *SMALL.to_dict()["stages"][0], "nonsense", "", "name ", "x" * 300)


def assignments() -> st.SearchStrategy[str]:
    pairs = st.tuples(st.sampled_from(setting_names()), value_texts()).map("=".join)
    possible = st.sampled_from([f"{name}={value!r}" for name, value in SMALL.to_dict().items() if name != "name"])
    return st.one_of(pairs, pairs, possible, st.text(max_size=10).map(without_null))


def set_cases() -> st.SearchStrategy[Case]:
    names = st.sampled_from((*CURRICULUMS, "CELEBA", "", "nonsense", "../x.json", "x" * 10_000, ".json", "/dev/zero.json"))
    return st.tuples(names, st.lists(assignments(), max_size=4)).map(lambda pair: Case("curriculum.set", {}, (pair[0], pair[1])))


def curriculum_entries() -> st.SearchStrategy[Any]:
    """A .json file of settings: changed, damaged, endless, or not a file."""
    sound = json.dumps(SMALL.to_dict()).encode()
    changed = fb.with_junk(SMALL.to_dict()).map(lambda value: json.dumps(value, default=repr, skipkeys=True).encode())
    texts = (
        "[" * 100_000,
        '{"a":' * 50_000,
        "{}",
        "null",
        "[]",
        "9" * 5000,
        '{"name": 3}',
        "\ufeff{}",
        "NaN",
        '{"name": ["x"]}',
        "{'a': 1}",
    )
    special = st.sampled_from((("folder",), ("fifo",), ("link", "/dev/zero"), ("holes", 1 << 33)))
    plain = st.sampled_from([text.encode() for text in texts])
    return st.one_of(changed, changed, changed, fb.damaged(sound), plain, special, st.binary(max_size=40))


def file_cases() -> st.SearchStrategy[Case]:
    return curriculum_entries().map(lambda entry: Case("curriculum.file", {"c.json": entry}, ("c.json",)))


# ------------------------------------------------------------------------------------------------ voxels and meshes


@functools.cache
def ball() -> np.ndarray:
    """(8, 8, 8): occupancy of a ball."""
    distance = np.linalg.norm(np.mgrid[:8, :8, :8] - 3.5, axis=0)
    return (1 / (1 + np.exp(distance - 2.2))).astype(np.float32)


@functools.cache
def sound_voxels() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, ball())
    return buffer.getvalue()


PLY = b"""ply
format ascii 1.0
element vertex 4
property float x
property float y
property float z
element face 2
property list uchar int vertex_indices
end_header
0 0 0
0.1 0 0
0 0.1 0
0 0 0.1
3 0 1 2
3 0 2 3
"""


def voxel_files() -> st.SearchStrategy[bytes]:
    odd = st.sampled_from((np.nan, np.inf, -np.inf, 1e30, -5.0, 0.0, 1.0, 0.5))

    def with_value(value: float, everywhere: bool) -> bytes:
        voxels = np.full((5, 5, 5), value, np.float32) if everywhere else ball().copy()
        voxels[0, 2, 1] = value
        buffer = io.BytesIO()
        np.save(buffer, voxels)
        return buffer.getvalue()

    odd_values = st.builds(with_value, odd, st.booleans())
    return st.one_of(fuzz_images.npy_files(), fb.damaged(sound_voxels()), odd_values, st.just(sound_voxels()))


def mesh_files() -> st.SearchStrategy[bytes]:
    lines = st.tuples(st.integers(0, 12), st.sampled_from((
        b"3 0 1 99999999", b"3 -1 0 1", b"nan nan nan", b"1e308 0 0", b"4 0 1 2 3", b"element vertex 99999999999",
        b"element face -1", b"comment TextureFile ../../../etc/passwd", b"format binary_little_endian 1.0", b"",
        b"property list int int vertex_indices", b"element vertex 400000000", b"end_header",
        b"property double x", b"element x 1000000000",
    )))  # fmt: skip

    def replaced(changes: list[tuple[int, bytes]]) -> bytes:
        parts = PLY.split(b"\n")
        for place, text in changes:
            parts[place] = text
        return b"\n".join(parts)

    return st.one_of(st.lists(lines, min_size=1, max_size=3).map(replaced), fb.damaged(PLY), st.just(PLY), st.binary(max_size=50))


SETTINGS_TEXTS = (
    *('{"cube_size": 1e999}', '{"cube_size": 1e-320}', '{"cube_size": "1"}', '{"cube_size": true}', '{"level": 1e-320}', "[1]"),
    *('{"level": 0.99999999999999999}', '{"clip_radius": NaN}', '{"clip_radius": 1e-300}', '{"x": 1}', "[" * 100_000, "null"),
    *("{}",),
    *('{"cube_size": 1' + "0" * 400 + "}", '{"cube_size": 1e308}', '{"largest_piece": [1]}', '{"clip_radius": 0.1}'),
    *('{"clip_radius": [1]}',),
)


@st.composite
def mesh_cases(draw: st.DrawFn) -> Case:
    """An input folder of render_meshimg.py: voxels, and perhaps settings and a mesh."""
    special = st.sampled_from(
        (("folder",), ("fifo",), ("link", "/dev/zero"), ("link", "missing"), ("link", "0_8_voxel.npy"), ("holes", 1 << 33))
    )
    files: dict[str, Any] = {"0_8_voxel.npy": draw(st.one_of(voxel_files(), voxel_files(), voxel_files(), special))}
    if draw(st.booleans()):
        files["0_8.json"] = draw(st.sampled_from([text.encode() for text in SETTINGS_TEXTS]) | st.binary(max_size=20) | special)
    if draw(st.booleans()):
        files["0_8.ply"] = draw(st.one_of(mesh_files(), mesh_files(), special))
    arguments = ["--input_dir", "../input", "--output_dir", "out", "--renderer", "raycast", "--image_size", "4"]
    return Case("mesh.images", files, ("render_meshimg", [*arguments, *draw(st.sampled_from(([], ["--mesh_colors"])))]), ("out",))


# ------------------------------------------------------------------------------------------------ the report


@functools.cache
def quickstart_folder() -> dict[str, bytes]:
    """The files that tools/report.py reads, small."""
    image = fuzz_images.sound_images()["PNG0"]
    log = "\n".join(json.dumps({"step": step, "D/gan": 1.0, "G/gan": 0.5, "G/hit_rate": 0.1}) for step in range(1, 6))
    images = {"metrics": {"swd": 1.0, "fid": 2.0}, "protocol": {"num_fake": 1, "num_real": 2, "image_size": 4}}
    geometry = {"score": {"depth_mae_aligned": 1, "mask_iou": 1, "depth_correlation": 0.5}, "noise_floor": {"mask_iou": 1},
                "baselines": {"flat": {"depth_mae_aligned": 2}}}  # fmt: skip
    variance = {"metrics": {"weighted_variance_1e4": 1.0, "num_seeds": 3}, "protocol": {"image_size": 8}}
    texts = {
        "steps.tsv": "Train\t10\tok\tpython train.py\nViews\t3\tfailed\tpython x\n",
        "train/log.jsonl": log,
        "history.jsonl": log,
        "train/run.json": json.dumps({"curriculum": {"name": "SYNTH"}}),
        "heads/meta.json": json.dumps({"num_images": 3, "image_size": 4}),
        "scores/images.json": json.dumps(images),
        "scores/geometry.json": json.dumps(geometry),
        "scores/weighted_variance.json": json.dumps(variance),
    }
    image_names = (
        "data.png",
        "train/samples/0000001.png",
        "train/samples/0000002.png",
        "imgs/grid_0.png",
        "mesh_images/0_views.png",
    )
    return {**{name: text.encode() for name, text in texts.items()}, **dict.fromkeys((*image_names, "vids/0.mp4"), image)}


@st.composite
def report_cases(draw: st.DrawFn) -> Case:
    """A quickstart folder with files that are damaged, have values of other types, or are replaced by other things."""
    files: dict[str, Any] = dict(quickstart_folder())
    special = st.sampled_from(
        (("folder",), ("fifo",), ("link", "/dev/zero"), ("link", "missing"), ("link", "."), ("holes", 1 << 33))
    )
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(quickstart_folder())))
        content = quickstart_folder()[name]
        choices = [fb.damaged(content), special, st.sampled_from((b"[" * 100_000, b"null", b"[]", b"3", b"", b"\xff"))]
        if name.endswith((".json", ".jsonl")):
            last = content.decode().split("\n")[-1]
            changed = fb.with_junk(json.loads(last)).map(lambda value: json.dumps(value, default=repr, skipkeys=True).encode())
            choices += [changed, changed, changed.map(lambda text, content=content: content + b"\n" + text)]
        if name == "steps.tsv":
            lines = (
                b"a\t\xc2\xb2\tok\tx",
                b"a\t" + b"9" * 5000 + b"\tok\tx",
                b"\t\t\t",
                b"<b>\t1\t<i>\t</code>",
                b"a\t-1\tok\tx",
            )
            choices.append(st.sampled_from(lines))
        files[name] = draw(st.one_of(choices))
    if draw(st.integers(0, 4)) == 0:
        odd = (
            "train/samples/²³.png",
            "vids/²³.mp4",
            "imgs/grid_\udcff.png",
            "vids/interpolation_<b>.mp4",
            "train/samples/" + "9" * 250 + ".png",
        )
        files[draw(st.sampled_from(odd))] = draw(st.just(b"x") | special)
    return Case("report.page", files, ("tools.report", ["../input", "--output", "page.html"]), ("page.html",))


# ------------------------------------------------------------------------------------------------ command lines


class _Caught(Exception):
    pass


@functools.cache
def options_of(script: str) -> tuple[argparse.Action, ...]:
    """The parser of a script, intercepted before it parses."""

    def catch(self: argparse.ArgumentParser, *_: object) -> None:
        raise _Caught(self._actions)

    original, arguments = ArgumentParser.parse_args, sys.argv
    ArgumentParser.parse_args, sys.argv = catch, [script]
    try:
        importlib.import_module(script).main()
    except _Caught as caught:
        return tuple(action for action in caught.args[0] if not isinstance(action, argparse._HelpAction))
    finally:
        ArgumentParser.parse_args, sys.argv = original, arguments
    raise AssertionError(f"{script}.py parses no arguments")


@functools.cache
def input_files() -> dict[str, bytes]:
    """The input folder of every command."""
    return {
        "g.safetensors": sound_files()["inference"],
        "damaged.safetensors": sound_files()["inference"][:500],
        "generator.pth": sound_files()["state"],
        "ema.pth": sound_files()["ema"],
        "options.txt": SOUND_OPTIONS,
        "hostile.pth": fb.zip_around(b"\x80\x02" + fb.CANARIES[0] + fb.PAYLOAD + b"\x85R."),
        "c.json": json.dumps(SMALL.to_dict()).encode(),
        "images/a.png": fuzz_images.sound_images()["PNG0"],
        "images/b.jpg": fuzz_images.sound_images()["JPEG0"],
        "images/broken.png": b"\x89PNG\r\n",
        "run/checkpoint_0000001.pt": sound_files()["checkpoint"],
        "shapes/0_8_voxel.npy": sound_voxels(),
        "quick/steps.tsv": b"Train\t10\tok\tpython train.py\n",
        **heads(),
    }


@functools.cache
def heads() -> dict[str, bytes]:
    """A tiny set with ground truth."""
    from tools.synthetic_heads import generate

    with tempfile.TemporaryDirectory() as folder:
        generate(folder, num_images=2, image_size=8, num_workers=1)
        return {f"heads/{path.relative_to(folder)}": path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


SMALL_VIEW = ["--image_size", "4", "--ray_step_multiplier", "1", "--device", "cpu"]
GENERATOR = "../input/g.safetensors"
# Arguments with which a script does its work in a moment; a case changes some of them.
BASES: dict[str, list[str]] = {
    "train": ["--curriculum", "SYNTH_TINY", "--output_dir", "out", "--dataset_path", "../input/images", "--device", "cpu",
              "--max_steps", "1", "--no-use_logger", "--sample_interval", "0", "--dataset", "Images",
              "--set", *SMALL_SETTINGS, "init_ball_radius=0.0", "batch_size=2", "img_size=4"],
    "eval_metrics": [GENERATOR, "--dataset_path", "../input/images", "--dataset", "Images", "--num_images", "2",
                     "--image_size", "8", "--metrics", "swd", "--output_json", "out/r.json", "--device", "cpu"],
    "tools.eval_geometry": ["heads_siren", "--dataset_path", "../input/heads", "--num_images", "1", "--predictor_steps", "1",
                      "--num_truth", "2", "--output_json", "out/r.json", "--device", "cpu", "--batch_size", "2"],
    "cal_weighted_var": [GENERATOR, "--seeds_end", "1", "--image_size", "4", "--output_json", "out/r.json", "--device", "cpu"],
    "render_multiview_images": [GENERATOR, "--seeds_end", "1", "--output_dir", "out", *SMALL_VIEW],
    "render_video": [GENERATOR, "--seed", "0", "--num_frames", "2", "--output_dir", "out", *SMALL_VIEW],
    "render_video_interpolation": [GENERATOR, "--seeds", "0", "--num_frames", "2", "--output_dir", "out", *SMALL_VIEW],
    "extract_shapes": ["heads_siren", "--seeds", "0", "--voxel_resolution", "8", "--output_dir", "out", "--device", "cpu"],
    "render_meshimg": ["--input_dir", "../input/shapes", "--output_dir", "out", "--image_size", "4", "--renderer", "raycast"],
    "tools.report": ["../input/quick", "--output", "out/page.html"],
    "dataset": ["--check", "../input/images", "--image_size", "8", "--output", "out.png"],
    "tools.synthetic_heads": ["--output_dir", "out", "--num_images", "1", "--image_size", "4", "--num_workers", "1"],
}  # fmt: skip
PATHS = (
    *("../input/g.safetensors", "../input/generator.pth", "../input/hostile.pth", "../input/damaged.safetensors"),
    *("../input/c.json",),
    *("../input", "../input/images", "../input/heads", "../input/run", "../input/images/*.png"),
    *("../input/shapes/0_8_voxel.npy",),
    *("heads_siren", "missing", "", ".", "/dev/null", "/dev/zero"),
    *("../input/pipe", "../input/loop", "../input/images/broken.png"),
    *("~nobody/x", "\udcff\udcfe", "x" * 5000, "a\nb", "../input/g.safetensors/x", "-", "[", "*", "/proc/self/mem"),
    *("../input/quick",),
)
OUTPUTS = ("out", "out/deep/er", "out/\udcff", "out/new\nline", "out/" + "x" * 300, "out/ü", "")
WORK_OPTIONS = (
    "num_images",
    "num_truth",
    "num_frames",
    "num_workers",
    "seeds_end",
    "seeds_start",
    "max_steps",
    "predictor_steps",
    "n_epochs",
)
ABSURD = ("2147483648", "9223372036854775808", "-1", "0", "1", "2", "nan", "", "x", "1e9", "9" * 5000)


def option_values(script: str, action: argparse.Action) -> st.SearchStrategy[list[str]]:
    """Arguments for one option: valid values, edge cases, and any text."""
    name = action.dest
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return st.just([])
    if "output" in name:
        one = st.sampled_from(OUTPUTS)
    elif name == "set":
        one = assignments()
    elif name == "metrics":
        one = st.sampled_from(("swd", "swd", "x", ""))
    elif name == "device":
        one = st.sampled_from(
            ("cpu", "cpu:1", "cuda", "cuda:0", "cuda:99999999999999999999", "cuda:-1", "meta", "", "x", "cpu:x", "auto", "mps")
        )
    elif name == "curriculum":
        one = st.sampled_from(("SYNTH_TINY", "../input/c.json", "BFM", "x", "", "../input/pipe.json", "../input/loop.json", "."))
    elif action.choices is not None:
        one = st.sampled_from((*map(str, action.choices), "x", ""))
    elif name in WORK_OPTIONS:
        one = st.sampled_from(ABSURD)
    elif action.type is not None and action.type is not str:
        one = st.sampled_from(NUMBER_TEXTS) | st.text(max_size=5).map(without_null)
    else:
        one = st.sampled_from(PATHS) | st.text(max_size=5).map(without_null).filter(
            lambda text: "/" not in text and "*" not in text
        )
    if action.nargs in ("+", "*"):
        return st.lists(one, max_size=3)
    return one.map(lambda value: [value])


@st.composite
def command_cases(draw: st.DrawFn, scripts: tuple[str, ...] = SCRIPTS) -> Case:
    """A script's base command with arguments replaced, added, duplicated or removed."""
    script = draw(st.sampled_from(scripts))
    actions = options_of(script)
    arguments = list(BASES[script])
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.integers(0, 9))
        action = draw(st.sampled_from(actions))
        if kind == 0 and arguments:
            del arguments[draw(st.integers(0, len(arguments) - 1))]
        elif kind == 1:
            arguments.insert(draw(st.integers(0, len(arguments))), draw(value_texts()))
        elif action.option_strings:
            option = draw(st.sampled_from(action.option_strings))
            values = draw(option_values(script, action))
            joined = [f"{option}={values[0]}"] if len(values) == 1 and draw(st.booleans()) else [option, *values]
            arguments += joined  # the later of two counts
        elif arguments and not arguments[0].startswith("-"):
            arguments[:1] = draw(option_values(script, action)) or [""]
    files: dict[str, Any] = {**input_files(), "pipe": ("fifo",), "pipe.json": ("fifo",), "loop": ("link", "loop")}
    files["loop.json"] = ("link", "loop.json")
    if draw(st.integers(0, 9)) == 0:
        files["g.safetensors"] = draw(entries())
    if script == "tools.report" and not any(argument.startswith("--output=") for argument in arguments):
        arguments += ["--output", "out/page.html"]  # else the page goes into the folder that it is about
    for place in range(len(arguments) - 1):  # an argument left out may have made an input the output
        if arguments[place].startswith("--") and "output" in arguments[place] and arguments[place + 1].startswith(".."):
            arguments[place + 1] = "out"
    return Case("command.line", files, (script, arguments), may_write(actions, arguments))


def may_write(actions: tuple[argparse.Action, ...], arguments: list[str]) -> tuple[str, ...]:
    """The first components of all output paths given by arguments or defaults."""
    named = [str(action.default) for action in actions if "output" in action.dest]
    named += ["out", "out.png", *arguments, *(argument.partition("=")[2] for argument in arguments if "=" in argument)]
    firsts = {name.split("/")[0] for name in named}
    return tuple(sorted(firsts - {"", ".", ".."})) + ((ANYWHERE,) if firsts & {"", "."} else ())


CASES: dict[str, Any] = {
    "--set": set_cases,
    "curriculum files": file_cases,
    "voxels and meshes": mesh_cases,
    "report folders": report_cases,
    "command lines": command_cases,
}
