"""Which files are read as images, which are excluded, and why an image cannot be read: by content, not by name."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import loading.cache
import loading.opening
from common.errors import UserError
from common.file_kinds import describe
from dataset import DATASETS, ImageDataset, check
from loading.files import Decoded, decode, find_images, words_left_out
from loading.kinds import FORMATS

COLOR = (200, 100, 50)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


def encoded(kind: str, size: tuple[int, int] = (16, 16), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, COLOR).save(buffer, kind, **options)
    return buffer.getvalue()


def only(path: Path, size: int = 8) -> Decoded:
    return decode(find_images(path), 0, DATASETS["Images"], size)


NAMES_BY_FORMAT = {
    "JPEG": ("a.jfif", "a.JPE", "a.jif", "no suffix", "wrong.png"),
    "PNG": ("a.apng", "a.dat"),
    "AVIF": ("a.avif", "b.data"),
    "JPEG2000": ("a.jp2", "a.download"),
    "WEBP": ("a.jpg_large",),
    "GIF": ("a.image",),
    "TIFF": ("a.scan",),
    "TGA": ("a.tga",),
    "PCX": ("a.pcx",),
    "SGI": ("a.sgi",),
    "DIB": ("a.dib",),
    "PPM": ("a.pnm",),
    "MPO": ("a.mpo",),
}


@pytest.mark.parametrize("name, kind", [(name, kind) for kind, names in NAMES_BY_FORMAT.items() for name in names])
def test_images_are_read_by_their_content(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(encoded(kind))
    found = only(tmp_path)
    assert find_images(tmp_path).left_out == () and np.abs(found.pixels[4, 4].astype(int) - COLOR).max() <= 4, found.remark


def test_twenty_photos_with_a_rare_suffix_beside_a_usual_one(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(encoded("JPEG"))
    for i in range(20):
        (tmp_path / f"{i}.jfif").write_bytes(encoded("JPEG"))
    assert len(ImageDataset(tmp_path, 8, cache_dir=None)) == 21


@pytest.mark.skipif("HEIF" in FORMATS, reason="the plugin is installed")
def test_excluded_files_are_counted_and_named_with_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.jpg").write_bytes(encoded("JPEG"))
    for i in range(5):
        (tmp_path / "photos" / f"{i}.heic").write_bytes(HEIC)
    (tmp_path / "photos" / "shot.nef").write_bytes(b"II*\0" + bytes(20))
    (tmp_path / "photos" / "more.zip").write_bytes(b"PK\x03\x04" + bytes(20))
    (tmp_path / "photos" / "labels.csv").write_text("a,b")
    (tmp_path / "photos" / ".DS_Store").write_bytes(b"x")
    check(str(tmp_path / "photos"), "Images", 8, tmp_path / "sheet.png")
    told = capsys.readouterr().out
    assert "1 images, 1 readable" in told
    assert "5 left out (0.heic, 1.heic, 2.heic, ...): a HEIC image; install support with python -m pip" in told
    assert "1 left out (shot.nef): a camera's raw file; convert it" in told
    assert "1 left out (more.zip): a zip archive; unpack it" in told and "1 left out (labels.csv): not an image" in told
    assert "DS_Store" not in told
    assert len(ImageDataset(tmp_path / "photos", 8, cache_dir=None).notes()) == 3  # training prints no note about tables
    (tmp_path / "photos" / "0.jpg").unlink()
    with pytest.raises(UserError, match=r"holds no images .*5 left out \(0\.heic.*pillow-heif"):
        find_images(tmp_path / "photos")


def test_outputs_of_this_project_are_not_used_as_photos(tmp_path: Path) -> None:
    for name in ("0.png", "run/samples/0000001.png", "imgs/image_0_0.png", "vids/0_frames/0.png", "samples/own.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded("PNG"))
    for name in ("run/run.json", "imgs/generator.json", "vids/generator.json"):
        (tmp_path / name).write_text("{}")
    kept = [str(tmp_path / "0.png"), str(tmp_path / "samples/own.png")]
    for path in (tmp_path, str(tmp_path / "**" / "*.png")):
        source = find_images(path)
        assert list(source.names) == kept
        assert sorted(words_left_out(source.left_out, also_no_images=False)) == [
            "1 left out (samples): the sample grids of a training run",
            "2 left out (imgs, vids): made by a generator",
        ]
    assert len(find_images(tmp_path / "imgs").names) == 1  # whoever names the folder means it
    assert len(find_images(str(tmp_path / "imgs" / "*.png")).names) == 1


@pytest.mark.parametrize("output", ["photos/0.png", "photos/new.png", "photos/deep/0.png", "0.jpg", "link/1.png"])
def test_no_output_replaces_a_photo_or_becomes_one(tmp_path: Path, output: str) -> None:
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("photos")
    before = encoded("PNG")
    for name in ("photos/0.png", "photos/deep/0.png", "0.jpg"):
        (tmp_path / name).write_bytes(before)
    with pytest.raises(UserError, match=r"would be among|ends in \.png"):
        check(str(tmp_path / "photos"), "Images", 8, tmp_path / output)
    assert not (tmp_path / "photos" / "new.png").exists()
    assert all((tmp_path / name).read_bytes() == before for name in ("photos/0.png", "photos/deep/0.png", "0.jpg"))
    with pytest.raises(UserError, match="would be among"):
        check(str(tmp_path / "photos" / "*.png"), "Images", 8, tmp_path / "photos" / "0.png")


# ------------------------------------------------------------------------------------------------ reasons


def small_zip(path: Path, members: dict[str, bytes], flag: int = 0, method: int | None = None) -> Path:
    """A zip of stored members, in whose directory and headers the flags and the method are replaced."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    data = bytearray(path.read_bytes())
    for start, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(start)
        while at >= 0:
            data[at + place] |= flag
            if method is not None:
                data[at + place + 2 : at + place + 4] = method.to_bytes(2, "little")
            at = data.find(start, at + 1)
    path.write_bytes(data)
    return path


