"""The quickstart's report of a small artificial folder, and the launchers: syntax, usage errors, and records."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from tools.report import MAX_POINTS, main, read_steps, thinned
from tools.report_html import Curve, chart, table

LAUNCHERS = sorted(path.name for path in (Path(__file__).parent.parent / "auto_bash").glob("*.sh"))
VOID = {"meta", "img", "br", "link", "input", "hr"}
GEOMETRY = {
    "score": {"depth_mae_aligned": 0.0123, "depth_correlation": -0.4, "bulges_outward": False, "num_views": 64},
    "noise_floor": {"depth_mae_aligned": 0.003},
    "baselines": {"mirrored": {"depth_mae_aligned": 0.03}},
}


class Reader(HTMLParser):
    """Checks that tags are closed in order; collects text, sources and links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.sources += [values[name] or "" for name in ("src", "srcset", "poster", "data") if name in values]
        self.links += [values["href"] or ""] if "href" in values else []
        self.ids += [values["id"] or ""] if "id" in values else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes what is not open"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 6, 3), 90, np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All outputs of a quickstart, in small."""
    folder = tmp_path / "quick start"
    for name in ("data.png", "train/samples/0001200.png", "train/samples/0001390.png", "imgs/grid_0.png"):
        image(folder / name)
    image(folder / "mesh_images" / "0_128_views.png")
    image(folder / "inverted" / "000000.png")
    for name in ("vids", "scores", "heads", "shapes"):
        (folder / name).mkdir()
    for name in ("0", "0_surface_depth", "interpolation_0_1_front"):
        (folder / "vids" / f"{name}.mp4").write_bytes(b"no real video")
    (folder / "shapes" / "0_128.glb").touch()
    lines = [{"step": s, "D/gan": 1 + s / 1e4, "G/gan": 0.5, "G/hit_rate": 0.3} for s in range(1220, 1400, 20)]
    (folder / "train" / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 1400, "D/g')
    (folder / "train" / "run.json").write_text(json.dumps({"curriculum": {"name": "SYNTH_TRIPLANE"}}))
    (folder / "scores" / "geometry.json").write_text(json.dumps(GEOMETRY))
    metrics = {"swd": 41.5, "fd": 432.1, "fd_real_halves": 98.7}
    images = {"metrics": metrics, "protocol": {"num_real": 256, "num_fake": 250, "image_size": 32}}
    (folder / "scores" / "images.json").write_text(json.dumps(images))
    (folder / "heads" / "meta.json").write_text(json.dumps({"num_images": 1500, "image_size": 64}))
    (folder / "steps.tsv").write_text("Data\t12\tok\tpython a.py --set 'x<y'\nMeshes\t70\tfailed (2)\tpython b.py\nbroken line\n")
    return folder


def read_page(folder: Path) -> Reader:
    return Reader((folder / "index.html").read_text())


def test_page_holds_everything_inside_itself(folder: Path) -> None:
    main([str(folder)])
    page = read_page(folder)
    text = " ".join(page.text)
    assert len(page.sources) == 6 + 3 + 1  # images, videos, and the turning head at the top
    assert all(source.startswith(("data:image/png;base64,", "data:video/mp4;base64,")) for source in page.sources)
    assert all(link.removeprefix("#") in page.ids for link in page.links)
    for title in ("Training", "Views", "Videos", "Meshes", "A photo in 3D", "Scores", "The data", "Commands", "Next"):
        assert title in text
    assert "http" not in (folder / "index.html").read_text()


def test_page_opens_with_the_generator_itself(folder: Path) -> None:
    (folder / "live.html").write_text('<p class="x">live & "quoted"</p>')
    main([str(folder)])
    html = (folder / "index.html").read_text()
    assert 'srcdoc="&lt;p class=&quot;x&quot;&gt;live &amp; &quot;quoted&quot;&lt;/p&gt;"' in html
    assert "<div class='hero'>" not in html
    read_page(folder)


def test_page_shows_measurements_and_failures(folder: Path) -> None:
    main([str(folder), "--output", str(folder / "other.html")])
    text = " ".join(Reader((folder / "other.html").read_text()).text)
    for words in (
        "41.5",
        "432",
        "98.7 between two halves",
        "250 generated, 256 real images at 32 px",
        "0.0123",
        "hollow",
        "step 1200",
        "step 1390",
        "1500 procedural",
    ):
        assert words in text
    assert "Some commands failed: Meshes" in text and "failed (2)" in text
    assert "python a.py --set 'x<y'" in text  # escaped, so it is text and not a tag
    assert "2 commands, 1 min 22 s" in text


@pytest.mark.parametrize(
    "missing", ["train", "imgs", "vids", "mesh_images", "shapes", "scores", "heads", "steps.tsv", "data.png"]
)
def test_page_is_written_without_a_missing_part(folder: Path, missing: str) -> None:
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    main([str(folder)])
    page = read_page(folder)
    assert "Next" in page.text
    assert ("Views" in page.text) == (missing != "imgs")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"metrics": {"swd": null}}', '{"score": {"depth_mae_aligned": null}}'])
