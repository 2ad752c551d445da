"""Text encoders on the native engine: ids, masks, positions and pooling in one program, against FP32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.graph.native_model import NativeModel
from helpers.lowered import BOUND_DB, needs_kernels
from helpers.lowered_text import LENGTH, WIDTH, WORDS, lowered, texts
from helpers.tiny_models import EIGHT_BITS, ENGINES, run

pytestmark = needs_kernels


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Encoder(nn.Module):
    """Words and positions, one block of attention behind a mask, and pooling: each of them a choice."""

    def __init__(self, hide: Callable[..., torch.Tensor], pool: Callable[..., torch.Tensor], **parts: object) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(2 * LENGTH, WIDTH)
        self.norm, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.hide, self.pool, self.parts = hide, pool, parts

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        positions = self.parts.get("positions", _in_order)
        x = self.norm(self.words(ids) + self.places(positions(ids)))  # type: ignore[operator]
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = self.hide(q, k, v, mask).transpose(1, 2).flatten(2)
        x = self.after(x + self.out(attended))
        x = x + self.down(F.gelu(self.up(x)))
        return self.pool(x, mask)


def _in_order(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1]).expand_as(ids)


def _counted(ids: torch.Tensor) -> torch.Tensor:
    """Positions as RoBERTa has them: padding (id 1) has one of its own."""
    real = ids.ne(1).int()
    return (torch.cumsum(real, dim=1).type_as(real) * real).long() + 1


def softened(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) / 8**0.5 + added, -1) @ v


def by_least(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return softened(q, k, v, (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min)


def by_thousands(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return softened(q, k, v, (1.0 - mask[:, None, None, :].float()) * -10000.0)


def by_where(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    seen = (mask[:, None, None, :] > 0) & torch.ones(1, 1, LENGTH, 1, dtype=torch.bool)
    return softened(q, k, v, torch.where(seen, torch.tensor(0.0), torch.finfo(torch.float32).min))


def by_fill(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    scores = (q @ k.transpose(-1, -2)).masked_fill((mask == 0)[:, None, None], float("-inf"))
    return torch.softmax(scores, -1) @ v


def by_truths(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, mask[:, None, None, :].bool().expand(-1, 1, LENGTH, LENGTH))


def by_pairs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A token sees real tokens up to itself: a mask of pairs that differs from sample to sample."""
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril() & mask[:, None, None, :].bool()
    return F.scaled_dot_product_attention(q, k, v, seen)


