"""Llama 3 as users see it in Python: a module like any other."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from llama_cases import CASES, small, transformers_model

from torchtitan_cpp import get_train_spec
from torchtitan_cpp.config import load_config
from torchtitan_cpp.models.llama3 import (
    Transformer,
    llama3_args,
)
from torchtitan_cpp.nn.documents import document_starts


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers(name):
    args = small(**CASES[name])
    torch.manual_seed(0)
    model = Transformer(args)
    tokens = torch.randint(0, args.vocab_size, (3, 40))
    with torch.no_grad():
        expected = transformers_model(model)(tokens).logits
        actual = model(tokens)
    assert (actual - expected).abs().max() <= 2e-5


def test_gradients_equal_those_of_transformers_in_float64():
    args = small(enable_weight_tying=True)
    model = Transformer(args).double()
    other = transformers_model(model).double()
    # Its rotary table was made in float32; ours is exact to the last bit of float64.
    tokens = torch.randint(0, args.vocab_size, (2, 12))
    model(tokens).sin().sum().backward()
    other(tokens).logits.sin().sum().backward()
    ours = model.layers["1"].feed_forward.w2.weight.grad
    theirs = other.model.layers[1].mlp.down_proj.weight.grad
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    embedding = model.tok_embeddings.weight.grad
    torch.testing.assert_close(
        embedding, other.model.embed_tokens.weight.grad, rtol=1e-4, atol=1e-5
    )


def test_copies_have_weights_of_their_own():
    model = Transformer(small())
    tokens = torch.randint(0, 67, (1, 8))
    expected = model(tokens)
    copied = copy.deepcopy(model)
    loaded = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        model.output.weight.zero_()
    assert torch.equal(copied(tokens), expected)
    assert torch.equal(loaded(tokens), expected)


def test_it_is_a_module_like_any_other():
    model = Transformer(small())
    names = [name for name, _ in model.named_parameters()]
    assert names[0] == "tok_embeddings.weight"
    assert "layers.1.attention.wq.weight" in names
    assert names[-2:] == ["norm.weight", "output.weight"]
    assert "wq" in repr(model)
    other = Transformer(small())
    other.load_state_dict(model.state_dict())
    tokens = torch.randint(0, 67, (1, 8))
    assert torch.equal(model(tokens), other(tokens))
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other(tokens).sum().backward()
    optimizer.step()
    assert not torch.equal(model(tokens), other(tokens))


def test_initial_values_are_those_of_the_seed():
    torch.manual_seed(5)
    first = Transformer(small()).state_dict()
    torch.manual_seed(5)
    second = Transformer(small()).state_dict()
    torch.manual_seed(6)
    third = Transformer(small()).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["output.weight"], third["output.weight"])
    assert torch.equal(first["norm.weight"], torch.ones(48))


def test_on_meta_it_has_shapes_and_no_memory():
    with torch.device("meta"):
        model = Transformer(llama3_args["405B"])
    assert sum(p.numel() for p in model.parameters()) == 405_853_388_800
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    ("flavor", "params"),
    [
        ("debugmodel", 6_163_712),
        ("1B", 1_235_814_400),
        ("3B", 3_212_749_824),
        ("8B", 8_030_261_248),
        ("70B", 70_553_706_496),
    ],
)
def test_flavors_have_the_published_sizes(flavor, params):
    spec = get_train_spec("llama3")
    args = spec.model_args[flavor]
    with torch.device("meta"):
        model = spec.model_cls(args)
    num_params, flops = args.get_nparams_and_flops(model, 2048)
    assert num_params == params == args.to_core().num_params()
    assert flops == args.to_core().flops_per_token(2048)


def test_documents_begin_behind_the_end_of_text():
    eos = 7
    tokens = torch.tensor([[1, 7, 2, 3, 7, 7, 4], [7, 1, 2, 3, 4, 5, 7]])
    starts = document_starts(tokens, eos)
    assert starts.tolist() == [[0, 0, 2, 2, 2, 5, 6], [0, 1, 1, 1, 1, 1, 1]]
    assert starts.dtype == torch.int64


@pytest.mark.parametrize("attn_type", ["flex", "varlen"])
def test_a_document_is_read_as_if_it_were_alone(attn_type):
    """Rotary embedding knows distances only, so that its place does not matter."""
    torch.manual_seed(0)
    args = small(attn_type=attn_type, attn_mask_type="block_causal")
    args.eos_id = 5
    model = Transformer(args).double()
    first, second = torch.randint(6, 60, (2, 1, 6))
    first[0, -1] = args.eos_id
    together = model(torch.cat([first, second], dim=1))
    torch.testing.assert_close(together[:, :6], model(first), rtol=0, atol=1e-12)
    torch.testing.assert_close(together[:, 6:], model(second), rtol=0, atol=1e-12)
    causal = Transformer(small()).double()
    causal.load_state_dict(model.state_dict())
    alone = causal(torch.cat([first, second], dim=1))[:, 6:]
    assert (alone - together[:, 6:]).abs().max() > 1e-3


def test_an_attention_and_a_mask_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="attn_type 'sdpa'.*'block_causal'"):
        Transformer(small(attn_mask_type="block_causal"))


def test_documents_need_a_token_that_ends_them():
    args = small(attn_type="flex", attn_mask_type="block_causal")
    with torch.device("meta"):
        model = Transformer(args)
    with pytest.raises(ValueError, match="no end-of-text token"):
        model.use_tokenizer(SimpleNamespace(eos_id=None))
    model.use_tokenizer(SimpleNamespace(eos_id=3))
    assert args.eos_id == 3


def test_exchanging_heads_needs_key_heads_for_every_rank():
    def config(*flags):
        method = "--parallelism.context_parallel_rotate_method=ulysses"
        return load_config([method, *flags]).config

    args = small(n_heads=4, n_kv_heads=2)
    two = "--parallelism.context_parallel_degree=2"
    assert args.find_misfits(config(two)) == {}
    divided = config(two, "--parallelism.tensor_parallel_degree=2")
    misfit = args.find_misfits(divided)["parallelism.context_parallel_degree"]
    assert "a divisor of the 1 key heads" in misfit and "found 2" in misfit


def test_a_token_outside_the_vocabulary_is_an_error():
    model = Transformer(small())
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        model(torch.tensor([[1, 67]]))
