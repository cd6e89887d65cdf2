"""Finding image files: hidden ones are left out, links are followed once, copies are known."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmconv.data import file_search
from lmconv.data.file_search import copies, count_images, find_images


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def found(folder):
    files, others = find_images(folder)
    return [path.relative_to(folder).as_posix() for path in files], dict(others)


def test_images_are_found_in_all_folders_by_name_and_other_files_are_counted_by_suffix(tmp_path):
    make(tmp_path, *("b/2.png", "a.JPEG", "b/1.webp", "c.bmp", "c.jpg"))
    make(tmp_path, *("notes.txt", "b/more.TXT", "scan.gif", "README"))
    files, others = found(tmp_path)
    assert files == ["a.JPEG", "b/1.webp", "b/2.png", "c.bmp", "c.jpg"]
    assert others == {".txt": 2, ".gif": 1, "without suffix": 1}


@pytest.mark.parametrize(
    "place",
    [
        *(".ipynb_checkpoints", ".git/objects", "class/.thumbnails", "__MACOSX/class", "@eaDir"),
        *("$RECYCLE.BIN/S-1-5", "System Volume Information", "#recycle", "LOST+FOUND"),
    ],
)
def test_what_people_do_not_see_as_their_own_is_left_out(tmp_path, place):
    make(tmp_path, "class/a.png", f"{place}/a.png", f"{place}/deep/b.jpg", f"{place}/c.txt")
    assert found(tmp_path) == (["class/a.png"], {"hidden": 2})


def test_hidden_files_are_left_out_but_a_hidden_folder_that_is_named_is_read(tmp_path):
    make(tmp_path, ".cache/a.png", ".cache/._a.png", ".cache/.DS_Store")
    assert found(tmp_path / ".cache") == (["a.png"], {"hidden": 1})
    assert found(tmp_path) == ([], {"hidden": 2})
    assert count_images(tmp_path) == 2


def test_links_to_folders_are_followed_once_and_loops_end(tmp_path):
    folder = tmp_path / "pictures"
    make(folder, "a/1.png", "b/2.png")
    make(tmp_path, "elsewhere/3.png")
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "a" / "above").symlink_to(tmp_path)
    (folder / "A link").symlink_to(folder / "b")  # before "b" by name
    (folder / "other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder / "a")
    (folder / "again").symlink_to(tmp_path / "elsewhere")
    assert found(folder)[0] == ["a/1.png", "again/3.png", "b/2.png"]
    (tmp_path / "link").symlink_to(folder)
    assert found(tmp_path / "link")[0] == ["a/1.png", "again/3.png", "b/2.png"]


def test_what_cannot_be_an_image_is_counted(tmp_path):
    make(tmp_path, "a.png")
    (tmp_path / "lost.png").symlink_to("nowhere.png")
    (tmp_path / "self.png").symlink_to("self.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("a.png")
    make(tmp_path, "folder.png/b.png")
    files, others = found(tmp_path)
    assert files == ["a.png", "folder.png/b.png", "link.png"]
    assert others == {"not regular": 3}


@given(st.lists(st.sampled_from([b"", b"a", b"b", b"a" * 9000, b"b" + b"a" * 8999]), max_size=8))
def test_files_are_copies_if_their_bytes_are_the_same(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("copies")
    files = [folder / str(number) for number in range(len(contents))]
    for path, content in zip(files, contents, strict=True):
        path.write_bytes(content)
    expected = {
        path: files[contents.index(content)]
        for number, (path, content) in enumerate(zip(files, contents, strict=True))
        if content in contents[:number]
    }
    assert copies(files) == expected


def test_only_what_may_be_a_copy_is_read(tmp_path, monkeypatch):
    digest, read = file_search._digest, []

    def watched(path):
        read.append(path.name)
        return digest(path)

    monkeypatch.setattr(file_search, "_digest", watched)
    make(tmp_path, "a", "longer", "b", "c", "other1")
    (tmp_path / "copy").write_text("c")
    assert copies(sorted(tmp_path.iterdir())) == {tmp_path / "copy": tmp_path / "c"}
    assert sorted(read) == ["c", "copy"]


def test_a_file_that_cannot_be_read_is_a_copy_of_none(tmp_path):
    assert copies([tmp_path / "lost", tmp_path / "gone", Path(tmp_path)]) == {}
