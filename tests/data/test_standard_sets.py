"""The registry of standard sets: images and labels from small files in the exact formats."""

import gzip
import io
import json
import os
import pickle
import struct
import tracemalloc
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from helpers.commands import newest, refused, run
from PIL import Image
from scipy.io import savemat

from lmconv.data import array_files, downloads, imagenet
from lmconv.data.datasets import DataConfig, load_test, load_train
from lmconv.data.sources import DataError
from lmconv.data.standard_sets import STANDARD_SETS
from lmconv.pixel_values import Preparation
from utils import UserError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (12, 28, 28), dtype=np.uint8)
LABELS = RANDOM.integers(0, 10, 12, dtype=np.uint8)


def idx(items: np.ndarray) -> bytes:
    """The contents of an idx file of unsigned bytes."""
    return (
        bytes([0, 0, 8, items.ndim]) + struct.pack(f">{items.ndim}i", *items.shape) + bytes(items)
    )


def test_facts_of_the_sets_fit_each_other() -> None:
    for name, known in STANDARD_SETS.items():
        assert "train" in known.num_images and "test" in known.num_images, name
        assert (known.read is None) != (known.open_limited is None), name
        assert bool(known.label_names) == (known.read_labels is not None), name
        assert len(set(known.label_names)) == len(known.label_names), name


def test_labels_of_the_digits_are_those_of_their_images() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    known = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes(): label
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    for part, number in STANDARD_SETS["digits"].num_images.items():
        images = STANDARD_SETS["digits"].read(Path(), part)
        labels = STANDARD_SETS["digits"].read_labels(Path(), part)
        assert labels.dtype == np.int64 and len(labels) == number
        assert [known[image.tobytes()] for image in images] == labels.tolist()


@pytest.mark.parametrize("name", ["t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"])
@pytest.mark.parametrize("packed", [False, True])
def test_labels_of_mnist_are_read_only_when_asked_for(
    tmp_path: Path, name: str, packed: bool
) -> None:
    mnist = STANDARD_SETS["mnist"]
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(IMAGES))
    np.testing.assert_array_equal(mnist.read(tmp_path, "test")[:, 0], IMAGES)
    with pytest.raises(DataError, match=r"has no file t10k-labels-idx1-ubyte.*: put it next to"):
        mnist.read_labels(tmp_path, "test")
    content = idx(LABELS)
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    labels = mnist.read_labels(tmp_path, "test")
    assert labels.dtype == np.int64 and labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "its header is not that of one"),
        (idx(IMAGES), "its header"),
        (idx(LABELS)[:-1], "bytes for 12 labels"),
        (idx(LABELS[:-1]), "11 labels for 12 images"),
        (idx(LABELS + 1), "labels are not from 0 to 9"),
    ],
)
def test_damaged_labels_of_mnist_are_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(IMAGES))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=rf"labels-idx1-ubyte is damaged .*{reason}.*: replace it"):
        STANDARD_SETS["mnist"].read_labels(tmp_path, "train")


