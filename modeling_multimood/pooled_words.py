"""Memory without a compressor: an utterance as the mean of its word vectors."""

from collections.abc import Sequence

import torch
from torch import nn


def pooled_words(embeddings: nn.Module, token_ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """
    One vector for each sequence of tokens: the mean of their embeddings, scaled to the length of a single embedding
    (of independent ones; a plain mean shrinks with their number).

    Args:
        embeddings (`nn.Module`): of the language model.
        token_ids (sequences of `int`): none of them empty.

    Returns:
        `torch.Tensor` of shape `(sequences, hidden_size)`.

    Raises:
        ValueError: if a sequence is empty.
    """
    lengths = [len(ids) for ids in token_ids]
    if 0 in lengths:
        raise ValueError(f"Sequence {lengths.index(0)} has no tokens, so there is nothing to pool.")
    device = embeddings.weight.device
    vectors = embeddings(torch.tensor([token for ids in token_ids for token in ids], device=device))  # (tokens, D)
    return scaled_means(vectors, torch.tensor(lengths, device=device))


def scaled_means(vectors: torch.Tensor, lengths: torch.LongTensor) -> torch.Tensor:
    """Of `vectors` `(n, D)`, in runs of `lengths` `(runs,)`, each run's mean times the root of its length: `(runs, D)`."""
    runs = torch.arange(len(lengths), device=vectors.device).repeat_interleave(lengths)
    sums = vectors.new_zeros(len(lengths), vectors.shape[1]).index_add(0, runs, vectors)
    return sums / lengths.to(vectors).sqrt()[:, None]


__all__ = ["pooled_words", "scaled_means"]
