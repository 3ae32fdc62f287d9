"""Generated texts: drawn as the model says, the same for a seed, ended where they should.

Shapes: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raynn.errors import DataError
from raynn.generation import LanguageModel, Sampling, generate_tokens, next_tokens, sample
from raynn.networks.text_generator import TextGenerator, TextGeneratorSettings, build
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings

MOST_LIKELY = Sampling(temperature=0)


class Chain(nn.Module):
    """A Markov chain: what comes next is given by the last token alone. Its state is all it has read."""

    def __init__(self, logits_VV: Tensor) -> None:
        super().__init__()
        self.logits_VV = nn.Parameter(logits_VV)

    def start(self, num_rows: int) -> Tensor:
        return torch.zeros(num_rows, 0, dtype=torch.int64)

    def step(self, tokens_BT: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits_VV[tokens_BT], torch.cat([state, tokens_BT], dim=1)


def counting(size: int = 6) -> Chain:
    """1, 2, 3, ..., and from the last to 1 again."""
    following = torch.arange(size).roll(-1)
    following[-1] = 1
    return Chain(10.0 * nn.functional.one_hot(following, size).double())


def random_chain(size: int = 6) -> Chain:
    return Chain(torch.randn(size, size, generator=torch.Generator().manual_seed(0)).double())


def transformer() -> LanguageModel:
    torch.manual_seed(0)
    settings = TextGeneratorSettings(kind="text_generator", width=16, layers=2, heads=2)
    model = build(settings, InputSpec(vocabulary_size=9, window=8), RegularizationSettings()).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert isinstance(model, TextGenerator)
    return model


def brute_force(logits: list[float], sampling: Sampling) -> list[float]:
    """Each token's probability, by the definitions, one token at a time."""
    powers = [math.exp(x / sampling.temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[: sampling.top_k]
    total = sum(powers[token] for token in order)
    kept, share = [], 0.0
    for token in order:
        kept.append(token)
        share += powers[token] / total
        if share >= sampling.top_p:
            break
    total = sum(powers[token] for token in kept)
    return [powers[token] / total if token in kept else 0.0 for token in range(len(logits))]


# One token


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999, 1.0])
def test_shares_of_the_unit_interval_are_the_probabilities(temperature: float, top_k: int | None, top_p: float) -> None:
    sampling, num = Sampling(temperature, top_k, top_p), 4000
    for seed in range(3):
        logits_V = torch.randn(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
        logits_V[3] = logits_V[5]
        uniform_N = (torch.arange(num) + 0.5) / num
        token_N = sample(logits_V.expand(num, -1), uniform_N, sampling)
        found_V = torch.bincount(token_N, minlength=8) / num
        expected_V = torch.tensor(brute_force(logits_V.tolist(), sampling))
        assert (found_V - expected_V).abs().max() <= 1.01 / num, "an interval of the right length, up to its ends"
        assert not found_V[expected_V == 0].any()
        rank_N = logits_V.sort(descending=True, stable=True).indices.argsort()[token_N]
        assert (rank_N.diff() >= 0).all(), "the likeliest tokens come first"


def test_rows_are_drawn_each_from_its_own_distribution() -> None:
    logits_BV = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    uniform_B = torch.rand(50, generator=torch.Generator().manual_seed(1))
    for sampling in (MOST_LIKELY, Sampling(), Sampling(0.7, 4, 0.8)):
        together = sample(logits_BV, uniform_B, sampling)
        alone = [sample(logits_BV[i : i + 1], uniform_B[i : i + 1], sampling) for i in range(50)]
        assert torch.equal(together, torch.cat(alone))


def test_a_border_belongs_to_the_less_likely_token() -> None:
    logits_BV = torch.tensor([[0.0, 0.0, -math.inf]]).expand(4, -1)
    uniform_B = torch.tensor([0.0, 0.4999, 0.5, 0.9999])
    assert sample(logits_BV, uniform_B, Sampling()).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("sampling", [MOST_LIKELY, Sampling(top_k=1), Sampling(top_p=1e-9), Sampling(1e-308)])
def test_the_likeliest_token_and_of_equal_ones_the_first(sampling: Sampling) -> None:
    logits_BV = torch.tensor([[0.0, 2.0, 1.0, 2.0], [-5.0, -7.0, -5.0, -6.0]])
    for uniform in (0.0, 0.499 if sampling.temperature == 1e-308 else 0.9999):
        assert sample(logits_BV, torch.full((2,), uniform), sampling).tolist() == [1, 0]


def test_the_ends_of_the_interval_fall_on_tokens_that_may_come() -> None:
    logits_BV = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf]])
    for uniform, token in ((0.0, 3), (1 - 2**-31, 1)):
        for sampling in (Sampling(), Sampling(0.01), Sampling(top_k=2), Sampling(top_p=0.9999)):
            uniform_B = torch.tensor([uniform], dtype=torch.float64)
            expected = 3 if sampling.temperature == 0.01 else token
            assert sample(logits_BV, uniform_B, sampling).tolist() == [expected]


def test_tokens_come_as_often_as_the_model_says() -> None:
    model, num = random_chain(), 4000
    seen: dict[int, list[int]] = {token: [] for token in range(1, 6)}
    texts = generate_tokens(model, [1], num, 4, Sampling(0.8), seed=3)
    for text in texts:
        for before, after in itertools.pairwise([1, *text]):
            seen[before].append(after)
    assert sum(map(len, seen.values())) == 4 * num
    for before, found in seen.items():
        logits_V = (model.logits_VV[before] / 0.8).detach()
        logits_V[0] = -math.inf  # no text
        expected_V = logits_V.softmax(0)[1:].numpy() * len(found)
        counts_V = np.bincount(found, minlength=6)
        assert counts_V[0] == 0
        chi_square = float(((counts_V[1:] - expected_V) ** 2 / expected_V).sum())
        assert chi_square < 18.5  # of four degrees of freedom, larger once in a thousand times


