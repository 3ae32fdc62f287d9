"""Texts continued by a language model, token by token: the same for a seed, however many are generated together.

Shapes: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raynn.errors import DataError
from raynn.randomness import position_keys, row_keys

NO_TEXT = 0  # the token of padding and of what training never saw


@runtime_checkable
class LanguageModel(Protocol):
    """What a network must have so that it can continue texts; the state is its own affair."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Where they are, the tokens go."""

    def start(self, num_rows: int) -> Any:
        """The state of texts of which nothing has been read."""

    def step(self, tokens_BT: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits [B, T, V] of what comes after each of the next tokens, and the state after them."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: only the k likeliest tokens, of equal ones those with the smallest numbers; None: all.
        top_p: of these only the likeliest that together have at least this share of their probability (Holtzman et al.
            2020, section 3.1).

    Raises:
        DataError: one is outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 <= self.temperature < math.inf:
            raise DataError(f"temperature = {self.temperature:g} must be 0, the likeliest token, or more; 1 is usual")
        if self.top_k is not None and self.top_k < 1:
            raise DataError(f"top_k = {self.top_k} must be at least 1; leave it out to draw from all tokens")
        if not 0 < self.top_p <= 1:
            usual = "1 draws from all tokens" if self.top_p > 1 else "0.9 is usual, 1 draws from all tokens"
            raise DataError(f"top_p = {self.top_p:g} must be above 0 and at most 1; {usual}")


def sample(logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling) -> Tensor:
    """One token a row [B], where a number in [0, 1) falls in the cumulative distribution, likeliest tokens first.

    Logits may be -inf, where a token must not come.
    """
    logits_BV = logits_BV.double()
    if sampling.temperature == 0:
        return logits_BV.argmax(1)
    sorted_BV, token_BV = logits_BV.sort(dim=1, descending=True, stable=True)
    # the largest is taken off first, so that no temperature makes it infinite
    probability_BV = ((sorted_BV - sorted_BV[:, :1]) / sampling.temperature).softmax(1)
    probability_BV = probability_BV[:, : sampling.top_k]
    cumulative_BV = probability_BV.cumsum(1)
    if sampling.top_p < 1:
        before_BV = cumulative_BV - probability_BV
        probability_BV = probability_BV * (before_BV < sampling.top_p * cumulative_BV[:, -1:])
        cumulative_BV = probability_BV.cumsum(1)
    place_B1 = torch.searchsorted(cumulative_BV, uniform_B.double()[:, None] * cumulative_BV[:, -1:], right=True)
    return token_BV.gather(1, place_B1)[:, 0]


def next_tokens(
    model: LanguageModel, prompt: Sequence[int], count: int, sampling: Sampling, seed: int = 0
) -> Iterator[Tensor]:
    """Yields the next token of each of `count` texts [B], without end; all begin with the tokens of `prompt`.

    What text i says is a function of the seed and i (up to the rounding of logits, which more texts beside it may
    change). The model is in evaluation mode.

    Raises:
        DataError: no text, no prompt, or a negative seed.
    """
    if count < 1:
        raise DataError(f"count = {count} texts must be at least 1")
    if seed < 0:
        raise DataError(f"seed = {seed} must be 0 or more")
    if not len(prompt):
        raise DataError("the prompt is empty, and a text must begin with something; a line break will do")
    return _next_tokens(model, prompt, row_keys(seed, 0, np.arange(count)), sampling)


def _next_tokens(
    model: LanguageModel, prompt: Sequence[int], key_B: NDArray[np.int32], sampling: Sampling
) -> Iterator[Tensor]:
    device = next(model.parameters()).device
    keys_B = torch.from_numpy(key_B).to(device)
    state = model.start(len(keys_B))
    tokens_BT = torch.tensor(prompt, device=device).expand(len(keys_B), -1)
    for place in itertools.count():
        with torch.no_grad():
            logits_BTV, state = model.step(tokens_BT, state)
        logits_BV = logits_BTV[:, -1].double()
        logits_BV[:, NO_TEXT] = -math.inf
        token_B = sample(logits_BV, position_keys(keys_B, 1, place)[:, 0].double() / 2**31, sampling)
        yield token_B
        tokens_BT = token_B[:, None]


def generate_tokens(
    model: LanguageModel,
    prompt: Sequence[int],
    count: int,
    max_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    stop: Sequence[Sequence[int]] = (),
) -> list[list[int]]:
    """The tokens of `count` texts after their common prompt: at most `max_tokens`, up to the first of the sequences in
    `stop` that a text comes to, which is left out.

    Raises:
        DataError: no text, prompt or token, a negative seed, or an empty sequence to stop at.
    """
    if max_tokens < 1:
        raise DataError(f"max_tokens = {max_tokens} must be at least 1")
    if not all(len(ending) for ending in stop):
        raise DataError("a text to stop at is empty, and every text ends so; leave it out")
    endings = [list(ending) for ending in stop]
    texts: list[list[int]] = [[] for _ in range(count)]
    running = dict(enumerate(texts))
    for token_B in itertools.islice(next_tokens(model, prompt, count, sampling, seed), max_tokens):
        tokens = token_B.tolist()
        for row, text in list(running.items()):
            text.append(tokens[row])
            reached = [len(ending) for ending in endings if text[-len(ending) :] == ending]
            if reached:
                del text[-max(reached) :]
                del running[row]
        if not running:
            break
    return texts
