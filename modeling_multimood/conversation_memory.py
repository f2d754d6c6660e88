"""What is remembered of a conversation: its memory vectors and where the compressor stands in it."""

import torch

from .compressor import ConversationCompressor


class ConversationMemory:
    """The memory vectors of a batch of conversations, extended utterance by utterance."""

    def __init__(self, compressor: ConversationCompressor, batch_size: int = 1, max_slots: int | None = None):
        self.compressor = compressor
        self._caches = [compressor.new_cache() for _ in range(batch_size)]
        self._vectors = [[] for _ in range(batch_size)]

    @property
    def vectors(self) -> list[torch.Tensor]:
        width = self.compressor.projector.out_features
        empty = self.compressor.projector.weight.new_zeros(0, width)
        return [torch.cat([empty, *row]) for row in self._vectors]

    @torch.no_grad()
    def append(self, history_input_ids: torch.LongTensor, history_attention_mask: torch.Tensor | None = None) -> None:
        for row, ids in enumerate(history_input_ids):
            if history_attention_mask is not None:
                ids = ids[history_attention_mask[row].bool()]
            if len(ids):
                self._vectors[row].append(self.compressor.read(ids[None], self._caches[row]))


__all__ = ["ConversationMemory"]