def test_page_survives_broken_records(folder: Path, content: str) -> None:
    for name in (
        "scores/images.json",
        "scores/geometry.json",
        "scores/weighted_variance.json",
        "train/run.json",
        "heads/meta.json",
    ):
        (folder / name).write_text(content)
    (folder / "train" / "log.jsonl").write_text(content)
    main([str(folder)])
    read_page(folder)


def test_history_precedes_the_run_in_the_chart(folder: Path) -> None:
    main([str(folder)])
    assert "Steps 1220 to 1380." in " ".join(read_page(folder).text)
    history = [{"step": s, "D/gan": 2.0, "G/gan": 1.0} for s in range(20, 2000, 20)]  # on past the checkpoint
    (folder / "history.jsonl").write_text("\n".join(map(json.dumps, history)))
    main([str(folder)])
    html = (folder / "index.html").read_text()
    assert "Steps 20 to 1380." in html and 'class="mark"' in html


def test_an_empty_report_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="nothing to report"):
        main([str(tmp_path)])
    assert not (tmp_path / "index.html").exists()


def test_chart_places_points() -> None:
    html = chart("a < b", [Curve("one", [(0, 0.0), (10, 4.0), (20, 2.0)])], mark=10)
    (points,) = re.findall(r'points="([^"]*)"', html)
    x, y = zip(*(map(float, point.split(",")) for point in points.split()), strict=True)
    assert x[1] - x[0] == pytest.approx(x[2] - x[1]) and x[0] < x[1]
    assert y[0] - y[1] == pytest.approx(2 * (y[0] - y[2]))  # up is larger
    assert "a &lt; b" in html and f'x1="{x[1]:.1f}"' in html
    Reader(html)


def test_chart_of_nothing_or_of_one_value() -> None:
    assert chart("none", []) == ""
    assert chart("none", [Curve("nan", [(0, float("nan"))])]) == ""
    flat = chart("flat", [Curve("zero", [(5, 0.0), (5, 0.0)]), Curve("inf", [(5, float("inf"))])])
    assert "nan" not in flat and "inf," not in flat


def test_long_histories_are_thinned_to_their_means() -> None:
    points = thinned([(step, float(step % 2)) for step in range(6000)])
    assert len(points) <= MAX_POINTS
    assert all(value == 0.5 for _, value in points)
    assert thinned([]) == []


def test_table_is_html_and_its_head_is_text() -> None:
    assert Reader(table(["<x>"], [["<code>y</code>"]])).text == ["<x>", "y"]


# -- launchers -----------------------------------------------------------------------------------------------------------