def test_errors_for_unreadable_archives_name_their_kind_and_the_fix(tmp_path: Path) -> None:
    import tarfile

    image = encoded("PNG")
    (tmp_path / "0.png").write_bytes(image)
    for name, form in (("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tar.xz", "w:xz")):
        with tarfile.open(tmp_path / name, form) as archive:
            archive.add(tmp_path / "0.png", "0.png")
    whole = small_zip(tmp_path / "whole.zip", {"a.png": image}).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    small_zip(tmp_path / "secret.zip", {"a.png": image}, flag=1)
    small_zip(tmp_path / "deflate64.zip", {"a.png": image}, method=9)
    small_zip(tmp_path / "aes.zip", {"a.png": image}, method=99)
    small_zip(tmp_path / "nested.zip", {"a.zip": whole, "b.zip": whole})
    for name, words in {
        "a.tar": "is a tar archive; unpack it",
        "a.tar.gz": "gzip; unpack it",
        "a.tar.xz": "xz; unpack it",
        "cut.zip": "truncated zip archive: its directory.* download it again",
        "secret.zip": "encrypted; unpack the zip with its password",
        "deflate64.zip": "Deflate64, which.*unpack the zip and pass the folder",
        "aes.zip": "AES encryption",
        "nested.zip": r"2 left out \(a\.zip, b\.zip\): a zip archive; unpack it",
    }.items():
        with pytest.raises(UserError, match=words):
            find_images(tmp_path / name)
    assert only(tmp_path / "whole.zip").pixels is not None


