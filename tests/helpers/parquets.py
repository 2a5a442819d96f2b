"""Image sets in Parquet files as the Hugging Face Hub stores them, for tests."""

import json

import pyarrow as pa
from pictures import encoded, noise
from pyarrow import parquet

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def files(count, start=0, side=20):
    """Encode pictures as PNGs."""
    return [encoded(noise(side, seed=start + number, width=side + 3)) for number in range(count)]


def write(path, images, labels=None, names=None, plain=False, **columns):
    """Write one file: images as structs of bytes and path, or as plain bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not plain:
        images = [image and {"bytes": image, "path": f"{number}.png"} for number, image in enumerate(images)]
    given = {"image": pa.array(images, pa.binary() if plain else STRUCT)}
    if labels is not None:
        given["label"] = labels if isinstance(labels, pa.Array) else pa.array(labels, pa.int64())
    table = pa.table(given | columns)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    parquet.write_table(table, path, row_group_size=3)
    return path


def hub(folder, classes=("cat", "dog")):
    """Write a set of 7 training images in two shards and 4 test images; return the files of each split."""
    train, test = files(7), files(4, start=50)
    labels = [number % len(classes) for number in range(7)]
    write(folder / "data/train-00000-of-00002.parquet", train[:4], labels[:4], list(classes))
    write(folder / "data/train-00001-of-00002.parquet", train[4:], labels[4:], list(classes))
    write(folder / "data/test-00000-of-00001.parquet", test, [0, 1, 0, 1], list(classes))
    (folder / "README.md").write_text("# A set\n")
    return train, test
