"""CIFAR10: batches of every version of Python are read, and damaged or hostile ones refused."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import CIFAR_TEST, CIFAR_TRAIN, images_of_test, pixels, write_cifar

from lmconv.data.datasets import DataConfig, DataError, load_test, load_train


def test_cifar_images_are_channels_rows_columns_in_order(folder: str) -> None:
    images = images_of_test(DataConfig("cifar", folder))
    np.testing.assert_array_equal(pixels(images), CIFAR_TEST)
    assert load_train(DataConfig("cifar", folder)).num_images == len(CIFAR_TRAIN)


def test_a_batch_written_by_python_2_is_read(folder: str, tmp_path: Path) -> None:
    class Python2Pickler(pickle._Pickler):
        """Writes text and bytes alike as Python 2's str."""

        def save_str(self, text: str | bytes) -> None:
            content = text.encode("latin1") if isinstance(text, str) else text
            self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
            self.memoize(text)

        dispatch = {**pickle._Pickler.dispatch, str: save_str, bytes: save_str}  # noqa: RUF012

    target = tmp_path / "cifar-10-batches-py"
    target.mkdir()
    with (target / "test_batch").open("wb") as file:
        Python2Pickler(file, protocol=2).dump({"data": CIFAR_TEST.reshape(-1, 3072)})
    content = (target / "test_batch").read_bytes().replace(b"numpy._core", b"numpy.core")
    assert b"_codecs" not in content and b"numpy.core.multiarray\n_reconstruct" in content
    (target / "test_batch").write_bytes(content)
    images = images_of_test(DataConfig("cifar", str(tmp_path)))
    np.testing.assert_array_equal(pixels(images), CIFAR_TEST)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_cifar_batch_may_name_its_images_in_text_or_in_bytes(
    tmp_path: Path, protocol: int
) -> None:
    target = tmp_path / "cifar-10-batches-py"
    target.mkdir()
    for name in ("data", b"data"):
        content = pickle.dumps({name: CIFAR_TEST.reshape(-1, 3072)}, protocol)
        (target / "test_batch").write_bytes(content)
        images = images_of_test(DataConfig("cifar", str(tmp_path)))
        np.testing.assert_array_equal(pixels(images), CIFAR_TEST)


def test_a_missing_cifar_batch_is_named_and_not_downloaded(tmp_path: Path) -> None:
    target = tmp_path / "cifar-10-batches-py"
    write_cifar(target, CIFAR_TRAIN, CIFAR_TEST)
    (target / "data_batch_3").unlink()
    with pytest.raises(DataError, match="has no file data_batch_3"):
        load_train(DataConfig("cifar", str(tmp_path)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pickle.dumps({"data": CIFAR_TEST}, protocol=2)[:5000],
        pickle.dumps({"labels": []}, protocol=2),
        pickle.dumps({"data": "text"}, protocol=2),
        pickle.dumps({"data": CIFAR_TEST.reshape(-1, 3072) / 255}, protocol=2),
        pickle.dumps({"data": CIFAR_TEST.reshape(-1, 3072)[:, 1:]}, protocol=2),
        pickle.dumps({"data": CIFAR_TEST[:0].reshape(-1, 3072)}, protocol=2),
        pickle.dumps({"data": CIFAR_TEST}, protocol=2),
        pickle.dumps({"data": CIFAR_TEST.reshape(-1, 3072).tolist()}, protocol=2),
        pickle.dumps([], protocol=2),
        # objects of raw bytes; a key nested deeply; a large place to keep a value
        pickle.dumps({"data": CIFAR_TEST[:1, 0, 0]}, protocol=2).replace(b"u1", b"O8"),
        b"})" + b"\x85" * 300_000 + b"Ns.",
        b"\x80\x02Nr\xff\xff\xff\x0f.",
    ],
)
def test_a_damaged_cifar_batch_is_named(tmp_path: Path, content: bytes) -> None:
    target = tmp_path / "cifar-10-batches-py"
    write_cifar(target, CIFAR_TRAIN, CIFAR_TEST)
    (target / "test_batch").write_bytes(content)
    expected = "test_batch is damaged or not a CIFAR10 batch .*: replace it, or remove its folder"
    with pytest.raises(DataError, match=expected) as error:
        load_test(DataConfig("cifar", str(tmp_path)))
    assert "\n" not in str(error.value)


class Malicious:
    def __reduce__(self) -> tuple:
        return print, ("code was run",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_cifar_batch_cannot_run_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: int
) -> None:
    target = tmp_path / "cifar-10-batches-py"
    write_cifar(target, CIFAR_TRAIN, CIFAR_TEST)
    (target / "test_batch").write_bytes(pickle.dumps(Malicious(), protocol=protocol))
    with pytest.raises(DataError, match=r"print, which may run code: refused"):
        load_test(DataConfig("cifar", str(tmp_path)))
    assert "code was run" not in capsys.readouterr().out
