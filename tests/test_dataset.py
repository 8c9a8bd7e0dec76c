"""dataset.py and loading/: sources, decoding, cache, order, stream."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataset as dataset_module
from common.errors import UserError
from dataset import DATASETS, BatchStream, ImageDataset, batch_at, epoch_order, spec_over
from loading.cache import CachedImages, build_cache
from loading.files import DatasetSpec, Split, decode, find_images, part_of, to_rgb, to_square
from settings.registry import CURRICULUMS


def solid(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (20, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five solid images whose red channel is 10 x their number, one of them in a subfolder."""
    for i in range(5):
        solid(tmp_path / "images" / ("deep/er" if i == 4 else "") / f"{i}.png", (10 * i, 1, 2))
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


def reds(data: ImageDataset) -> list[int]:
    return [int(data[i][0, 0, 0]) for i in range(len(data))]


def test_folder_glob_and_zip_give_the_same_images_in_sorted_order(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png"), reverse=True):
            archive.write(file, file.relative_to(folder))
        archive.writestr("__MACOSX/._0.png", b"junk of a mac")
    assert reds(ImageDataset(folder, 8, cache_dir=None)) == [0, 10, 20, 30, 40]
    assert reds(ImageDataset(tmp_path / "z.zip", 8, cache_dir=None)) == [0, 10, 20, 30, 40]
    assert reds(ImageDataset(str(folder / "[1-3].png"), 8, cache_dir=None)) == [10, 20, 30]
    assert reds(ImageDataset(str(folder / "**/*.png"), 8, cache_dir=None)) == [0, 10, 20, 30, 40]


def numbers(path: Path | str, part: str, num_holdout: int) -> list[int]:
    """File names, as numbers, of a part of ``path``."""
    return [int(Path(name).stem) for name in part_of(find_images(path), Split(part, num_holdout)).names]


def test_held_out_images_are_disjoint_and_depend_only_on_their_names(tmp_path: Path) -> None:
    for i in range(60):
        solid(tmp_path / "images" / f"{i:02}.png", (i, 0, 0))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for file in (tmp_path / "images").iterdir():
            archive.write(file, f"elsewhere/{file.name}")
    held_out, kept = (numbers(tmp_path / "images", part, 12) for part in ("holdout", "train"))
    assert len(held_out) == 12 and not set(held_out) & set(kept) and sorted(held_out + kept) == list(range(60))
    assert held_out == [0, 2, 3, 4, 6, 18, 33, 34, 38, 40, 42, 44]  # fixed: unseen images must stay held out
    assert held_out == numbers(tmp_path / "z.zip", "holdout", 12)
    assert set(numbers(tmp_path / "images", "holdout", 8)) < set(held_out)
    for part, expected in (("holdout", held_out), ("train", kept)):
        assert reds(ImageDataset(tmp_path / "images", 8, cache_dir=tmp_path / "cache", split=Split(part, 12))) == expected
    for i in range(60, 66):
        solid(tmp_path / "images" / f"{i:02}.png", (i, 0, 0))
    assert len(set(numbers(tmp_path / "images", "holdout", 12)) & set(held_out)) >= 6


def test_impossible_parts_are_refused(folder: Path) -> None:
    assert numbers(folder, "train", 0) == numbers(folder, "all", 3) == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="5 images; 5 cannot be held out"):
        numbers(folder, "train", 5)
    with pytest.raises(UserError, match="no images are held out"):
        numbers(folder, "holdout", 0)


