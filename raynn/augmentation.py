"""Rows changed at random while training, whole batches at once on the worker's device.

What happens to a row is a function of its key, that is of (seed, epoch, row): the same for any number of workers, and
after a resume.

Shapes: B rows, C channels, H height, W width, F numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raynn.image_operations import mixed_chains, randomly_augmented, trivially_augmented
from raynn.randomness import normal, random_bits, random_bytes, salts_on, uniform
from raynn.regularization import RegularizationSettings
from raynn.sequence_augmentation import changed_sequences, changed_texts

PLACE = -1  # dropout layers count theirs from 0
ERASING = 1 << 19
NUMBERS = 1 << 20
DEFAULT_MAGNITUDE = 9.0  # of rand_augment: Cubuk et al. 2020, ResNet-50 on ImageNet


def augmented(batch: dict[str, Tensor], key_B: Tensor, settings: RegularizationSettings) -> dict[str, Tensor]:
    """The batch with its images, sequences, texts and numbers changed as `settings` say; other columns as they are.

    Images are flipped, shifted, sent through one of the ways to choose operations, and erased in part, in this order.
    """
    changed = {}
    if "image" in batch:
        changed["image"] = changed_images(batch["image"], key_B, settings)
    if "sequence" in batch:
        x_BTC = batch["sequence"]
        length_B = batch.get("length", key_B.new_full(key_B.shape, x_BTC.shape[1]))  # left out where all have one
        changed["sequence"] = changed_sequences(x_BTC, length_B, key_B, settings)
    if "tokens" in batch and "skip" not in batch:  # windows of text are their own targets
        changed["tokens"] = changed_texts(batch["tokens"], batch["length"], key_B, settings)
    if "numeric" in batch and settings.input_noise:
        numeric_BF = batch["numeric"]
        noise_BF = normal(key_B, salts_on(key_B.device, NUMBERS, numeric_BF.shape[1]))
        changed["numeric"] = numeric_BF + settings.input_noise * noise_BF
    return batch if all(x is batch[name] for name, x in changed.items()) else batch | changed


def changed_images(image_BCHW: Tensor, key_B: Tensor, settings: RegularizationSettings) -> Tensor:
    """8-bit images as they are shown in training."""
    if settings.horizontal_flip or settings.crop_padding:
        draw_B3 = random_bits(key_B, salts_on(key_B.device, PLACE, 3))
        if settings.horizontal_flip:
            flips_B = draw_B3[:, 0] < int(settings.horizontal_flip * 2**31)
            image_BCHW = torch.where(flips_B[:, None, None, None], image_BCHW.flip(-1), image_BCHW)
        if settings.crop_padding:
            shift_B2 = draw_B3[:, 1:] % (2 * settings.crop_padding + 1)
            image_BCHW = shifted(image_BCHW, shift_B2, settings.crop_padding)
    if settings.trivial_augment:
        image_BCHW = trivially_augmented(image_BCHW, key_B)
    if settings.rand_augment:
        magnitude = settings.rand_augment_magnitude or DEFAULT_MAGNITUDE
        image_BCHW = randomly_augmented(image_BCHW, key_B, settings.rand_augment, magnitude)
    if settings.aug_mix:
        image_BCHW = mixed_chains(image_BCHW, key_B, settings.aug_mix)
    if settings.random_erasing:
        image_BCHW = erased(image_BCHW, key_B, settings.random_erasing)
    return image_BCHW


def shifted(image_BCHW: Tensor, shift_B2: Tensor, padding: int) -> Tensor:
    """Each image padded by reflection and cut back to its size from row shift[0], column shift[1] (0 .. 2 * padding).

    The padded and cropped images of He et al. 2016, section 4.2, with reflection in place of zeros.
    """
    num_rows, _, height, width = image_BCHW.shape
    row_BH = _reflected(torch.arange(height, device=image_BCHW.device) + shift_B2[:, :1] - padding, height)
    column_BW = _reflected(torch.arange(width, device=image_BCHW.device) + shift_B2[:, 1:] - padding, width)
    image_B = torch.arange(num_rows, device=image_BCHW.device)
    # advanced indices on both sides of the channels put these last: [B, H, W, C], a view in channels_last order
    picked_BHWC = image_BCHW[image_B[:, None, None], :, row_BH[:, :, None], column_BW[:, None, :]]
    return picked_BHWC.permute(0, 3, 1, 2)


def erased(image_BCHW: Tensor, key_B: Tensor, share: float) -> Tensor:
    """A box of `share` of the images becomes noise, uniform over 0 .. 255 (Zhong et al. 2020, algorithm 1): 2 to 40 %
    of the area, height over width from 0.3 to 1 / 0.3. A box that would not fit is as long as the side is, where theirs
    is drawn again.
    """
    _, channels, height, width = image_BCHW.shape
    draw_B5 = uniform(key_B, salts_on(key_B.device, ERASING, 5))
    area_B = (0.02 + 0.38 * draw_B5[:, 1]) * (height * width)
    ratio_B = 0.3 + (1.0 / 0.3 - 0.3) * draw_B5[:, 2]
    inside = []
    for side_B, size, where_B in (
        ((area_B * ratio_B).sqrt(), height, draw_B5[:, 3]),
        ((area_B / ratio_B).sqrt(), width, draw_B5[:, 4]),
    ):
        side_B = side_B.round().clamp(1, size)
        first_B = (where_B * (size - side_B + 1)).floor()
        place_P = torch.arange(size, device=image_BCHW.device)
        inside.append((place_P >= first_B[:, None]) & (place_P < (first_B + side_B)[:, None]))
    box_BHW = inside[0][:, :, None] & inside[1][:, None, :] & (draw_B5[:, 0] < share)[:, None, None]
    num_pixels = channels * height * width
    noise_BP = random_bytes(key_B, salts_on(key_B.device, ERASING + 1, -(-num_pixels // 4)))[:, :num_pixels]
    return torch.where(box_BHW[:, None], noise_BP.reshape(image_BCHW.shape), image_BCHW)


def _reflected(index: Tensor, size: int) -> Tensor:
    """Indices outside 0 .. size - 1 thrown back at the borders, as often as it takes."""
    if size == 1:
        return torch.zeros_like(index).long()
    period = 2 * (size - 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index).long()
