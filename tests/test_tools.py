"""Tools: digits and photos as sets, and how well scores tell two sets apart."""

import struct
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import images_of_test, pixels, train_images
from PIL import Image

from lmconv.data.datasets import DataConfig
from tools import auroc, mnist_folder, photo_patches


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_digits_are_written_by_label():
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    labels = bytes([0, 1, 2, 1, 0, 9])
    raw = Path("MNIST/raw")
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        header = struct.pack(">4i", 2051, 6, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 6) + labels)
    flags = ["--input", ".", "--output", "digits", "--labels", "0", "1", "--max-test-images", "3"]
    mnist_folder.main(flags)
    found = sorted(path.as_posix() for path in Path("digits").rglob("*.png"))
    train = [f"digits/train/{name}.png" for name in ("0/00000", "0/00004", "1/00001", "1/00003")]
    assert found == [f"digits/test/{n}.png" for n in ("0/00000", "1/00001", "1/00003")] + train
    np.testing.assert_array_equal(np.asarray(Image.open("digits/train/0/00004.png")), images[4])
    with pytest.raises(SystemExit):
        mnist_folder.main(flags)
    for change in ("upside_down", "shuffle"):
        mnist_folder.main(["--input", ".", "--output", change, "--change", change])
    np.testing.assert_array_equal(
        np.asarray(Image.open("upside_down/test/2/00002.png")), images[2, ::-1]
    )
    shuffled = np.asarray(Image.open("shuffle/test/2/00002.png"))
    assert (shuffled != images[2]).any()
    np.testing.assert_array_equal(np.sort(shuffled.ravel()), np.sort(images[2].ravel()))


def test_the_area_is_the_share_of_pairs_in_the_right_order(capsys):
    Path("usual.csv").write_text("image,nats\na,1\nb,3\n")
    Path("unusual.csv").write_text("image,nats\nc,2\nd,5\n")
    auroc.main(["usual.csv", "unusual.csv"])
    assert capsys.readouterr().out == "AUROC 0.7500 of 2 usual and 2 unusual images\n"
    with pytest.raises(SystemExit):
        auroc.main(["usual.csv", "lost.csv"])
    assert "lost.csv" in capsys.readouterr().err


def contains(photo: np.ndarray, patch: np.ndarray) -> bool:
    """Whether a patch (3 x 32 x 32) is somewhere in a photo (H x W x 3)."""
    windows = np.lib.stride_tricks.sliding_window_view(photo, (32, 32), axis=(0, 1))
    candidates = windows[(windows[..., 0, 0] == patch[:, 0, 0]).all(-1)]
    return bool((candidates == patch).all(axis=(1, 2, 3)).any())


def test_the_parts_of_the_photos_share_no_pixel() -> None:
    from sklearn.datasets import load_sample_image

    for label, train, test in zip(photo_patches.LABELS, *photo_patches.load_parts(), strict=True):
        whole = np.concatenate([train[0], test[0], train[2]], axis=1)  # every other one is halved
        np.testing.assert_array_equal(whole, load_sample_image(f"{label}.jpg"))


def test_photo_patches_are_a_cifar_set_with_disjoint_parts(tmp_path: Path) -> None:
    arguments = ["--output", str(tmp_path), "--train-images", "23", "--test-images", "7"]
    photo_patches.main(arguments)
    config = DataConfig("cifar", str(tmp_path))
    train, test = pixels(train_images(config)), pixels(images_of_test(config))
    assert train.shape == (23, 3, 32, 32) and test.shape == (7, 3, 32, 32)
    for patches, parts in zip((train, test), photo_patches.load_parts(), strict=True):
        photos = [photo for sizes in parts for photo in sizes]
        assert all(any(contains(photo, patch) for photo in photos) for patch in patches)
    with pytest.raises(SystemExit):
        photo_patches.main(arguments)  # never writes over a set