def test_labels_of_cifar_follow_the_batches_and_are_checked(tmp_path: Path) -> None:
    folder, images = tmp_path / "cifar-10-batches-py", RANDOM.integers(0, 256, (2, 3072), np.uint8)
    folder.mkdir()
    for number in range(1, 6):
        batch = {"data": images, "labels": [number, number + 1]}
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps(batch, protocol=2))
    labels = STANDARD_SETS["cifar"].read_labels(tmp_path, "train")
    assert labels.dtype == np.int64 and labels.tolist() == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    for wrong in ([1], [1, 10], [1, -1], [1, True], ["1", "2"], "12", None):
        batch = {"data": images, "labels": wrong}
        (folder / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
        with pytest.raises(DataError, match=r"test_batch is damaged .*'labels' must be 2 whole"):
            STANDARD_SETS["cifar"].read_labels(tmp_path, "test")


# Files in the exact formats: what is written, and what is read back


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


COLOUR = RANDOM.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
BINARY = RANDOM.integers(0, 2, (12, 28, 28), dtype=np.uint8)


def write_idx_set(root: Path, place: str, beginnings: tuple[str, str], transposed: bool) -> None:
    images = IMAGES.transpose(0, 2, 1) if transposed else IMAGES
    for beginning in beginnings:
        put(root / place / f"{beginning}-images-idx3-ubyte", idx(images))
        labels = LABELS + ("letters" in beginning)
        put(root / place / f"{beginning}-labels-idx1-ubyte", idx(labels))


def write_amat(root: Path) -> None:
    """Lines of zeros and ones with blanks between them, as the set's authors wrote them."""
    for part in ("train", "valid", "test"):
        lines = (" ".join(map(str, image.ravel())) for image in BINARY)
        content = "".join(f"{line} \n" for line in lines).encode()
        put(root / "binarized_mnist" / f"binarized_mnist_{part}.amat", content)


def write_omniglot(root: Path) -> None:
    """784 x N, each image column by column; alphabets one-hot, 50 x N."""
    values = {}
    for prefix in ("", "test"):
        values[f"{prefix}data"] = IMAGES.transpose(0, 2, 1).reshape(12, 784).T / 255
        values[f"{prefix}target"] = np.eye(50)[LABELS].T
        values[f"{prefix}targetchar"] = LABELS[None].astype(float)
    (root / "omniglot").mkdir()
    savemat(root / "omniglot" / "chardata.mat", values, do_compression=True)


def write_svhn(root: Path) -> None:
    """32 x 32 x 3 x N, and the digit 0 as 10."""
    digits = np.where(LABELS == 0, 10, LABELS).astype(np.uint8)[:, None]
    for part in ("train", "test"):
        values = {"X": COLOUR.transpose(2, 3, 1, 0), "y": digits}
        savemat(root / f"{part}_32x32.mat", values, do_compression=True)


def write_cifar100(root: Path) -> None:
    for part in ("train", "test"):
        batch = {
            b"filenames": [b"x.png"] * 12,
            b"fine_labels": LABELS.tolist(),
            b"coarse_labels": [0] * 12,
            b"data": COLOUR.reshape(12, 3072),
        }
        put(root / "cifar-100-python" / part, pickle.dumps(batch, protocol=2))


def write_imagenet(root: Path, kind: str) -> None:
    """Two batches have one image more than the others; labels count from 1."""
    images, labels = np.array_split(COLOUR, 10), np.array_split(LABELS + 1, 10)
    names = [f"train_data_batch_{number}" for number in range(1, 11)]
    batches = dict(zip(names, zip(images, labels, strict=True), strict=True))
    batches["val_data"] = (COLOUR, LABELS + 1)
    for name, (some, their) in batches.items():
        batch = {
            "data": some.reshape(len(some), 3072),
            "labels": their.tolist(),
            "mean": np.zeros(3072),
        }
        if kind == "pickle":
            put(root / "Imagenet32_train" / name, pickle.dumps(batch, protocol=4))
        else:
            content = io.BytesIO()
            save = np.savez if kind == "npz" else np.savez_compressed
            save(content, **batch)
            put(root / "imagenet32" / f"{name}.npz", content.getvalue())


USUAL = ("train", "t10k")
SETS = {
    "mnist": lambda root: write_idx_set(root, "MNIST/raw", USUAL, False),
    "fashion_mnist": lambda root: write_idx_set(root, "FashionMNIST/raw", USUAL, False),
    "kmnist": lambda root: write_idx_set(root, "KMNIST/raw", USUAL, False),
    **{
        f"emnist_{split}": lambda root, split=split: write_idx_set(
            root, "EMNIST/raw", (f"emnist-{split}-train", f"emnist-{split}-test"), True
        )
        for split in ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
    },
    "binary_mnist": write_amat,
    "omniglot": write_omniglot,
    "svhn": write_svhn,
    "cifar100": write_cifar100,
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("part", ["train", "test"])
def test_images_and_labels_are_those_of_the_files(tmp_path: Path, name: str, part: str) -> None:
    SETS[name](tmp_path)
    known = STANDARD_SETS[name]
    images = known.read(tmp_path, part)
    expected = COLOUR if known.image_shape[0] == 3 else IMAGES[:, None]
    if known.is_binary:
        expected = BINARY[:, None] * np.uint8(255)
    assert images.dtype == np.uint8 and images.shape[1:] == known.image_shape
    np.testing.assert_array_equal(images, expected)
    if known.read_labels is not None:
        labels = known.read_labels(tmp_path, part)
        assert labels.dtype == np.int64 and labels.tolist() == LABELS.tolist()
    source = known.open(tmp_path, part, 5)
    assert source.num_images == 5
    ((_, pixels),) = source.batches(8, None)
    np.testing.assert_array_equal(pixels[1:], expected[1:5])


@pytest.mark.parametrize("kind", ["pickle", "npz", "compressed"])
@pytest.mark.parametrize("unpacks_to_disk", [False, True])
def test_imagenet_is_mapped_from_its_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, unpacks_to_disk: bool
) -> None:
    monkeypatch.setattr(array_files, "_IN_MEMORY", 0 if unpacks_to_disk else 2**26)
    write_imagenet(tmp_path, kind)
    known = STANDARD_SETS["imagenet32"]
    for part in ("train", "test"):
        images = known.read(tmp_path, part)
        assert len(images) == 12
        order = RANDOM.permutation(12)
        np.testing.assert_array_equal(images[order], COLOUR[order])
        assert images[np.zeros(0, int)].shape == (0, 3, 32, 32)
        labels = known.read_labels(tmp_path, part)
        assert labels.dtype == np.int64 and labels.tolist() == LABELS.tolist()
    assert {path.suffix for path in tmp_path.rglob("*data_batch_1*")} <= {"", ".npz"}
    with pytest.raises(DataError, match=r"imagenet64 has no file train_data_batch_1 or .*account"):
        STANDARD_SETS["imagenet64"].read(tmp_path / "elsewhere", "train")


@pytest.mark.parametrize("kind", ["pickle", "npz", "compressed"])
def test_batches_of_imagenet_take_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(array_files, "_IN_MEMORY", 0)
    path, images = tmp_path / "batch", np.zeros((4000, 3072), np.uint8)
    images[-1] = 7
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"data": images, "labels": [1] * 4000}, protocol=4))
    else:
        path = path.with_suffix(".npz")
        (np.savez if kind == "npz" else np.savez_compressed)(path, data=images)
    tracemalloc.start()
    try:
        mapped = imagenet.DownsampledImageNet(32)._map(path)
        assert tracemalloc.get_traced_memory()[1] < images.nbytes / 3
    finally:
        tracemalloc.stop()
    assert mapped.shape == (4000, 3, 32, 32) and (mapped[-1] == 7).all() and not mapped[0].any()
    assert not mapped.flags.writeable


