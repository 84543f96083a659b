"""``generate``: prompts in, tokens and text out."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchtitan_cpp import _C
from torchtitan_cpp.generation.decoders import (
    Decoder,
    RecomputingDecoder,
    cached_decoder,
)
from torchtitan_cpp.nn import CppModule

Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | torch.Tensor
"""One prompt or several, as text or as token ids."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model with weights of a checkpoint, on one rank or divided among several."""

    module: nn.Module
    """On meta where the model is divided."""
    tokenizer: Any
    """None where the model reads no text."""
    path: str
    """The checkpoint."""
    stop_ids: frozenset[int]
    """Tokens with which a text of this model ends."""
    device: torch.device
    tensor_axis: _C.collectives.Group
    """The ranks that divide the model."""
    parameters: Sequence[Sequence[torch.Tensor]] | None
    """This rank's pieces by group where the model is divided, else None."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What ``generate`` returned; ``print`` shows the texts and the speed."""

    prompts: list[list[int]]
    tokens: list[list[int]]
    """New ones by prompt; a text that ended by itself has its stop token last."""
    prompt_texts: list[str] | None
    texts: list[str] | None
    """Of the new tokens; None without a tokenizer."""
    seed: int
    prompt_seconds: float
    """Until the first new token of every prompt."""
    seconds: float
    """Until the last one."""

    @property
    def num_new_tokens(self) -> int:
        """Of all prompts together."""
        return sum(len(tokens) for tokens in self.tokens)

    @property
    def tokens_per_second(self) -> float:
        """New tokens by the whole time, prompts included."""
        return self.num_new_tokens / self.seconds

    @property
    def next_tokens_per_second(self) -> float:
        """New tokens behind the first ones by the time that they took; 0 if none."""
        later = self.num_new_tokens - len(self.tokens)
        return later / (self.seconds - self.prompt_seconds) if later else 0.0

    @property
    def speed(self) -> str:
        """One line for a person."""
        num_read = sum(len(prompt) for prompt in self.prompts)
        return (
            f"{self.num_new_tokens} new tokens in {self.seconds:.2f} s, "
            f"{self.tokens_per_second:,.1f} tokens per second; the prompts' {num_read} "
            f"took {self.prompt_seconds:.3f} s, after them "
            f"{self.next_tokens_per_second:,.1f} tokens per second"
        )

    def __str__(self) -> str:
        if self.texts is None or self.prompt_texts is None:
            shown = [str(tokens) for tokens in self.tokens]
        else:
            pairs = zip(self.prompt_texts, self.texts, strict=True)
            shown = [prompt + text for prompt, text in pairs]
        return "\n\n".join([*shown, f"({self.speed})"])


def generate(
    model: nn.Module | LoadedModel,
    prompts: Prompts,
    *,
    tokenizer: Any = None,
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int | None = None,
    stop_ids: Collection[int] | None = None,
) -> Generation:
    """Continue prompts, which may differ in length, all together.

    The models of the package read through a cache of keys and values, so that a token
    costs one token's work. A model written in Python computes the whole sequence again
    for each token, without a cache.

    Random tokens depend on the seed, the prompt and how often it stands before in
    ``prompts``: neither on the other prompts nor on the number of ranks.

    Args:
        model: causal; token ids ``[B, S]`` to logits ``[B, S, vocab_size]``.
        prompts: texts, encoded with the token that begins a text where the tokenizer
            has one; or token ids.
        tokenizer: by default that of a ``LoadedModel``; texts need one.
        max_new_tokens: for each prompt, unless it ends before.
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: only tokens no less likely than the k-th most likely one.
        seed: of the random tokens; None: another one each time, which the result tells.
        stop_ids: tokens that end a text; None: those of a ``LoadedModel``, or the
            tokenizer's end of text.
    Raises:
        ValueError: for prompts without tokens, ids that the model does not know, a
            sequence longer than the model's, bad options, or weights that are not
            finite.
    """
    loaded = model if isinstance(model, LoadedModel) else None
    module = model.module if isinstance(model, LoadedModel) else model
    if tokenizer is None and loaded is not None:
        tokenizer = loaded.tokenizer
    rows = _token_rows(prompts, tokenizer)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, found {max_new_tokens}")
    if stop_ids is None:
        stop_ids = loaded.stop_ids if loaded else end_of_text(tokenizer)
    seed = secrets.randbits(63) if seed is None else seed
    sampler = _C.generation.Sampler(
        rows, temperature=temperature, top_k=top_k, seed=seed % 2**64
    )
    decoder = _make_decoder(module, loaded, rows, max_new_tokens, tokenizer)
    tokens, prompt_seconds, seconds = _decode(
        decoder, sampler, rows, max_new_tokens, stop_ids, loaded
    )
    return Generation(
        prompts=rows,
        tokens=tokens,
        prompt_texts=[tokenizer.decode(row) for row in rows] if tokenizer else None,
        texts=[tokenizer.decode(row) for row in tokens] if tokenizer else None,
        seed=seed,
        prompt_seconds=prompt_seconds,
        seconds=seconds,
    )


