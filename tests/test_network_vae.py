"""The variational autoencoder: its bound is one, by quadrature over all noise of a network of two latent numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

import raynn.networks.vae
from raynn.networks.image_generator import ImageGeneratorSettings, build
from raynn.networks.vae import LatentBlock, Vae, stages_of
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings

ONE_PIXEL = InputSpec(image_CHW=(1, 1, 1), image_mean=(120.0,), image_std=(60.0,), task="image_generation")


def vae_of(inputs: InputSpec, spread: float = 0.3, **fields: float | tuple[int, ...]) -> Vae:
    """A small network in float64 with random weights everywhere."""
    torch.manual_seed(0)
    settings = ImageGeneratorSettings(kind="image_generator", architecture="vae", **fields)  # type: ignore[arg-type]
    model = build(settings, inputs, RegularizationSettings()).double()
    assert isinstance(model, Vae)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model


@contextmanager
def noise_of(model: Vae, noise_NL: Tensor, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The network's L latent numbers set by hand; gives the moments of each in the posterior: mean, log std [N, 2]."""
    blocks = [module for module in model.modules() if isinstance(module, LatentBlock)]
    by_salt = {int(block.noise.salt_N[0]): noise_NL[:, [i]] for i, block in enumerate(blocks)}
    moments: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        moments.append(output.flatten(1))

    with monkeypatch.context() as patch:
        patch.setattr(raynn.networks.vae, "normal", lambda _key_B, salt_N: by_salt[int(salt_N[0])])
        handles = [block.posterior.register_forward_hook(keep) for block in blocks]
        yield moments
        for handle in handles:
            handle.remove()


def test_the_bound_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """For two latent numbers u: p(x) is the integral of p(x | u) N(u); what the encoder says gives the same integral,
    importance by importance, E_q[p(x | u) N(u) / q(u | x)]; and the bound is E_q of minus the logarithm of its terms.
    """
    model = vae_of(ONE_PIXEL, channels=(6, 5), latent=1, mixture=2)
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1.0  # without this, norms of one place jump where the sign of the noise does
    node_G = torch.linspace(
        -10, 10, 51, dtype=torch.float64
    )  # the trapezoid rule, far finer than the functions are wide
    noise_NL = torch.cartesian_prod(node_G, node_G)
    weight_N = torch.exp(-0.5 * noise_NL.square().sum(1)) / (2 * math.pi) * 0.4**2
    assert weight_N.sum().item() == pytest.approx(1, abs=1e-12)
    key_N = torch.zeros(len(noise_NL), dtype=torch.int32)
    with torch.no_grad(), noise_of(model, noise_NL, monkeypatch) as moments:
        maps, divergence_N = model.decode(key_N, None, None)
        assert not divergence_N.any()

        def probability(level: int) -> Tensor:
            image = torch.full((len(noise_NL), 1, 1, 1), level, dtype=torch.uint8)
            return (weight_N * model.pixels.log_probability(maps, image).exp()).sum()

        assert sum(probability(level).item() for level in range(256)) == pytest.approx(1, abs=1e-9)
        gaps = []
        for level in (0, 100, 255):
            moments.clear()
            image = torch.full((len(noise_NL), 1, 1, 1), level, dtype=torch.uint8)
            loss_N2 = model({"image": image}, key_N)
            assert torch.equal(loss_N2[:, 0], loss_N2[:, 1]), "beta is 1"
            mean_NL, log_std_NL = torch.stack(moments).unbind(-1)[0].T, torch.stack(moments).unbind(-1)[1].T
            latent_NL = mean_NL + log_std_NL.exp() * noise_NL
            log_prior_N = -0.5 * latent_NL.square().sum(1)
            log_posterior_N = (-0.5 * noise_NL.square() - log_std_NL).sum(1)
            seen_maps, divergence_N = model.decode(key_N, None, model.encode(image))
            log_ratio_N = model.pixels.log_probability(seen_maps, image) + log_prior_N - log_posterior_N
            log_probability = probability(level).log().item()
            assert (weight_N * log_ratio_N.exp()).sum().log().item() == pytest.approx(log_probability, abs=1e-5)
            bound_bits = (weight_N * loss_N2[:, 1]).sum().item()
            assert bound_bits * math.log(2) == pytest.approx(-(weight_N * log_ratio_N).sum().item(), abs=1e-8)
            assert (weight_N * divergence_N).sum() > 0.01
            gaps.append(bound_bits + log_probability / math.log(2))
        assert min(gaps) > 0.01, "random weights are a bad encoder; an optimal one would make it 0"


def test_the_first_loss_is_that_of_knowing_nothing() -> None:
    inputs = InputSpec(image_CHW=(3, 5, 6), image_mean=(120.0,) * 3, image_std=(60.0,) * 3, task="image_generation")
    torch.manual_seed(0)
    model = build(ImageGeneratorSettings(kind="image_generator", architecture="vae"), inputs, RegularizationSettings())
    assert isinstance(model, Vae)
    image = torch.randint(256, (16, 3, 5, 6), dtype=torch.uint8)
    loss_B2 = model({"image": image}, torch.arange(16, dtype=torch.int32))
    blind_B = -model.pixels.log_probability(torch.zeros(16, model.pixels.num_maps, 5, 6), image) / (90 * math.log(2))
    torch.testing.assert_close(loss_B2[:, 1], blind_B)
    assert (loss_B2 < 11).all(), "bits a dimension"


@pytest.mark.parametrize(
    ("channels", "size", "stages", "sizes"),
    [
        ((8, 9), (28, 28), [8, 9, 9, 9, 9, 9], [(28, 28), (14, 14), (7, 7), (4, 4), (2, 2), (1, 1)]),
        ((8,), (3, 5), [8, 8, 8, 8], [(3, 5), (2, 3), (1, 2), (1, 1)]),
        ((8, 9, 10), (1, 1), [8, 9, 10], [(1, 1), (1, 1), (1, 1)]),
    ],
)
def test_the_smallest_map_is_one_place(
    channels: tuple[int, ...], size: tuple[int, int], stages: list[int], sizes: list[tuple[int, int]]
) -> None:
    assert stages_of(channels, *size) == (stages, sizes)


def test_beta_weighs_the_divergence() -> None:
    image, key_B = torch.full((4, 1, 1, 1), 77, dtype=torch.uint8), torch.arange(4, dtype=torch.int32)
    plain, weighed = (vae_of(ONE_PIXEL, channels=(4,), latent=2, beta=beta) for beta in (1.0, 3.0))
    with torch.no_grad():
        bound_B = plain({"image": image}, key_B)[:, 1]
        loss_B2 = weighed({"image": image}, key_B)
        divergence_B = weighed.decode(key_B, None, weighed.encode(image))[1] / math.log(2)
    torch.testing.assert_close(loss_B2[:, 1], bound_B)
    torch.testing.assert_close(loss_B2[:, 0], bound_B + 2 * divergence_B)
