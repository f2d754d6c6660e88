"""The compressor and the memory: streamed = whole, rows do not touch each other, nothing is lost."""

import itertools
from pathlib import Path

import pytest
import torch
from model_builders import HISTORY, SETTINGS, tiny_history, tiny_model
from safetensors.torch import load_file, save_file
from transformers import MambaConfig

from multimood.modeling_multimood.compressor import READ_LENGTH, ConversationCompressor
from multimood.modeling_multimood.conversation_memory import ConversationMemory

FIXTURE = Path(__file__).parents[2].parent / "shared" / "data" / "reference_fixture"
MEMORY = SETTINGS["memory_token_id"]
every_history = pytest.mark.parametrize("history", HISTORY)


def compressor_of(history: str = "mamba2", seed: int = 0) -> ConversationCompressor:
    torch.manual_seed(seed)
    return ConversationCompressor(HISTORY[history](), text_size=48, memory_token_id=MEMORY).eval()


def conversation(utterances: int, seed: int = 0) -> torch.LongTensor:
    return torch.tensor([tiny_history(utterances, torch.Generator().manual_seed(seed))])


def utterances_of(ids: torch.LongTensor) -> list[torch.LongTensor]:
    ends = [0, *((ids[0] == MEMORY).nonzero().flatten() + 1).tolist()]
    return [ids[:, start:end] for start, end in itertools.pairwise(ends)]


