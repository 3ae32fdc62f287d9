"""Language models: no token sees a later one, padding changes nothing, step by step is the same as all at once.

Shapes: B rows, T tokens, V vocabulary, A heads, D features of a head.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raynn.dropout import PositionDropout
from raynn.errors import JobError
from raynn.networks import NETWORKS
from raynn.networks.text_generator import TextGenerator, TextGeneratorSettings
from raynn.networks.transformer import causal_attention, rotation, turned
from raynn.objectives import loss_per_row
from raynn.penalties import decayed_and_exempt
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings

ARCHITECTURES = ("transformer", "lstm")
WINDOW, VOCABULARY = 12, 11
SMALL: dict[str, Any] = {"width": 24, "layers": 2, "heads": 3}
CPU = torch.device("cpu")

every_choice = pytest.mark.parametrize(
    ("architecture", "tied"), [(architecture, tied) for architecture in ARCHITECTURES for tied in (False, True)]
)
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def build(architecture: str, vocabulary_size: int = VOCABULARY, window: int = WINDOW, **fields: Any) -> TextGenerator:
    torch.manual_seed(0)
    knobs = {name: fields.pop(name) for name in ("dropout", "input_dropout") if name in fields}
    settings = TextGeneratorSettings(kind="text_generator", architecture=architecture, **{**SMALL, **fields})
    inputs = InputSpec(vocabulary_size=vocabulary_size, window=window, task="language_modeling")
    model = NETWORKS["text_generator"].build(settings, inputs, RegularizationSettings(**knobs))
    assert isinstance(model, TextGenerator)
    return model


def learned(model: TextGenerator) -> TextGenerator:
    """In float64, with weights as large as after training: nothing is hidden by small logits."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def batch_of(num_rows: int, num_tokens: int = WINDOW + 1, vocabulary_size: int = VOCABULARY) -> dict[str, Tensor]:
    """Rows without padding, all of them scored."""
    generator = torch.Generator().manual_seed(2)
    tokens_BT = torch.randint(1, vocabulary_size, (num_rows, num_tokens), generator=generator, dtype=torch.int32)
    length_B = torch.full((num_rows,), num_tokens)
    return {"tokens": tokens_BT, "length": length_B, "skip": torch.zeros_like(length_B)}


def keys(num: int) -> Tensor:
    return torch.arange(num, dtype=torch.int32) * 0x1234567


def loss_of(model: nn.Module, batch: dict[str, Tensor], key_B: Tensor | None = None) -> Tensor:
    return loss_per_row(model(batch, key_B), batch, "language_modeling").mean()


# What every network promises


@every_choice
@pytest.mark.parametrize("vocabulary_size", [66, 1000])
def test_the_first_loss_is_that_of_knowing_nothing(architecture: str, tied: bool, vocabulary_size: int) -> None:
    model = build(architecture, vocabulary_size, tied=tied, width=64, layers=6, heads=4)
    batch = batch_of(16, vocabulary_size=vocabulary_size)
    logits_BTV = model(batch)
    assert logits_BTV.shape == (16, WINDOW, vocabulary_size)
    assert logits_BTV.dtype == torch.float32
    assert abs(loss_of(model, batch).item() - math.log(vocabulary_size)) < 0.1
    repeated = {**batch, "tokens": batch["tokens"][:, :1].expand(-1, WINDOW + 1)}
    assert abs(loss_of(model, repeated).item() - math.log(vocabulary_size)) < 1.2, "a token is no forecast of itself"


@every_choice
def test_gradients_are_those_of_finite_differences(architecture: str, tied: bool) -> None:
    model = learned(build(architecture, tied=tied, width=4, heads=2, dropout=0.2, input_dropout=0.2))
    batch = batch_of(2, 6)
    names, parameters = zip(*model.named_parameters(), strict=True)

    def outputs(*values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (batch, keys(2))).log_softmax(2)

    assert torch.autograd.gradcheck(outputs, parameters, fast_mode=True)
    for name, gradient in zip(names, torch.autograd.grad(outputs(*parameters).square().sum(), parameters), strict=True):
        assert gradient.any(), name


@every_choice
def test_matrices_decay_and_embeddings_and_norms_do_not(architecture: str, tied: bool) -> None:
    model = build(architecture, tied=tied)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, exempt = ([names[id(p)] for p in group] for group in decayed_and_exempt(model))
    assert sorted(decayed + exempt) == sorted(names.values())
    assert ("head.weight" in decayed) == (not tied)
    assert len(decayed) == (not tied) + 2 * (4 if architecture == "transformer" else 2)
    assert all("norm" in name or "bias" in name or name == "embedding.weight" for name in exempt)


# What language models promise


