"""What an image file is, and what its pixels are: formats, depths, orientation, transparency, limits."""

import warnings

import numpy as np
import pytest
from PIL import Image, features

from benchmark.base.errors import UserError
from benchmark.base.image_files import files_below, is_image, read_image
from tests.data.conftest import encoded

RASTER = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif", "ppm", "pgm", "pbm", "jp2", "tga", "ico", "sgi", "avif"]
STUBS = ["eps", "ps", "wmf", "emf", "grib", "bufr", "h5", "hdf", "mpg", "fits", "iim"]


def smooth(height=40, width=40):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([6 * x % 256, 6 * y % 256, 3 * (x + y) % 256], -1).astype(np.uint8)


def saved(path, image, **options):
    image.save(path, **options)
    return read_image(path, path.name)


def grey(image):
    """The grey values of a picture whose three channels are equal."""
    values = np.asarray(image)
    assert (values == values[..., :1]).all()
    return values[..., 0]


@pytest.mark.parametrize("suffix", RASTER)  # F6
def test_raster_formats_are_images_and_keep_their_pixels(tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("Pillow is built without AVIF")
    pixels = smooth(48, 48)
    path = tmp_path / f"a.{suffix.upper()}"
    original = Image.fromarray(pixels).convert({"pgm": "L", "pbm": "1"}.get(suffix, "RGB"))
    sizes = {"sizes": [(48, 48)]} if suffix == "ico" else {}
    original.save(path, **sizes)
    assert is_image(path)
    picture = read_image(path, "a")
    assert (picture.mode, picture.size) == ("RGB", (48, 48))
    difference = np.abs(np.asarray(picture).astype(int) - np.asarray(original.convert("RGB")))
    assert difference.mean() < (30 if suffix == "gif" else 8)


@pytest.mark.parametrize("suffix", [*STUBS, "pdf", "txt", ""])
def test_stubs_and_formats_that_start_programs_are_no_images(tmp_path, suffix):  # F6
    assert not is_image(tmp_path / f"a.{suffix}")


def test_a_program_is_not_started_for_a_disguised_file(tmp_path, monkeypatch):  # F6
    import subprocess

    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    Image.fromarray(smooth()).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"cannot read image x: it is not an image that Pillow reads"):
        read_image(tmp_path / "a.png", "x")


def test_a_wrong_suffix_does_not_matter(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(smooth(), "WEBP"))
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.jpg", "a")), smooth())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "mpo"])
def test_the_orientation_is_applied(tmp_path, suffix, orientation):  # F7
    upright = Image.fromarray(smooth(24, 16))
    stored = {  # as the EXIF standard says where row 0 and column 0 are shown
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](np.asarray(upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"png": {}, "webp": {"lossless": True}, "tiff": {}}.get(suffix, {"quality": 100, "subsampling": 0})
    picture = saved(tmp_path / f"a.{suffix}", Image.fromarray(np.ascontiguousarray(stored)), exif=exif.tobytes(), **options)
    assert picture.size == upright.size
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(upright)).max() <= (
        0 if suffix in ("png", "webp", "tiff") else 6
    )


EIGHT = np.arange(256, dtype=np.float64).reshape(16, 16)


@pytest.mark.parametrize(
    ("suffix", "values"),
    [
        ("png", (EIGHT * 257).astype(np.uint16)),
        ("tiff", (EIGHT * 257).astype(np.uint16)),
        ("tiff", (EIGHT * 257).astype(">u2")),
        ("pgm", (EIGHT * 257).astype(np.int32)),
        ("tiff", EIGHT.astype(np.int32)),
        ("tiff", (EIGHT * 257).astype(np.int32)),
        ("tiff", (EIGHT * ((2**31 - 1) / 255)).astype(np.int32)),
        ("tiff", (EIGHT / 255).astype(np.float32)),
        ("pfm", (EIGHT / 255).astype(np.float32)),
        ("tiff", EIGHT.astype(np.float32)),
    ],
)
def test_deep_grey_keeps_its_brightness(tmp_path, suffix, values):  # F6
    assert np.array_equal(grey(saved(tmp_path / f"a.{suffix}", Image.fromarray(values))), EIGHT)


