"""Messages of blocks → one text a conversation, in which each medium has a placeholder."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

VIDEO_TOKEN, AUDIO_TOKEN, HISTORY_TOKEN = "<|video|>", "<|audio|>", "<|history|>"
PLACEHOLDERS = {"video": VIDEO_TOKEN, "audio": AUDIO_TOKEN, "history": HISTORY_TOKEN}
ZERO_WIDTH_SPACE = "\u200b"
# For tokenizers that come without a chat template. Contents are strings: blocks have become text before.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass
class Sources:
    """What the blocks of several conversations refer to, in order of appearance.

    Attributes:
        videos, audio (`list`): one source a block.
        history (`list`): for each conversation its utterances, its number of memory slots, or `None`.
    """

    videos: list = field(default_factory=list)
    audio: list = field(default_factory=list)
    history: list = field(default_factory=list)


def neutralise(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Break the special tokens that a user typed, by a zero-width space after their first character."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    pattern = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True) if len(token) > 1)
    return re.sub(pattern, lambda match: match[0][0] + ZERO_WIDTH_SPACE + match[0][1:], text) if pattern else text


def flatten(messages: list[dict], tokenizer: PreTrainedTokenizerBase, sources: Sources) -> list[dict]:
    """Messages whose contents are strings; the sources of their blocks are appended to `sources`.

    Raises:
        ValueError: a block is of unknown type or empty, or there are two history blocks.
    """
    memory: Any = None
    flat = []
    for message in messages:
        content = message.get("content") or ""
        parts, words = [], ""  # words of neighbouring blocks together: half a special token may stand in each
        for block in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = block.get("type")
            if kind == "history" and block.get("slots") is not None:
                value = block["slots"]
            elif kind in ("text", *PLACEHOLDERS) and block.get(kind) is not None:
                value = block[kind]
            else:
                raise ValueError(f"cannot use the block {block!r:.200}; see docs/architecture.md for the blocks")
            if kind == "text":
                words += value
                continue
            parts += [neutralise(words, tokenizer), PLACEHOLDERS[kind]]
            words = ""
            if kind == "history":
                if memory is not None:
                    raise ValueError("a conversation has two history blocks; join their utterances")
                memory = value
            else:
                (sources.videos if kind == "video" else sources.audio).append(value)
        parts.append(neutralise(words, tokenizer))
        flat.append({**{k: v for k, v in message.items() if v is not None}, "content": "".join(parts)})
    sources.history.append(memory)
    return flat


def render(conversations: list[list[dict]], tokenizer: PreTrainedTokenizerBase, **kwargs) -> list[str]:
    """Apply a chat template to flat conversations; a system message that it refuses goes into the user's first.

    Args:
        conversations: flat messages, from `flatten`.
        tokenizer: whose special tokens the template uses.
        kwargs: `chat_template`, `add_generation_prompt` and variables of the template.
    """
    # Thinking models (Qwen3, …): the turn starts at once, and the prompt stays a beginning of the whole conversation.
    kwargs = {"enable_thinking": False, **kwargs, "tokenize": False}
    try:
        return tokenizer.apply_chat_template(conversations, **kwargs)
    except TemplateError:
        folded = [_fold_system(messages) for messages in conversations]
        if folded == conversations:
            raise
        return tokenizer.apply_chat_template(folded, **kwargs)


def _fold_system(messages: list[dict]) -> list[dict]:
    if len(messages) < 2 or messages[0]["role"] != "system":
        return messages
    system, first, *rest = messages
    return [{**first, "content": f"{system['content']}\n{first['content']}"}, *rest]


def expand(text: list[str], counts: dict[str, list[int]], history: list[Any]) -> list[str]:
    """Repeat each placeholder as often as its block has tokens.

    Args:
        text (`list[str]`): rendered prompts.
        counts (`dict[str, list[int]]`): tokens of each `"video"` and `"audio"` block, in order over the batch.
        history (`list`): for each prompt its utterances, its number of slots, or `None`.

    Raises:
        ValueError: there are more or fewer placeholders than blocks.
    """
    if len(history) != len(text):
        raise ValueError(f"{len(text)} prompts, but history for {len(history)}; give one entry a prompt")
    for kind, values in counts.items():
        if (found := sum(row.count(PLACEHOLDERS[kind]) for row in text)) != len(values):
            raise ValueError(f"{found} {PLACEHOLDERS[kind]} in the prompts, but {len(values)} {kind} sources")
    streams: dict[str, Iterator[int]] = {PLACEHOLDERS[kind]: iter(values) for kind, values in counts.items()}
    pattern = "|".join(re.escape(token) for token in PLACEHOLDERS.values())
    rows = []
    for row, utterances in zip(text, history, strict=True):
        if (found := row.count(HISTORY_TOKEN)) != (utterances is not None):
            given = "no history" if utterances is None else "one history"
            raise ValueError(f"{found} {HISTORY_TOKEN} in a prompt, but {given} for it")
        streams[HISTORY_TOKEN] = iter([utterances if isinstance(utterances, int) else len(utterances or ())])
        rows.append(re.sub(pattern, lambda match: match[0] * next(streams[match[0]]), row))
    return rows