def test_faces_are_cut_from_the_middle_of_the_aligned_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    lines = [f"{number:06d}.jpg {number % 3}" for number in range(1, 8)]
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    for number in range(1, 8):
        picture = np.full((218, 178, 3), 255, np.uint8)
        picture[35 : 35 + 148, 15 : 15 + 148] = 20 * number
        Image.fromarray(picture).save(folder / f"{number:06d}.jpg", quality=95)
    for part, numbers in {"train": (3, 6), "valid": (1, 4, 7), "test": (2, 5)}.items():
        config = DataConfig("celeba64", str(tmp_path), batch_size=2)
        images = np.concatenate(
            [np.array(batch) for batch in load_test(config, part).batches((3, 64, 64))]
        )
        values = np.rint((images + 1) * 127.5)[:, :, 4:-4, 4:-4]
        assert [round(float(value)) for value in values.mean((1, 2, 3))] == [
            20 * n for n in numbers
        ]
        assert np.ptp(values, axis=(1, 2, 3)).max() <= 4
    assert load_train(config).num_images == 2
    (folder / "000005.jpg").unlink()
    with pytest.raises(DataError, match=r"lacks 1 of 2 pictures, the first being 000005\.jpg"):
        load_test(config)
    Image.new("RGB", (178, 178)).save(folder / "000005.jpg")
    with pytest.raises(DataError, match=r"000005\.jpg is 178x178, but the aligned .* 218x178"):
        list(load_test(config).batches((3, 64, 64)))
    for text in ("../../etc/passwd.jpg 0", "000001.jpg", "000001.jpg 3", "000001.png 1", "\xff"):
        (tmp_path / "celeba" / "list_eval_partition.txt").write_text(text)
        with pytest.raises(DataError, match="is damaged or not the list of CelebA's parts"):
            load_test(config)


