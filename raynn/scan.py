"""Recurrent layers as a scan over their steps, which is one node of a graph whatever the number of steps; torch's own
layers are traced with the number of steps as a constant.

Shapes: B rows, T steps, F channels, H hidden units, G gates of a cell side by side (H, 3 H or 4 H).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops import scan

States = tuple[Tensor, ...]  # hidden state [B, H], and of an LSTM its cell


class ScannedLayer(nn.Module):
    """A layer of torch (one way, batch first), with its weights and its equations."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.mode, self.hidden = layer.mode, layer.hidden_size
        weights = dict(layer.named_parameters())
        self.weight_ih, self.weight_hh = weights["weight_ih_l0"], weights["weight_hh_l0"]
        self.bias_ih, self.bias_hh = weights["bias_ih_l0"], weights["bias_hh_l0"]

    def forward(self, x_BTF: Tensor, before: None = None) -> tuple[Tensor, None]:
        """Features [B, T, H]; the state after them is not given back."""
        read_BTG = F.linear(x_BTF, self.weight_ih, self.bias_ih)
        start_BH = read_BTG.new_zeros(x_BTF.shape[0], self.hidden)
        states = (start_BH, start_BH.clone()) if self.mode == "LSTM" else (start_BH,)
        after, weight, bias = AFTER[self.mode], self.weight_hh, self.bias_hh

        def step(state: States, read_BG: Tensor) -> tuple[States, Tensor]:
            state = after(read_BG, F.linear(state[0], weight, bias), state)
            return state, state[0].clone()  # a scan's outputs may share no memory with its state

        _, y_TBH = scan(step, states, read_BTG.transpose(0, 1))
        return y_TBH.transpose(0, 1), None


def _after_lstm(read_BG: Tensor, kept_BG: Tensor, state: States) -> States:
    i_BH, f_BH, g_BH, o_BH = (read_BG + kept_BG).chunk(4, dim=1)
    c_BH = f_BH.sigmoid() * state[1] + i_BH.sigmoid() * g_BH.tanh()
    return o_BH.sigmoid() * c_BH.tanh(), c_BH


def _after_gru(read_BG: Tensor, kept_BG: Tensor, state: States) -> States:
    (read_r, read_z, read_n), (kept_r, kept_z, kept_n) = read_BG.chunk(3, dim=1), kept_BG.chunk(3, dim=1)
    z_BH = (read_z + kept_z).sigmoid()
    n_BH = (read_n + (read_r + kept_r).sigmoid() * kept_n).tanh()
    return ((1 - z_BH) * n_BH + z_BH * state[0],)


def _after_tanh(read_BG: Tensor, kept_BG: Tensor, state: States) -> States:
    return ((read_BG + kept_BG).tanh(),)


def _after_relu(read_BG: Tensor, kept_BG: Tensor, state: States) -> States:
    return ((read_BG + kept_BG).relu(),)


# The state after a step, from what the step says, what the state before says, and that state: torch's own equations.
AFTER: dict[str, Callable[[Tensor, Tensor, States], States]] = {
    "LSTM": _after_lstm,
    "GRU": _after_gru,
    "RNN_TANH": _after_tanh,
    "RNN_RELU": _after_relu,
}


def scanned(model: nn.Module) -> nn.Module:
    """A copy of the network whose recurrent layers are scans; those of several layers or ways stay torch's own."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, nn.RNNBase) and _is_plain(layer):
                setattr(module, name, ScannedLayer(layer))
    return model


def _is_plain(layer: nn.RNNBase) -> bool:
    return (
        layer.num_layers == 1 and layer.batch_first and not layer.bidirectional and not layer.proj_size and layer.bias
    )
