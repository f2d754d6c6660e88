"""Mamba's scan: beside transformers' own, forward and backward, whole and streamed."""

import copy

import pytest
import torch
from transformers import DynamicCache, MambaConfig, MambaModel, Qwen2Config, Qwen2Model

from multimood.modeling_multimood.compressor import ConversationCompressor
from multimood.modeling_multimood.conversation_memory import ConversationMemory
from multimood.modeling_multimood.mamba_scan import (
    ScanMambaMixer,
    _scan_,
    _scan_by_doubling_,
    selective_scan,
    with_exact_scan,
)


def pair(**changes) -> tuple[MambaModel, MambaModel]:
    """(transformers' Mamba, the same with our scan)"""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 64, "state_size": 8}
    theirs = MambaModel(MambaConfig(**sizes | changes)).eval()
    return theirs, with_exact_scan(copy.deepcopy(theirs))


def ids(length: int, batch_size: int = 2) -> torch.LongTensor:
    return torch.randint(0, 64, (batch_size, length), generator=torch.Generator().manual_seed(length))


def arguments(length: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """hidden_states, time_steps, A, B, C and the initial state of `selective_scan`: 2 rows, 3 channels, 4 states."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    tensors = [normal(2, length, 3), normal(2, length, 3).exp(), -normal(3, 4).exp()]
    return [x.requires_grad_() for x in [*tensors, normal(2, length, 4), normal(2, length, 4), normal(2, 3, 4)]]


@pytest.mark.parametrize("changes", [{}, {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3}])
@pytest.mark.parametrize("length", [1, 3, 32, 33, 150])
def test_whole_equals_transformers(length, changes):
    theirs, ours = pair(**changes)
    with torch.no_grad():
        expected, got = (model(ids(length)).last_hidden_state for model in (theirs, ours))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_gradients_equal_transformers():
    theirs, ours = (model.double() for model in pair(residual_in_fp32=False))
    for model in (theirs, ours):
        model(ids(70), use_cache=False).last_hidden_state.square().sum().backward()
    for (name, expected), got in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        # transformers' scan is in float32 in part. In float32 throughout, both are equally far from this.
        scale = expected.grad.abs().max()
        torch.testing.assert_close(got.grad / scale, expected.grad / scale, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("chunk_length", [1, 3, 7, 100])
def test_gradients_are_the_derivatives(chunk_length):
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, chunk_length=chunk_length), arguments(7))


def test_chunks_do_not_show():
    inputs = arguments(50)
    whole, state = selective_scan(*inputs, chunk_length=50)
    for chunk_length in (1, 16, 49):
        for got, expected in zip(selective_scan(*inputs, chunk_length=chunk_length), (whole, state), strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 5, 16, 23])
def test_doubling_equals_one_after_the_other(length, reverse):
    """What runs on devices other than a CPU."""
    torch.manual_seed(0)
    decays, values = torch.rand(length, 2, 3), torch.randn(length, 2, 3)
    doubled = values.clone()
    _scan_(decays, values, reverse)
    _scan_by_doubling_(decays, doubled, reverse)
    torch.testing.assert_close(doubled, values)


@pytest.mark.parametrize("sizes", [[1] * 60, [2, 1, 30, 7, 20], [60], [59, 1]])
def test_streamed_equals_whole(sizes):
    theirs, ours = pair()
    with torch.no_grad():
        whole = theirs(ids(60)).last_hidden_state
        cache = DynamicCache(config=ours.config)
        pieces = [
            ours(piece, cache_params=cache, use_cache=True).last_hidden_state for piece in ids(60).split(sizes, dim=1)
        ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_the_state_is_the_one_that_transformers_goes_on_from():
    theirs, ours = pair()
    with torch.no_grad():
        whole = theirs(ids(40)).last_hidden_state
        cache = DynamicCache(config=ours.config)
        ours(ids(40)[:, :39], cache_params=cache, use_cache=True)
        last = theirs(ids(40)[:, 39:], cache_params=cache, use_cache=True).last_hidden_state
    torch.testing.assert_close(last, whole[:, -1:], atol=1e-5, rtol=1e-5)


def test_padding_is_masked_as_in_transformers():
    theirs, ours = pair()
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, :6] = 0
    with torch.no_grad():
        expected, got = (model(ids(20), attention_mask=mask).last_hidden_state for model in (theirs, ours))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_half_precision_is_near_transformers():
    theirs, ours = (model.to(torch.bfloat16) for model in pair())
    with torch.no_grad():
        expected, got = (model(ids(40)).last_hidden_state for model in (theirs, ours))
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, atol=0.1, rtol=0.05)


def test_other_models_stay_as_they_are():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    other = Qwen2Model(Qwen2Config(num_hidden_layers=1, vocab_size=8, **sizes))
    kinds = [type(module) for module in other.modules()]
    assert [type(module) for module in with_exact_scan(other).modules()] == kinds


def test_the_memory_reads_many_tokens_at_once_and_equals_recompression():
    torch.manual_seed(0)
    config = MambaConfig(hidden_size=32, num_hidden_layers=3, vocab_size=64, state_size=8)
    compressor = ConversationCompressor(config, text_size=48, memory_token_id=60).eval()
    assert all(type(block.mixer) is ScanMambaMixer for block in compressor.reader.layers)
    history = torch.randint(0, 60, (1, 700), generator=torch.Generator().manual_seed(0))
    history[:, 49::50] = 60
    read = []
    compressor.reader.register_forward_pre_hook(lambda module, args: read.append(args[0].shape[1]))
    memory = ConversationMemory(compressor)
    for piece in history.split([100, 150, 50, 400], dim=1):
        memory.append(piece)
    assert read == [100, 150, 50, 400]
    with torch.no_grad():
        torch.testing.assert_close(memory.vectors, compressor(history), atol=1e-4, rtol=1e-4)