def assert_same(vectors: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for got, want in zip(vectors, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not FIXTURE.exists(), reason="../shared/data/reference_fixture is not here")
def test_the_original_compressors_weights_give_its_memory():
    weights, golden = load_file(FIXTURE / "model.safetensors"), load_file(FIXTURE / "golden.safetensors")
    config = MambaConfig(
        hidden_size=32, num_hidden_layers=2, vocab_size=300, state_size=8, intermediate_size=64, time_step_rank=2
    )
    compressor = ConversationCompressor(config, text_size=64, memory_token_id=299).eval()
    prefix = "model.mamba_compressor."
    names = {"mamba.": "reader.", "memory_projection": "projector"}
    state = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
    for theirs, ours in names.items():
        state = {name.replace(theirs, ours): tensor for name, tensor in state.items()}
    compressor.load_state_dict(state)
    with torch.no_grad():
        assert_same(compressor(golden["history"]), list(golden["history_features"]))


@every_history
def test_padding_does_not_reach_the_vectors(history):
    compressor, ids = compressor_of(history), conversation(3)
    padded = torch.cat([ids, torch.full((1, 5), MEMORY)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(1, 5)], dim=1)
    with torch.no_grad():
        assert_same(compressor(padded, mask), compressor(ids))


def test_padding_on_the_left_raises():
    ids = conversation(2)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    with pytest.raises(ValueError, match="padded on the right"):
        compressor_of()(ids, mask)


@every_history
def test_streamed_equals_recompressed(history):
    compressor, ids = compressor_of(history), conversation(12)
    with torch.no_grad():
        whole = compressor(ids)
    memory = ConversationMemory(compressor)
    assert memory.vectors[0].shape == (0, 48)
    for number, utterance in enumerate(utterances_of(ids), start=1):
        memory.append(utterance)
        assert memory.num_slots == [number]
        assert_same([memory.vectors[0]], [whole[0][:number]])
    assert memory.num_tokens_read == [ids.shape[1]]


@every_history
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_it_does_not_matter_where_the_stream_is_cut(history, size):
    compressor, ids = compressor_of(history), conversation(8)
    memory = ConversationMemory(compressor)
    for piece in ids.split(size, dim=1):
        memory.append(piece)
    with torch.no_grad():
        assert_same(memory.vectors, compressor(ids))


@every_history
def test_ragged_rows_do_not_touch_each_other(history):
    compressor = compressor_of(history)
    rows = [utterances_of(conversation(count, seed)) for seed, count in enumerate((1, 5, 0, 3))]
    memory = ConversationMemory(compressor, batch_size=4)
    for step in range(5):
        pieces = [row[step][0] if step < len(row) else torch.tensor([], dtype=torch.long) for row in rows]
        ids = torch.zeros(4, max(map(len, pieces)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, piece in enumerate(pieces):
            ids[index, : len(piece)], mask[index, : len(piece)] = piece, 1
        memory.append(ids, mask)
    assert memory.num_slots == [1, 5, 0, 3]
    for row, vectors in zip(rows, memory.vectors, strict=True):
        alone = ConversationMemory(compressor)
        for utterance in row:
            alone.append(utterance)
        assert torch.equal(vectors, alone.vectors[0])


@every_history
def test_a_very_long_utterance_is_read_whole(history):
    compressor = compressor_of(history)
    words = torch.randint(3, MEMORY, (1, 2 * READ_LENGTH + 17), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([words, torch.tensor([[MEMORY]])], dim=1)
    memory = ConversationMemory(compressor)
    memory.append(ids)
    with torch.no_grad():
        assert memory.num_slots == [1]
        torch.testing.assert_close(memory.vectors, compressor(ids), atol=1e-4, rtol=1e-4)


def test_an_append_reads_its_own_tokens_only():
    compressor, ids = compressor_of(), conversation(20)
    read = []
    compressor.reader.register_forward_pre_hook(lambda module, args: read.append(args[0].shape[1]))
    memory = ConversationMemory(compressor)
    for utterance in utterances_of(ids):
        memory.append(utterance)
    assert read == [utterance.shape[1] for utterance in utterances_of(ids)]


def test_a_model_in_training_streams_as_in_evaluation():
    model = tiny_model()
    ids = conversation(4)
    expected = model.new_memory()
    expected.append(ids)
    model.gradient_checkpointing_enable()
    model.train()
    memory = model.new_memory()
    for utterance in utterances_of(ids):
        memory.append(utterance)
    assert model.model.compressor.training
    assert_same(memory.vectors, expected.vectors)


@every_history
def test_saved_and_loaded_it_goes_on_as_before(history, tmp_path):
    compressor = compressor_of(history)
    memory = ConversationMemory(compressor, batch_size=2, max_slots=5)
    first = torch.cat([conversation(4, seed)[:, :12] for seed in (0, 1)])
    memory.append(first)
    memory.save(tmp_path / "anna.memory")
    assert [path.name for path in tmp_path.iterdir()] == ["anna.memory"]
    loaded = ConversationMemory.load(tmp_path / "anna.memory", compressor)
    assert (loaded.num_slots, loaded.num_tokens_read) == (memory.num_slots, memory.num_tokens_read)
    assert loaded.max_slots == 5
    assert all(torch.equal(got, want) for got, want in zip(loaded.vectors, memory.vectors, strict=True))
    following = torch.cat([conversation(9, seed)[:, :30] for seed in (2, 3)])
    memory.append(following)
    loaded.append(following)
    assert memory.num_slots == [5, 5]
    assert all(torch.equal(got, want) for got, want in zip(loaded.vectors, memory.vectors, strict=True))


def test_an_empty_memory_can_be_saved(tmp_path):
    model = tiny_model()
    model.new_memory(batch_size=2).save(tmp_path / "memory")
    assert model.load_memory(tmp_path / "memory").num_slots == [0, 0]


def test_saving_over_an_old_memory_replaces_it(tmp_path):
    memory = ConversationMemory(compressor_of())
    for count in (1, 2):
        memory.append(conversation(1, count))
        memory.save(tmp_path / "memory")
        assert ConversationMemory.load(tmp_path / "memory", memory.compressor).num_slots == [count]


def test_another_models_memory_is_refused(tmp_path):
    memory = ConversationMemory(compressor_of())
    memory.append(conversation(2))
    memory.save(tmp_path / "memory")
    with pytest.raises(ValueError, match="made by another compressor"):
        ConversationMemory.load(tmp_path / "memory", compressor_of(seed=1))
    half = compressor_of().to(torch.bfloat16)
    assert ConversationMemory.load(tmp_path / "memory", half).vectors[0].dtype == torch.bfloat16


def test_a_file_that_is_no_memory_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="is not a conversation memory"):
        ConversationMemory.load(tmp_path / "weights.safetensors", compressor_of())


@pytest.mark.parametrize("max_slots", [1, 4, 9])
def test_a_slot_budget_merges_neighbours_and_drops_nothing(max_slots):
    compressor, ids = compressor_of(), conversation(30)
    memory, free = ConversationMemory(compressor, max_slots=max_slots), ConversationMemory(compressor)
    for utterance in utterances_of(ids):
        memory.append(utterance)
        free.append(utterance)
        assert memory.num_slots[0] <= max_slots
    row = memory._rows[0]
    assert memory.num_slots == [max_slots]
    assert sum(row.counts) == 30
    # Each slot is the mean of the utterances it stands for, which are neighbours.
    expected = [group.mean(0) for group in free.vectors[0].split(row.counts)]
    torch.testing.assert_close(memory.vectors[0], torch.stack(expected), atol=1e-5, rtol=1e-5)
    at_once = ConversationMemory(compressor, max_slots=max_slots)
    at_once.append(ids)
    assert_same(at_once.vectors, memory.vectors)


def test_vectors_that_were_given_out_do_not_change():
    memory = ConversationMemory(compressor_of(), max_slots=2)
    memory.append(conversation(2))
    (given,) = memory.vectors
    before = given.clone()
    memory.append(conversation(3, seed=1))
    assert torch.equal(given, before)


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("max_slots", 0)])
def test_impossible_sizes_raise(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1.*got 0"):
        ConversationMemory(compressor_of(), **{name: value})


def test_a_batch_of_another_size_raises():
    memory = ConversationMemory(compressor_of(), batch_size=2)
    with pytest.raises(ValueError, match=r"shape \(2, length\), got \(1, \d+\)"):
        memory.append(conversation(2))
    with pytest.raises(ValueError, match=r"`history_attention_mask` has the shape \(2, 2\)"):
        memory.append(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 2))


def test_half_precision_keeps_its_type():
    """Mamba's residual stream, and so its output, stays in float32 whatever the weights are."""
    compressor = compressor_of().to(torch.bfloat16)
    with torch.no_grad():
        assert compressor(conversation(2))[0].dtype == torch.bfloat16
    memory = ConversationMemory(compressor)
    memory.append(conversation(2))
    assert memory.vectors[0].dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------- the mean of the tokens


def pooling_compressor(history: str = "mamba2") -> ConversationCompressor:
    torch.manual_seed(0)
    return ConversationCompressor(HISTORY[history](), text_size=48, memory_token_id=MEMORY, pooling="mean").eval()


@every_history
@torch.no_grad()
def test_pooled_is_the_scaled_mean_of_each_utterances_states(history):
    compressor = pooling_compressor(history)
    long, short = conversation(5), conversation(2, seed=1)
    tail = torch.tensor([[5, 6]])  # words that no <MEM> has closed yet
    ids = torch.zeros(2, long.shape[1] + 2, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, given in enumerate((torch.cat([long, tail], dim=1), short)):
        ids[row, : given.shape[1]], mask[row, : given.shape[1]] = given, 1
    vectors = compressor(ids, mask)
    assert [len(of_row) for of_row in vectors] == [5, 2]
    for row, of_row in zip((long, short), vectors, strict=True):
        states = compressor.reader(row, use_cache=False).last_hidden_state[0]
        start = 0
        for utterance, vector in zip(utterances_of(row), of_row, strict=True):
            length = utterance.shape[1]
            said = states[start : start + length]
            mean = (said * compressor.salience(said).exp()).mean(0) * length**0.5
            torch.testing.assert_close(vector, compressor.projector(mean), atol=1e-5, rtol=1e-4)
            start += length


@every_history
@torch.no_grad()
def test_pooled_and_streamed_equals_whole(history):
    compressor, ids = pooling_compressor(history), conversation(9)
    words = torch.randint(3, MEMORY, (1, READ_LENGTH + 17), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([ids, words, torch.tensor([[MEMORY]])], dim=1)  # the last is read in pieces
    memory = ConversationMemory(compressor)
    for utterance in utterances_of(ids):
        memory.append(utterance)
    torch.testing.assert_close(memory.vectors, compressor(ids), atol=1e-4, rtol=1e-4)


def test_pooled_an_utterance_is_read_whole_or_not_at_all():
    memory = ConversationMemory(pooling_compressor())
    memory.append(conversation(1))
    before = memory.vectors[0]
    with pytest.raises(ValueError, match="end it with <MEM>"):
        memory.append(torch.tensor([[5, 6]]))
    memory.append(conversation(1, seed=1))
    with torch.no_grad():
        whole = pooling_compressor()(torch.cat([conversation(1), conversation(1, seed=1)], dim=1))
    assert_same(memory.vectors, whole)
    assert torch.equal(memory.vectors[0][:1], before)


def test_pooled_gradients_reach_every_token():
    compressor, ids = pooling_compressor(), conversation(3)
    torch.cat(compressor(ids)).square().sum().backward()
    assert (compressor.reader.get_input_embeddings().weight.grad[ids[0].unique()].abs().sum(1) > 0).all()


def test_a_model_keeps_its_pooling(tmp_path):
    model = tiny_model({"memory_pooling": "mean"})
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.model.compressor.pooling == "mean"
    ids = conversation(4)
    with torch.no_grad():
        assert_same(loaded.get_history_features(ids), model.get_history_features(ids))
    with pytest.raises(ValueError, match="`memory_pooling` must be 'token' or 'mean', got 'max'"):
        tiny_model({"memory_pooling": "max"})