def by_index(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Laid out by indices of all samples, as a mask function under ``torch.vmap`` is."""
    samples = torch.arange(mask.shape[0])[:, None, None, None]
    seen = mask.bool()[samples, torch.arange(LENGTH)[None, None, None, :]]
    return F.scaled_dot_product_attention(q, k, v, seen & torch.ones(1, 1, 1, LENGTH, dtype=torch.bool))


def mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    real = mask.unsqueeze(-1).expand(x.size()).float()
    return F.normalize((x * real).sum(1) / real.sum(1).clamp(min=1e-9), p=2, dim=1)


def first(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    del mask
    return torch.tanh(x[:, 0])


def largest(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask[..., None] == 0, torch.full_like(x, -1e9), x).amax(1)


def counted(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    padding = ~mask.bool()
    return x.masked_fill(padding[..., None], 0.0).sum(1) / (~padding).sum(1, keepdim=True)


def every(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return x * mask[..., None]


@pytest.mark.parametrize("pool", [mean, first, largest, counted, every])
@pytest.mark.parametrize("hide", [by_least, by_thousands, by_where, by_fill, by_truths, by_pairs, by_index])
def test_an_encoder_is_one_program(hide: Callable[..., torch.Tensor], pool: Callable[..., torch.Tensor]) -> None:
    model, int8 = lowered(Encoder(hide, pool))
    assert isinstance(int8.module, NativeModel)
    assert int8.module.operators["cpupack::float_attention"] == 1
    data = texts(LENGTH, 1, 4, 9)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("hide", [by_least, by_thousands, by_where, by_fill, by_truths])
def test_what_is_hidden_stays_hidden_on_torchs_engines(hide: Callable[..., torch.Tensor], engine: str) -> None:
    """A hidden score that is rounded to the least code of the others has a weight: most in the shortest text."""
    data = texts(LENGTH, 1, 4, 9)
    model, int8 = lowered(Encoder(hide, first), data, engine=engine)
    expected, found = run(model, data), run(int8, data)
    for row in range(len(expected)):
        assert accuracy.sqnr_db(expected[row : row + 1], found[row : row + 1]) > 25.0


def test_positions_are_counted_from_the_mask() -> None:
    model, int8 = lowered(Encoder(by_truths, mean, positions=_counted))
    assert isinstance(int8.module, NativeModel)
    data = texts(LENGTH, 1, 4, 9)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB


@pytest.mark.parametrize(("hide", "seen"), [(by_truths, True), (by_fill, False), (by_least, True)])
def test_a_sample_without_a_token_is_what_torch_makes_of_it(hide: Callable[..., torch.Tensor], seen: bool) -> None:
    """Zeros from ``scaled_dot_product_attention``, no number from a softmax of infinities, else a mean of all."""
    model, int8 = lowered(Encoder(hide, first))
    data = texts(0, LENGTH)
    expected, found = run(model, data), run(int8, data)
    assert np.isfinite(expected[0]).all() == seen
    assert (np.isfinite(expected) == np.isfinite(found)).all()
    finite = np.isfinite(expected)
    assert accuracy.sqnr_db(expected[finite], found[finite]) > BOUND_DB


def test_padding_keys_of_multihead_attention() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(WORDS, WIDTH, padding_idx=1)
            layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, activation="gelu", batch_first=True)
            self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return counted(self.blocks(self.words(ids), src_key_padding_mask=mask == 0), mask)

    model, int8 = lowered(Net())
    assert isinstance(int8.module, NativeModel)
    data = texts(LENGTH, 1, 4, 9)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB


class Function(nn.Module):
    """A function of ids and mask that no layer with weights has a part in, beside one that there must be."""

    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.words, self.up, self.function = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 8), function

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.up(self.words(ids)), self.function(ids, mask).float()


TABLE = torch.arange(WORDS * 3, dtype=torch.float32).reshape(WORDS, 3) / 7


@pytest.mark.parametrize(
    "function",
    [
        lambda ids, mask: ids.le(7) | ids.ge(50) & ~mask.bool(),
        lambda ids, mask: torch.logical_xor(ids > 20, mask != 0),
        lambda ids, mask: torch.where(ids < 30, ids, -ids),
        lambda ids, mask: torch.where(mask > 0, ids * 0.5, mask * 2.0 + 1.0),
        lambda ids, mask: ids.masked_fill(mask == 0, 9) + 3,
        lambda ids, mask: (ids.clamp(0, 63) * mask.bool()).sum(1, keepdim=True),
        lambda ids, mask: ids.eq(ids.roll(1, 1)).any(1, keepdim=True),
        lambda ids, mask: mask.bool().all(1, keepdim=True),
        lambda ids, mask: torch.cumsum(mask.ne(0).long(), 1) * ids.clamp(max=20).float(),
        lambda ids, mask: TABLE[ids],
        lambda ids, mask: TABLE[-ids],
        lambda ids, mask: (ids & 7) + (-ids & 12) * 64 + ((ids >> 3) & 1) * 1024,
        lambda ids, mask: (-ids.clamp(0, 60) >> 2) + (mask.clamp(0, 1) << 7) + ~ids.clamp(0, 60),
        lambda ids, mask: ((ids[:, :1] >> torch.arange(6)) & 1).sum(1, keepdim=True),
        lambda ids, mask: (ids & (2 ** torch.arange(LENGTH))) != 0,
        lambda ids, mask: (ids ^ 5) + (mask.clamp(0, 1) ^ 1),
        lambda ids, mask: ((ids.clamp(0, 60) * 7 + 3) ^ (ids >> 2)) % 16,
        lambda ids, mask: (ids.clamp(0, 60) - 30 ^ ids.roll(1, 1)) + (ids.clamp(0, 60) - 30 | -ids.clamp(0, 60)) * 256,
        lambda ids, mask: (ids & 0b101010) * 2 + ((20 - ids.clamp(0, 60)) & -11) * 128,
        lambda ids, mask: ids[:, :, None] ^ torch.arange(3) ^ ids[:, :1, None],
        lambda ids, mask: ids.clamp(0, 60).to(torch.uint8) ^ 200,
        lambda ids, mask: ~ids.clamp(0, 60).to(torch.uint8) // 2 + (80 - ids.clamp(0, 60).to(torch.uint8)),
        lambda ids, mask: (torch.sigmoid(ids - 30.5) * 255).to(torch.uint8) // 2,
        lambda ids, mask: (ids * 9.0).clamp(0, 200).byte(),
        lambda ids, mask: torch.where(mask[..., None] > 0, TABLE[ids], TABLE[mask]),
    ],
)
def test_whole_numbers_and_truth_values_are_exact(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    model, int8 = lowered(Function(function))
    assert isinstance(int8.module, NativeModel)
    data = texts(LENGTH, 1, 4, 9, 0)
    values = LENGTH * 8  # those of the linear layer come first
    assert np.array_equal(run(model, data)[:, values:], run(int8, data)[:, values:])


def test_products_beyond_what_float32_holds_are_left_to_torch() -> None:
    model, int8 = lowered(Function(lambda ids, mask: (ids * 40503 + mask * 7) % 1009))
    assert [fact.name for fact in int8.layers if fact.kernel == "aten"]
    data = texts(LENGTH, 1, 4, 9)
    assert np.array_equal(run(model, data)[:, LENGTH * 8 :], run(int8, data)[:, LENGTH * 8 :])


@pytest.mark.parametrize(
    "function",
    [
        lambda ids, mask: (ids * 40503 * mask).sum(1, keepdim=True) == 40503 * 40503,
        lambda ids, mask: ((ids * 1000003) % 16777259 + 16777216).roll(1, 1),  # an odd number there has no float32
        lambda ids, mask: torch.gather(ids, 1, (mask.sum(1) - 1).clamp(min=0)[:, None]),
        lambda ids, mask: (mask.sum(1, keepdim=True) - 1).clamp(min=0) * 2,
        lambda ids, mask: ids.clamp(0, 60).to(torch.uint8) * 5,  # beyond 255 bytes begin anew at 0
        lambda ids, mask: ids.clamp(0, 60).to(torch.uint8) - mask.clamp(0, 1).to(torch.uint8) * 40,
        lambda ids, mask: -ids.clamp(0, 60).to(torch.uint8),
        lambda ids, mask: ids.clamp(0, 60).to(torch.int8) * mask.clamp(0, 1).to(torch.int8) * 3,
        lambda ids, mask: (mask - 1).to(torch.uint8),
        lambda ids, mask: (ids & 5) + (ids | 3) + (ids ^ 1),
    ],
)
def test_whole_numbers_that_torch_computes_are_exact(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """They may be beyond 2^24: a program takes none of them but as float32 that the model itself rounds to."""
    model, int8 = lowered(Function(function))
    data = texts(LENGTH, 1, 4, 9)
    assert np.array_equal(run(model, data)[:, LENGTH * 8 :], run(int8, data)[:, LENGTH * 8 :])


@pytest.mark.parametrize("engine", ["native", EIGHT_BITS])
@pytest.mark.parametrize(
    "joined",
    [
        lambda x, ids, mask: x * (mask > 0)[..., None],
        lambda x, ids, mask: x * mask.bool().any(1)[:, None, None],
        lambda x, ids, mask: x + ids[..., None],
        lambda x, ids, mask: torch.cat([x[..., 1:], (ids > 9)[..., None]], 2),
    ],
)
def test_whole_numbers_beside_floats(joined: Callable[..., torch.Tensor], engine: str) -> None:
    """Torch's INT8 has no codes for them: such a sum, product or concatenation stays FP32."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.up, self.out = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 8)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.out(joined(torch.relu(self.up(self.words(ids))), ids, mask))

    model, int8 = lowered(Net(), engine=engine)
    data = texts(LENGTH, 1, 4, 9)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB


def test_the_last_token_of_a_causal_encoder() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 8)
            layer = nn.TransformerEncoderLayer(
                WIDTH, 4, 2 * WIDTH, activation="gelu", norm_first=True, batch_first=True
            )
            self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            causal = torch.triu(torch.full((ids.shape[1],) * 2, float("-inf")), 1)
            x = self.blocks(self.words(ids), mask=causal, src_key_padding_mask=(mask == 0).float() * -1e4)
            at = (mask.sum(1) - 1).clamp(min=0)[:, None, None].expand(-1, 1, WIDTH)
            return self.out(x.gather(1, at)[:, 0])

    data = texts(LENGTH, 1, 4, 9)
    for engine in ("native", "fbgemm"):
        model, int8 = lowered(Last(), engine=engine)
        assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 25.0