# Missing, damaged and hostile files


MISSING = {
    "fashion_mnist": "FashionMNIST is not in .*FashionMNIST/raw and could not",
    "kmnist": "KMNIST is not in .*KMNIST/raw and could not",
    "emnist_letters": "EMNIST is not in .*EMNIST/raw and .*emnist-letters-test-images",
    "binary_mnist": r"binarized MNIST is not in .* put binarized_mnist_train\.amat \(http",
    "omniglot": r"Omniglot is not in .* put chardata\.mat \(https",
    "svhn": r"SVHN is not in .*: put train_32x32\.mat there",
    "cifar100": "CIFAR100 is not in .*: put the files train and test there",
    "imagenet32": r"imagenet32 has no file train_data_batch_1 or .*\.npz: download",
    "celeba64": "CelebA is not in .*: put list_eval_partition.txt and the folder img_align",
}


@pytest.mark.parametrize("name", MISSING)
def test_without_a_network_one_line_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    for target in (
        "torchvision.datasets.mnist.download_and_extract_archive",
        "torchvision.datasets.cifar.download_and_extract_archive",
        "torchvision.datasets.svhn.download_url",
        "torchvision.datasets.celeba.download_file_from_google_drive",
        "urllib.request.urlopen",
    ):
        monkeypatch.setattr(target, no_network)
    config = DataConfig(name, str(tmp_path), preparation=Preparation("binary" in name))
    with pytest.raises(DataError, match=MISSING[name]) as error:
        load_train(config)
    assert "\n" not in str(error.value) and "`data_dir`" in str(error.value)
    assert not list(tmp_path.iterdir()), "something was left behind"
    config = DataConfig(name, str(tmp_path / "mistyped"), preparation=config.preparation)
    with pytest.raises(DataError, match=r"mistyped.*`data_dir`"):
        load_train(config)
    assert not list(tmp_path.iterdir())


def test_a_download_is_checked_and_put_in_place_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_amat(tmp_path / "source")
    source = tmp_path / "source" / "binarized_mnist" / "binarized_mnist_test.amat"
    asked = []

    def answer(url: str, timeout: float) -> io.BufferedReader:
        asked.append(url)
        return source.open("rb")

    monkeypatch.setattr("urllib.request.urlopen", answer)
    images = STANDARD_SETS["binary_mnist"].read(tmp_path, "test")
    assert (images[:, 0] == BINARY * 255).all()
    assert asked == [f"{downloads_url()}/binarized_mnist_test.amat"]
    assert (tmp_path / "binarized_mnist" / source.name).read_bytes() == source.read_bytes()
    STANDARD_SETS["binary_mnist"].read(tmp_path, "test")
    assert len(asked) == 1, "it was downloaded over the file that is there"
    with pytest.raises(DataError, match="is not the file that it was"):  # another checksum
        STANDARD_SETS["omniglot"].read(tmp_path, "test")
    assert not (tmp_path / "omniglot").exists()
    monkeypatch.setattr(downloads, "_MAX_BYTES", 10)
    with pytest.raises(DataError, match="it has more than 10 bytes"):
        STANDARD_SETS["binary_mnist"].read(tmp_path, "train")


def downloads_url() -> str:
    from lmconv.data import binary_mnist

    return binary_mnist._URL


def test_nothing_is_downloaded_into_a_folder_with_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.EMNIST", None)
    put(tmp_path / "EMNIST" / "raw" / "emnist-digits-test-images-idx3-ubyte", idx(IMAGES))
    with pytest.raises(DataError, match=r"EMNIST/raw has files, but not all of EMNIST: put"):
        STANDARD_SETS["emnist_letters"].read(tmp_path, "train")


def npz(**arrays: object) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


class Malicious:
    def __reduce__(self) -> tuple:
        return print, ("code was run",)


def mat(**values: object) -> bytes:
    content = io.BytesIO()
    savemat(content, values)
    return content.getvalue()


