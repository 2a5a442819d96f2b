"""Images, splits and labels of a folder or .zip, and messages about other files."""

import json
import zipfile

import numpy as np
import pictures
import pytest
import yaml
from pictures import encoded, noise
from PIL import Image, PngImagePlugin

from udpm.config import DatasetConfig
from udpm.config.load import validate
from udpm.core.errors import UserError
from udpm.data.decode import ImageError, Preprocessing, quiet_decoders, to_rgb
from udpm.data.labels import natural
from udpm.data.layout import split_word
from udpm.data.open import open_images, open_source
from udpm.data.prepare import prepare
from udpm.data.store import open_store
from udpm.metrics import score as scores

IMAGES = [encoded(noise(seed=seed)) for seed in range(8)]
READ = (".png", ".tif")


def placed(folder, names, files):
    """Write a folder and a .zip of images with these names and of other files."""
    content = {name: IMAGES[number % 8] if name.lower().endswith(READ) else b"x" for number, name in enumerate(names)}
    content |= {name: text if isinstance(text, bytes) else text.encode() for name, text in files.items()}
    for name, data in content.items():
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "images", pictures.zipped(folder / "images.zip", content)


def opened(path, **options):
    return open_source(validate(DatasetConfig, {"source": "folder", "path": str(path), "side": 16} | options, "d"))


def found(source):
    """Describe a source: splits, labels by image name, class names, what is left out."""
    labels = dict(zip([name.decode() for name in source.names], source.labels.tolist(), strict=True))
    return source.splits, labels, source.class_names, source.notes["left_out"]


def by_name(names, *labels):
    return dict(zip(names.split(), labels, strict=True))


EDM = "00000/img00000000.png 00000/img00000001.png 00001/img00001000.png"
TWO = "train/a/1.png train/b/2.png test/a/3.png test/b/4.png"


def styled(*labels, names=EDM):
    return json.dumps({"labels": [[name, label] for name, label in zip(names.split(), labels, strict=False)]})


def edm(*labels, **names):
    return {"dataset.json": styled(*labels, **names)}


