"""Recurrent layers that keep some of their states over a step (Krueger et al. 2017).

Shapes: B rows, T steps, F inputs, H hidden units, G gates' values (H times 1, 3 or 4).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raynn.dropout import LATER
from raynn.randomness import column_salts, position_keys, random_bits
from raynn.regularization import RegularizationSettings


class Zoneout(nn.Module):
    """Runs a layer of torch's; where one of its states is zoned out, step by step: h_t = z h_t-1 + (1 - z) h'_t, h'
    being what the layer would give, with z a coin for each row, step and unit in training and its probability in
    evaluation (section 3).
    """

    salt_H: Tensor
    salt_cell_H: Tensor

    def __init__(self, knobs: RegularizationSettings, num_units: int, place: int) -> None:
        super().__init__()
        self.z, self.z_cell = knobs.zoneout, knobs.zoneout_cell
        self.register_buffer("salt_H", column_salts(4 * LATER + 2 * place, num_units), persistent=False)
        self.register_buffer("salt_cell_H", column_salts(4 * LATER + 2 * place + 1, num_units), persistent=False)

    def forward(self, layer: nn.RNNBase, x_BTF: Tensor, state: Any, key_B: Tensor | None) -> tuple[Tensor, Any]:
        """States after each step [B, T, H], and the last, as the layer gives them. Without keys as in evaluation."""
        if self.z == 0.0 and self.z_cell == 0.0:
            return layer(x_BTF, state)
        num_rows, num_steps, _ = x_BTF.shape
        kept_BTH = self._kept(self.z, self.salt_H, key_B, num_rows, num_steps)
        kept_cell_BTH = self._kept(self.z_cell, self.salt_cell_H, key_B, num_rows, num_steps)
        weight_ih_GF, _, bias_ih_G, _ = layer.parameters()
        x_BTG = F.linear(x_BTF, weight_ih_GF, bias_ih_G)
        h_BH = c_BH = x_BTF.new_zeros(num_rows, layer.hidden_size)
        if state is not None and isinstance(layer, nn.LSTM):
            h_BH, c_BH = state[0][0], state[1][0]
        elif state is not None:
            h_BH = state[0]
        states = []
        for t in range(num_steps):
            new_BH, new_cell_BH = self._step(layer, x_BTG[:, t], h_BH, c_BH)
            h_BH = torch.lerp(new_BH, h_BH, kept_BTH[:, t])
            c_BH = torch.lerp(new_cell_BH, c_BH, kept_cell_BTH[:, t])
            states.append(h_BH)
        after = (h_BH[None], c_BH[None]) if isinstance(layer, nn.LSTM) else h_BH[None]
        return torch.stack(states, dim=1), after

    @staticmethod
    def _step(layer: nn.RNNBase, x_BG: Tensor, h_BH: Tensor, c_BH: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states and cells after one step as torch's own layers have them; other than an LSTM has no cells."""
        _, weight_hh_GH, _, bias_hh_G = layer.parameters()
        h_BG = F.linear(h_BH, weight_hh_GH, bias_hh_G)
        if isinstance(layer, nn.LSTM):
            i_BH, f_BH, g_BH, o_BH = (x_BG + h_BG).chunk(4, dim=1)
            c_BH = f_BH.sigmoid() * c_BH + i_BH.sigmoid() * g_BH.tanh()
            return o_BH.sigmoid() * c_BH.tanh(), c_BH
        if isinstance(layer, nn.GRU):
            x_r_BH, x_z_BH, x_n_BH = x_BG.chunk(3, dim=1)
            h_r_BH, h_z_BH, h_n_BH = h_BG.chunk(3, dim=1)
            n_BH = (x_n_BH + (x_r_BH + h_r_BH).sigmoid() * h_n_BH).tanh()
            return torch.lerp(n_BH, h_BH, (x_z_BH + h_z_BH).sigmoid()), c_BH
        a_BH = x_BG + h_BG
        return (a_BH.relu() if layer.nonlinearity == "relu" else a_BH.tanh()), c_BH

    def _kept(self, z: float, salt_H: Tensor, key_B: Tensor | None, num_rows: int, num_steps: int) -> Tensor:
        """How much of each state is kept [B, T, H]: all or nothing in training, the probability in evaluation."""
        if not self.training or key_B is None:
            return torch.full((1, 1, 1), z, device=salt_H.device).expand(num_rows, num_steps, len(salt_H))
        key_BT = position_keys(key_B, num_steps)
        kept = random_bits(key_BT.flatten(), salt_H) < int(z * 2**31)
        return kept.view(num_rows, num_steps, -1).to(torch.get_default_dtype())
