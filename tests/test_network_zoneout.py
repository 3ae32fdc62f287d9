"""Zoneout: torch's own layers where nothing is kept, states kept at their share, the mean of both in evaluation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raynn.networks.zoneout import Zoneout
from raynn.randomness import row_keys
from raynn.regularization import RegularizationSettings

LAYERS: dict[str, Callable[[], nn.RNNBase]] = {
    "tanh": lambda: nn.RNN(3, 5, batch_first=True),
    "relu": lambda: nn.RNN(3, 5, nonlinearity="relu", batch_first=True),
    "gru": lambda: nn.GRU(3, 5, batch_first=True),
    "lstm": lambda: nn.LSTM(3, 5, batch_first=True),
}
layers = pytest.mark.parametrize("kind", LAYERS)


def keys(num: int) -> Tensor:
    return torch.from_numpy(row_keys(0, 0, np.arange(num)))


def layer_and_rows(kind: str, num_rows: int = 4) -> tuple[nn.RNNBase, Tensor]:
    torch.manual_seed(0)
    return LAYERS[kind](), torch.randn(num_rows, 6, 3)


def zoneout(z: float, z_cell: float = 0.0) -> Zoneout:
    return Zoneout(RegularizationSettings(zoneout=z, zoneout_cell=z_cell), 5, 0)


@layers
def test_where_nothing_is_kept_it_is_torchs_layer(kind: str) -> None:
    layer, x_BTF = layer_and_rows(kind)
    hardly = 1e-12  # so rarely that no coin falls so
    expected, last = layer(x_BTF[:, :4])
    found, state = zoneout(hardly)(layer, x_BTF[:, :4], None, keys(4))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    more, _ = zoneout(hardly)(layer, x_BTF[:, 4:], state, keys(4))
    torch.testing.assert_close(more, layer(x_BTF[:, 4:], last)[0], rtol=1e-5, atol=1e-6)
    assert zoneout(0.0)(layer, x_BTF, None, keys(4))[0].equal(layer(x_BTF)[0])


@layers
def test_a_state_is_kept_or_moves_at_its_share(kind: str) -> None:
    layer, x_BTF = layer_and_rows(kind, 1000)
    states_BTH, _ = zoneout(0.3)(layer, x_BTF, None, keys(1000))
    kept_BTH = states_BTH[:, 1:] == states_BTH[:, :-1]
    first_BH = states_BTH[:, 0] == 0.0
    if kind == "relu":  # which has zeros of its own
        kept_BTH = kept_BTH[(states_BTH[:, 1:] != 0) | (states_BTH[:, :-1] != 0)]
        assert 0.2 < float(kept_BTH.double().mean()) < 0.4
        return
    for kept in (kept_BTH, first_BH):
        assert abs(float(kept.double().mean()) - 0.3) < 5 * (0.21 / kept.numel()) ** 0.5
    assert kept_BTH.flatten(1).unique(dim=0).shape[0] == 1000, "each row draws for itself"


@layers
def test_evaluation_takes_the_mean_of_a_step(kind: str) -> None:
    layer, x_BTF = layer_and_rows(kind)
    z, z_cell = 0.3, 0.5 if kind == "lstm" else 0.0
    start_BH = torch.randn(4, 5)
    state = (start_BH[None], torch.ones(1, 4, 5)) if kind == "lstm" else start_BH[None]
    found, after = zoneout(z, z_cell).eval()(layer, x_BTF[:, :1], state, keys(4))
    new, new_after = layer(x_BTF[:, :1], state)
    torch.testing.assert_close(found[:, 0], z * start_BH + (1 - z) * new[:, 0])
    if kind == "lstm":
        torch.testing.assert_close(after[1], z_cell * torch.ones(1, 4, 5) + (1 - z_cell) * new_after[1])
    num_draws = 20_000
    many = zoneout(z)(layer, x_BTF[:1, :1].expand(num_draws, -1, -1), None, keys(num_draws))[0].mean(0)
    assert ((many - (1 - z) * layer(x_BTF[:1, :1])[0][0]).abs() < 5 * (0.21 / num_draws) ** 0.5).all()


def test_cells_are_kept_apart_from_states() -> None:
    layer, x_BTF = layer_and_rows("lstm", 500)
    before = (torch.randn(1, 500, 5), torch.randn(1, 500, 5))
    _, (h_BH, c_BH) = zoneout(0.2, 0.6)(layer, x_BTF[:, :1], before, keys(500))
    kept_h, kept_c = h_BH == before[0], c_BH == before[1]
    assert abs(float(kept_h.double().mean()) - 0.2) < 5 * (0.16 / 2500) ** 0.5
    assert abs(float(kept_c.double().mean()) - 0.6) < 5 * (0.24 / 2500) ** 0.5
    both = float((kept_h & kept_c).double().mean())
    assert abs(both - 0.12) < 5 * (0.12 / 2500) ** 0.5


def test_gradients_pass_in_float64() -> None:
    layer, x_BTF = layer_and_rows("lstm", 2)
    layer, x_BTF = layer.double(), x_BTF[:, :3].double().requires_grad_()
    kept = zoneout(0.4, 0.4)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.autograd.gradcheck(lambda x: kept(layer, x, None, keys(2))[0], (x_BTF,))
    finally:
        torch.set_default_dtype(torch.float32)
