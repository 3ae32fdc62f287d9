"""Operations on images: as Pillow has them, and chosen as the papers say."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from raynn import image_operations as ops
from raynn.augmentation import augmented, erased
from raynn.image_operations import OPERATIONS, STANDARD, WIDE, Operation, applied
from raynn.randomness import column_salts, row_keys
from raynn.regularization import RegularizationSettings


def keys(num: int) -> Tensor:
    return torch.from_numpy(row_keys(0, 0, np.arange(num)))


@pytest.fixture(scope="module")
def image_BCHW() -> Tensor:
    """Smooth colored pictures with some noise: 12 of 16 x 20."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:16, 0:20]
    waves = [np.sin(x / a + b) + np.cos(y / c) for a, b, c in random.uniform(2, 6, (36, 3))]
    image = np.stack(waves).reshape(12, 3, 16, 20) * 50 + 128 + random.normal(0, 8, (12, 3, 16, 20))
    return torch.from_numpy(image.clip(0, 255).astype(np.uint8))


def by_pillow(image_BCHW: Tensor, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in image_BCHW]
    return np.stack([np.asarray(change(picture)).transpose(2, 0, 1) for picture in pictures]).astype(np.float64)


def enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance], factor: float) -> Callable[..., Image.Image]:
    return lambda picture: kind(picture).enhance(factor)


def affine(*matrix: float) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


REFERENCES: dict[str, tuple[Operation, float, Callable[[Image.Image], Image.Image]]] = {
    "identity": (ops.identity, 0.5, lambda p: p),
    "autocontrast": (ops.autocontrast, 0.5, ImageOps.autocontrast),
    "equalize": (ops.equalize, 0.5, ImageOps.equalize),
    "solarize": (ops.solarize, 0.4, lambda p: ImageOps.solarize(p, 153)),
    "posterize": (ops.posterize, 0.5, lambda p: ImageOps.posterize(p, 6)),
    "brighter": (ops.brightness, 0.5, enhanced(ImageEnhance.Brightness, 1.45)),
    "darker": (ops.brightness, -0.5, enhanced(ImageEnhance.Brightness, 0.55)),
    "color": (ops.color, 1.0, enhanced(ImageEnhance.Color, 1.9)),
    "gray": (ops.color, -1.0, enhanced(ImageEnhance.Color, 0.1)),
    "contrast": (ops.contrast, 0.5, enhanced(ImageEnhance.Contrast, 1.45)),
    "sharper": (ops.sharpness, 1.0, enhanced(ImageEnhance.Sharpness, 1.9)),
    "smoother": (ops.sharpness, -1.0, enhanced(ImageEnhance.Sharpness, 0.1)),
    "shear_x": (ops.shear_x, 0.5, affine(1, 0.15, 0, 0, 1, 0)),
    "shear_y": (ops.shear_y, -0.5, affine(1, 0, 0, -0.15, 1, 0)),
    "translate_x": (ops.translate_x, 0.5, affine(1, 0, 4, 0, 1, 0)),
    "translate_y": (ops.translate_y, -0.5, affine(1, 0, 0, 0, 1, -3)),
    "rotate": (ops.rotate, 0.5, lambda p: p.rotate(15.0)),
}


@pytest.mark.parametrize(("operation", "strength", "change"), REFERENCES.values(), ids=REFERENCES)
def test_an_operation_is_pillows(
    image_BCHW: Tensor, operation: Operation, strength: float, change: Callable[[Image.Image], Image.Image]
) -> None:
    found = operation(image_BCHW.float(), torch.full((12,), strength), STANDARD).double().numpy()
    expected = by_pillow(image_BCHW, change)
    if operation in ops.GEOMETRIC:  # Pillow counts in 16-bit fractions: a pixel may come from the one beside it
        assert np.mean(found == expected) > 0.98
    else:
        assert np.abs(found - expected).max() <= 1.0
        assert np.mean(found == expected) > 0.8
    if operation is not ops.identity:
        assert np.mean(found == image_BCHW.numpy()) < 0.75


def test_equalizing_rounds_as_pillow_does() -> None:
    """Where each value has many pixels: a table in steps of 16."""
    image_BCHW = torch.from_numpy(
        np.random.default_rng(0).normal(120, 30, (2, 3, 64, 64)).clip(0, 255).astype(np.uint8)
    )
    found = ops.equalize(image_BCHW.float(), torch.zeros(2), STANDARD).numpy()
    np.testing.assert_array_equal(found, by_pillow(image_BCHW, ImageOps.equalize))


def test_there_are_fourteen() -> None:
    assert len(set(OPERATIONS)) == 14
    assert {REFERENCES[name][0] for name in REFERENCES} == set(OPERATIONS)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 3)])
