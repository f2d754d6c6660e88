"""The conversation compressor: one memory vector for each earlier utterance."""

import inspect

import torch
from torch import nn
from transformers import AutoModel, Cache, DynamicCache, PreTrainedConfig


class ConversationCompressor(nn.Module):
    """
    Reads earlier utterances, each followed by `<MEM>`, and projects its hidden states at the `<MEM>` positions to the
    LLM's width, so that an utterance costs one LLM token (the paper's ConvCompressor).

    The reader is any causal `AutoModel`: Mamba-2, Mamba, or a small transformer.
    """

    def __init__(self, config: PreTrainedConfig, text_size: int, memory_token_id: int):
        super().__init__()
        # Mamba refuses an explicit "sdpa", which `from_pretrained` hands down to every sub-model.
        self.reader = AutoModel.from_config(config, attn_implementation="eager")
        self.projector = nn.Linear(config.hidden_size, text_size)
        self.memory_token_id = memory_token_id
        self._cache_argument = (
            "cache_params"
            if "cache_params" in inspect.signature(self.reader.forward).parameters
            else "past_key_values"
        )

    def new_cache(self) -> Cache:
        """An empty state for reading a conversation piece by piece."""
        return DynamicCache(config=self.reader.config)

    def forward(
        self, history_input_ids: torch.LongTensor, history_attention_mask: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """
        Args:
            history_input_ids (`torch.LongTensor` of shape `(batch_size, history_length)`): right-padded.
            history_attention_mask (`torch.Tensor` of shape `(batch_size, history_length)`, *optional*): 0 at padding.

        Returns:
            One tensor of shape `(num_utterances, text_size)` a row.
        """
        # Right padding comes after everything that is read, and the reader is causal: it needs no mask.
        hidden_states = self.reader(history_input_ids, use_cache=False, return_dict=True).last_hidden_state
        is_memory = history_input_ids == self.memory_token_id
        if history_attention_mask is not None:
            is_memory = is_memory & history_attention_mask.bool()
        vectors = self.projector(hidden_states[is_memory])  # (all utterances, text_size)
        return list(vectors.split(is_memory.sum(1).tolist()))

    def read(self, input_ids: torch.LongTensor, cache: Cache) -> torch.Tensor:
        """
        Reads the next piece of one conversation and advances `cache` in place.

        Args:
            input_ids (`torch.LongTensor` of shape `(1, length)`)

        Returns:
            `torch.Tensor` of shape `(number of <MEM> in the piece, text_size)`.
        """
        outputs = self.reader(input_ids, use_cache=True, return_dict=True, **{self._cache_argument: cache})
        return self.projector(outputs.last_hidden_state[input_ids == self.memory_token_id])


__all__ = ["ConversationCompressor"]
