"""A folder or .zip of images as a source: its files, splits and labels."""

from __future__ import annotations

import numpy as np

from udpm.config.dataset import DatasetConfig
from udpm.core.paths import expanded
from udpm.data.labels import Labels, label_images
from udpm.data.layout import Layout, arrange
from udpm.data.listing import list_images, tidy
from udpm.data.source import Source, shown


def open_folder(config: DatasetConfig) -> Source:
    """The images of a folder or a .zip, with folders of splits in it or just images.

    Raises:
        UserError: not there, empty, a loop of links, splits or labels that are not understood, or not the classes that
            are configured.
    """
    listing = list_images(expanded(config.path, "path"), config.max_file_bytes, config.obtain)
    places = listing.places()
    layout = arrange(places, [tidy(name) for name in listing.others], config, listing.root)
    labels = label_images(listing, places, layout, config)
    order = np.concatenate(list(layout.splits.values()))
    folders = {split: [shown(name) for name in names] for split, names in layout.folders.items()}
    left_out = layout.left_out | listing.left_out(labels.used)
    return Source(
        splits={name: len(indices) for name, indices in layout.splits.items()},
        names=[listing.names[i] for i in order],
        keys=listing.keys[order],
        labels=labels.numbers,
        class_names=labels.names,
        reader=listing.reader,
        notes={"splits": folders, "labels": labels.origin, "left_out": left_out},
        warnings=_warnings(config, layout, labels),
        label_file=labels.from_file,
    )


def _warnings(config: DatasetConfig, layout: Layout, labels: Labels) -> list[str]:
    found = []
    test = [shown(name) for name in layout.folders.get("test", [])]
    if config.holdout and test:
        found.append(f"holdout: {config.holdout} is not used: {' and '.join(test)} is the test split")
    if labels.unused:
        found.append(f"{', '.join(labels.unused)} is not used: classes is 0, which means unlabelled")
    return found