@each_architecture
def test_no_token_sees_a_later_one_and_each_sees_all_before(architecture: str) -> None:
    model, batch = learned(build(architecture)), batch_of(2)
    x_BTW = model.embedding(batch["tokens"][:, :-1]).detach().requires_grad_()
    logits_BTV = model.layers(x_BTW)
    for place in range(WINDOW):
        (seen_BTW,) = torch.autograd.grad(logits_BTV[:, place].square().sum(), x_BTW, retain_graph=True)
        assert not seen_BTW[:, place + 1 :].any()
        assert seen_BTW[:, : place + 1].any(dim=2).all()
    before = model(batch)
    for place in range(1, WINDOW):
        changed = batch["tokens"].clone()
        changed[:, place] = changed[:, place] % (VOCABULARY - 1) + 1
        after = model({"tokens": changed})
        assert torch.equal(after[:, :place], before[:, :place])
        assert (after[:, place] != before[:, place]).any()


@each_architecture
def test_the_last_token_is_a_target_alone(architecture: str) -> None:
    model, batch = build(architecture), batch_of(3)
    other = torch.cat([batch["tokens"][:, :-1], batch["tokens"][:, :1]], dim=1).long()
    assert torch.equal(model({"tokens": other}), model(batch))


@each_architecture
@pytest.mark.parametrize("knob", ["dropout", "input_dropout"])
def test_dropout_is_keyed_by_row_and_acts_in_training_alone(architecture: str, knob: str) -> None:
    plain, dropped, batch = build(architecture), build(architecture, **{knob: 0.5}), batch_of(4)
    logits_BTV = dropped(batch, keys(4))
    assert not torch.equal(logits_BTV, plain(batch, keys(4)))
    assert not torch.equal(logits_BTV, dropped(batch, keys(4) + 1))
    order = torch.tensor([2, 0, 3, 1])
    swapped = dropped({"tokens": batch["tokens"][order]}, keys(4)[order])
    torch.testing.assert_close(swapped, logits_BTV[order], rtol=0, atol=1e-6)
    assert torch.equal(dropped.eval()(batch, keys(4)), plain(batch))


@each_architecture
def test_every_place_draws_its_own_masks(architecture: str) -> None:
    model, seen = build(architecture, dropout=0.5, input_dropout=0.5), []
    places = [module for module in model.modules() if isinstance(module, PositionDropout)]
    for place in places:
        place.register_forward_hook(lambda module, inputs, output: seen.append((module, (output == 0).double().mean())))
    model(batch_of(4), keys(4))
    assert {module for module, _ in seen} == {*places}
    assert all(0.4 < share < 0.6 for _, share in seen)
    salts = {int(place.salt_N[0]) for place in places}
    assert len(salts) == len(places) == (5 if architecture == "transformer" else 3)


# Token by token


@every_choice
def test_steps_give_the_logits_of_the_whole(architecture: str, tied: bool) -> None:
    model, batch = learned(build(architecture, tied=tied)).eval(), batch_of(3)
    tokens_BT = batch["tokens"][:, :-1]
    whole = model(batch)
    for sizes in ([1] * WINDOW, [5, 1, 1, 5], [WINDOW]):
        state, steps = model.start(3), []
        for piece_BT in tokens_BT.split(sizes, dim=1):
            logits_BTV, state = model.step(piece_BT, state)
            steps.append(logits_BTV)
        torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=1e-12)


def test_an_older_state_can_be_continued_again() -> None:
    for architecture in ARCHITECTURES:
        model, tokens_BT = learned(build(architecture)).eval(), batch_of(2)["tokens"]
        _, state = model.step(tokens_BT[:, :4], model.start(2))
        first, _ = model.step(tokens_BT[:, 4:6], state)
        model.step(tokens_BT[:, 7:9], state)
        assert torch.equal(model.step(tokens_BT[:, 4:6], state)[0], first)


@pytest.mark.parametrize("window", [1, 2, 5, 6])
@pytest.mark.parametrize("sizes", [[1] * 20, [20], [3, 9, 1, 7], [6, 6, 6, 2]])
def test_a_transformer_past_its_window_starts_anew_from_the_last_half(window: int, sizes: list[int]) -> None:
    model, tokens_BT = learned(build("transformer", window=window)).eval(), batch_of(2, 20)["tokens"]
    state, steps = model.start(2), []
    for piece_BT in tokens_BT.split(sizes, dim=1):
        logits_BTV, state = model.step(piece_BT, state)
        steps.append(logits_BTV)
    logits_BTV = torch.cat(steps, dim=1)
    first, seen = 0, 0
    for place in range(20):
        if seen == window:
            first, seen = place - window // 2, window // 2
        seen += 1
        alone = model({"tokens": tokens_BT[:, [*range(first, place + 1), 0]]})
        torch.testing.assert_close(logits_BTV[:, place], alone[:, -1], rtol=0, atol=1e-12)