# Texts


def test_greedy_texts_are_the_likeliest_steps() -> None:
    assert generate_tokens(counting(), [3], 2, 7, MOST_LIKELY) == [[4, 5, 1, 2, 3, 4, 5]] * 2
    assert generate_tokens(counting(), [1, 5, 2], 1, 3, MOST_LIKELY) == [[3, 4, 5]]
    model = transformer()
    assert generate_tokens(model, [1, 2], 1, 30, MOST_LIKELY) == generate_tokens(model, [1, 2], 1, 30, MOST_LIKELY, 5)


def test_a_model_is_told_each_token_once() -> None:
    told: list[Tensor] = []

    class Listening(Chain):
        def step(self, tokens_BT: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            told.append(tokens_BT)
            assert not torch.is_grad_enabled()
            return super().step(tokens_BT, state)

    texts = generate_tokens(Listening(random_chain().logits_VV.detach()), [4, 2], 3, 5, Sampling())
    told_BT = torch.cat(told, dim=1)
    assert told_BT.tolist() == [[4, 2, *text[:-1]] for text in texts]


def test_a_text_is_a_function_of_the_seed_and_its_number() -> None:
    for model in (random_chain(), transformer()):
        texts = generate_tokens(model, [1], 9, 25, Sampling(), seed=7)
        assert generate_tokens(model, [1], 9, 25, Sampling(), seed=7) == texts
        assert generate_tokens(model, [1], 2, 25, Sampling(), seed=7) == texts[:2]
        assert generate_tokens(model, [1], 9, 12, Sampling(), seed=7) == [text[:12] for text in texts]
        assert len({tuple(text) for text in texts}) == 9
        assert not {*map(tuple, texts)} & {*map(tuple, generate_tokens(model, [1], 9, 25, Sampling(), seed=8))}


def test_texts_stop_where_they_are_told_to() -> None:
    def texts(*stop: list[int]) -> list[int]:
        return generate_tokens(counting(), [1], 1, 9, MOST_LIKELY, stop=stop)[0]

    assert texts() == [2, 3, 4, 5, 1, 2, 3, 4, 5]
    assert texts([5]) == [2, 3, 4]
    assert texts([5, 1], [3, 2]) == [2, 3, 4]
    assert texts([5, 1], [1], [4, 5, 1]) == [2, 3], "the longest of those that end together"
    assert texts([1, 2]) == [2, 3, 4, 5], "the prompt is no part of it"
    assert texts([2]) == []


def test_each_text_stops_alone() -> None:
    model = random_chain()
    whole = generate_tokens(model, [1], 20, 30, Sampling(), seed=1)
    stopped = generate_tokens(model, [1], 20, 30, Sampling(), seed=1, stop=[(3, 2), (5,)])
    for text, short in zip(whole, stopped, strict=True):
        ends = [i for i in range(30) if text[i] == 5 or text[i : i + 2] == [3, 2]]
        assert short == text[: min(ends, default=30)]
    assert len({len(text) for text in stopped}) > 5


def test_nothing_is_computed_after_the_last_text_has_stopped() -> None:
    steps = 0

    class Counted(Chain):
        def step(self, tokens_BT: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal steps
            steps += 1
            return super().step(tokens_BT, state)

    generate_tokens(Counted(counting().logits_VV.detach()), [1], 3, 100, MOST_LIKELY, stop=[[4]])
    assert steps == 3


def test_tokens_come_one_by_one_without_end() -> None:
    tokens = next_tokens(counting(), [1], 2, MOST_LIKELY)
    assert [next(tokens).tolist() for _ in range(50)] == [[place % 5 + 1] * 2 for place in range(1, 51)]


# What is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.5}, "temperature = -0.5 must be 0, the likeliest token, or more; 1 is usual"),
        ({"temperature": math.inf}, "temperature = inf must be 0, the likeliest token, or more; 1 is usual"),
        ({"temperature": math.nan}, "temperature = nan must be 0, the likeliest token, or more; 1 is usual"),
        ({"top_k": 0}, "top_k = 0 must be at least 1; leave it out to draw from all tokens"),
        ({"top_p": 0.0}, "top_p = 0 must be above 0 and at most 1; 0.9 is usual, 1 draws from all tokens"),
        ({"top_p": 1.5}, "top_p = 1.5 must be above 0 and at most 1; 1 draws from all tokens"),
    ],
)
def test_how_tokens_cannot_be_drawn(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        Sampling(**fields)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 0}, "count = 0 texts must be at least 1"),
        ({"max_tokens": 0}, "max_tokens = 0 must be at least 1"),
        ({"seed": -1}, "seed = -1 must be 0 or more"),
        ({"prompt": []}, "the prompt is empty, and a text must begin with something; a line break will do"),
        ({"stop": [[1], []]}, "a text to stop at is empty, and every text ends so; leave it out"),
    ],
)
def test_texts_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    arguments = {"prompt": [1], "count": 1, "max_tokens": 5, "sampling": MOST_LIKELY, **fields}
    with pytest.raises(DataError) as caught:
        generate_tokens(counting(), **arguments)
    assert str(caught.value) == message