def bash(repo: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    return subprocess.run(
        ["bash", *map(str, arguments)], cwd=repo, capture_output=True, text=True, timeout=120, env={**kept, **environment}
    )


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_is_valid_bash(repo: Path, name: str) -> None:
    result = bash(repo, "-n", f"auto_bash/{name}")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("name", ["photos.sh", "bfm.sh", "celeba.sh", "cats.sh"])
def test_training_launcher_without_data_is_a_usage_error(repo: Path, name: str) -> None:
    result = bash(repo, f"auto_bash/{name}")
    assert result.returncode == 2
    assert result.stderr == f"usage: bash auto_bash/{name} DATASET_PATH [OUTPUT_DIR] [arguments of train.py]\n"


@pytest.mark.parametrize("arguments", [("a", "b"), ("--fast",), ("",)])
def test_quickstart_usage_errors(repo: Path, arguments: tuple[str, ...]) -> None:
    result = bash(repo, "auto_bash/quickstart.sh", *arguments)
    assert (result.returncode, result.stderr) == (2, "usage: bash auto_bash/quickstart.sh [OUTPUT_DIR]\n")


def test_quickstart_help_and_folder_that_cannot_be_written(repo: Path, tmp_path: Path) -> None:
    assert "OUTPUT_DIR" in bash(repo, "auto_bash/quickstart.sh", "--help").stdout
    (tmp_path / "file").touch()
    result = bash(repo, "auto_bash/quickstart.sh", tmp_path / "file" / "sub")
    assert result.returncode == 2 and "cannot write" in result.stderr and result.stderr.count("\n") == 1


@pytest.fixture
def stage(repo: Path, tmp_path: Path) -> Path:
    """A checkout whose Python only records its arguments, and fails for the script named in $FAILS."""
    stage, environment = tmp_path / "check out", tmp_path / "environment"
    shutil.copytree(repo / "auto_bash", stage / "auto_bash")
    (stage / "requirements.txt").write_text("")
    (environment / "bin").mkdir(parents=True)
    (environment / ".gof-requirements").write_text("")  # nothing to install
    python = environment / "bin" / "python"
    python.write_text(
        '#!/usr/bin/env bash\nif [ "$1" = -c ]; then\n'
        '  case "$2" in *device_count*) echo "${GPUS:-0}" ;; *) echo "$PREFIX" ;; esac\n  exit\nfi\n'
        'printf "%s\\n" "$*" >>"$PREFIX/calls"\n[[ "$*" != *"${FAILS:-nothing}"* ]] || exit "${CODE:-3}"\n'
    )
    python.chmod(0o755)
    return stage


def run_staged(
    stage: Path, script: str, *arguments: object, **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    prefix = stage.parent / "environment"
    result = bash(stage, f"auto_bash/{script}", *arguments, VIRTUAL_ENV=str(prefix), PREFIX=str(prefix), **environment)
    calls = prefix / "calls"
    return result, calls.read_text().splitlines() if calls.exists() else []


def scripts_of(calls: list[str]) -> list[str]:
    return [call.removeprefix("-m ").split()[0] for call in calls]


def test_quickstart_starts_from_the_pretrained_checkpoint_and_shows_progress(stage: Path) -> None:
    (stage / "pretrained" / "SYNTH_TRIPLANE").mkdir(parents=True)
    for step in ("0000900", "0001200"):
        (stage / "pretrained" / "SYNTH_TRIPLANE" / f"checkpoint_{step}.pt").touch()
    result, calls = run_staged(stage, "quickstart.sh")
    assert result.returncode == 0, result.stderr
    assert [f"[{i}/10]" in result.stdout for i in range(1, 11)] == [True] * 10 and "[11/" not in result.stdout
    trainings = [call for call in calls if call.startswith("train.py")]
    assert len(trainings) == 2
    assert trainings[0].endswith("--load_dir pretrained/SYNTH_TRIPLANE --set_step 1200 --max_steps 1200")
    assert trainings[1].endswith("--max_minutes 2.5")
    assert scripts_of(calls)[-1] == "tools.report"
    steps = read_steps(stage / "quickstart" / "steps.tsv")
    assert len(steps) == len(calls) and {step.status for step in steps} == {"ok"}
    assert steps[0].command.startswith("python -m tools.synthetic_heads --output_dir quickstart/heads")


def test_quickstart_resumes_its_own_run(stage: Path) -> None:
    (stage / "out put" / "train").mkdir(parents=True)
    (stage / "out put" / "train" / "checkpoint_0001390.pt").touch()
    result, calls = run_staged(stage, "quickstart.sh", "out put", QUICKSTART_MINUTES="1")
    assert result.returncode == 0
    (training,) = [call for call in calls if call.startswith("train.py")]
    assert training.endswith("--output_dir out put/train --max_minutes 1")


def test_quickstart_continues_without_meshes_but_not_without_training(stage: Path) -> None:
    result, calls = run_staged(stage, "quickstart.sh", FAILS="render_meshimg.py")
    assert result.returncode == 0 and scripts_of(calls)[-1] == "tools.report"
    assert "1 command(s) failed along the way" in result.stdout
    statuses = {step.command.split()[1]: step.status for step in read_steps(stage / "quickstart" / "steps.tsv")}
    assert statuses["render_meshimg.py"] == "failed (3)" and statuses["train.py"] == "ok"
    result, calls = run_staged(stage, "quickstart.sh", "other", FAILS="train.py")
    assert result.returncode == 3 and scripts_of(calls)[-1] == "train.py"
    assert "stopped in step 4 of 10" in result.stderr


def test_quickstart_stops_on_ctrl_c(stage: Path) -> None:
    result, calls = run_staged(stage, "quickstart.sh", FAILS="eval_metrics.py", CODE="130")
    assert result.returncode == 130 and scripts_of(calls)[-1] == "eval_metrics.py"


def test_training_launcher_takes_all_gpus_and_resolves_paths(stage: Path) -> None:
    (stage / "photos").mkdir()
    result, calls = run_staged(stage, "celeba.sh", "photos", "out", "--max_steps", "5", GPUS="2")
    assert result.returncode == 0, result.stderr
    expected = f"train.py --curriculum CelebA --dataset_path {stage}/photos --output_dir {stage}/out --max_steps 5"
    assert calls[-1] == f"-m torch.distributed.run --standalone --nproc_per_node=2 {expected}"
    _, calls = run_staged(stage, "cats.sh", "photos", "--max_steps", "5", GPUS="1")
    assert (
        calls[-1] == f"train.py --curriculum CATS --dataset_path {stage}/photos --output_dir {stage}/outputs/CATS --max_steps 5"
    )
    _, calls = run_staged(stage, "photos.sh", "photos", "--set", "h_stddev=0.3")
    assert calls[-1] == (
        f"train.py --curriculum CATS_TRIPLANE --dataset_path {stage}/photos --output_dir {stage}/outputs/CATS_TRIPLANE"
        " --dataset Images --eval_freq 1000 --set num_holdout=0 --set h_stddev=0.3"
    )
