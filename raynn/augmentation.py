"""Images changed at random while training, whole batches at once on the worker's device.

What happens to a row is a function of its key, that is of (seed, epoch, row): the same for any number of workers, and
after a resume.

Shapes: B rows, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raynn.randomness import column_salts, random_bits
from raynn.regularization import RegularizationSettings

PLACE = -1  # dropout layers count theirs from 0


def augmented(batch: dict[str, Tensor], key_B: Tensor, settings: RegularizationSettings) -> dict[str, Tensor]:
    """The batch with its `image` [B, C, H, W] flipped and shifted as `settings` say; other columns as they are."""
    if "image" not in batch or not (settings.horizontal_flip or settings.crop_padding):
        return batch
    image_BCHW = batch["image"]
    draw_B3 = random_bits(key_B, column_salts(PLACE, 3).to(key_B.device))
    if settings.horizontal_flip:
        flips_B = draw_B3[:, 0] < int(settings.horizontal_flip * 2**31)
        image_BCHW = torch.where(flips_B[:, None, None, None], image_BCHW.flip(-1), image_BCHW)
    if settings.crop_padding:
        shift_B2 = draw_B3[:, 1:] % (2 * settings.crop_padding + 1)
        image_BCHW = shifted(image_BCHW, shift_B2, settings.crop_padding)
    return batch | {"image": image_BCHW}


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


def _reflected(index: Tensor, size: int) -> Tensor:
    """Indices outside 0 .. size - 1 thrown back at the borders, as often as it takes."""
    if size == 1:
        return torch.zeros_like(index).long()
    period = 2 * (size - 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index).long()
