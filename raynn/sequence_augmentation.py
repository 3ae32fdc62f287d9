"""Sequences and texts changed at random in training: noise, scale, time masked and warped, tokens masked and swapped.

What happens to a row is a function of its key. The padding behind a sequence stays as it is.

Shapes: B rows, T steps or tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raynn.randomness import normal, position_keys, random_bits, salts_on, uniform
from raynn.regularization import RegularizationSettings

PLACE = 1 << 21  # of the keys' numbers drawn here; dropout layers count theirs from 0
UNKNOWN = 0  # the token that stands for what is not in the vocabulary


def changed_sequences(x_BTC: Tensor, length_B: Tensor, key_B: Tensor, settings: RegularizationSettings) -> Tensor:
    """Warped, scaled, made noisy and masked, in this order."""
    if settings.time_warping:
        draw_B2 = uniform(key_B, _salts(0, 2, key_B))
        x_BTC = warped(x_BTC, length_B, 0.5 + settings.time_warping * (draw_B2[:, 0] - 0.5))
    if settings.scaling:
        factor_BC = 1.0 + settings.scaling * normal(key_B, _salts(1, x_BTC.shape[2], key_B))
        x_BTC = x_BTC * factor_BC[:, None]
    if settings.jitter:
        key_BT = position_keys(key_B, x_BTC.shape[1])
        noise_BTC = normal(key_BT.flatten(), _salts(2, x_BTC.shape[2], key_B)).view(x_BTC.shape)
        x_BTC = x_BTC + settings.jitter * noise_BTC * _within(length_B, x_BTC)[:, :, None]
    if settings.time_masking:
        draw_B2 = uniform(key_B, _salts(3, 2, key_B))
        run_B = (draw_B2[:, 0] * ((settings.time_masking * length_B).floor() + 1)).floor()
        first_B = (draw_B2[:, 1] * (length_B - run_B + 1)).floor()
        place_T = torch.arange(x_BTC.shape[1], device=x_BTC.device)
        masked_BT = (place_T >= first_B[:, None]) & (place_T < (first_B + run_B)[:, None])
        x_BTC = x_BTC.masked_fill(masked_BT[:, :, None], 0.0)
    return x_BTC


def warped(x_BTC: Tensor, length_B: Tensor, middle_B: Tensor) -> Tensor:
    """Each sequence sped up before the point at the share `middle` of its steps and slowed down behind it, or the other
    way, so that this point comes from its half: two straight lines (Park et al. 2019, section 2, with one point).
    Between steps it is interpolated.
    """
    last_B1 = (length_B[:, None] - 1).clamp(min=1).to(middle_B.dtype)
    share_BT = torch.arange(x_BTC.shape[1], device=x_BTC.device) / last_B1
    middle_B1 = middle_B[:, None]
    before_BT = 0.5 * share_BT / middle_B1
    behind_BT = 0.5 + 0.5 * (share_BT - middle_B1) / (1.0 - middle_B1)
    from_BT = torch.where(share_BT < middle_B1, before_BT, behind_BT).clamp(0.0, 1.0) * last_B1
    low_BT = from_BT.floor()
    high_BT = torch.minimum(low_BT + 1, last_B1)
    part_BT1 = (from_BT - low_BT)[:, :, None].to(x_BTC.dtype)
    low_BTC, high_BTC = (x_BTC.gather(1, _index(place_BT, x_BTC)) for place_BT in (low_BT, high_BT))
    return torch.where(_within(length_B, x_BTC)[:, :, None], torch.lerp(low_BTC, high_BTC, part_BT1), x_BTC)


def changed_texts(tokens_BT: Tensor, length_B: Tensor, key_B: Tensor, settings: RegularizationSettings) -> Tensor:
    """Tokens swapped with their neighbors, then masked."""
    if settings.token_swapping:
        tokens_BT = swapped(tokens_BT, length_B, key_B, settings.token_swapping)
    if settings.token_masking:
        bits_BT = random_bits(position_keys(key_B, tokens_BT.shape[1]).flatten(), _salts(4, 1, key_B))
        masked_BT = (bits_BT < int(settings.token_masking * 2**31)).view(tokens_BT.shape)
        tokens_BT = tokens_BT.masked_fill(masked_BT & _within(length_B, tokens_BT), UNKNOWN)
    return tokens_BT


def swapped(tokens_BT: Tensor, length_B: Tensor, key_B: Tensor, share: float) -> Tensor:
    """Neighbors change places, so that `share` of the tokens have moved: in pairs that start at an even or, as likely,
    at an odd place; each pair changes with this probability.
    """
    num_tokens = tokens_BT.shape[1]
    place_T = torch.arange(num_tokens, device=tokens_BT.device)
    odd_B1 = random_bits(key_B, _salts(5, 1, key_B)) & 1
    second_BT = (place_T + odd_B1) % 2  # 1: the later of its pair
    first_BT = place_T - second_BT
    there_BT = (first_BT >= 0) & (first_BT + 1 < length_B[:, None])
    bits_BT = random_bits(position_keys(key_B, num_tokens).flatten(), _salts(6, 1, key_B)).view(-1, num_tokens)
    moves_BT = there_BT & (bits_BT.gather(1, first_BT.clamp(min=0)) < int(share * 2**31))
    from_BT = torch.where(moves_BT, place_T + 1 - 2 * second_BT, place_T)
    return tokens_BT.gather(1, from_BT)


def _within(length_B: Tensor, x_BT: Tensor) -> Tensor:
    """Which steps are there [B, T]."""
    return torch.arange(x_BT.shape[1], device=x_BT.device) < length_B[:, None]


def _index(place_BT: Tensor, x_BTC: Tensor) -> Tensor:
    return place_BT.long().clamp(0, x_BTC.shape[1] - 1)[:, :, None].expand(-1, -1, x_BTC.shape[2])


def _salts(offset: int, num: int, key_B: Tensor) -> Tensor:
    return salts_on(key_B.device, PLACE + offset, num)