def test_unsigned_grey_of_32_bits_and_white_as_zero(tmp_path):  # F6
    tifffile = pytest.importorskip("tifffile")  # Pillow writes neither
    tifffile.imwrite(tmp_path / "a.tiff", (EIGHT * 0x01010101).astype(np.uint32), photometric="minisblack")
    assert np.array_equal(grey(read_image(tmp_path / "a.tiff", "a")), EIGHT)
    tifffile.imwrite(tmp_path / "b.tiff", (EIGHT * 257).astype(np.uint16), photometric="miniswhite")
    assert np.array_equal(grey(read_image(tmp_path / "b.tiff", "b")), 255 - EIGHT)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e20])
def test_grey_without_a_white_is_refused(tmp_path, value):
    with pytest.raises(UserError, match=r"cannot read image a.tiff: it holds|its values reach 1e\+20"):
        saved(tmp_path / "a.tiff", Image.fromarray(np.full((4, 4), value, dtype=np.float32)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_lies_on_black(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (200, 200, 200, 255))
    image.paste((200, 200, 200, 0), (0, 0, 4, 8))
    image = image.quantize(4) if mode == "PA" else image.convert(mode)  # a palette with transparent entries
    values = grey(saved(tmp_path / "a.png", image))
    assert (values[:, :4] == 0).all() and (values[:, 4:] == 200).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_an_animation_gives_its_first_frame(tmp_path, suffix):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("white", "black"))
    assert (grey(saved(tmp_path / f"a.{suffix}", first, save_all=True, append_images=[second])) == 255).all()


@pytest.mark.parametrize("pixels", [150, 250])
def test_a_decompression_bomb_is_an_error_and_warnings_stay_as_they_are(tmp_path, monkeypatch, pixels):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow alone warns from 100 to 200
    Image.new("RGB", (pixels, 1)).save(tmp_path / "a.png")
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(UserError, match=r"cannot read image a.png: Image size \(\d+ pixels\) exceeds limit"):
            read_image(tmp_path / "a.png", "a.png")
    assert not caught and warnings.filters == before


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "TGA"])
@pytest.mark.parametrize("harm", ["truncated", "garbage", "empty"])
def test_a_damaged_file_is_one_sentence_without_an_address(tmp_path, form, harm):
    path = tmp_path / f"a.{form.lower()}"
    data = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), form)
    garbage = np.random.default_rng(1).bytes(500)
    path.write_bytes({"truncated": data[: len(data) // 2], "garbage": garbage, "empty": b""}[harm])
    with pytest.raises(UserError, match=r"^cannot read image the name: [^\n]+$") as error:
        read_image(path, "the name")
    assert "0x" not in str(error.value)


def test_random_bytes_are_never_taken_for_a_picture():
    rng = np.random.default_rng(2)
    for length in range(0, 2000, 50):
        with pytest.raises(UserError, match="cannot read image x"):
            read_image(bytes(length) if length % 100 else rng.bytes(length), "x")


def test_every_file_is_found_once_through_links_and_circles(tmp_path):  # F5
    real, store = tmp_path / "root" / "b", tmp_path / "store"
    for folder in (real, store / "deep"):
        folder.mkdir(parents=True)
        (folder / "x.png").touch()
    root = tmp_path / "root"
    (root / "a").symlink_to(store)
    (root / "again").symlink_to(real)
    (root / "circle").symlink_to(root)
    (real / "up").symlink_to("..")
    (root / "link.png").symlink_to(store / "deep" / "x.png")
    names = [str(file.relative_to(root)) for file in files_below(root)]
    assert names == ["a/deep/x.png", "b/x.png", "link.png"]


@pytest.mark.parametrize("target", ["nowhere", "broken.png"])
def test_a_link_that_leads_nowhere_or_to_itself_is_named(tmp_path, target):  # F5
    (tmp_path / "broken.png").symlink_to(tmp_path / target)
    with pytest.raises(UserError, match=r"cannot read .*broken\.png: (No such file|Too many levels)"):
        files_below(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):  # F5
    from pathlib import Path

    (tmp_path / "closed").mkdir()
    listed = Path.iterdir

    def iterdir(self):
        if self.name == "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(UserError, match=r"cannot read folder .*closed: Permission denied$"):
        files_below(tmp_path)


def test_a_file_that_vanishes_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^cannot read image gone: No such file or directory$"):
        read_image(tmp_path / "a.png", "gone")


def test_damaged_exif_data_do_not_cost_the_picture(tmp_path):
    picture = Image.new("RGB", (8, 6), "red")
    picture.save(tmp_path / "a.png", exif=b"Exif\0\0garbage-garbage")
    assert read_image(tmp_path / "a.png", "a").size == (8, 6)
