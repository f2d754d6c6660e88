"""What a conversation leaves in memory: a vector for each utterance, and where the compressor stands."""

import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity
from transformers import Cache

from .compressor import ConversationCompressor

FORMAT = "multimood-memory-1"


class ConversationMemory:
    """
    Memory vectors of a batch of conversations, extended utterance by utterance.

    Appending costs the new tokens only, whatever was said before (with a recurrent compressor; an attention one looks
    back at all of it), and gives the same vectors as compressing the whole conversation again. Each conversation has
    its own recurrent state, so rows of different lengths do not touch each other. Nothing is cut: a long utterance is
    read in pieces.

    With `max_slots`, a conversation keeps at most so many vectors: when there is one too many, the two neighbours that
    are most alike (by cosine) become their mean, weighted by how many utterances each stands for. Old talk is remembered
    more coarsely, but nothing is dropped, and the order of time is kept.

    Made by `model.new_memory()` or `model.load_memory(path)`; `model(..., history_memory=memory)` uses it.

    Args:
        compressor (`ConversationCompressor`): the model's; the memory reads with it, and does not own it.
        batch_size (`int`, *optional*, defaults to 1): number of conversations.
        max_slots (`int`, *optional*): most vectors a conversation keeps; `None` for no limit.

    Raises:
        ValueError: if `batch_size` or `max_slots` is less than 1.
    """

    def __init__(self, compressor: ConversationCompressor, batch_size: int = 1, max_slots: int | None = None):
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        if max_slots is not None and max_slots < 1:
            raise ValueError(f"`max_slots` must be at least 1, or None for no limit, got {max_slots}.")
        self.compressor = compressor
        self.max_slots = max_slots
        self._rows = [_Row(compressor) for _ in range(batch_size)]

    @property
    def batch_size(self) -> int:
        """Number of conversations."""
        return len(self._rows)

    @property
    def vectors(self) -> list[torch.Tensor]:
        """For each conversation a copy of its memory vectors, `(slots, hidden_size)` in the order of time."""
        return [row.vectors.clone() for row in self._rows]

    @property
    def num_slots(self) -> list[int]:
        """For each conversation the number of its memory vectors: that many placeholders stand for it in a prompt."""
        return [row.num_slots for row in self._rows]

    @property
    def num_tokens_read(self) -> list[int]:
        """For each conversation the number of history tokens that its memory stands for."""
        return [row.num_tokens_read for row in self._rows]

    def append(self, history_input_ids: torch.LongTensor, history_attention_mask: torch.Tensor | None = None) -> None:
        """
        Adds what was said next.

        Args:
            history_input_ids (`torch.LongTensor` of shape `(batch_size, length)`): utterances, each with its `<MEM>`.
            history_attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): 0 at padding, on either
                side; a row that is all padding is left as it is.

        Raises:
            ValueError: if the shapes are not those of this memory's batch.
        """
        if history_input_ids.ndim != 2 or len(history_input_ids) != self.batch_size:
            raise ValueError(
                f"A memory of {self.batch_size} conversation(s) takes `history_input_ids` of shape "
                f"({self.batch_size}, length), got {tuple(history_input_ids.shape)}."
            )
        if history_attention_mask is None:
            history_attention_mask = torch.ones_like(history_input_ids)
        elif history_attention_mask.shape != history_input_ids.shape:
            raise ValueError(
                f"`history_attention_mask` has the shape {tuple(history_attention_mask.shape)}, `history_input_ids` "
                f"{tuple(history_input_ids.shape)}: they must be the same."
            )
        for row, input_ids, mask in zip(self._rows, history_input_ids, history_attention_mask.bool(), strict=True):
            row.append(self.compressor, input_ids[mask], self.max_slots)

    def save(self, path: str | os.PathLike) -> None:
        """
        Writes the memory to a safetensors file, all of it or nothing. It holds what was said in compressed form:
        protect it as you would the conversation.
        """
        tensors, rows = {}, []
        for index, row in enumerate(self._rows):
            states, flags = _cache_state(row.cache)
            tensors |= {f"{index}.cache.{name}": state for name, state in states.items()}
            tensors[f"{index}.vectors"] = row.vectors
            rows.append({"num_tokens_read": row.num_tokens_read, "counts": row.counts, "cache": flags})
        metadata = {"format": FORMAT, "max_slots": self.max_slots, "probe": _probe(self.compressor), "rows": rows}
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        path = Path(path)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            part = Path(folder) / path.name
            save_file(tensors, part, metadata={"memory": json.dumps(metadata)})
            os.replace(part, path)

    @classmethod
    def load(cls, path: str | os.PathLike, compressor: ConversationCompressor) -> "ConversationMemory":
        """
        Reads a memory that `save` wrote.

        Args:
            path (`str` or `os.PathLike`): the file.
            compressor (`ConversationCompressor`): of the model that made the memory.

        Raises:
            ValueError: if the file is no memory, or one of another model.
        """
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("memory", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is not a conversation memory of the format {FORMAT}.")
        probe, own_probe = torch.tensor(metadata["probe"]), torch.tensor(_probe(compressor))
        # The tolerance allows for a model that was loaded in half precision in the meantime.
        if probe.shape != own_probe.shape or not torch.allclose(probe, own_probe, rtol=0.02, atol=1e-4):
            raise ValueError(
                f"{path} was made by another compressor: its vectors mean nothing to this model. Load it with the model "
                "that saved it, or append the conversation to a new memory."
            )
        reader = compressor.reader
        memory = cls(compressor, len(metadata["rows"]), metadata["max_slots"])
        for index, (row, saved) in enumerate(zip(memory._rows, metadata["rows"], strict=True)):
            row.num_tokens_read = saved["num_tokens_read"]
            row.counts = saved["counts"]
            row.buffer = tensors[f"{index}.vectors"].to(reader.device, reader.dtype)
            prefix = f"{index}.cache."
            states = {
                name.removeprefix(prefix): tensor.to(reader.device)
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            _restore_cache(row.cache, states, saved["cache"])
        return memory


class _Row:
    """One conversation: its vectors at the start of a growing buffer, what each stands for, the compressor's state."""

    def __init__(self, compressor: ConversationCompressor):
        self.cache = compressor.new_cache()
        self.buffer = torch.zeros(0, compressor.width, device=compressor.reader.device, dtype=compressor.reader.dtype)
        self.counts: list[int] = []  # utterances in each slot
        self.num_tokens_read = 0

    @property
    def num_slots(self) -> int:
        return len(self.counts)

    @property
    def vectors(self) -> torch.Tensor:
        return self.buffer[: self.num_slots]

    def append(self, compressor: ConversationCompressor, input_ids: torch.LongTensor, max_slots: int | None) -> None:
        if not len(input_ids):
            return
        vectors = compressor.read(input_ids[None].to(compressor.reader.device), self.cache)
        self.num_tokens_read += len(input_ids)
        for vector in vectors:
            self._add(vector)
            if max_slots is not None and self.num_slots > max_slots:
                self._merge_most_similar()

    def _add(self, vector: torch.Tensor) -> None:
        if self.num_slots == len(self.buffer):  # twice the room, so that adding costs the same on average, ever
            room = self.buffer.new_empty(max(16, 2 * len(self.buffer)), self.buffer.shape[1]).to(vector)
            room[: self.num_slots] = self.vectors
            self.buffer = room
        self.buffer[self.num_slots] = vector
        self.counts.append(1)

    def _merge_most_similar(self) -> None:
        vectors = self.vectors.float()
        first = int(cosine_similarity(vectors[:-1], vectors[1:], dim=1).argmax())
        left, right = self.counts[first : first + 2]
        self.buffer[first] = (left * vectors[first] + right * vectors[first + 1]) / (left + right)
        self.buffer[first + 1 : self.num_slots - 1] = self.vectors[first + 2 :].clone()
        self.counts[first : first + 2] = [left + right]


def _probe(compressor: ConversationCompressor) -> list[float]:
    """A few of the compressor's weights, by which a memory knows its model; of those that quantising leaves as they are."""
    weights = (compressor.reader.get_input_embeddings().weight, compressor.projector.bias)
    return [
        number for weight in weights for number in weight.detach().flatten()[:: max(1, weight.numel() // 16)].tolist()
    ]


def _cache_state(cache: Cache) -> tuple[dict[str, torch.Tensor], dict[str, int | bool]]:
    """All tensors and numbers that the layers of a cache hold, by names that `_restore_cache` understands."""
    tensors, numbers = {}, {}
    for index, layer in enumerate(cache.layers):
        for name, value in vars(layer).items():
            for key, entry in value.items() if isinstance(value, dict) else [(None, value)]:
                path = f"{index}.{name}" if key is None else f"{index}.{name}.{key}"
                if isinstance(entry, torch.Tensor):
                    tensors[path] = entry
                elif isinstance(entry, int):
                    numbers[path] = entry
    return tensors, numbers


def _restore_cache(cache: Cache, tensors: dict[str, torch.Tensor], numbers: dict[str, int | bool]) -> None:
    """Brings a new cache of the same model to the state that `_cache_state` took."""
    for path, value in [*tensors.items(), *numbers.items()]:
        index, name, *key = path.split(".")
        layer = cache.layers[int(index)]
        if key:
            getattr(layer, name)[int(key[0])] = value
        else:
            setattr(layer, name, value)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            layer.device, layer.dtype = value.device, value.dtype


__all__ = ["ConversationMemory"]
