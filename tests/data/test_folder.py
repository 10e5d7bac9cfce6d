"""The data set `folder`: which files it takes, and that the images alone decide what is drawn."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.base.errors import UserError
from benchmark.base.seeds import stream
from benchmark.datasets.folder import Folder


def fill(folder, count=10, first=0, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.{suffix}")
    return folder


def drawn(folder, count=6):
    """What a folder gives: its fingerprint, victims and public images."""
    data = Folder(path=str(folder))
    pictures = [*data.victims(count, 16, stream(5, "v")), *data.public(16)]
    return data.fingerprint(), torch.stack([picture.image for picture in pictures])


def test_the_split_depends_on_the_images_and_not_on_their_names(tmp_path):  # F4
    base = fill(tmp_path / "base")
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(base, copy)
    renamed = tmp_path / "renamed"
    for i, file in enumerate(sorted(base.iterdir(), reverse=True)):
        target = renamed / f"part{i % 3}" / f"name{i}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    before, images = drawn(base)
    for other in (f"{base}/", copy, renamed):
        fingerprint, again = drawn(other)
        assert fingerprint == before and torch.equal(again, images)
    fill(copy, 1, 90)
    assert drawn(copy)[0] != before


def test_the_path_is_a_location_and_not_a_parameter_of_the_images():  # F4
    assert Folder.location == {"path"}


def test_linked_folders_and_files_are_used(tmp_path):  # F5
    store, root = fill(tmp_path / "store", 6, 20), fill(tmp_path / "root" / "b", 6).parent
    (root / "a").symlink_to(store)
    (root / "one.png").symlink_to(fill(tmp_path / "single", 1, 50) / "50.png")
    assert len(Folder(path=str(root)).contents().private | Folder(path=str(root)).contents().public) == 13
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "a").symlink_to(store)
    assert len(drawn(linked, 4)[1]) == 6


def test_all_formats_are_used_and_what_is_passed_over_is_said(tmp_path):  # F6
    for i, suffix in enumerate(("png", "webp", "bmp", "tiff", "gif")):
        fill(tmp_path, 4, 4 * i, suffix)
    assert len(drawn(tmp_path, 16)[1]) == 20 and Folder(path=str(tmp_path)).remarks() == ()
    for name in ("a.txt", "b.json", "c.TXT", "noname"):
        (tmp_path / name).write_text("x")
    shutil.copy(tmp_path / "00.png", tmp_path / "copy.png")
    assert Folder(path=str(tmp_path)).remarks() == (
        f"folder '{tmp_path}': 4 of 25 files are not images that Pillow reads and were passed over (.txt, .json, no suffix)",
        f"folder '{tmp_path}': 1 of 25 files is a copy of another and was passed over",
    )


def test_hidden_files_and_folders_are_passed_over_without_a_remark(tmp_path):  # F8
    fill(tmp_path / "seen")
    fill(tmp_path / "seen" / ".ipynb_checkpoints", 3, 50)
    fill(tmp_path / "seen" / "__MACOSX", 3, 60)
    (tmp_path / "seen" / "._01.png").write_bytes(b"\x00\x05\x16\x07" + bytes(64))
    assert drawn(tmp_path / "seen")[0] == drawn(fill(tmp_path / "alone"))[0]
    assert Folder(path=str(tmp_path / "seen")).remarks() == ()


def test_a_hidden_folder_that_is_named_is_read(tmp_path):  # F8
    assert len(drawn(fill(tmp_path / ".cache"))[1]) == 8


def test_contents_tell_whether_two_folders_share_an_image(tmp_path):  # F13
    one, other = (Folder(path=str(fill(tmp_path / name, 10, first))) for name, first in (("a", 0), ("b", 100)))
    a, b = one.contents(), other.contents()
    assert (len(a.public), len(a.private)) == (2, 8) and not a.public & a.private
    assert not (a.public | a.private) & (b.public | b.private)
    assert all(len(content) == 16 and int(content, 16) >= 0 for content in a.public | a.private)
    shutil.copy(tmp_path / "a" / "03.png", tmp_path / "b" / "other name.png")
    b = other.contents()
    assert len((a.public | a.private) & (b.public | b.private)) == 1


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):  # T4
    fill(tmp_path / "images")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert drawn("~/images")[0] == drawn(tmp_path / "images")[0]


@pytest.mark.parametrize("path", ["~nosuchuser/x", "x" * 300, "a/" * 3000, "x\0y", "\ud800"])
def test_an_impossible_path_is_one_sentence(path):  # T4
    for use in (Folder.fingerprint, Folder.contents, Folder.remarks, lambda data: data.public(16)):
        with pytest.raises(UserError, match=r"^[^\n]{1,300}$"):
            use(Folder(path=path))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=r"a\.png is not a folder$"):
        Folder(path=str(tmp_path / "a.png")).fingerprint()


def test_a_folder_in_a_circle_of_links_does_not_exist(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match=r"does not exist$"):
        Folder(path=str(tmp_path / "a")).fingerprint()


def test_a_folder_of_other_files_says_which_they_are(tmp_path):  # F6
    for i in range(3):
        (tmp_path / f"{i}.heic").touch()
    for use in (Folder.fingerprint, Folder.remarks):
        with pytest.raises(UserError, match=r"holds no image that Pillow reads; .* \(3 of 3 files are not .* \(\.heic\)\)$"):
            use(Folder(path=str(tmp_path)))
