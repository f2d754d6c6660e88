"""Rows → batches for training: prompts with their media, then the target, with a loss on the target alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from multimood.processors.prompt_text import neutralise

IGNORE_INDEX = -100  # the label that PyTorch's cross-entropy leaves out


@dataclass
class MultiMoodCollator:
    """Collates rows into model inputs with `labels`.

    Prompt and target are tokenized apart and joined, so that the target's tokens are the very ones `generate` would
    write after the same prompt. Only they carry a loss: prompt, placeholders and padding are masked.

    Args:
        processor: a `MultiMoodProcessor`.
        build_prompt: row → chat messages up to the answer.
        build_target: row → the answer's text.
    """

    processor: Any
    build_prompt: Callable[[dict], list[dict]]
    build_target: Callable[[dict], str]

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        batch = self.processor.apply_chat_template(
            [self.build_prompt(row) for row in rows],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            padding=True,
            padding_side="left",
        )
        prompts = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        targets = [self._target_ids(row) for row in rows]

        length = max(len(prompt) + len(target) for prompt, target in zip(prompts, targets, strict=True))
        input_ids = torch.full((len(rows), length), tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        for i, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            end = len(prompt) + len(target)
            input_ids[i, :end] = torch.cat([prompt, target])
            attention_mask[i, :end] = 1
            labels[i, len(prompt) : end] = target
        return {**batch, "input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def _target_ids(self, row: dict) -> torch.Tensor:
        """Token ids `(n,)` of the answer, closed by the end-of-sequence token."""
        tokenizer = self.processor.tokenizer
        text = neutralise(self.build_target(row), tokenizer)
        return torch.tensor([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])


def last_logits(inputs: dict) -> dict:
    """Inputs of a model whose logits are made only from where the first target of a batch is predicted: a vocabulary is
    wide, and prompts have no loss."""
    labels = inputs["labels"]
    kept = labels.shape[1] - int((labels != IGNORE_INDEX).any(0).nonzero()[0]) + 1
    return {**inputs, "labels": labels[:, -kept:], "logits_to_keep": kept}