ONE_CLASS, TWO_CLASSES = {"classes": 1}, {"classes": 2}
LAYOUTS = {
    # what it is: (images, other files, keys of the configuration, splits, labels, class names, what is left out)
    "numbers in natural order": (
        " ".join(f"{number}/x.png" for number in range(12)),
        {},
        {"classes": 12},
        {"train": 12},
        list(range(12)),
        [str(number) for number in range(12)],
        {},
    ),
    "training_set and test_set": (
        TWO.replace("train/", "training_set/").replace("test/", "test_set/"),
        {},
        {"classes": 2},
        {"train": 2, "test": 2},
        [0, 1, 0, 1],
        ["a", "b"],
        {},
    ),
    "another case": (
        TWO.replace("train/", "TRAIN/").replace("test/", "Testing/"),
        {},
        {"classes": 2},
        {"train": 2, "test": 2},
        [0, 1, 0, 1],
        ["a", "b"],
        {},
    ),
    "validation images replace a test split": (
        TWO.replace("test/", "Validation/"),
        {},
        {"classes": 2},
        {"train": 2, "test": 2},
        [0, 1, 0, 1],
        ["a", "b"],
        {},
    ),
    "validation images next to a test split": (
        f"{TWO} val/a/5.png valid.png",
        {},
        {"classes": 2},
        {"train": 2, "test": 2},
        [0, 1, 0, 1],
        ["a", "b"],
        {"images in val/": 1, "images in no folder": 1},
    ),
    "other folders, unlabelled": (
        "train/1.png test/2.png sheets/3.png",
        {},
        {},
        {"train": 1, "test": 1},
        [0, 0],
        [],
        {"images in sheets/": 1},
    ),
    "a class called train": (
        "car/1.png plane/2.png train/3.png",
        {},
        {"classes": 3, "splits": "none"},
        {"train": 3},
        [0, 1, 2],
        ["car", "plane", "train"],
        {},
    ),
    "splits of other names": (
        "all/a/1.png all/b/2.png some/a/3.png more/b/4.png rest/a/5.png",
        {},
        {"classes": 2, "splits": {"train": "all", "test": ["some", "./more/"]}},
        {"train": 2, "test": 2},
        [0, 1, 0, 1],
        ["a", "b"],
        {"images in rest/": 1},
    ),
    "splits that are joined": (
        "train/a/1.png val/b/2.png test/a/3.png",
        {},
        {"classes": 2, "splits": {"train": ["train", "val"], "test": "test"}},
        {"train": 2, "test": 1},
        [0, 1, 0],
        ["a", "b"],
        {},
    ),
    "a folder around classes, another around it": (
        "top/sub/a/1.png top/sub/b/2.png",
        {},
        {"classes": 2},
        {"train": 2},
        [0, 1],
        ["a", "b"],
        {},
    ),
    "folders around splits and in them": (
        "top/sub/train/images/a/1.png top/sub/train/images/b/2.png top/sub/test/images/a/3.png",
        {},
        {"classes": 2},
        {"train": 2, "test": 1},
        [0, 1, 0],
        ["a", "b"],
        {},
    ),
    "a single class in a folder around splits": (
        "top/train/a/1.png top/test/a/2.png",
        {},
        ONE_CLASS,
        {"train": 1, "test": 1},
        [0, 0],
        ["a"],
        {},
    ),
    "a single class with folders in it": (
        "a/x/1.png a/y/2.png",
        {},
        ONE_CLASS,
        {"train": 2},
        [0, 0],
        ["a"],
        {},
    ),
    "other files": (
        "a/1.png a/2.gif b/3.tif",
        {"b/x.TXT": "", "b/README": "", "Thumbs.db": "", ".DS_Store": "", "__MACOSX/a/._1.png": "", "a/.git/x": ""},
        {"classes": 2},
        {"train": 2},
        [0, 1],
        ["a", "b"],
        {".gif": 1, ".txt": 1, "without a suffix": 1, "hidden": 4},
    ),
    "classes that are numbers": (
        "0/0001.png 0/0002.png 00001/0003.png 1/0001.png",
        {},
        {"classes": 3},
        {"train": 4},
        [0, 0, 1, 2],
        ["0", "00001", "1"],
        {},
    ),
    "dataset.json": (EDM, edm(1, 0, 1), {"classes": 2}, {"train": 3}, [1, 0, 1], [], {}),
    "dataset.json in a folder around it": (
        " ".join(f"top/{name}" for name in EDM.split()),
        {"top/dataset.json": styled(1, 0, 1)},
        {"classes": 2},
        {"train": 3},
        [1, 0, 1],
        [],
        {},
    ),
    "dataset.json of one block": (
        "00000/img00000000.png 00000/img00000001.png",
        edm(1, 0),
        {"classes": 2},
        {"train": 2},
        [1, 0],
        [],
        {},
    ),
    "dataset.json without labels": (
        EDM,
        {"dataset.json": '{"labels": null}'},
        {},
        {"train": 3},
        [0, 0, 0],
        [],
        {".json": 1},
    ),
    "metadata.csv of a spreadsheet": (
        "1.png sub/2.png 3.png",
        {"metadata.csv": "\ufefffile_name,label,note\r\n1.png,dog,\r\nsub\\2.png,cat,x\r\n./3.png, dog,\r\n"},
        {"classes": 2},
        {"train": 3},
        [1, 0, 1],
        ["cat", "dog"],
        {},
    ),
    "metadata.csv of numbers": (
        "1.png 2.png",
        {"metadata.csv": "label,file_name\n1,1.png\n0,2.png\n"},
        {"classes": 2},
        {"train": 2},
        [1, 0],
        [],
        {},
    ),
    "metadata.jsonl of each split": (
        "train/1.png train/2.png test/1.png",
        {
            "train/metadata.jsonl": '{"file_name": "1.png", "label": "b"}\n{"file_name": "2.png", "label": "a"}\n',
            "test/metadata.jsonl": '{"file_name": "1.png", "label": "b"}',
        },
        {"classes": 2},
        {"train": 2, "test": 1},
        [1, 0, 1],
        ["a", "b"],
        {},
    ),
    "metadata.jsonl of all splits": (
        "train/1.png train/2.png test/1.png",
        {
            "metadata.jsonl": '{"file_name": "train/1.png", "label": 1}\n{"file_name": "train/2.png", "label": 0}\n\n'
            '{"file_name": "test/1.png", "label": 1}'
        },
        {"classes": 2},
        {"train": 2, "test": 1},
        [1, 0, 1],
        [],
        {},
    ),
    "the file that the configuration names": (
        "1.png 2.png",
        {"mine.csv": "file_name,label\n1.png,1\n2.png,0\n", "metadata.csv": "id,breed\n"},
        {"classes": 2, "labels": "mine.csv"},
        {"train": 2},
        [1, 0],
        [],
        {".csv": 1},
    ),
    "classes whose names have the word of a split in them": (
        "test_tube/1.png train_station/2.png training_shoes/3.png validation_stamp/4.png trainer/5.png tester/6.png",
        {},
        {"classes": 6},
        {"train": 6},
        [0, 2, 4, 5, 3, 1],
        ["test_tube", "tester", "train_station", "trainer", "training_shoes", "validation_stamp"],
        {},
    ),
    "languages": (
        "en/1.png te/2.png tr/3.png",
        {},
        {"classes": 3},
        {"train": 3},
        [0, 1, 2],
        ["en", "te", "tr"],
        {},
    ),
    "classes called as splits on purpose": (
        "seg_test/1.png seg_train/2.png",
        {"train.txt": "", "test.txt": ""},
        {"classes": 2, "splits": "none"},
        {"train": 2},
        [0, 1],
        ["seg_test", "seg_train"],
        {".txt": 2},
    ),
    "splits of names alike": (
        "seg_train/seg_train/a/1.png seg_train/seg_train/b/2.png seg_test/seg_test/a/3.png seg_pred/4.png",
        {},
        {"classes": 2, "splits": {"train": "seg_train/seg_train", "test": "seg_test/seg_test"}},
        {"train": 2, "test": 1},
        [0, 1, 0],
        ["a", "b"],
        {"images in seg_pred/": 1},
    ),
    "another case of a file of labels": (
        "a/1.png b/2.png",
        {"Metadata.CSV": "file_name,label\na/1.png,1\nb/2.png,0\n"},
        {"classes": 2},
        {"train": 2},
        [1, 0],
        [],
        {},
    ),
    "a file of labels in another folder, named": (
        "a/1.png b/2.png",
        {"annotations/dataset.json": styled(1, 0, names="a/1.png b/2.png")},
        {"classes": 2, "labels": "annotations/dataset.json"},
        {"train": 2},
        [1, 0],
        [],
        {},
    ),
    "files of labels in class folders, not configured": (
        "a/1.png b/2.png",
        {"a/metadata.csv": "", "labels.csv": ""},
        {"classes": 2, "labels": "folders"},
        {"train": 2},
        [0, 1],
        ["a", "b"],
        {".csv": 2},
    ),
    "files that say other things": (
        "a/1.png b/2.png",
        {"dataset-metadata.json": "", "label_map.json": "", "labels.txt": "", "prices.csv": "", "train.log": ""},
        {"classes": 2},
        {"train": 2},
        [0, 1],
        ["a", "b"],
        {".csv": 1, ".json": 2, ".log": 1, ".txt": 1},
    ),
    "columns that agree with the folders": (
        "train/1.png train/2.png test/1.png",
        {"metadata.csv": "file_name,label,split\ntrain/1.png,1,train\ntrain/2.png,0,train\ntest/1.png,1,test\n"},
        {"classes": 2},
        {"train": 2, "test": 1},
        [1, 0, 1],
        [],
        {},
    ),
    "columns of one value, and others": (
        "1.png 2.png",
        {"metadata.csv": "file_name,label,split,state,test tube\n1.png,1,train,test,1\n2.png,0,train,broken,0\n"},
        {"classes": 2},
        {"train": 2},
        [1, 0],
        [],
        {},
    ),
    "columns and folders of splits on purpose": (
        "train/1.png train/2.png test/3.png",
        {"train/metadata.csv": "file_name,split\n1.png,train\n2.png,val\n"},
        {"splits": {"train": "train", "test": "test"}},
        {"train": 2, "test": 1},
        [0, 0, 0],
        [],
        {".csv": 1},
    ),
    "columns of splits on purpose": (
        "1.png 2.png",
        {"metadata.csv": "file_name,label,split\n1.png,1,train\n2.png,0,test\n"},
        {"classes": 2, "splits": "none"},
        {"train": 2},
        [1, 0],
        [],
        {},
    ),
    "classes with numbers in images' names": (
        "00/00_0001.png 00/00_0002.png 01/01_0001.png 01/01_0002.png",
        {},
        {"classes": 2},
        {"train": 4},
        [0, 0, 1, 1],
        ["00", "01"],
        {},
    ),
    "classes of numbered images": (
        "0/1.png 0/2.png 1/3.png 1/4.png",
        {},
        {"classes": 2},
        {"train": 4},
        [0, 0, 1, 1],
        ["0", "1"],
        {},
    ),
    "padded numbers as folders on purpose": (
        "000/1.png 000/2.png 001/3.png",
        {},
        {"classes": 2, "labels": "folders"},
        {"train": 3},
        [0, 0, 1],
        ["000", "001"],
        {},
    ),
    "padded numbers as labels": (
        "1.png 2.png",
        {"metadata.csv": "file_name,label\n1.png,01\n2.png,00\n"},
        {"classes": 2},
        {"train": 2},
        [1, 0],
        [],
        {},
    ),
    "class folders next to a file of labels": (
        "a/1.png b/2.png",
        {"metadata.csv": "id,breed\n"},
        {"classes": 2, "labels": "folders"},
        {"train": 2},
        [0, 1],
        ["a", "b"],
        {".csv": 1},
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_what_a_folder_and_its_zip_hold(case, tmp_path):
    names, files, options, splits, labels, class_names, left_out = LAYOUTS[case]
    for path in placed(tmp_path, names.split(), files):
        source = opened(path, **options)
        gone = set(names.split()) - {name.decode() for name in source.names}
        kept = [name for name in names.split() if name not in gone]
        assert found(source) == (splits, dict(zip(kept, labels, strict=True)), class_names, left_out), path


REFUSED = {
    # what is wrong: (images, other files, keys of the configuration, what the line says)
    "a class called train": ("train/1.png car/2.png", {}, TWO_CLASSES, "train/ looks like a split, but car/"),
    "a class called train, unlabelled": ("train/1.png car/2.png", {}, {}, "set splits: none if all are classes or"),
    "classes called train and test": ("train/1.png test/2.png car/3.png", {}, {"classes": 3}, "set splits: none"),
    "no training images": ("test/a/1.png test/b/2.png", {}, TWO_CLASSES, "no folder of training images"),
    "two folders of training images": (
        "train/a/1.png Training/b/2.png",
        {},
        TWO_CLASSES,
        "are both usual names of train images",
    ),
    "splits below classes": (
        "a/train/1.png a/test/2.png b/train/3.png b/test/4.png",
        {},
        TWO_CLASSES,
        "look like splits below other folders",
    ),
    "no such split": ("all/a/1.png all/b/2.png", {}, {"splits": {"train": "al"}}, "splits.train: no images in al/"),
    "splits that share images": ("a/b/1.png", {}, {"splits": {"train": "a", "test": "a/b"}}, "share images"),
    "classes of other splits": (
        "train/images/1.png test/pictures/2.png",
        {},
        TWO_CLASSES,
        "class pictures has no training image",
    ),
    "a class of another kind of files": (
        "a/1.png b/2.png",
        {"c/3.gif": ""},
        TWO_CLASSES,
        "c/3.gif is of a kind that is not read, and its folder c/ has no other",
    ),
    "not that many folders": ("a/1.png b/2.png c/3.png", {}, TWO_CLASSES, "set classes: 3"),
    "blocks of StyleGAN": (EDM, {}, TWO_CLASSES, "look like numbered blocks of images, not classes"),
    "blocks of another tool": ("000/1.png 000/2.png 001/3.png", {}, TWO_CLASSES, "look like numbered blocks"),
    "small blocks": (
        "00000/img00000000.png 00000/img00000001.png 00001/img00000002.png",
        {},
        {"classes": 2},
        "look like numbered blocks of",
    ),
    "blocks of FFHQ": ("00000/00001.png 01000/01999.png", {}, TWO_CLASSES, "set classes: 0, labels: FILE, or"),
    "unlabelled, but classes": (EDM, {"dataset.json": '{"labels": null}'}, TWO_CLASSES, "so the images are unlabel"),
    "nothing of labels": (EDM, {"dataset.json": "{}"}, TWO_CLASSES, "set classes: 0"),
    "no object": (EDM, {"dataset.json": "[]"}, TWO_CLASSES, 'expected {"labels": [["NAME", 0], …]}, found a list'),
    "labels of another form": (EDM, {"dataset.json": '{"labels": {"a": 1}}'}, TWO_CLASSES, "found an object"),
    "no JSON": (EDM, {"dataset.json": '{"labels": ['}, TWO_CLASSES, "dataset.json: not readable as JSON"),
    "JSON too deep": (EDM, {"dataset.json": "[" * 100_000}, TWO_CLASSES, "nested more than 64 levels deep"),
    "a number too long": (EDM, {"dataset.json": f'{{"labels": {"9" * 5000}}}'}, TWO_CLASSES, "not readable as JSON"),
    "a key twice": (EDM, {"dataset.json": '{"labels": null, "labels": []}'}, TWO_CLASSES, "key 'labels' is duplicated"),
    "no pair": (EDM, {"dataset.json": '{"labels": [["a.png"]]}'}, TWO_CLASSES, 'labels[0] must be ["NAME", 0]'),
    "a name that is no text": (EDM, {"dataset.json": '{"labels": [[1, 1]]}'}, TWO_CLASSES, "name must be text"),
    "a negative label": (EDM, edm(0, -1, 1), TWO_CLASSES, "labels[1]: the label is -1"),
    "a truth value": (EDM, edm(0, True, 1), TWO_CLASSES, "labels[1]: the label must be a whole"),
    "a fraction": (EDM, edm(0, 1.0, 1), TWO_CLASSES, "must be a whole number or a name"),
    "a vector": (EDM, edm(0, [0, 1], 1), TWO_CLASSES, "found [0, 1]"),
    "no label": (EDM, edm(0, None, 1), TWO_CLASSES, "found null"),
    "a huge label": (EDM, edm(0, 10**15, 1), TWO_CLASSES, "number classes without gaps"),
    "labels from 1": (EDM, edm(1, 2, 1), TWO_CLASSES, "but no image has 0"),
    "names and numbers": (EDM, edm(0, "cat", 1), TWO_CLASSES, "write all as numbers or all as"),
    "an image without a label": (EDM, edm(0, 1), TWO_CLASSES, "has no label for 00001/img00001"),
    "no labels at all": (EDM, {"dataset.json": '{"labels": []}'}, TWO_CLASSES, "000.png and 2 more; add it, or remove"),
    "a label without an image": (
        "00000/img00000000.png",
        edm(0, 1),
        ONE_CLASS,
        'labels[1]: "00000/img00000001.png" is not among the 1 images',
    ),
    "a label twice": (
        EDM,
        edm(0, 1, 1, names=EDM.replace("1000", "1000 00000/img00000000")),
        TWO_CLASSES,
        "is not among",
    ),
    "an image twice": (
        "a.png",
        {"metadata.csv": "file_name,label\na.png,0\n./a.png,0\n"},
        ONE_CLASS,
        'metadata.csv: line 3: "./a.png" has a label already',
    ),
    "more classes": (EDM, edm(0, 1, 2), TWO_CLASSES, "has 3 classes (numbers 0..2), but classes"),
    "fewer classes": (EDM, edm(0, 1, 1), {"classes": 9}, "but classes is 9; set classes: 2"),
    "other columns": ("a.png", {"metadata.csv": "id,breed\na,1\n"}, ONE_CLASS, "must name the columns file_name and"),
    "an empty table": ("a.png", {"metadata.csv": ""}, ONE_CLASS, "found nothing"),
    "a short row": ("a.png", {"metadata.csv": "file_name,label\na.png\n"}, ONE_CLASS, "line 2 has 1 values for 2"),
    "an open quote": ("a.png", {"metadata.csv": 'file_name,label\n"a.png,0\n'}, ONE_CLASS, "not readable as csv"),
    "an empty label": ("a.png", {"metadata.csv": "file_name,label\na.png,\n"}, ONE_CLASS, 'found ""'),
    "a missing value": ("a.png", {"metadata.csv": "file_name,label\na.png,NaN\n"}, ONE_CLASS, 'found "NaN"'),
    "a fraction in a table": ("a.png", {"metadata.csv": "file_name,label\na.png,1.0\n"}, ONE_CLASS, 'found "1.0"'),
    "another encoding": ("a.png", {"metadata.csv": b"file_name,label\n\xe9"}, ONE_CLASS, "save it as UTF-8"),
    "a line that is no entry": ("a.png", {"metadata.jsonl": "[]\n"}, ONE_CLASS, "metadata.jsonl: line 1 must be {"),
    "a line that is no JSON": ("a.png", {"metadata.jsonl": "{\n"}, ONE_CLASS, "line 1: not readable as JSON"),
    "two files of labels": (
        "a.png",
        {"metadata.csv": "", "metadata.jsonl": ""},
        ONE_CLASS,
        "several label files (metadata.jsonl, metadata.csv); choose one with labels: FILE",
    ),
    "files of labels at two levels": (
        "train/a.png",
        {"metadata.csv": "", "train/metadata.csv": ""},
        ONE_CLASS,
        "several label files (metadata.csv, train/metadata.csv)",
    ),
    "no such file of labels": (
        "a.png",
        {},
        {"classes": 1, "labels": "x.csv"},
        "labels: x.csv: not found, neither in",
    ),
    "a file of labels without classes": (
        "a.png",
        {},
        {"labels": "x.csv"},
        "labels: set, but classes is 0, which means unlabelled",
    ),
    "a file of another kind": (
        "a.png",
        {},
        {"classes": 1, "labels": "x.txt"},
        "must be folders or a file .json, .jsonl",
    ),
    "only files of other kinds": ("a.gif", {"b/c.txt": ""}, {}, "found 1 .gif, 1 .txt"),
}


TABLE = "file_name,label,{column}\n1.png,0,{one}\n2.png,0,{other}\n"


def table(column, one, other):
    return {"metadata.csv": TABLE.format(column=column, one=one, other=other)}


ALIKE = (
    "seg_train seg_test seg_pred",
    "train_64x64 valid_64x64",
    "Train1 Test1",
    "ds_train ds_test",
    "train-clean test-clean",
    "train-60k test-10k",
    "tr te",
    "trn tst",
    "imagesTr imagesTs",
    "trainA testA trainB testB",
    "cat_train cat_test",
    "mnisttrain mnisttest",
    "01_train 02_test",
    "TRAIN_64 TEST_64",
    "trainval_64 test_64",
    "bounding_box_train bounding_box_test query",
    "top/fold.train top/fold.val",
)
REFUSED |= {
    f"{names}, classes {classes}": (
        " ".join(f"{name}/{image}.png" for name in names.split() for image in (1, 2)),
        {},
        {"classes": classes},
        "or set splits: none, if they are not splits",
    )
    for names in ALIKE
    for classes in (0, len(names.split()))
}
REFUSED |= {
    f"a column {column} of {one} and {other}": ("1.png 2.png", table(column, one, other), ONE_CLASS, "to train on all")
    for column, one, other in [
        ("split", "train", "test"),
        ("Split", "Training", "val"),
        ("subset", "train", "dev"),
        ("partition", "0", "2"),
        ("train_test_split", "a", "b"),
        ("split", "train", ""),
        ("is_test", "0", "1"),
        ("train", "True", "False"),
    ]
}
REFUSED |= {
    f"a label {label}": ("1.png", {"metadata.csv": f"file_name,label\n1.png,{label}\n"}, ONE_CLASS, f'found "{label}"')
    for label in ("NA", "n/a", "#N/A", "<NA>", "None", "null", "-", "--", "?")
}
REFUSED |= {
    f"{names} without search for labels": ("a/1.png b/2.png", dict.fromkeys(names.split(), ""), TWO_CLASSES, found)
    for names, found in [
        ("labels.csv", "labels.csv may hold the labels"),
        ("annotations/dataset.json", "annotations/dataset.json may hold"),
        ("a/metadata.csv b/metadata.csv", "a/metadata.csv, b/metadata.csv may hold"),
        ("a/Metadata.jsonl", "or set labels: folders"),
        ("x/trainLabels.csv", "choose one with labels: FILE"),
        ("annotations.json", "annotations.json may hold"),
        ("metadata.parquet", "labels: FILE (.json, .jsonl, .csv; of all images), or"),
        ("labels.tsv", "labels.tsv may hold"),
    ]
}
REFUSED |= {
    "columns of splits, unlabelled": (
        "1.png 2.png",
        {"metadata.csv": "file_name,split\n1.png,train\n2.png,test\n"},
        {},
        'metadata.csv: line 3: split is "test", but "train" in line 2; columns make no splits',
    ),
    "columns of splits next to class folders": (
        "a/1.png b/2.png",
        {"metadata.csv": "file_name,split\na/1.png,train\nb/2.png,test\n"},
        {"classes": 2, "labels": "folders"},
        "set splits: none to train on all",
    ),
    "lines of splits": (
        "1.png 2.png",
        {"metadata.jsonl": '{"file_name": "1.png", "label": 0}\n{"file_name": "2.png", "label": 0, "split": "test"}'},
        ONE_CLASS,
        'line 2: split is "test", but "" in other rows',
    ),
    "validation images among training images by a column": (
        "train/1.png train/2.png test/3.png",
        {"train/metadata.csv": "file_name,split\n1.png,train\n2.png,val\n"},
        {},
        "or set splits: {train: …, test: …} to go by these folders",
    ),
    "lists of splits": (
        "a/1.png b/2.png",
        {"meta/train.txt": "", "meta/test.txt": ""},
        {},
        "look like lists of splits",
    ),
    "a list of all splits": (
        "a/1.png b/2.png",
        {"list_eval_partition.csv": ""},
        {},
        "look like lists of splits, which",
    ),
    "another list": (
        "a/1.png b/2.png",
        {"x/train_test_split.txt": ""},
        TWO_CLASSES,
        "set splits: none to train on all",
    ),
    "files of labels in two cases": (
        "a.png",
        {"metadata.csv": "", "Metadata.csv": ""},
        ONE_CLASS,
        "several label files (Metadata.csv, metadata.csv)",
    ),
    "a number written in two ways": (
        "1.png 2.png",
        {"metadata.csv": "file_name,label\n1.png,1\n2.png,01\n"},
        ONE_CLASS,
        "line 3: the label is 01, but the same number is 1 in",
    ),
    "splits of names alike below classes": (
        "a/train_64/1.png a/test_64/2.png b/train_64/3.png",
        {},
        TWO_CLASSES,
        "a/test_64/, a/train_64/ look like splits below other folders",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, tmp_path):
    names, files, options, expected = REFUSED[case]
    for path in placed(tmp_path, names.split(), files):
        with pytest.raises(UserError) as refusal:
            opened(path, **options)
        assert expected in str(refusal.value)
        assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("names", ALIKE)
def test_the_advice_on_splits_of_names_alike_works(names, tmp_path):
    """Pasted into the configuration, the advice excludes all test images from training."""
    images = [f"{name}/{image}.png" for name in names.split() for image in (1, 2)]
    for path in placed(tmp_path, images, {}):
        with pytest.raises(UserError) as refusal:
            opened(path)
        advice = yaml.safe_load(str(refusal.value).partition("name them by splits: ")[2].partition(", or set")[0])
        source = opened(path, splits=advice)
        training = [name.decode().rpartition("/")[0] for name in source.names[: source.splits["train"]]]
        assert {split_word(name).split for name in training} == {"train"}
        assert source.splits["test"] == source.splits["train"]


def test_the_advice_looks_through_a_folder_of_the_same_name(tmp_path):
    names = [f"seg_{split}/seg_{split}/{kind}/1.png" for split in ("train", "test") for kind in ("forest", "sea")]
    with pytest.raises(UserError) as refusal:
        opened(placed(tmp_path, [*names, "seg_pred/1.png"], {})[0], classes=2)
    assert "splits: {train: seg_train/seg_train, test: seg_test/seg_test}, or set" in str(refusal.value)


def test_names_as_windows_and_careless_archivers_write_them(tmp_path):
    members = ["train\\a\\1.png", "./train/b/2.png", "/test/a//3.png", "test\\.\\b\\4.png"]
    path = pictures.zipped(tmp_path / "a.zip", dict(zip(members, IMAGES, strict=False)))
    assert found(opened(path, classes=2))[:3] == (
        {"train": 2, "test": 2},
        by_name(TWO, 0, 1, 0, 1),
        ["a", "b"],
    )
    folder, _ = placed(tmp_path / "unpacked", [name for name in members if not name.startswith("/")], {})
    assert opened(folder, classes=2).splits == {"train": 2, "test": 1}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_in_an_archive_is_refused(tmp_path):
    for second in ("a/1.png", "a\\1.png", "./a/1.png"):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for name in ("a/1.png", second, "b/2.png"):
                archive.writestr(name, IMAGES[0])
        with pytest.raises(UserError, match=r"a\.zip: contains a/1\.png 2 times; remove all but one"):
            opened(tmp_path / "a.zip", classes=2)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_label_file_twice_in_an_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", IMAGES[0])
        for label in (0, 1):
            archive.writestr("metadata.csv", f"file_name,label\na.png,{label}\n")
    with pytest.raises(UserError, match=r"metadata\.csv 2 times"):
        opened(tmp_path / "a.zip", classes=1)


def test_paths_with_home_and_variables(tmp_path, monkeypatch):
    folder, _ = placed(tmp_path, ["1.png"], {})
    (tmp_path / "l.csv").write_text("file_name,label\n1.png,cat\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HERE", str(tmp_path))
    monkeypatch.delenv("NOWHERE", raising=False)
    for path in ("~/images", "$HERE/images", "${HERE}/images.zip"):
        assert opened(path, classes=1, labels="$HERE/l.csv").class_names == ["cat"]
    folder.rename(tmp_path / "$NOWHERE")
    monkeypatch.chdir(tmp_path)
    assert opened("$NOWHERE").splits == {"train": 1}
    for path, expected in (
        ("$NOWHERE/x", "NOWHERE, which is not set"),
        ("~no-such-user/x", "no known home folder"),
    ):
        with pytest.raises(UserError, match=f"path: .*{expected}"):
            opened(path)
    for path in ("", " ", "a\0b"):
        with pytest.raises(UserError, match=r"path: (must name|a path must not contain)"):
            opened(path)


def test_warnings_about_unused_settings(tmp_path):
    folder, _ = placed(tmp_path, TWO.split(), edm(0, names=TWO))
    assert opened(folder, holdout=1).warnings == [
        "holdout: 1 is not used: test/ is the test split",
        "dataset.json is not used, since classes is 0 (unlabelled)",
    ]


@pytest.mark.parametrize("classes", [1, 5, 11])
def test_sources_with_labels_know_their_number(classes):
    with pytest.raises(UserError, match=f"classes: source digits has 10, got {classes}; set 10, or 0 for none"):
        validate(DatasetConfig, {"source": "digits", "side": 16, "classes": classes}, "d")


def test_natural_order():
    assert natural(["b", "a10", "a9", "10", "9", "010", "a-1", "A"]) == ["9", "010", "10", "A", "a-1", "a9", "a10", "b"]
    assert natural(["cat", "Dog", "a b", "a-b"]) == sorted(["cat", "Dog", "a b", "a-b"])
    assert natural(["9" * 300, "1"]) == ["1", "9" * 300]


# --- what preparation prints and records


def prepared(config, folder, capsys):
    prepare(config, folder)
    return capsys.readouterr(), open_store(folder).record


def test_preparation_prints_a_summary(tmp_path, capsys):
    names = f"{TWO} val/a/5.png train/b/6.gif train/b/7.tif"
    folder, _ = placed(tmp_path, names.split(), {"notes.txt": "", "Thumbs.db": ""})
    config = DatasetConfig(source="folder", path=str(folder), side=16, classes=2)
    printed, record = prepared(config, tmp_path / "s", capsys)
    assert printed.out.splitlines() == [
        f"{tmp_path}/s: 5 images of side 16",
        "  train: 3 images (from train/)",
        "  test: 2 images (from test/)",
        "  2 classes (labels: class folders): a 2, b 3",
        "  left out: 1 images in val/, 1 .gif, 1 .txt, 1 hidden",
    ]
    assert record["class_names"] == ["a", "b"]
    assert record["class_counts"] == {"train": [1, 2], "test": [1, 1]}
    source = record["source"]
    assert source["splits"] == {"train": ["train/"], "test": ["test/"]}
    assert source["left_out"] == {"images in val/": 1, ".gif": 1, ".txt": 1, "hidden": 1}


def test_another_file_of_labels_is_another_data_set(tmp_path, capsys):
    folder, _ = placed(tmp_path, EDM.split(), {})
    config = DatasetConfig(source="folder", path=str(folder), side=16, classes=2)
    digests = []
    for labels in ((1, 0, 1), (1, 1, 0), (1, 1, 0)):
        (folder / "dataset.json").write_text(styled(*labels))
        printed, record = prepared(config, tmp_path / "s", capsys)
        assert open_store(tmp_path / "s").labels.tolist() == list(labels)
        digests.append(record["sha256"])
    assert "complete already" in printed.out
    assert digests[0] != digests[1] == digests[2]


def test_a_class_without_usable_images_is_reported(tmp_path):
    folder, _ = placed(tmp_path, TWO.split(), {})
    (folder / "train/b/2.png").write_bytes(b"rubbish")
    config = DatasetConfig(source="folder", path=str(folder), side=16, classes=2, on_error="skip")
    with pytest.raises(UserError, match=r"none of the training images of class b can be used \(.*2\.png: not a re"):
        prepare(config, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_many_classes_are_not_all_printed(tmp_path, capsys):
    folder, _ = placed(tmp_path, [f"class {number}/1.png" for number in range(30)], {})
    printed, _ = prepared(DatasetConfig(source="folder", path=str(folder), side=16, classes=30), tmp_path / "s", capsys)
    assert "30 classes (labels: class folders): class 0 1, class 1 1, class 2 1" in printed.out
    assert ", class 19 1, and 10 more in dataset.json" in printed.out


def test_other_images_report_what_is_left_out(tmp_path, capsys):
    for path in placed(tmp_path, ["1.png", "2.tif", "3.gif"], {"x.txt": "", ".hidden": ""}):
        images = open_images(path)
        assert images.shape == (2, 20, 20, 3)
        assert images.left_out == {".gif": 1, ".txt": 1, "hidden": 1}
        assert f"{path}: 2 images; left out: 1 .gif, 1 .txt, 1 hidden" in capsys.readouterr().err
        assert open_images(path, 1).left_out == images.left_out


# --- kinds of images


def decoded(content):
    with quiet_decoders():
        image, mode = to_rgb(content, Preprocessing(16))
    return np.asarray(image), mode


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits"])
def test_tiffs_keep_every_pixel(compression):
    assert (decoded(encoded(noise(), "TIFF", compression=compression))[0] == np.asarray(noise())).all()


def test_tiffs_of_every_mode():
    grey = (np.arange(400, dtype=np.uint32) * 164).reshape(20, 20)
    sixteen = decoded(encoded(Image.fromarray(grey.astype(np.uint16)), "TIFF"))[0]
    assert (sixteen == (grey >> 8)[..., None]).all()
    palette = noise().quantize(8)
    assert (decoded(encoded(palette, "TIFF"))[0] == np.asarray(palette.convert("RGB"))).all()
    assert np.abs(decoded(encoded(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "TIFF"))[0] - (255, 0, 0.0)).max() < 4
    clear = noise()
    clear.putalpha(0)
    assert (decoded(encoded(clear, "TIFF"))[0] == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    assert (decoded(encoded(noise(), "TIFF", exif=exif))[0] == np.rot90(np.asarray(noise()), -1)).all()


def test_tiffs_whose_values_have_no_scale_are_refused(capfd):
    long = Image.fromarray(np.full((20, 20), 300, np.int32))
    for image in (long, Image.new("F", (20, 20)), Image.new("LAB", (20, 20))):
        with pytest.raises(ImageError, match="cannot be turned into RGB faithfully"):
            decoded(encoded(image, "TIFF"))
    # 12 bits would be nearly black by their high byte; photometric 0 is white, but Pillow does not turn these around.
    good = encoded(Image.fromarray(np.zeros((20, 20), np.uint16)), "TIFF")
    tag = good.index((262).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    with pytest.raises(ImageError, match="16-bit inverted"):
        decoded(good[: tag + 8] + bytes(2) + good[tag + 10 :])


def test_damaged_tiffs_are_refused_without_output_of_the_library(capfd):
    good, refused = encoded(noise(), "TIFF", compression="tiff_lzw"), 0
    for place in range(0, len(good), 97):
        damaged = bytearray(good)
        damaged[place] ^= 0x5A
        try:
            decoded(bytes(damaged))
        except ImageError:
            refused += 1
    assert refused > 2
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["XMP", "text", "profile"])
def test_metadata_of_a_png_does_no_harm(kind):
    text = PngImagePlugin.PngInfo()
    options = {"pnginfo": text}
    if kind == "XMP":
        text.add_itxt("XML:com.adobe.xmp", "x" * 1_200_000, zip=True)
    elif kind == "text":
        text.add_text("Comment", "x" * 1_200_000, zip=True)
    else:
        options = {"icc_profile": bytes(1_200_000)}
    assert (decoded(encoded(noise(), **options))[0] == np.asarray(noise())).all()


@pytest.mark.parametrize("suffix", ["jpe", "jfif", "JPG", "tif", "TIFF", "bmp", "webp"])
def test_suffixes_that_are_read(suffix, tmp_path):
    kind = {"tif": "TIFF", "tiff": "TIFF", "bmp": "BMP", "webp": "WEBP"}.get(suffix.lower(), "JPEG")
    (tmp_path / f"a.{suffix}").write_bytes(encoded(noise(), kind))
    assert opened(tmp_path).splits == {"train": 1}
    assert open_images(tmp_path).shape == (1, 20, 20, 3)


def test_scores_and_references_record_what_was_left_out(tmp_path, capsys):
    folder, _ = placed(tmp_path, ["1.png", "2.gif"], {})
    subject = scores.external_images(open_images(folder), "images")
    assert subject.identity == {"kind": "images", "source": "images", "left_out": {".gif": 1}}
    (folder / "2.gif").unlink()
    assert "left_out" not in scores.external_images(open_images(folder), "images").identity
