import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.base.errors import UserError
from benchmark.base.images import from_pil, to_unit
from benchmark.base.seeds import stream
from benchmark.datasets.faces import Faces
from benchmark.datasets.folder import Folder
from benchmark.datasets.photos import PUBLIC, VICTIMS, Photos


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(10):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        path = tmp_path / ("sub" if i % 2 else ".") / f"{i}.{'jpg' if i % 3 else 'PNG'}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_pixels_survive_the_way_to_a_tensor_and_back():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = from_pil(Image.fromarray(pixels))
    assert image.min() >= -1 and image.max() <= 1
    assert np.array_equal(np.rint(to_unit(image) * 255).astype(np.uint8), pixels)


def test_no_photograph_is_public_and_private():
    assert not set(VICTIMS) & set(PUBLIC)
    assert {"motorcycle_left.png", "motorcycle_right.png"} <= set(PUBLIC)


@pytest.mark.parametrize("size", [16, 32, 128])
def test_victims_of_photos_come_from_different_photographs_and_are_not_flat(size):
    pictures = Photos().victims(len(VICTIMS), size, stream(0, "p"))
    assert len({p.source for p in pictures}) == len(VICTIMS)
    assert all(p.image.std() > 0.02 for p in pictures)


def test_a_crop_at_two_sizes_shows_the_same_place():
    small, large = (Photos().victims(3, size, stream(0, "p")) for size in (16, 32))
    for a, b in zip(small, large, strict=True):
        halved = torch.nn.functional.avg_pool2d(b.image, 2)
        assert (a.image - halved).abs().mean() < 0.05


def test_photos_above_their_largest_size_are_refused():
    with pytest.raises(UserError, match="up to 128x128"):
        Photos().victims(1, 256, stream(0, "p"))


def test_faces_are_different_people_of_the_right_part():
    pictures = Faces().victims(80, 16, stream(0, "f"))
    assert len({p.source for p in pictures}) == 80
    assert not {p.source for p in pictures} & {p.source for p in Faces().public(16)}
    assert all(torch.equal(p.image[0], p.image[1]) for p in pictures)
    with pytest.raises(UserError, match="80 faces for victims, not 81"):
        Faces().victims(81, 16, stream(0, "f"))


def test_a_folder_gives_every_file_once(folder):
    data = Folder(path=str(folder))
    victims, public = data.victims(8, 16, stream(0, "v")), data.public(16)
    sources = [p.source for p in victims + public]
    assert len(set(sources)) == 10 and {s.rpartition("/")[2][0] for s in sources} == set("0123456789")
    with pytest.raises(UserError, match="has 8 images for victims, not 9"):
        data.victims(9, 16, stream(0, "v"))


def test_the_largest_centred_square_is_taken(tmp_path):
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = 255
    for i, name in enumerate(("a.png", "b.png")):
        pixels[0, 0] = i
        Image.fromarray(pixels).save(tmp_path / name)
    (picture,) = Folder(path=str(tmp_path)).victims(1, 10, stream(0, "v"))
    assert (picture.image == 1).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "1"])
def test_every_kind_of_png_becomes_three_channels(tmp_path, mode):
    for i, name in enumerate(("a.png", "b.png")):
        Image.new(mode, (20, 20 + i)).save(tmp_path / name)
    assert Folder(path=str(tmp_path)).public(16)[0].image.shape == (3, 16, 16)


def test_sixteen_bits_become_eight(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for i in range(2):
        Image.fromarray(ramp + i).save(tmp_path / f"{i}.png")
    image = Folder(path=str(tmp_path)).public(16)[0].image
    assert len(image.unique()) > 200 and abs(float(image.mean())) < 0.02


def test_copies_of_one_image_count_once(tmp_path):
    for i, value in enumerate([10, 10, 10, 200]):
        Image.new("RGB", (16, 16), (value, 0, 0)).save(tmp_path / f"{i}.png")
    data = Folder(path=str(tmp_path))
    assert len(data.public(16)) == len(data.victims(1, 16, stream(0, "v"))) == 1
    with pytest.raises(UserError, match="has 1 images for victims"):
        data.victims(2, 16, stream(0, "v"))


def test_a_corrupt_image_names_its_file(folder):
    for path in folder.rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"cannot read image .*\.jpg"):
        Folder(path=str(folder)).victims(8, 16, stream(0, "v"))


@pytest.mark.parametrize(("make", "words"), [(False, "does not exist"), (True, "holds no image that Pillow reads")])
def test_a_missing_or_empty_folder_says_so(tmp_path, make, words):
    path = tmp_path / "pictures"
    if make:
        path.mkdir()
    with pytest.raises(UserError, match=words):
        Folder(path=str(path)).victims(1, 16, stream(0, "v"))


def test_one_image_is_too_few(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="one image; it needs two different images"):
        Folder(path=str(tmp_path)).public(16)