ROW = " ".join("01" * 392).encode()
DAMAGED = [
    *(
        ("binary_mnist", "binarized_mnist/binarized_mnist_test.amat", content, reason)
        for content, reason in (
            (b"", "a line has 0 pixels instead of 784"),
            (b"\n\n", "a line has 0 pixels"),
            (ROW + b"\n" + ROW[:-2], "a line has 783 pixels"),
            (ROW + b" " + ROW, "a line has 1568 pixels"),
            (ROW.replace(b"0 1", b"0 2", 1), "more than zeros, ones and blanks"),
            (ROW.replace(b"0 1", b"011", 1), "numbers of several digits"),
            (ROW.replace(b"1", b"1.0"), "more than zeros"),
        )
    ),
    *(
        ("omniglot", "omniglot/chardata.mat", content, reason)
        for content, reason in (
            (b"", ""),
            (b"\0" * 200, ""),
            (mat(data=np.zeros((784, 3))), "it has no variable testdata"),
            (mat(testdata=np.zeros((783, 3))), "must be 784 x N intensities"),
            (mat(testdata=np.full((784, 3), 1.5)), "must be 784 x N intensities"),
            (mat(testdata=np.full((784, 3), np.nan)), "must be 784 x N intensities"),
            (mat(testdata="text"), ""),
            (mat(testdata=np.zeros((784, 3)))[:300], ""),
        )
    ),
    *(
        ("svhn", "test_32x32.mat", content, reason)
        for content, reason in (
            (b"MATLAB 5.0", ""),
            (mat(X=np.zeros((32, 32, 3, 4))), "X must be uint8 of 32 x 32 x 3 x N"),
            (mat(X=np.zeros((32, 32, 4), np.uint8)), "X must be uint8"),
            (mat(y=np.zeros((4, 1))), "it has no variable X"),
        )
    ),
    *(
        ("imagenet32", f"imagenet32/val_data{suffix}", content, reason)
        for suffix, content, reason in (
            ("", b"", "it is empty"),
            ("", pickle.dumps({"data": COLOUR.reshape(12, -1)}, 4)[:9000], "it ends too early"),
            ("", pickle.dumps({"data": COLOUR}, 4), "must be a uint8 array of N x 3072"),
            ("", pickle.dumps({"data": np.zeros((2, 3072))}, 4), "must be a uint8 array"),
            ("", pickle.dumps({"data": Malicious()}, 4), "which may run code: refused"),
            (".npz", b"PK", "not a zip file"),
            (".npz", npz(labels=[1]), "it has no array data"),
            (".npz", npz(data=np.zeros((2, 3072))), "'data' must be uint8, not float64"),
            (".npz", npz(data=np.zeros((2, 3071), np.uint8)), "uint8 array of N x 3072"),
            (".npz", npz(data=np.zeros((0, 3072), np.uint8)), "has no images"),
            (".npz", npz(data=np.array([Malicious()])), "an array of Python objects: refused"),
            (".npz", npz(data=COLOUR.reshape(12, -1))[:9000], "not a zip file"),
        )
    ),
    ("kmnist", "KMNIST/raw/t10k-images-idx3-ubyte", b"", "its header is not that of one"),
    ("cifar100", "cifar-100-python/test", pickle.dumps([], 2), "it is not a dictionary"),
]


