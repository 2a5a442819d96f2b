"""Images of other programs as .npz: read if unambiguous, else refused with instructions to convert them."""

import numpy as np
import pytest

from udpm.core.errors import UserError
from udpm.data.open import open_images

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), np.uint8)
GREY = IMAGES[..., :1]


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"images": IMAGES, "labels": np.zeros(5)}, IMAGES),
        ({"arr_0": IMAGES, "arr_1": np.zeros(5)}, IMAGES),
        ({"samples": IMAGES, "label": np.zeros(5)}, IMAGES),
        ({"anything": IMAGES}, IMAGES),
        ({"arr_0": IMAGES.transpose(0, 3, 1, 2)}, IMAGES),
        ({"arr_0": GREY}, GREY.repeat(3, axis=3)),
        ({"arr_0": GREY[..., 0]}, GREY.repeat(3, axis=3)),
        ({"arr_0": GREY.transpose(0, 3, 1, 2)}, GREY.repeat(3, axis=3)),
        ({"arr_0": IMAGES.astype(np.int64)}, IMAGES),
        ({"arr_0": IMAGES.astype(np.float32)}, IMAGES),
        ({"arr_0": IMAGES / np.float32(255)}, IMAGES),
        ({"arr_0": (IMAGES / 255).transpose(0, 3, 1, 2)}, IMAGES),
    ],
)
def test_unambiguous_arrays_are_read(tmp_path, arrays, expected):
    np.savez(tmp_path / "x.npz", **arrays)
    found = open_images(tmp_path / "x.npz")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"first": IMAGES, "second": IMAGES}, "contains 'first', 'second', but no array images; save them"),
        ({"images": IMAGES[0]}, r"uint8 \(8, 6, 3\); expected uint8 \(N, height, width, 3\), or channels first"),
        ({"images": IMAGES.repeat(2, axis=3)}, r"uint8 \(5, 8, 6, 6\); expected"),
        ({"images": IMAGES[:0]}, r"uint8 \(0, 8, 6, 3\); expected"),
        ({"images": IMAGES / 127.5 - 1}, r"convert it: numpy.clip\(numpy.rint\(\(\(x \+ 1\) \* 127.5\)\), 0, 255\)"),
        ({"images": IMAGES.astype(int) - 1}, "int64 from -1 to 254; expected uint8, or fractions from 0 to 1"),
        ({"images": IMAGES.astype(int) * 256}, "expected uint8, or fractions"),
        ({"images": (IMAGES > 99).astype(np.float64)}, "float64 from 0 to 1; expected uint8"),
        ({"images": IMAGES * np.nan}, "values that are not finite"),
        ({"images": np.where(IMAGES > 99, np.inf, 0.5)}, "values that are not finite"),
        ({"images": IMAGES.astype(complex)}, "complex128; expected uint8"),
    ],
)
def test_others_are_refused_with_instructions(tmp_path, arrays, expected):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=expected):
        open_images(tmp_path / "x.npz")