def test_a_large_table_is_int8_unless_it_is_skipped() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.up = nn.Embedding(2000, 64), nn.Linear(64, 8)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return mean(self.up(self.words(ids)), mask)

    sizes = {}
    for skip in ([], ["words"]):
        model, int8 = lowered(Words(), skip=skip)
        (fact,) = (each for each in int8.layers if each.name == "words")
        assert fact.precision == ("fp32" if skip else "int8")
        assert isinstance(int8.module, NativeModel)
        assert isinstance(int8.module.program, torch.Tensor)
        sizes[bool(skip)] = int8.module.program.numel()
        data = texts(LENGTH, 1, 4, 9)
        assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB
    assert sizes[False] < sizes[True] - 2000 * 64 * 2


class Disentangled(nn.Module):
    """Scores of words beside places, and of places beside words, as DeBERTa has them: tables of places are repeated for
    each sample, and each pair of positions takes the score of their distance."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(2 * LENGTH, WIDTH))
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 5)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], 4, -1).permute(0, 2, 1, 3).contiguous().view(-1, x.shape[1], WIDTH // 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        query, key, value = self.heads(self.query(x)), self.heads(self.key(x)), self.heads(self.value(x))
        places = self.places.unsqueeze(0)
        by_key, by_query = (self.heads(each(places)).repeat(len(ids), 1, 1) for each in (self.key, self.query))
        steps = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH) + LENGTH
        index, other = (each.unsqueeze(0).expand(query.shape[0], LENGTH, LENGTH) for each in (steps, steps.T))
        scores = torch.bmm(query, key.transpose(-1, -2))
        scores = scores + torch.gather(torch.bmm(query, by_key.transpose(-1, -2)), -1, index)
        back = torch.gather(torch.bmm(key, by_query.transpose(-1, -2)), -1, other)
        scores = (scores + back.transpose(-1, -2)).view(-1, 4, LENGTH, LENGTH) / 8
        scores = scores.masked_fill(~mask.bool()[:, None, None], torch.finfo(torch.float32).min)
        mixed = torch.bmm(scores.softmax(-1).view(-1, LENGTH, LENGTH), value)
        mixed = mixed.view(-1, 4, LENGTH, WIDTH // 4).permute(0, 2, 1, 3).reshape(-1, LENGTH, WIDTH)
        return self.head(x + mixed)[:, 0]


def test_tables_for_each_head_that_are_repeated_for_each_sample_need_no_torch() -> None:
    data = texts(LENGTH, 5, 1, 7, LENGTH, 3)
    model, int8 = lowered(Disentangled(), data, bounded=True)
    assert isinstance(int8.module, NativeModel)
    assert {each.kernel.partition("::")[0] for each in int8.layers} == {"cpupack"}
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) >= BOUND_DB
