"""Images changed at random: the right change, to the right rows, as their keys say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from raynn.augmentation import augmented, shifted
from raynn.randomness import row_keys
from raynn.regularization import RegularizationSettings


def keys(num_rows: int, epoch: int = 0) -> Tensor:
    """The keys of rows 0 .. num_rows - 1."""
    return torch.from_numpy(row_keys(0, epoch, np.arange(num_rows)))


@pytest.fixture
def image_BCHW() -> Tensor:
    """1,000 images of 2 x 5 x 4, every pixel of its own value."""
    return torch.arange(1000 * 2 * 5 * 4).reshape(1000, 2, 5, 4)


def test_off_is_absent(image_BCHW: Tensor) -> None:
    batch = {"image": image_BCHW}
    assert augmented(batch, keys(1000), RegularizationSettings()) is batch


def test_flips_mirror_the_share_of_rows_asked_for(image_BCHW: Tensor) -> None:
    settings = RegularizationSettings(horizontal_flip=0.3)
    found = augmented({"image": image_BCHW, "target": keys(1000)}, keys(1000), settings)
    mirrored_B = (found["image"] == image_BCHW.flip(-1)).flatten(1).all(1)
    same_B = (found["image"] == image_BCHW).flatten(1).all(1)
    assert (mirrored_B ^ same_B).all()
    assert abs(int(mirrored_B.sum()) - 300) < 5 * (1000 * 0.3 * 0.7) ** 0.5
    assert found["target"].equal(keys(1000))


@pytest.mark.parametrize("padding", [1, 2, 7])
def test_shift_is_padding_by_reflection_and_cropping(image_BCHW: Tensor, padding: int) -> None:
    shift_B2 = torch.randint(0, 2 * padding + 1, (50, 2), generator=torch.Generator().manual_seed(0))
    found = shifted(image_BCHW[:50], shift_B2, padding)
    for image_CHW, (dy, dx), got_CHW in zip(image_BCHW[:50].numpy(), shift_B2.tolist(), found.numpy(), strict=True):
        padded = np.pad(image_CHW, ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
        np.testing.assert_array_equal(got_CHW, padded[:, dy : dy + 5, dx : dx + 4])


def test_every_shift_is_as_likely(image_BCHW: Tensor) -> None:
    found = augmented({"image": image_BCHW}, keys(1000), RegularizationSettings(crop_padding=1))["image"]
    middle_B = (found[:, 0, 2, 2] - image_BCHW[:, 0, 2, 2]).tolist()
    steps = [middle_B.count(4 * dy + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    assert sum(steps) == 1000
    assert all(abs(count - 111) < 5 * 10 for count in steps)


def test_what_happens_to_a_row_depends_on_its_key_alone(image_BCHW: Tensor) -> None:
    settings = RegularizationSettings(horizontal_flip=0.5, crop_padding=2)
    whole = augmented({"image": image_BCHW}, keys(1000), settings)["image"]
    part = augmented({"image": image_BCHW[37:41]}, keys(1000)[37:41], settings)["image"]
    assert part.equal(whole[37:41])
    assert not whole.equal(augmented({"image": image_BCHW}, keys(1000, epoch=1), settings)["image"])


def test_an_image_of_one_pixel(image_BCHW: Tensor) -> None:
    pixel = image_BCHW[:, :, :1, :1]
    assert augmented({"image": pixel}, keys(1000), RegularizationSettings(crop_padding=3))["image"].equal(pixel)