def test_an_lstm_remembers_beyond_its_window() -> None:
    model, tokens_BT = learned(build("lstm", window=4)).eval(), batch_of(2, 21)["tokens"]
    state, steps = model.start(2), []
    for piece_BT in tokens_BT[:, :-1].split(1, dim=1):
        logits_BTV, state = model.step(piece_BT, state)
        steps.append(logits_BTV)
    torch.testing.assert_close(torch.cat(steps, dim=1), model({"tokens": tokens_BT}), rtol=0, atol=1e-12)


# The layers


def test_attention_is_its_equation() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 7, 4, generator=generator, dtype=torch.float64)
    expected = torch.zeros_like(q)
    for row in range(2):
        for head in range(3):
            for place in range(7):
                weight_T = (k[row, head, : place + 1] @ q[row, head, place] / 2.0).exp()
                expected[row, head, place] = weight_T @ v[row, head, : place + 1] / weight_T.sum()
    torch.testing.assert_close(causal_attention(q, k, v), expected, rtol=0, atol=1e-12)
    last = causal_attention(q[:, :, 4:], k, v, whole=False)
    torch.testing.assert_close(last, expected[:, :, 4:], rtol=0, atol=1e-12)


def test_attention_in_sixteen_bits_has_the_same_values_and_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(3, 2, 3, 20, 8, generator=generator).bfloat16()
    seen = []
    for dtype in (torch.bfloat16, torch.float64):
        qkv = exact.to(dtype).requires_grad_()
        y = causal_attention(*qkv)
        assert y.dtype == dtype
        (gradient,) = torch.autograd.grad((y.double() ** 3).sum(), qkv)
        seen.append((y.detach().double(), gradient.double()))
    for half, whole in zip(*seen, strict=True):
        assert float((half - whole).norm() / whole.norm()) < 0.01


def test_rotation_is_multiplication_by_complex_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(9, 8, generator=generator, dtype=torch.float64)
    found = turned(x_TD, rotation(5, 9, 8, CPU))
    for place in range(9):
        for pair in range(4):
            z = complex(x_TD[place, pair], x_TD[place, pair + 4])
            angle = (5 + place) * 10_000.0 ** (-2 * pair / 8)
            z *= complex(math.cos(angle), math.sin(angle))
            assert abs(complex(found[place, pair], found[place, pair + 4]) - z) < 1e-5


def test_products_of_turned_features_depend_on_their_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    q_D, k_D = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    q_TD, k_TD = (turned(x_D.expand(30, 16), rotation(0, 30, 16, CPU)) for x_D in (q_D, k_D))
    product_TT = q_TD @ k_TD.T
    for distance in (0, 1, 7):
        values = product_TT.diagonal(-distance)
        assert float(values.std()) < 1e-5
    assert abs(float(product_TT[7, 0] - product_TT[0, 7])) > 0.1, "after is not before"


@each_architecture
def test_half_precision_is_near_single_and_leaves_the_lstm_alone(architecture: str) -> None:
    model, batch = build(architecture, width=48), batch_of(8)
    in_half: list[bool] = []
    for module in model.layers.modules():
        if isinstance(module, nn.LSTM | nn.Linear):
            module.register_forward_hook(lambda *_: in_half.append(torch.is_autocast_enabled("cpu")))
    plain = loss_of(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = loss_of(model, batch)
    assert any(in_half) == (architecture == "transformer")
    assert abs(half.item() - plain.item()) < 0.01
    gradients = [torch.autograd.grad(loss, [*model.parameters()]) for loss in (half, plain)]
    for half_gradient, gradient in zip(*gradients, strict=True):
        assert float((half_gradient - gradient).norm() / gradient.norm()) < 0.05


def test_the_transformer_compiles_to_one_graph() -> None:
    model, batch = build("transformer", dropout=0.2, layers=1), batch_of(2)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch, keys(2)), model(batch, keys(2)), rtol=0, atol=1e-6)


# What is refused


@pytest.mark.parametrize(
    ("width", "heads", "remedy"),
    [
        (192, 5, "set heads to 4, or width to 200"),
        (192, 64, "set heads to 48, or width to 256"),
        (24, 8, "set heads to 6, or width to 32"),
        (7, 1, "set width to 8"),
    ],
)
def test_heads_that_do_not_divide_the_width(width: int, heads: int, remedy: str) -> None:
    with pytest.raises(JobError) as caught:
        build("transformer", width=width, heads=heads)
    assert str(caught.value) == (
        f"network.heads = {heads} must divide network.width = {width} into parts of an even size, as rotary positions "
        f"turn features in pairs; {remedy}"
    )
    build("lstm", width=width, heads=heads)  # has no heads


def test_a_job_without_text() -> None:
    with pytest.raises(JobError, match=r"needs a text column or text files, and the features have none; use network"):
        build("transformer", vocabulary_size=0)