@pytest.mark.parametrize(("name", "path", "content", "reason"), DAMAGED)
def test_damaged_and_hostile_files_are_named_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    path: str,
    content: bytes,
    reason: str,
) -> None:
    put(tmp_path / path, content)
    if name == "cifar100":
        put(tmp_path / path.replace("test", "train"), content)
    config = DataConfig(name, str(tmp_path), preparation=Preparation("binary" in name))
    with pytest.raises(DataError, match="is damaged or not") as error:
        load_test(config)
    message = str(error.value)
    assert path in message and reason in message and ": replace it" in message
    assert "\n" not in message and len(message) < 700
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "path", "values"),
    [
        ("svhn", "test_32x32.mat", {"y": np.zeros((11, 1), np.uint8) + 1}),
        ("svhn", "test_32x32.mat", {"y": np.full((12, 1), 11, np.uint8)}),
        ("svhn", "test_32x32.mat", {"y": np.zeros((12, 1), np.uint8)}),
        ("svhn", "test_32x32.mat", {}),
        ("omniglot", "omniglot/chardata.mat", {"testtarget": np.eye(50)[:, :11]}),
        ("omniglot", "omniglot/chardata.mat", {"testtarget": np.ones((50, 12))}),
        ("omniglot", "omniglot/chardata.mat", {}),
    ],
)
def test_damaged_labels_in_matlab_files_are_named(
    tmp_path: Path, name: str, path: str, values: dict
) -> None:
    images = {"X": COLOUR.transpose(2, 3, 1, 0), "testdata": np.zeros((784, 12))}
    put(tmp_path / path, mat(**images, **values))
    assert len(STANDARD_SETS[name].read(tmp_path, "test")) == 12
    with pytest.raises(DataError, match="is damaged or not a file of this set"):
        STANDARD_SETS[name].read_labels(tmp_path, "test")


@pytest.mark.parametrize("labels", [[0] * 12, [1001] * 12, [1] * 11, [1.0] * 12])
def test_damaged_labels_of_imagenet_are_named(tmp_path: Path, labels: list) -> None:
    data = COLOUR.reshape(12, -1)
    put(tmp_path / "imagenet32" / "val_data.npz", npz(data=data, labels=labels))
    put(tmp_path / "val_data", pickle.dumps({"data": data, "labels": labels}, 4))
    for expected in (r"val_data\.npz", "val_data "):
        with pytest.raises(DataError, match=f"{expected}.*must be 12 whole numbers from 1 to 1000"):
            STANDARD_SETS["imagenet32"].read_labels(tmp_path, "test")
        (tmp_path / "imagenet32" / "val_data.npz").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("binary_mnist", "binarized_mnist_test.amat"),
        ("omniglot", "chardata.mat"),
        ("svhn", "test_32x32.mat"),
        ("imagenet32", "val_data"),
        ("imagenet32", "val_data.npz"),
        ("celeba64", "list_eval_partition.txt"),
    ],
)
def test_a_pipe_in_place_of_a_file_is_refused_and_not_opened(
    tmp_path: Path, name: str, path: str
) -> None:
    os.mkfifo(tmp_path / path)
    config = DataConfig(name, str(tmp_path), preparation=Preparation("binary" in name))
    with pytest.raises(UserError, match=f"{path} is a pipe, not a regular file"):
        load_test(config)


# The command line


def test_binary_mnist_implies_a_model_of_binary_images_and_is_not_drawn_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_amat(tmp_path / "sets")
    network = "-q 1 -n 4 -k 3 --normalization pono -dp 0 -b 4 -x 1 --disable_wandb --run_dir run"
    run(f"-d binary_mnist -i sets {network} --sample_interval 9 --max_train_images 4")
    test = "--mode test --run_dir run --max_test_images 4"
    nats = []
    for words in ("--seed 1", "--seed 2 --binarize", "--part valid"):
        run(f"{test} {words}")
        result = json.loads(newest("run/test*.json").read_text())
        nats.append(result["ensemble"]["nats"])
    assert nats[0] == nats[1] == nats[2] > 0
    refused(f"{test} --n_bits 3", capsys, "--n_bits")
    with pytest.raises(DataError, match=r"binary_mnist has black and white pixels.*`binarize`"):
        load_test(DataConfig("binary_mnist", "sets"))
    config = DataConfig("binary_mnist", "sets", preparation=Preparation(binarize=True))
    (images,) = load_test(config).batches((1, 28, 28))
    assert (images[:, 0].numpy() == BINARY * 2.0 - 1).all()
    (images,) = load_train(config).epoch(3)
    assert images.sum().item() == (BINARY * 2.0 - 1).sum()


def test_other_sets_have_no_validation_part(tmp_path: Path) -> None:
    write_idx_set(tmp_path, "MNIST/raw", USUAL, False)
    with pytest.raises(DataError, match="mnist has no `part` valid: choose one of train, test"):
        load_test(DataConfig("mnist", str(tmp_path)), "valid")