@pytest.mark.parametrize(
    "mode, fill, expected",
    [
        ("L", 100, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (200, 100, 50, 128), (100, 50, 25)),
        ("LA", (200, 0), (0, 0, 0)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("I;16", 0x8080, (128, 128, 128)),
        ("F", 51.0, (51, 51, 51)),
    ],
)
def test_any_mode_becomes_rgb(mode: str, fill: object, expected: tuple[int, int, int]) -> None:
    pixel = to_rgb(Image.new(mode, (4, 4), fill)).getpixel((1, 1))
    assert np.abs(np.subtract(pixel, expected)).max() <= 1


def test_palette_with_transparency_and_exif_rotation(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 8, 7, 255, 0, 0])
    palette.putpixel((0, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    with Image.open(tmp_path / "p.png") as image:
        rgb = to_rgb(image)
    assert rgb.getpixel((0, 0)) == (255, 0, 0) and rgb.getpixel((2, 2)) == (0, 0, 0)

    upright = Image.new("RGB", (16, 16), (0, 0, 0))
    upright.paste((255, 255, 255), (0, 0, 16, 8))  # bright on top
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    upright.save(tmp_path / "e.jpg", exif=exif)
    data = ImageDataset(tmp_path / "e.jpg", 16, cache_dir=None)
    assert data[0][:, 2].max() < 30 and data[0][:, 13].min() > 220


def test_presets_crop_as_published() -> None:
    # a coordinate ramp: a pixel's value says where it came from
    ramp = np.zeros((218, 178, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(178)[None], np.arange(218)[:, None]
    celeba = np.asarray(to_square(Image.fromarray(ramp), DATASETS["CelebA"], 128)).astype(float)
    # resize 178 -> 320, so 256 px are 142.4 source pixels around the middle (89, 109)
    assert abs(celeba[64, 0, 0] - (89 - 71.2)) < 1.5 and abs(celeba[64, -1, 0] - (89 + 71.2)) < 1.5
    assert abs(celeba[0, 64, 1] - (109 - 71.2)) < 1.5 and abs(celeba[-1, 64, 1] - (109 + 71.2)) < 1.5
    bfm = np.asarray(to_square(Image.fromarray(ramp), DATASETS["BFM"], 170)).astype(float)
    assert bfm[0, 0, 0] == 4 and bfm[0, 0, 1] == 24
    photo = np.asarray(to_square(Image.fromarray(ramp), DATASETS["Images"], 178)).astype(float)
    assert photo[0, 0, 0] == 0 and photo[0, 0, 1] == 20


def test_downsizing_is_antialiased() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(to_square(Image.fromarray(stripes), DatasetSpec(None, None, ""), 32)).astype(int)
    assert np.abs(small - 127).max() < 20  # without a filter: all 0 or all 255


def test_broken_images_are_skipped_named_and_too_many_stop(folder: Path, tmp_path: Path) -> None:
    (folder / "2b.png").write_bytes((folder / "2.png").read_bytes()[:40])
    data = ImageDataset(folder, 8, cache_dir=tmp_path / "cache")
    assert reds(data) == [0, 10, 20, 30, 40] and data.num_unreadable == 1 and data.unreadable_names[0].endswith("2b.png")
    again = ImageDataset(folder, 8, cache_dir=tmp_path / "cache")
    assert again.unreadable_names == data.unreadable_names and reds(again) == reds(data)
    (folder / "3b.jpg").write_text("text")
    with pytest.raises(
        UserError, match=r"2 of 7 images .*2b\.png: damaged at the beginning.*copy it again.*\| 3b\.jpg: not an image"
    ):
        ImageDataset(folder, 8, cache_dir=None)
    assert len(ImageDataset(folder, 8, cache_dir=None, max_unreadable=0.5)) == 5


def test_a_decompression_bomb_is_unreadable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solid(folder / "9.png", (1, 1, 1), (600, 600))  # 360,000 pixels in a thousand bytes
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    data = ImageDataset(folder, 8, cache_dir=None)
    assert data.unreadable_names == [str(folder / "9.png")] and "claim 600 x 600 pixels" in data.unreadable[str(folder / "9.png")]


@pytest.mark.parametrize("kind", ["missing", "empty", "only text", "text named jpg", "zip without images"])
def test_paths_without_images_are_user_errors(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if kind != "missing":
        place.mkdir()
    if kind == "only text":
        (place / "a.txt").write_text("a")
    if kind == "text named jpg":
        for i in range(3):
            (place / f"{i}.jpg").write_text("a")
    if kind == "zip without images":
        place = tmp_path / "a.zip"
        with zipfile.ZipFile(place, "w") as archive:
            archive.writestr("a.txt", "a")
    with pytest.raises(UserError) as caught:
        ImageDataset(place, 8, cache_dir=None)
    assert place.name in str(caught.value)


def test_unknown_preset(folder: Path) -> None:
    with pytest.raises(UserError, match="known: CelebA, BFM, Cats, CARLA, Heads, Images"):
        ImageDataset(folder, 8, preset="Dogs", cache_dir=None)


def test_cache_is_read_rebuilt_when_corrupt_and_keyed_by_content(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = ImageDataset(folder, 8, cache_dir=cache)
    files = sorted(cache.iterdir())
    assert [f.suffix for f in files] == [".json", ".npy"]

    def refuse(*_: object) -> None:
        raise AssertionError("decoded although cached")

    with monkeypatch.context() as patch:
        for module in ("loading.cache", "loading.decoding"):
            patch.setattr(f"{module}.decode", refuse)
        assert torch.equal(ImageDataset(folder, 8, cache_dir=cache).gather(torch.arange(5)), first.gather(torch.arange(5)))
        with pytest.raises(AssertionError):  # another size is another cache
            ImageDataset(folder, 9, cache_dir=cache)
    for damage in (b"", files[1].read_bytes()[:200], b"x" * 900):
        files[1].write_bytes(damage)
        assert reds(ImageDataset(folder, 8, cache_dir=cache)) == [0, 10, 20, 30, 40]
    solid(folder / "2.png", (99, 0, 0), (31, 31))
    assert reds(ImageDataset(folder, 8, cache_dir=cache)) == [0, 10, 99, 30, 40]
    assert not [f for f in cache.iterdir() if f.name.startswith(".")]


def test_a_cache_folder_that_cannot_be_written_falls_back_to_memory(folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    data = ImageDataset(folder, 8, cache_dir=tmp_path / "file" / "cache")
    assert reds(data) == [0, 10, 20, 30, 40] and "decoding into memory" in capsys.readouterr().err


def test_gather_equals_getitem(folder: Path) -> None:
    data = ImageDataset(folder, 8, cache_dir=None)
    batch = data.gather(torch.tensor([3, 0, 3]))
    assert batch.shape == (3, 3, 8, 8) and batch.dtype == torch.uint8
    assert torch.equal(batch[0], data[3]) and torch.equal(batch[1], data[0])


def test_epochs_are_permutations_that_differ() -> None:
    orders = [epoch_order(50, epoch, seed) for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    assert all(torch.equal(order.sort().values, torch.arange(50)) for order in orders)
    assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    assert torch.equal(orders[0], epoch_order(50, 0, 0))


def test_batches_are_slices_of_one_stream_however_they_are_cut() -> None:
    whole = batch_at(7, 0, 60, seed=3)
    expected = torch.cat([epoch_order(7, epoch, 3) for epoch in range(9)])[:60]
    assert torch.equal(whole[0], expected)
    for seen, size in ((0, 5), (5, 5), (6, 20), (13, 1), (33, 27)):
        part = batch_at(7, seen, size, seed=3)
        assert torch.equal(part[0], whole[0][seen : seen + size]) and torch.equal(part[1], whole[1][seen : seen + size])
    ranks = [batch_at(7, 12, 4, seed=3, rank=rank, world_size=3) for rank in range(3)]
    assert torch.equal(torch.cat([r[0] for r in ranks]), whole[0][12:24])
    assert torch.equal(torch.cat([r[1] for r in ranks]), whole[1][12:24])
    flips = batch_at(1000, 0, 4000, seed=0)[1]
    assert 0.45 < flips.float().mean() < 0.55
    assert not torch.equal(flips[:1000], flips[1000:2000])


class Ramp:
    """Image i: a horizontal ramp that starts at i."""

    def __len__(self) -> int:
        return 10

    def gather(self, indices: torch.Tensor) -> torch.Tensor:
        return (indices[:, None, None, None] + torch.arange(4)).expand(-1, 3, 4, 4).to(torch.uint8)


def test_stream_normalizes_flips_and_resumes() -> None:
    with BatchStream(Ramp(), 3, seed=5) as stream:
        batches = [next(stream) for _ in range(8)]
        assert stream.images_seen == 24
    indices, flips = batch_at(10, 6, 3, seed=5)
    for image, index, flip in zip(batches[2], indices.tolist(), flips.tolist(), strict=True):
        row = [index + 3 - i if flip else index + i for i in range(4)]
        assert torch.allclose(image[0, 0], torch.tensor(row) / 127.5 - 1, atol=1e-6)
    with BatchStream(Ramp(), 3, images_seen=15, seed=5) as resumed:
        assert all(torch.equal(next(resumed), batch) for batch in batches[5:])
    with BatchStream(Ramp(), 3, images_seen=6, seed=5, flip=False) as unflipped:
        assert torch.allclose((next(unflipped)[:, 0, 0, 0] + 1) * 127.5, indices.float(), atol=1e-4)


def test_next_raises_errors_of_the_reader_thread() -> None:
    class Broken(Ramp):
        def gather(self, indices: torch.Tensor) -> torch.Tensor:
            raise OSError("the disk went away")

    stream = BatchStream(Broken(), 2)
    for _ in range(2):
        with pytest.raises(OSError, match="the disk went away"):
            next(stream)
    stream.close()
    with pytest.raises(ValueError, match="no batch"):
        BatchStream(Ramp(), 0)


def test_check_command(folder: Path, tmp_path: Path, repo: Path) -> None:
    (folder / "1copy.png").write_bytes((folder / "1.png").read_bytes())
    (folder / "bad.jpg").write_text("text")
    options = ["--image_size", "16", "--output", str(tmp_path / "sheet.png")]
    command = [sys.executable, "dataset.py", "--check", str(folder), *options]
    environment = {**os.environ, "GOF_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "7 images, 6 readable, 1 not" in done.stdout and "bad.jpg" in done.stdout and "exact duplicates: 1" in done.stdout
    assert Image.open(tmp_path / "sheet.png").size == (6 * 16, 16)
    with pytest.raises(UserError, match="nowhere"):
        dataset_module.main(["--check", str(tmp_path / "nowhere"), *options])


def test_the_real_cats(cats_zip: Path, tmp_path: Path) -> None:
    source = find_images(cats_zip)
    assert len(source.names) == 7_939 and list(source.names) == sorted(source.names)
    data = ImageDataset(cats_zip, 32, preset="Cats", cache_dir=tmp_path, num_workers=1)
    assert len(data) == 7_939 and data.num_unreadable == 0
    assert np.array_equal(data[777].permute(1, 2, 0).numpy(), decode(source, 777, DATASETS["Cats"], 32).pixels)
    assert data.gather(torch.arange(2000)).float().std() > 40
    pixels, found = build_cache(source, DATASETS["Cats"], 32, tmp_path)
    assert isinstance(pixels, CachedImages) and not found.unreadable and not found.remarks


def test_public_names() -> None:
    assert all(hasattr(dataset_module, name) for name in dataset_module.__all__)


def test_transparent_photos_are_composited_over_the_rendered_background(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (200, 100, 50, 128)).save(tmp_path / "half.png")
    cache = tmp_path / "cache"
    for _ in range(2):  # decoded, then from the cache: the two backgrounds have a cache each
        over_black = ImageDataset(tmp_path / "half.png", 8, cache_dir=cache)[0][:, 4, 4].tolist()
        white = spec_over("Images", CURRICULUMS["PIGAN_CARLA"])
        over_white = ImageDataset(tmp_path / "half.png", 8, white, cache_dir=cache)[0][:, 4, 4].tolist()
        assert np.abs(np.subtract(over_black, (100, 50, 25))).max() <= 1
        assert np.abs(np.subtract(over_white, (227, 177, 152))).max() <= 1


def test_resized_to_the_nearest_pixel_as_for_published_scores(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (100, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    spec = DatasetSpec(None, None, "", nearest=True)
    small = np.asarray(to_square(Image.fromarray(pixels), spec, 32))
    channels = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(channels, size=32, mode="nearest")[0].permute(1, 2, 0)
    assert np.array_equal(small, expected.numpy())
    cache = tmp_path / "cache"
    filtered = ImageDataset(tmp_path / "a.png", 32, cache_dir=cache)[0]
    nearest = ImageDataset(tmp_path / "a.png", 32, spec, cache_dir=cache)[0]
    assert (
        spec_over("Images", CURRICULUMS["CelebA"], nearest=True).nearest
        and not spec_over("Images", CURRICULUMS["CelebA"]).nearest
    )
    assert torch.equal(nearest, torch.from_numpy(small.copy()).permute(2, 0, 1))
    assert filtered.float().std() < nearest.float().std()
    celeba = DatasetSpec(320, 256, "", nearest=True)
    ramp = np.zeros((218, 178, 3), np.uint8)
    ramp[..., 0] = np.arange(178)[None]
    column = np.asarray(to_square(Image.fromarray(ramp), celeba, 128))[64, :, 0].astype(float)
    assert abs(column[0] - (89 - 71.2)) < 1.5 and abs(column[-1] - (89 + 71.2)) < 2