def test_reasons_why_an_image_cannot_be_read(tmp_path: Path) -> None:
    jpeg = encoded("JPEG", (64, 64), quality=100)
    contents = {
        "empty": (b"", "empty"),
        "cut": (jpeg[: len(jpeg) // 2], "truncated"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        "page": (b"<!DOCTYPE html><html>403</html>", "a web page"),
        "heic": (HEIC, "pillow-heif"),
        "zeros": (bytes(300), "all zeros"),
        "video": (b"\0\0\0\x18ftypmp42" + bytes(50), "extract its frames"),
        "pdf": (b"%PDF-1.4", "PDF"),
        "text": (b"hello", "not an image in a supported format"),
    }
    for name, (content, words) in contents.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
        found = only(tmp_path / f"{name}.jpg")
        assert found.pixels is None and (words in found.remark or "HEIF" in FORMATS), (name, found.remark)
    assert describe(b"GIF8") == "a GIF image" and describe(b"hello") is None


def test_reasons_are_kept_with_the_cache(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.png").write_bytes(encoded("PNG"))
    (tmp_path / "photos" / "x.png").write_bytes(b"%PDF")
    Image.new("F", (8, 8), 0.5).save(tmp_path / "photos" / "y.tiff")
    fresh, again = (ImageDataset(tmp_path / "photos", 8, cache_dir=tmp_path / "cache") for _ in range(2))
    assert fresh.unreadable == again.unreadable == {str(tmp_path / "photos" / "x.png"): "a PDF document; export its images"}
    assert fresh.notes() == again.notes() and "1 images hold floating-point numbers" in fresh.notes()[0]


# ------------------------------------------------------------------------------------------------ large images


def test_a_large_photo_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.zeros((300, 400, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.linspace(0, 255, 400)[None], np.linspace(0, 255, 300)[:, None]
    ramp[..., 2] = np.random.default_rng(0).integers(0, 64, (300, 400))  # a file of few bytes would pass for a bomb
    for name in ("a.jpg", "b.png", "c.tiff", "d.webp", "e.bmp"):
        Image.fromarray(ramp).save(tmp_path / name)
    source = find_images(tmp_path)
    whole = [decode(source, i, DATASETS["Images"], 16).pixels.astype(int) for i in range(5)]
    for i, expected in enumerate(whole):  # of 120,000 pixels; Pillow refuses those with twice its limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70_000 if i in (2, 3) else 20_000)
        found = decode(source, i, DATASETS["Images"], 16)
        assert found.pixels is not None, found.remark
        assert np.abs(found.pixels - expected).mean() < 3
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "b.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    assert "make it smaller, or a JPEG" in decode(source, 2, DATASETS["Images"], 16).remark


def test_a_jpeg_beyond_the_limit_is_decoded_small_and_others_only_if_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8))
    image.save(tmp_path / "a.jpg")
    image.save(tmp_path / "b.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8_000)
    with loading.opening.open_image(io.BytesIO((tmp_path / "a.jpg").read_bytes())) as opened:
        assert opened.size == (100, 75)  # a quarter: 7,500 pixels
    monkeypatch.setattr(loading.opening, "free_memory", lambda: 400 * 300 * 12)  # of which an image may take a quarter
    assert only(tmp_path / "a.jpg").pixels is not None
    found = only(tmp_path / "b.png")
    assert found.pixels is None and found.remark.startswith("too large: 400 x 300 pixels take 0.0 GiB")


# ------------------------------------------------------------------------------------------------ ranges


@pytest.mark.parametrize(
    "values, dtype, expected",
    [
        ((0.0, 0.5, 1.0), np.float32, (0, 128, 255)),
        ((0.0, 0.5, 1.2), np.float32, (0, 128, 255)),  # a highlight
        ((0.0, 51.0, 255.0), np.float32, (0, 51, 255)),
        ((0.0, 32768.0, 65535.0), np.float32, (0, 128, 255)),
        ((-1.0, float("nan"), 0.5), np.float32, (0, 0, 128)),
        ((0.0, float("inf"), 0.5), np.float32, (0, 255, 128)),
        ((0, 100, 200), np.uint16, (0, 0, 1)),  # a dark one of 16 bits is dark
        ((0, 32768, 65535), np.uint16, (0, 128, 255)),
        ((0, 100, 255), np.int32, (0, 100, 255)),
        ((0, 2**30, 2**31 - 1), np.int32, (0, 128, 255)),
        ((0, 0, 0), np.float32, (0, 0, 0)),
    ],
)
def test_values_of_more_than_8_bits_keep_their_brightness(tmp_path: Path, values, dtype, expected) -> None:
    Image.fromarray(np.tile(np.array(values, dtype), (3, 1))).save(tmp_path / "a.tiff")
    found = only(tmp_path / "a.tiff", size=3)
    assert found.pixels[1, :, 0].tolist() == list(expected)
    assert bool(found.remark) == (dtype != np.uint16)


def test_16_bit_gray_png_and_pgm(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 200, np.uint16)).save(tmp_path / "a.png")
    (tmp_path / "b.pgm").write_bytes(b"P5\n4 4\n65535\n" + b"\0\xc8" * 16)
    for i in range(2):
        found = decode(find_images(tmp_path), i, DATASETS["Images"], 4)
        assert found.pixels.max() == 1 and not found.remark  # 200 of 65535


# ------------------------------------------------------------------------------------------------ the cache


def test_caches_are_bounded_and_evict_the_least_recently_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, cache = tmp_path / "photos", tmp_path / "cache"
    photos.mkdir()
    (cache / "other").mkdir(parents=True)
    (cache / "lookup_0123456789abcdef.so").write_bytes(bytes(5000))
    monkeypatch.setattr(loading.cache, "MAX_CACHE_BYTES", 3 * (8 * 8 * 3 * 3 + 128))
    kept: list[set[str]] = []
    for i in range(5):  # each photo more is another cache
        (photos / f"{i}.png").write_bytes(encoded("PNG"))
        assert len(ImageDataset(photos, 8, cache_dir=cache)) == i + 1
        kept.append({path.name for path in cache.glob("*.npy")})
    assert [len(names) for names in kept] == [1, 2, 3, 3, 2] and not kept[0] & kept[3]
    assert {path.stem for path in cache.glob("*.json")} == {path.stem for path in cache.glob("*.npy")}
    assert (cache / "lookup_0123456789abcdef.so").exists() and (cache / "other").exists()
    told = capsys.readouterr().err
    assert f"decoded images are cached in {cache}" in told and "to clear the cache, remove the folder" in told
