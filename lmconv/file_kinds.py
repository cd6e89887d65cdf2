"""What a file is that was taken for a checkpoint, told from its first bytes."""

import zipfile
from pathlib import Path

__all__ = ["kind_of_file"]

_AGAIN = "copy or download it again"
# What files of other kinds begin with.
_BEGINNINGS = {
    b"version https://git-lfs": "is a Git LFS pointer to a file: fetch the file with git lfs pull",
    b"\x1f\x8b": "is compressed with gzip: decompress it first",
    b"\x89PNG": "is a PNG picture",
    b"\xff\xd8\xff": "is a JPEG picture",
    b"\x93NUMPY": "is a NumPy array",
    b"\x89HDF": "is an HDF5 file",
    b"%PDF": "is a PDF document",
    b"\x7fELF": "is a program",
}
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<body")


def kind_of_file(path: Path) -> str | None:
    """Say what a file is, and what to do about it; None if it may be a checkpoint.

    The result continues a sentence, such as ``is empty: copy or download it again``.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(1024)
    if not head.strip(b"\0"):
        return f"{'has only zeros' if head else 'is empty'}: {_AGAIN}"
    for beginning, kind in _BEGINNINGS.items():
        if head.startswith(beginning):
            return kind
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        return "is a web page, perhaps one that asks to sign in: download the file itself"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "is a safetensors file: load it with safetensors, and save it with torch.save"
    if _is_text(head):
        return f"is a text file: {_AGAIN}"
    return _kind_of_archive(path) if head.startswith(b"PK") else None


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if len(head) - error.start > 3:
            return False
        text = head[: error.start].decode() or "\0"  # the end of the head has cut a letter in two
    return all(letter.isprintable() or letter in "\t\r\n\f" for letter in text)


def _kind_of_archive(path: Path) -> str | None:
    """The same for ZIP archives, which checkpoints are."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return f"is an incomplete or damaged archive: {_AGAIN}"
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "data.pkl" not in names:
        return "is a ZIP archive of other files: if one of these is a checkpoint, unpack it"
    if "constants.pkl" in names:
        return "is a TorchScript program: save the weights of the model instead"
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        return "claims more data than it contains"
    return None