def _decode(
    decoder: Decoder,
    sampler: _C.generation.Sampler,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Collection[int],
    loaded: LoadedModel | None,
) -> tuple[list[list[int]], float, float]:
    """New tokens, seconds until the first of each prompt, and until the last."""
    tokens: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    started = time.perf_counter()
    logits = decoder.read(prompts)
    prompt_seconds = 0.0
    for index in range(max_new_tokens):
        chosen = sampler.choose(logits, rows=active, index=index)
        if loaded is not None:
            chosen = _agree(chosen, loaded)
        for row, token in zip(active, chosen, strict=True):
            tokens[row].append(token)
        if index == 0:
            prompt_seconds = time.perf_counter() - started
        going_on = [i for i, token in enumerate(chosen) if token not in stop_ids]
        if not going_on or index + 1 == max_new_tokens:
            break
        if len(going_on) < len(active):
            decoder.keep(going_on)
            active = [active[i] for i in going_on]
        logits = decoder.read_next([chosen[i] for i in going_on])
    return tokens, prompt_seconds, time.perf_counter() - started


def _agree(chosen: list[int], loaded: LoadedModel) -> list[int]:
    """The tokens of the first rank: the caches of all ranks must hold the same text."""
    if loaded.tensor_axis.size == 1:
        return chosen
    tokens = torch.tensor(chosen, device=loaded.device)
    loaded.tensor_axis.broadcast(tokens, root=0).wait()
    return [int(token) for token in tokens]


def _make_decoder(
    module: nn.Module,
    loaded: LoadedModel | None,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    tokenizer: Any,
) -> Decoder:
    longest = max(len(prompt) for prompt in prompts)
    if not isinstance(module, CppModule):
        return RecomputingDecoder(module)
    if tokenizer is not None:
        module.use_tokenizer(tokenizer)
    parameters = (loaded and loaded.parameters) or module.parameters_by_group()
    if parameters[0][0].is_meta:
        raise ValueError("the model is on the meta device: it has no weights")
    limit = module.generation_sizes().max_len
    if longest + max_new_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and max_new_tokens = {max_new_tokens} make "
            f"more than the {limit} tokens that the model is built for (its "
            "max_seq_len, in a run training.seq_len)"
        )
    vocabulary = module.generation_sizes().vocab_size
    worst = max(prompts, key=max)
    if max(worst) >= vocabulary or min(map(min, prompts)) < 0:
        raise ValueError(
            f"prompts: expected token ids from 0 to {vocabulary - 1}, found "
            f"{min(map(min, prompts))} to {max(worst)}"
        )
    return cached_decoder(
        module,
        rows=len(prompts),
        max_len=longest + max_new_tokens,
        tensor_axis=loaded.tensor_axis if loaded else None,
        parameters=parameters,
    )


def _token_rows(prompts: Prompts, tokenizer: Any) -> list[list[int]]:
    """Token ids by prompt."""
    given: Any = prompts.tolist() if isinstance(prompts, torch.Tensor) else prompts
    if isinstance(given, str) or (len(given) > 0 and isinstance(given[0], int)):
        given = [given]
    if len(given) == 0:
        raise ValueError("prompts: expected at least one, found none")
    rows = []
    for prompt in given:
        if isinstance(prompt, str):
            if tokenizer is None:
                raise ValueError("prompts: a text needs a tokenizer")
            row = tokenizer.encode(prompt, add_bos=True, add_eos=False)
        else:
            row = [int(token) for token in prompt]
        if not row:
            raise ValueError(
                f"prompts: {prompt!r} has no token to go on from (texts begin with a "
                "token of their own only if the tokenizer has one, bos_token)"
            )
        rows.append(row)
    return rows


def end_of_text(tokenizer: Any) -> frozenset[int]:
    """The token with which texts of this tokenizer end, if it has one."""
    end = getattr(tokenizer, "eos_id", None)
    return frozenset() if end is None else frozenset({end})
