"""Writes CelebA-HQ's format, for tests."""

from pathlib import Path

from lmconv.data.celebahq import import_tensorflow


def write_tfrecords(path: Path, records: list[dict[str, bytes]]) -> None:
    tf = import_tensorflow()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            feature = {
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                for name, value in record.items()
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())
