"""The turn's four lines as tokens, for constrained generation."""

import itertools
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .turn import LABELS, PREFIXES


def build_turn_grammar(tokenizer: PreTrainedTokenizerBase, opening: str) -> dict[str, Any]:
    """Token ids of the turn's fixed parts and of every label, as they stand after `opening`.

    Args:
        tokenizer: of the language model; its `eos_token` ends a turn.
        opening (`str`): a rendered prompt up to where the turn begins.

    Returns:
        `dict`: `fields` (each with `name`, `prefix` and `labels`, the latter pairs of name and ids, whose order a saved
        configuration keeps; it sorts the keys of a `dict`), `response_prefix`, `eos_token_id`, and `blank_token_ids`,
        the tokens that show nothing. Checked on all 490 combinations of labels: the parts, one after the other, are the
        tokens of the whole.

    Raises:
        ValueError: the tokenizer joins parts, so that they do not add up, or has no `eos_token`.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token; set the one that ends a turn")
    before = tokenizer(opening, add_special_tokens=False)["input_ids"]

    def encode(texts: list[str]) -> list[list[int]]:
        rows = tokenizer([opening + text for text in texts], add_special_tokens=False)["input_ids"]
        if any(row[: len(before)] != before for row in rows):
            raise ValueError(
                f"the tokenizer joins the end of {opening[-20:]!r} with the turn; change the chat template"
            )
        return [row[len(before) :] for row in rows]

    fields: list[dict[str, Any]] = []
    head, done = "", 0  # a turn so far, and how many tokens it has
    for name, labels in LABELS.items():
        head += ("\n" if head else "") + PREFIXES[name]
        (whole,) = encode([head])
        rows = encode([f"{head} {label}" for label in labels])
        choices = [[label, row[len(whole) :]] for label, row in zip(labels, rows, strict=True)]
        fields.append({"name": name, "prefix": whole[done:], "labels": choices})
        head, done = f"{head} {labels[0]}", len(rows[0])
    ending = "\n" + PREFIXES["response"]
    response_prefix = encode([head + ending])[0][done:]

    combinations = list(itertools.product(*LABELS.values()))
    lines = [
        [f"{PREFIXES[name]} {label}" for name, label in zip(LABELS, labels, strict=True)] for labels in combinations
    ]
    for labels, whole in zip(combinations, encode(["\n".join(line) + ending for line in lines]), strict=True):
        parts = [
            ids
            for field, label in zip(fields, labels, strict=True)
            for ids in (field["prefix"], dict(field["labels"])[label])
        ]
        if list(itertools.chain(*parts, response_prefix)) != whole:
            raise ValueError(f"the tokenizer splits the labels {labels} differently in context; use another tokenizer")
    return {
        "fields": fields,
        "response_prefix": response_prefix,
        "eos_token_id": tokenizer.eos_token_id,
        "blank_token_ids": _blank_token_ids(tokenizer),
    }


def _blank_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """White space and special tokens: a response of these alone would be empty."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))], skip_special_tokens=True)
    return [token for token, text in enumerate(texts) if not text.strip()]
