"""The conversation compressor: one memory vector for each earlier utterance."""

import inspect

import torch
from torch import nn
from transformers import AutoModel, Cache, DynamicCache, PreTrainedConfig

from .mamba_scan import with_exact_scan
from .pooled_words import scaled_means

# Tokens that are read at once, so that the reader's work on a long utterance takes bounded memory.
READ_LENGTH = 512


class ConversationCompressor(nn.Module):
    """
    Reads earlier utterances, each followed by `<MEM>`, and projects a hidden state of each to the LLM's width, so that an
    utterance costs one LLM token (the paper's ConvCompressor).

    Args:
        config (`PreTrainedConfig`): any causal `AutoModel`: Mamba-2, Mamba, or a small transformer.
        text_size (`int`): width of the LLM.
        memory_token_id (`int`): `<MEM>` in the vocabulary of `config`.
        pooling (`str`, *optional*, defaults to `"token"`): what stands for an utterance: `"token"`, the hidden state at its
            `<MEM>`, as in the paper; `"mean"`, the mean of those of all its tokens, scaled to the length of one (of
            independent ones), which reaches every word directly. There a token weighs `exp(salience(state))`, which is
            learned, for a name is harder to guess than the words around it.
    """

    def __init__(self, config: PreTrainedConfig, text_size: int, memory_token_id: int, pooling: str = "token"):
        super().__init__()
        # Mamba refuses an explicit "sdpa", which `from_pretrained` hands down to every sub-model.
        self.reader = with_exact_scan(AutoModel.from_config(config, attn_implementation="eager"))
        self.projector = nn.Linear(config.hidden_size, text_size)
        self.salience = nn.Linear(config.hidden_size, 1) if pooling == "mean" else None
        self.memory_token_id = memory_token_id
        self.pooling = pooling

    @property
    def _no_split_modules(self) -> set[str]:
        """transformers gathers these from the children of a model to lay out `device_map="auto"`."""
        return self.reader._no_split_modules

    @property
    def width(self) -> int:
        """Length of a memory vector."""
        return self.projector.out_features

    def forward(
        self, history_input_ids: torch.LongTensor, history_attention_mask: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """
        Compresses whole conversations.

        Args:
            history_input_ids (`torch.LongTensor` of shape `(batch_size, history_length)`): right-padded, with one
                `<MEM>` after each utterance.
            history_attention_mask (`torch.Tensor` of shape `(batch_size, history_length)`, *optional*): 0 at padding.

        Returns:
            `list[torch.Tensor]`: for each row its memory vectors, of shape `(num_utterances, text_size)`.

        Raises:
            ValueError: if a row is padded on the left.
        """
        is_memory = history_input_ids == self.memory_token_id
        if history_attention_mask is not None:
            history_attention_mask = history_attention_mask.bool()
            if (~history_attention_mask[:, :-1] & history_attention_mask[:, 1:]).any():
                raise ValueError("The history must be padded on the right: padding on the left would be read first.")
            is_memory = is_memory & history_attention_mask
        # The reader is causal and padding comes last, so nothing that is kept has seen it: no mask is needed.
        hidden_states = self.reader(history_input_ids, use_cache=False, return_dict=True).last_hidden_state
        kept = self._kept(is_memory)
        vectors = self._vectors(hidden_states[kept], is_memory[kept])
        return list(vectors.split(is_memory.sum(1).tolist()))

    def new_cache(self) -> Cache:
        """The state before the first token of a conversation, for `read`."""
        return DynamicCache(config=self.reader.config)

    @torch.no_grad()
    def read(self, input_ids: torch.LongTensor, cache: Cache) -> torch.Tensor:
        """
        Reads on in one conversation; what it gives equals what `forward` gives for the whole.

        Args:
            input_ids (`torch.LongTensor` of shape `(1, length)`): the next tokens, without padding.
            cache (`Cache`): where the conversation stands; it is advanced in place.

        Returns:
            `torch.Tensor` of shape `(number of <MEM> among the tokens, text_size)`.

        Raises:
            ValueError: if the last utterance lacks its `<MEM>` and its tokens are pooled; nothing was read then.
        """
        if self.pooling == "mean" and input_ids[0, -1] != self.memory_token_id:
            raise ValueError("An utterance is read whole where its tokens are pooled: end it with <MEM>.")
        accepted = inspect.signature(type(self.reader).forward).parameters
        state = {"cache_params" if "cache_params" in accepted else "past_key_values": cache}
        training = self.training
        self.eval()  # a reader that trains with gradient checkpointing would drop the cache
        try:
            is_memory = input_ids == self.memory_token_id
            kept, length = self._kept(is_memory), self._read_length(cache)
            states = [
                self.reader(piece, use_cache=True, return_dict=True, **state).last_hidden_state[of_piece]
                for piece, of_piece in zip(input_ids.split(length, dim=1), kept.split(length, dim=1), strict=True)
            ]
            return self._vectors(torch.cat(states), is_memory[kept])
        finally:
            self.train(training)

    def _read_length(self, cache: Cache) -> int:
        """
        How many tokens the reader continues with at once. Attention, Mamba with our scan and Mamba-2 continue exactly from
        their cache; other recurrent models may start again from nothing when they are given several tokens, so they get
        one.
        """
        recurrent = any(hasattr(layer, "recurrent_states") for layer in cache.layers)
        return READ_LENGTH if not recurrent or self.reader.config.model_type in ("mamba", "mamba2") else 1

    def _kept(self, is_memory: torch.Tensor) -> torch.Tensor:
        """Which tokens the vectors are made of, given which are the `<MEM>` of an utterance; both `(batch_size, length)`."""
        if self.pooling == "token":
            return is_memory
        # What comes after a row's last <MEM>, such as padding, is no utterance yet.
        return is_memory.flip(1).cumsum(1).flip(1) > 0

    def _vectors(self, hidden_states: torch.Tensor, is_memory: torch.Tensor) -> torch.Tensor:
        """Of the kept tokens `(n, D)`, of which each utterance's last is marked in `is_memory` `(n,)`, the vector of each
        utterance: `(utterances, text_size)`."""
        dtype = self.reader.dtype  # Mamba keeps its residual stream, and so its output, in float32; so does the sum
        if self.pooling == "mean":
            ends = is_memory.nonzero().flatten() + 1
            weighted = hidden_states * self.salience(hidden_states.to(dtype)).exp()
            hidden_states = scaled_means(weighted, ends.diff(prepend=ends.new_zeros(1)))
        return self.projector(hidden_states.to(dtype))


__all__ = ["ConversationCompressor"]
