"""Flow matching: the sampler against flows that are known, what training shows the network, and guidance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from raynn.networks.flow_matching import FlowMatching, integrate
from raynn.networks.image_generator import ImageGeneratorSettings, build
from raynn.preprocessing import InputSpec
from raynn.randomness import normal, row_keys
from raynn.regularization import RegularizationSettings

INPUTS = InputSpec(
    image_CHW=(1, 5, 6), image_mean=(120.0,), image_std=(74.0,), task="image_generation", classes=("a", "b", "c")
)


def flow(**fields: float | str | bool | tuple[int, ...]) -> FlowMatching:
    torch.manual_seed(0)
    settings = ImageGeneratorSettings(kind="image_generator", **{"channels": (8,), "condition_width": 16, **fields})  # type: ignore[arg-type]
    model = build(settings, INPUTS, RegularizationSettings())
    assert isinstance(model, FlowMatching)
    return model


def batch_of(num_rows: int) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (num_rows, 1, 5, 6), dtype=torch.uint8, generator=generator)
    batch = {"image": image, "target": torch.randint(3, (num_rows,), generator=generator)}
    return batch, torch.from_numpy(row_keys(0, 0, np.arange(num_rows)))


def test_a_linear_flow_is_exact() -> None:
    x = torch.randn(7, dtype=torch.float64)
    for steps in (1, 3, 10):
        found = integrate(lambda x, time: torch.full_like(x, 3 - 4 * time), x, steps)  # the integral is 3 - 4 / 2
        torch.testing.assert_close(found, x + 1, rtol=0, atol=1e-12)


def test_the_flow_to_a_gaussian_is_found() -> None:
    """Between N(0, 1) and N(m, s^2) the mean of x_1 - x_0 given x_t is linear in x_t; its flow takes x to m + s x."""
    m, s = 2.0, 0.3

    def velocity(x: Tensor, time: float) -> Tensor:
        variance = (1 - time) ** 2 + (time * s) ** 2
        return m + (time * s**2 - (1 - time)) / variance * (x - time * m)

    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    torch.testing.assert_close(integrate(velocity, x, 20), m + s * x, rtol=0, atol=1e-4)


def test_twice_the_steps_give_a_quarter_of_the_error() -> None:
    x = torch.ones(1, dtype=torch.float64)
    errors = [math.e - integrate(lambda x, time: x, x, steps).item() for steps in (20, 40, 80)]
    assert errors[0] < 2e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.03)


def test_the_first_loss_is_the_square_of_the_way() -> None:
    model, (batch, key_B) = flow(), batch_of(64)
    noise_BCHW = normal(key_B, model.noise_P).reshape(64, 1, 5, 6)
    way_BCHW = (batch["image"].float() - 120) / 74 - noise_BCHW
    loss_B1 = model(batch, key_B)
    torch.testing.assert_close(loss_B1, way_BCHW.square().flatten(1).mean(1, keepdim=True))
    assert loss_B1.mean().item() == pytest.approx(2, abs=0.2), "the variances of images and noise, 1 each"


@pytest.mark.parametrize("time", ["uniform", "logit_normal"])
def test_points_lie_on_the_line_at_times_as_asked(time: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (batch, key_B) = flow(time=time, label_dropout=0.2), batch_of(4000)
    seen: list[Tensor] = []

    def velocity(x_BCHW: Tensor, time_B: Tensor, class_B: Tensor, key_B: Tensor) -> Tensor:
        seen[:] = [x_BCHW, time_B, class_B]
        return torch.zeros_like(x_BCHW)

    monkeypatch.setattr(model, "velocity", velocity)
    model(batch, key_B)
    x_BCHW, time_B, class_B = seen
    noise_BCHW = normal(key_B, model.noise_P).reshape(x_BCHW.shape)
    image_BCHW = (batch["image"].float() - 120) / 74
    time_B111 = time_B[:, None, None, None]
    torch.testing.assert_close(x_BCHW, (1 - time_B111) * noise_BCHW + time_B111 * image_BCHW, rtol=0, atol=1e-5)
    uniform_B = time_B if time == "uniform" else torch.special.ndtr(time_B.logit())
    distance = (uniform_B.sort().values - (torch.arange(4000) + 0.5) / 4000).abs().max()
    assert distance < 1.63 / 4000**0.5, "Kolmogorov-Smirnov at 1 %"
    assert abs(np.corrcoef(time_B, noise_BCHW.flatten(1).mean(1))[0, 1]) < 0.06, "time and noise are independent"
    withheld_B = class_B == 3
    assert abs(withheld_B.float().mean().item() - 0.2) < 5 * (0.2 * 0.8 / 4000) ** 0.5
    assert torch.equal(class_B[~withheld_B], batch["target"][~withheld_B])
    model.eval()(batch, key_B)
    assert torch.equal(seen[2], batch["target"]), "in evaluation every class is told"


def test_guidance_goes_from_no_class_to_the_class_and_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    model = flow(guidance=2.0, steps=2)
    monkeypatch.setattr(
        model, "velocity", lambda x_BCHW, time_B, class_B: torch.ones_like(x_BCHW) * (class_B + 1)[:, None, None, None]
    )
    key_B, class_B = batch_of(3)[1], torch.tensor([0, 1, 2])
    noise_BCHW = normal(key_B, model.noise_P).reshape(-1, 1, 5, 6)
    told_B, untold = torch.tensor([1.0, 2.0, 3.0]), 4.0
    for guidance in (0.0, 0.5, 1.0, 2.0, None):
        way_B = untold + (2.0 if guidance is None else guidance) * (told_B - untold)
        pictures = model.draw(key_B, class_B, None, guidance)
        expected = 120 + 74 * (noise_BCHW + way_B[:, None, None, None])
        torch.testing.assert_close(pictures, expected, rtol=0, atol=1e-3)


def test_the_number_of_steps_is_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    model, times = flow(steps=3, guidance=1.0), []
    monkeypatch.setattr(model, "velocity", lambda x, time_B, class_B: times.append(float(time_B[0])) or 0 * x)  # type: ignore[func-returns-value]
    model.generate(2)
    assert times == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6])
    times.clear()
    model.generate(2, steps=1)
    assert times == [0, 0.5]
