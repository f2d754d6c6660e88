"""Backbones' tokenizers → tokenizers with the special tokens of MultiMood."""

import copy
import os

from transformers import AutoTokenizer
from transformers.tokenization_utils_base import AddedToken, PreTrainedTokenizerBase

from .prompt_text import CHAT_TEMPLATE, PLACEHOLDERS, render

MEMORY_TOKEN = "<MEM>"  # of the history tokenizer; follows each utterance
Source = str | os.PathLike | PreTrainedTokenizerBase


def text_tokenizer_with_tokens(source: Source) -> PreTrainedTokenizerBase:
    """The language model's tokenizer with the placeholders, a chat template, and the `eos_token` that ends a turn.

    Args:
        source: Hub id, folder, or a tokenizer, which is copied.
    """
    tokenizer = _load(source)
    tokens = list(PLACEHOLDERS.values())
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE
        tokens += ["<|im_start|>", "<|im_end|>"]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = "<|pad|>"
        tokens.append(tokenizer.pad_token)
    _add(tokenizer, tokens)
    answer = "ANSWER"
    (text,) = render([[{"role": "user", "content": "x"}, {"role": "assistant", "content": answer}]], tokenizer)
    after = tokenizer(text[text.rindex(answer) + len(answer) :].strip(), add_special_tokens=False)["input_ids"]
    if after and after[0] in tokenizer.added_tokens_decoder:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(after[0])
    return tokenizer


def history_tokenizer_with_tokens(source: Source) -> PreTrainedTokenizerBase:
    """The compressor's tokenizer with `<MEM>`.

    Args:
        source: Hub id, folder, or a tokenizer, which is copied.
    """
    tokenizer = _load(source)
    _add(tokenizer, [MEMORY_TOKEN])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or MEMORY_TOKEN  # the mask tells padding, not the id
    return tokenizer


def _load(source: Source) -> PreTrainedTokenizerBase:
    is_id = isinstance(source, (str, os.PathLike))
    return AutoTokenizer.from_pretrained(source) if is_id else copy.deepcopy(source)


def _add(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> None:
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
