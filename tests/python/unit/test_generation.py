"""Greedy text equals transformers', and random text depends on its prompt alone."""

from __future__ import annotations

import copy

import pytest
import torch
from llama_cases import CASES, small, transformers_model
from torch import nn

from torchtitan_cpp import generate
from torchtitan_cpp.generation.decoders import RecomputingDecoder, cached_decoder
from torchtitan_cpp.models.llama3 import (
    Transformer,
)

PROMPTS = [[3, 14, 15, 9, 2, 6], [5], [3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 46]]


def make_model(**changes: object) -> Transformer:
    torch.manual_seed(1)
    model = Transformer(small(**changes))
    with torch.no_grad():
        for parameter in model.layers.parameters():
            parameter.mul_(12 if parameter.dim() > 1 else 1)  # attention that chooses
    return model


def transformers_tokens(model: Transformer, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = transformers_model(model).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


class Uncached(nn.Module):
    """The same model, of which nobody knows that it is in C++."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return self.model(tokens)


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_equal_those_of_transformers(case: str) -> None:
    model = make_model(**CASES[case])
    made = generate(model, PROMPTS, max_new_tokens=30, temperature=0)
    expected = [transformers_tokens(model, prompt, 30) for prompt in PROMPTS]
    assert made.tokens == expected
    assert len({tuple(tokens[:5]) for tokens in expected}) == len(PROMPTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cache_changes_no_token(dtype: torch.dtype) -> None:
    model = make_model().to(dtype)
    options = {"max_new_tokens": 30, "seed": 3, "temperature": 0.7}
    cached = generate(model, PROMPTS, **options)
    assert generate(Uncached(model), PROMPTS, **options).tokens == cached.tokens
    assert len({token for row in cached.tokens for token in row}) > 2


def test_logits_in_bfloat16_differ_by_its_rounding_only() -> None:
    model = make_model().bfloat16()
    cached = cached_decoder(model, rows=3, max_len=16)
    whole = RecomputingDecoder(model)
    exact = RecomputingDecoder(copy.deepcopy(model).double())
    pairs = [(cached.read(PROMPTS), whole.read(PROMPTS), exact.read(PROMPTS))]
    for tokens in ([1, 2, 3], [4, 5, 6]):
        pairs.append(tuple(d.read_next(tokens) for d in (cached, whole, exact)))
    for found, expected, truth in pairs:
        assert found.dtype == torch.bfloat16
        error = (found.double() - truth).abs().max()
        assert 0 < error <= 2 * (expected.double() - truth).abs().max()


def test_attention_stays_within_documents_with_the_cache_too() -> None:
    model = make_model(attn_type="flex", attn_mask_type="block_causal", eos_id=9)
    plain = make_model()
    options = {"max_new_tokens": 30, "temperature": 0, "stop_ids": ()}
    made = generate(model, PROMPTS, **options)
    assert generate(Uncached(model), PROMPTS, **options).tokens == made.tokens
    assert generate(plain, PROMPTS, **options).tokens != made.tokens


@pytest.mark.parametrize("top_k", [None, 5])
def test_random_tokens_of_a_prompt_are_the_same_in_any_batch(top_k: int | None) -> None:
    model = make_model()
    options = {"max_new_tokens": 12, "seed": 11, "top_k": top_k, "temperature": 1.5}
    together = generate(model, [*PROMPTS, PROMPTS[0]], **options).tokens
    for prompt, tokens in zip(PROMPTS, together, strict=False):
        assert generate(model, prompt, **options).tokens == [tokens]
    assert together[3] != together[0]
    other = generate(model, PROMPTS, **options | {"seed": 12}).tokens
    assert all(a != b for a, b in zip(other, together, strict=False))


def test_a_text_ends_with_its_stop_token_and_the_others_go_on() -> None:
    model = make_model()
    whole = generate(model, PROMPTS, max_new_tokens=20, temperature=0).tokens
    stop = next(t for t in whole[0] if all(t not in row for row in whole[1:]))
    made = generate(model, PROMPTS, max_new_tokens=20, temperature=0, stop_ids={stop})
    assert made.tokens == [whole[0][: whole[0].index(stop) + 1], *whole[1:]]
    assert made.num_new_tokens == sum(map(len, made.tokens)) < 60


def test_prompts_may_be_tensors_and_the_result_shows_the_speed() -> None:
    model = make_model()
    ids = torch.tensor(PROMPTS[0])
    made = generate(model, ids, max_new_tokens=5, temperature=0)
    assert (
        made.tokens
        == generate(model, ids.unsqueeze(0), max_new_tokens=5, temperature=0).tokens
    )
    assert made.texts is None
    assert 0 < made.prompt_seconds < made.seconds
    assert made.tokens_per_second == 5 / made.seconds
    assert f"{made.tokens}"[1:-1] in str(made)
    assert "5 new tokens in" in str(made) and "tokens per second" in str(made)


def test_another_seed_is_drawn_each_time_and_told() -> None:
    model = make_model()
    made = [generate(model, [1, 2], max_new_tokens=16) for _ in range(2)]
    assert made[0].seed != made[1].seed
    again = generate(model, [1, 2], max_new_tokens=16, seed=made[0].seed)
    assert again.tokens == made[0].tokens != made[1].tokens


class Words:
    """A tokenizer of letters, whose texts end with z."""

    eos_id = 25

    def encode(self, text: str, *, add_bos: bool, add_eos: bool) -> list[int]:
        assert add_bos and not add_eos
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(token + ord("a")) for token in ids)


def test_texts_go_through_the_tokenizer_and_end_with_its_end_of_text() -> None:
    model = make_model(vocab_size=26)
    made = generate(
        model, ["abc", "hello"], tokenizer=Words(), max_new_tokens=50, seed=2
    )
    assert made.prompt_texts == ["abc", "hello"]
    assert made.texts is not None
    assert [len(text) for text in made.texts] == [len(row) for row in made.tokens]
    assert any(text.endswith("z") and len(text) < 50 for text in made.texts)
    assert "abc" + made.texts[0] in str(made)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "prompts: expected at least one, found none"),
        ([[1], []], {}, r"prompts: \[\] has no token to go on from"),
        ("text", {}, "prompts: a text needs a tokenizer"),
        ([1, 67], {}, "prompts: expected token ids from 0 to 66, found 1 to 67"),
        ([[-1]], {}, "prompts: expected token ids from 0 to 66, found -1 to -1"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens: expected at least 1, found 0"),
        (
            [1] * 33,
            {},
            "a prompt of 33 tokens and max_new_tokens = 32 make more than the 64 ",
        ),
        ([1], {"temperature": -1}, "temperature: expected a finite number >= 0"),
        ([1], {"top_k": 0}, "top_k: expected at least 1, found 0"),
    ],
)
def test_bad_input_is_one_clear_error(
    prompts: object, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(make_model(), prompts, **options)  # type: ignore[arg-type]


def test_weights_that_are_missing_or_not_finite_are_one_clear_error() -> None:
    with torch.device("meta"):
        model = Transformer(small())
    with pytest.raises(ValueError, match="it has no weights"):
        generate(model, [1])
    model = make_model()
    with torch.no_grad():
        model.get_parameter("norm.weight")[3] = float("nan")
    with pytest.raises(ValueError, match="the logits of row 0 are not finite"):
        generate(model, [1])


def test_a_python_model_that_gives_no_logits_by_token_is_one_clear_error() -> None:
    class Wrong(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.zeros(tokens.shape[0], 5)

    with pytest.raises(
        ValueError, match=r"Wrong: expected logits of shape \[1, 2, vocab_size\]"
    ):
        generate(Wrong(), [1, 2])