def test_any_image_stays_one(channels: int, size: tuple[int, int]) -> None:
    image_BCHW = torch.randint(256, (28, channels, *size)).float()
    for strength in (-1.0, 0.7):
        found = applied(image_BCHW, torch.arange(28) % 14, torch.full((28,), strength), WIDE)
        assert found.shape == image_BCHW.shape
        assert ((found >= 0) & (found <= 255) & (found == found.round())).all()


def test_trivial_augment_draws_each_operation_as_often(monkeypatch: pytest.MonkeyPatch, image_BCHW: Tensor) -> None:
    seen: list[tuple[Tensor, Tensor, object]] = []

    def watched(image: Tensor, operation_B: Tensor, strength_B: Tensor, reach: object) -> Tensor:
        seen.append((operation_B, strength_B, reach))
        return image

    monkeypatch.setattr(ops, "applied", watched)
    ops.trivially_augmented(image_BCHW[:1].expand(7000, -1, -1, -1)[:, :, :1, :1], keys(7000))
    ((operation_B, strength_B, reach),) = seen
    assert reach is WIDE
    assert (operation_B.bincount(minlength=14) - 500).abs().max() < 5 * 500**0.5
    levels = (strength_B.abs() * 30).round().long().bincount(minlength=31)
    assert (levels - 7000 / 31).abs().max() < 5 * (7000 / 31) ** 0.5
    assert abs(int((strength_B[strength_B != 0] > 0).sum()) - 3387) < 5 * 42


def test_rand_augment_applies_operations_one_after_the_other(image_BCHW: Tensor) -> None:
    once, twice = (ops.randomly_augmented(image_BCHW, keys(12), n, 9.0) for n in (1, 2))
    bits = ops.random_bits(keys(12), column_salts(ops.PLACE + 2, 2))
    sign_B = (bits[:, 1] & 1).float() * 2 - 1
    expected = applied(once.float(), bits[:, 0] % 14, sign_B * 0.3, STANDARD)
    assert torch.equal(twice, expected.to(torch.uint8))


def test_aug_mix_of_harmless_chains_is_the_image(monkeypatch: pytest.MonkeyPatch, image_BCHW: Tensor) -> None:
    monkeypatch.setattr(ops, "applied", lambda image, *_: image)
    assert torch.equal(ops.mixed_chains(image_BCHW, keys(12), 3), image_BCHW), "shares sum to 1"


def test_aug_mix_stays_between_its_chains(image_BCHW: Tensor) -> None:
    white = torch.full_like(image_BCHW, 200)
    found = ops.mixed_chains(white, keys(12), 10)
    assert (found <= 255).all()
    assert not torch.equal(ops.mixed_chains(image_BCHW, keys(12), 10), image_BCHW)
    near = (ops.mixed_chains(image_BCHW, keys(12), 1).float() - image_BCHW.float()).abs().mean()
    far = (ops.mixed_chains(image_BCHW, keys(12), 10).float() - image_BCHW.float()).abs().mean()
    assert near < far


def test_erasing_makes_boxes_of_noise_in_the_share_of_images() -> None:
    image_BCHW = torch.full((4000, 1, 40, 40), 7, dtype=torch.uint8)
    found = erased(image_BCHW, keys(4000), 0.3)
    erased_B = (found != image_BCHW).flatten(1).any(1)
    assert abs(int(erased_B.sum()) - 1200) < 5 * (4000 * 0.3 * 0.7) ** 0.5
    changed_BHW = (found != image_BCHW)[erased_B, 0]
    height_B, width_B = changed_BHW.any(2).sum(1), changed_BHW.any(1).sum(1)
    area_B = (height_B * width_B).double() / 1600
    assert 0.015 < float(area_B.min()) < 0.05
    assert 0.3 < float(area_B.max()) < 0.42
    assert float(area_B.mean()) == pytest.approx(0.20, abs=0.02)  # some boxes are cut to the side
    noise = found[found != 7].double()
    assert float(noise.mean()) == pytest.approx(127.9, abs=1.0)
    assert float(noise.std()) == pytest.approx(math.sqrt((256**2 - 1) / 12), abs=1.0)


@pytest.mark.parametrize(
    "fields",
    [{"trivial_augment": True}, {"rand_augment": 2}, {"aug_mix": 3}, {"random_erasing": 0.5}],
    ids=lambda fields: next(iter(fields)),
)
def test_what_happens_to_a_row_depends_on_its_key_alone(image_BCHW: Tensor, fields: dict[str, float]) -> None:
    settings = RegularizationSettings(**fields)  # type: ignore[arg-type]
    whole = augmented({"image": image_BCHW}, keys(12), settings)["image"]
    part = augmented({"image": image_BCHW[5:8]}, keys(12)[5:8], settings)["image"]
    assert part.dtype == torch.uint8
    assert torch.equal(part, whole[5:8])
    assert not torch.equal(whole, image_BCHW)
