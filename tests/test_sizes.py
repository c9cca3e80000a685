"""Aspect-ratio buckets, and what a crop is called."""

import math

import pytest
import torch

from tgo_trl.media.sizes import aspect_ratio_sizes, crop_geometry, nearest_size

SDXL = aspect_ratio_sizes((1024, 1024), 16, 2.0)


def test_buckets_have_about_as_many_pixels_and_never_more():
    assert len(SDXL) == len(set(SDXL)) == 13
    for height, width in SDXL:
        assert height % 64 == width % 64 == 0
        assert 0.93 * 1024**2 < height * width <= 1024**2
        assert 0.5 <= width / height <= 2
        assert (width, height) in SDXL
    assert SDXL[0] == (1408, 704)  # tall first
    assert SDXL[6] == (1024, 1024)
    assert {(1152, 896), (1216, 832), (1344, 768)} < set(SDXL)  # the sizes that SDXL was trained at


@pytest.mark.parametrize(("size", "multiple"), [((512, 512), 8), ((480, 832), 16), ((16, 16), 8), ((768, 768), 48)])
def test_the_size_itself_is_a_bucket_and_sides_are_multiples(size, multiple):
    sizes = aspect_ratio_sizes(size, multiple, 3.0)
    assert size in sizes
    assert all(side % multiple == 0 for bucket in sizes for side in bucket)
    assert all(math.prod(bucket) <= math.prod(size) for bucket in sizes)


def test_squares_only():
    assert aspect_ratio_sizes((512, 512), 8, 1.0) == [(512, 512)]


@pytest.mark.parametrize(
    ("original", "expected"),
    [((500, 500), (1024, 1024)), ((1080, 1920), (768, 1344)), ((1920, 1080), (1344, 768)), ((100, 9000), (704, 1408))],
)
def test_an_image_goes_to_the_nearest_aspect_ratio(original, expected):
    assert nearest_size(original, SDXL) == expected


@pytest.mark.parametrize(
    ("original", "size", "expected"),
    [
        ((512, 512), (512, 512), [512, 512, 0, 0]),
        ((256, 256), (512, 512), [256, 256, 0, 0]),  # enlarged: nothing is cropped
        ((600, 800), (512, 512), [600, 800, 0, 85]),  # 800 * 512 / 600 = 682.67 wide; (682.67 - 512) / 2 = 85.3
        ((1000, 500), (512, 512), [1000, 500, 256, 0]),  # 1024 high
        ((400, 400), (200, 400), [400, 400, 100, 0]),
    ],
)
def test_a_crop_is_measured_in_the_resized_image(original, size, expected):
    geometry = crop_geometry(original, size)
    assert geometry.tolist() == expected
    assert geometry.dtype == torch.int64
