"""Pictures that are missing, broken or too large are named; odd modes become RGB."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmrl.data.images import image_size, open_image
from mmrl.errors import UserError


@pytest.fixture
def noise(tmp_path):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    for name in ("a.png", "a.jpg", "a.webp", "a.gif", "a.bmp"):
        picture.save(tmp_path / name)
    return tmp_path


def png_header(path, width, height):
    """A PNG whose header promises any size and which holds nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


def test_good_pictures(noise):
    for name in ("a.png", "a.jpg", "a.webp", "a.gif", "a.bmp"):
        picture = open_image(noise / name)
        assert picture.mode == "RGB" and picture.size == (80, 60), name
    assert image_size(noise / "a.png") == (80, 60)


def test_missing_and_foreign(noise):
    with pytest.raises(UserError, match="none.png: no such file"):
        open_image(noise / "none.png")
    (noise / "text.png").write_text("hello")
    with pytest.raises(UserError, match="text.png: not a picture"):
        open_image(noise / "text.png")
    with pytest.raises(UserError, match="cannot be opened"):
        open_image(noise)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_truncated(noise, name, share):
    whole = (noise / name).read_bytes()
    cut = noise / f"cut-{name}"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=rf"cut-{name}: .*replace the file"):
        open_image(cut)


def test_every_cut_of_a_small_png_is_a_user_error_or_a_picture(tmp_path):
    Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    refused = 0
    for n in range(len(whole)):
        (tmp_path / "cut.png").write_bytes(whole[:n])
        try:
            assert open_image(tmp_path / "cut.png").size == (9, 9)
        except UserError:
            refused += 1
    assert refused > len(whole) // 2


def test_absurdly_large_pictures_are_refused_by_their_header(tmp_path):
    with pytest.raises(UserError, match="30000 x 10 pixels exceeds the limit"):
        open_image(png_header(tmp_path / "wide.png", 30_000, 10))
    with pytest.raises(UserError, match="12000 x 12000 pixels exceeds the limit"):
        open_image(png_header(tmp_path / "big.png", 12_000, 12_000))
    with pytest.raises(UserError, match="bomb.png: absurdly large"):
        open_image(png_header(tmp_path / "bomb.png", 60_000, 60_000))
    with pytest.raises(UserError, match="64 x 64 pixels exceeds the limit .sides 32"):
        open_image(Image.new("RGB", (64, 64)), max_side=32)
    with pytest.raises(UserError, match="exceeds the limit"):
        open_image(Image.new("RGB", (64, 64)), max_pixels=4095)
    assert open_image(Image.new("RGB", (64, 64)), max_pixels=4096).size == (64, 64)


def test_modes():
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    assert list(np.asarray(open_image(clear)).reshape(-1, 3).tolist()) == [[255, 255, 255], [10, 20, 30]]
    deep = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    assert np.asarray(open_image(deep))[0, :, 0].tolist() == [0, 128, 255]
    for mode in ("1", "L", "P", "LA", "CMYK", "YCbCr", "HSV"):
        assert open_image(Image.new(mode, (3, 2))).mode == "RGB"


def test_a_picture_in_memory_stays_usable():
    picture = Image.new("L", (4, 4), 9)
    assert open_image(picture).getpixel((0, 0)) == (9, 9, 9)
    assert open_image(picture).getpixel((0, 0)) == (9, 9, 9)
