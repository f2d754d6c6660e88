"""Media and dialogue → tensors: the one processor of MultiMood."""

import copy
import itertools
import re
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    BatchFeature,
    PreTrainedConfig,
)
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import AddedToken, PreTrainedTokenizerBase

from .lengths import CONNECTOR_STRIDE, audio_tower_lengths, pooled, valid_audio_tokens, video_grid, video_tokens
from .media import SAMPLING_RATE, Clip, load_clip
from .turn import LABELS, PREFIXES, VERBATIM_PAIRS, render_utterance

VIDEO_TOKEN, AUDIO_TOKEN, HISTORY_TOKEN, MEMORY_TOKEN = "<|video|>", "<|audio|>", "<|history|>", "<MEM>"
PLACEHOLDERS = {"video": VIDEO_TOKEN, "audio": AUDIO_TOKEN, "history": HISTORY_TOKEN}
ZERO_WIDTH_SPACE = "\u200b"
# For tokenizers that come without a chat template. Message contents are strings: blocks are flattened before.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class MultiMoodProcessor(ProcessorMixin):
    r"""
    Turns conversations with history, video, audio and text blocks into the tensors of `MultiMoodModel`.

    Usually made by [`MultiMoodProcessor.from_backbones`] or `from_pretrained`, which know the lengths.

    Args:
        image_processor: of the vision tower; applied to each frame.
        feature_extractor: of the audio tower.
        tokenizer: of the language model, with `<|video|>`, `<|audio|>` and `<|history|>`.
        history_tokenizer: of the conversation compressor, with `<MEM>`.
        chat_template (`str`, *optional*): Jinja template of the prompt; message contents reach it as strings.
        num_frames (`int`): frames of a clip, or the most where `fps` is given; a multiple of 2, the connector's
            temporal stride.
        fps (`float`, *optional*): frames a second, instead of a fixed number.
        video_grid (`tuple[int, int]`): (rows, columns) of patches of a frame.
        audio_window (`int`): samples of 16 kHz sound that the audio tower takes; shorter sound is padded, of longer
            sound the end is kept, with a warning.
        audio_tokens (`int`): vectors that the audio projector gives for a full window.
        audio_pooling (`int`): vectors of the audio tower that the projector averages into one.
        verbatim_pairs (`int`): client/therapist pairs that `build_prompt` should leave as text.

    Raises:
        ValueError: a tokenizer lacks its tokens, or `num_frames` is no positive multiple of 2.
    """

    def __init__(
        self,
        image_processor=None,
        feature_extractor=None,
        tokenizer=None,
        history_tokenizer=None,
        chat_template=None,
        num_frames: int = 8,
        fps: float | None = None,
        video_grid: tuple[int, int] = (27, 27),
        audio_window: int = 480_000,
        audio_tokens: int = 1500,
        audio_pooling: int = 1,
        verbatim_pairs: int = VERBATIM_PAIRS,
    ):
        if num_frames < 1 or num_frames % CONNECTOR_STRIDE:
            raise ValueError(f"num_frames is {num_frames}; give a positive multiple of {CONNECTOR_STRIDE}")
        self.num_frames = num_frames
        self.fps = fps
        self.video_grid = tuple(video_grid)
        self.audio_window = audio_window
        self.audio_tokens = audio_tokens
        self.audio_pooling = audio_pooling
        self.verbatim_pairs = verbatim_pairs
        super().__init__(image_processor, feature_extractor, tokenizer, history_tokenizer, chat_template=chat_template)
        self.video_token_id, self.audio_token_id, self.history_token_id = (
            _token_id(tokenizer, token) for token in PLACEHOLDERS.values()
        )
        self.memory_token_id = _token_id(history_tokenizer, MEMORY_TOKEN)

    @classmethod
    def from_backbones(
        cls,
        vision: Any,
        audio: Any,
        history: str | PreTrainedTokenizerBase,
        text: str | PreTrainedTokenizerBase,
        vision_config: PreTrainedConfig | None = None,
        audio_config: PreTrainedConfig | None = None,
        num_frames: int = 8,
        fps: float | None = None,
        audio_pooling: int = 1,
        audio_seconds: float | None = None,
    ) -> "MultiMoodProcessor":
        """Build the processor that fits four backbones.

        Args:
            vision, audio, history, text: Hub ids or folders; or, ready, the image processor, feature extractor and
                tokenizers, which are copied.
            vision_config, audio_config: of the towers, where `vision` and `audio` are ready objects.
            num_frames, fps, audio_pooling: see [`MultiMoodProcessor`].
            audio_seconds (`float`, *optional*): the audio tower's window; by default its own where it is fixed
                (Whisper, AST), else 30 s.

        Raises:
            ValueError: a config is missing, or the lengths do not fit the towers.
        """
        if isinstance(vision, str):
            vision_config = vision_config or AutoConfig.from_pretrained(vision)
            vision = AutoImageProcessor.from_pretrained(vision)
        if isinstance(audio, str):
            audio_config = audio_config or AutoConfig.from_pretrained(audio)
            audio = AutoFeatureExtractor.from_pretrained(audio)
        for name, config in (("vision", vision_config), ("audio", audio_config)):
            if config is None:
                raise ValueError(f"{name} is a ready object: give its tower's configuration as {name}_config too")
        vision_config = getattr(vision_config, "vision_config", vision_config)
        tokenizer = AutoTokenizer.from_pretrained(text) if isinstance(text, str) else copy.deepcopy(text)
        memory = AutoTokenizer.from_pretrained(history) if isinstance(history, str) else copy.deepcopy(history)
        _prepare_tokenizers(tokenizer, memory)

        grid = video_grid(_frame_size(vision), vision_config.patch_size)
        window, vectors = audio_tower_lengths(audio_config, audio_seconds)
        return cls(
            vision,
            audio,
            tokenizer,
            memory,
            chat_template=tokenizer.chat_template,
            num_frames=num_frames,
            fps=fps,
            video_grid=grid,
            audio_window=window,
            audio_tokens=pooled(vectors, audio_pooling),
            audio_pooling=audio_pooling,
        )

    @property
    def model_input_names(self) -> list[str]:
        return [
            "input_ids",
            "attention_mask",
            "pixel_values_videos",
            "video_token_mask",
            "input_features",
            "audio_token_mask",
            "history_input_ids",
            "history_attention_mask",
        ]

    def apply_chat_template(
        self,
        conversation: list[dict] | list[list[dict]],
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        processor_kwargs: dict | None = None,
        **kwargs,
    ) -> Any:
        """Render one or more conversations with the chat template and, with `tokenize`, make their tensors.

        Args:
            conversation: messages, or a list of conversations. Contents are strings or lists of blocks as in
                `docs/architecture.md`. Special tokens typed in texts are neutralised by a zero-width space.
            chat_template (`str`, *optional*): instead of the processor's own.
            add_generation_prompt (`bool`): end with the opening of the assistant's message.
            tokenize (`bool`): give tensors instead of text.
            return_dict (`bool`): with `tokenize`, all tensors instead of only `input_ids`.
            return_tensors (`str`, *optional*): `"pt"`, which pads; `None` for lists of ids.
            processor_kwargs (`dict`, *optional*): for `__call__`; its padding arguments may also be given flat.
            kwargs: variables of the template.

        Returns:
            the rendered text or texts; `input_ids`, one row a conversation; or the `BatchFeature` of `__call__`.

        Raises:
            ValueError: a block is unknown, or a conversation has two history blocks.
            MediaError: a source cannot be used.
        """
        batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        conversations = conversation if batched else [conversation]
        call_kwargs = {name: kwargs.pop(name) for name in _PADDING_ARGUMENTS if name in kwargs}
        call_kwargs |= processor_kwargs or {}
        videos, audio, history, flat = [], [], [], []
        for messages in conversations:
            flat.append(self._flatten(messages, videos, audio, history))
        rendered = self.tokenizer.apply_chat_template(
            flat,
            chat_template=chat_template or self.chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **kwargs,
        )
        if not tokenize:
            return rendered if batched else rendered[0]
        batch = self(
            text=rendered,
            videos=videos,
            audio=audio,
            history=history,
            return_tensors=return_tensors,
            add_special_tokens=False,
            **call_kwargs,
        )
        return batch if return_dict else batch["input_ids"]

    def __call__(
        self,
        images: None = None,
        text: str | list[str] | None = None,
        videos: list | None = None,
        audio: list | None = None,
        history: list | None = None,
        return_tensors: str | None = None,
        padding: bool | str | None = None,
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        add_special_tokens: bool | None = None,
        truncation: bool = False,
        max_length: int | None = None,
    ) -> BatchFeature:
        """Make the tensors of rendered prompts; see `docs/architecture.md` for keys and shapes.

        Args:
            images: not supported; give videos.
            text (`str` or `list[str]`): prompts with one placeholder a video, audio and history block.
            videos, audio (`list`, *optional*): one source a placeholder, in order of appearance over the batch; see
                [`load_clip`]. What occurs in both is read once.
            history (`list`, *optional*): for each prompt a list of utterances `{"speaker", "text"}`, the number of
                memory slots that the caller will pass to the model, or `None`.
            return_tensors (`str`, *optional*): `"pt"`, which pads by default, or `None` for lists of ids. Media are
                tensors either way.
            padding, padding_side, pad_to_multiple_of, add_special_tokens: as in tokenizers.
            truncation, max_length: refused; a prompt cut in two would lose media.

        Raises:
            ValueError: placeholders and sources do not match, or the prompt is too long for the model.
            MediaError: a source cannot be used.
        """
        if images is not None:
            raise ValueError("MultiMood has no images; give frames of shape (num_frames, height, width, 3) as videos")
        if truncation or max_length is not None:
            raise ValueError("a prompt is never truncated; shorten the text, or move older utterances to the history")
        if text is None:
            raise ValueError("text is missing; give prompts, for example from apply_chat_template")
        if isinstance(text, str):
            text, history = [text], None if history is None else [history]
        videos, audio = list(videos or ()), list(audio or ())
        history = list(history) if history is not None else [None] * len(text)
        clips = self._load(videos, audio)
        data = {
            **self._video_inputs([clips[_key(source)] for source in videos]),
            **self._audio_inputs([clips[_key(source)] for source in audio]),
            **self._history_inputs(history),
        }
        counts = {
            "video": _counts(data.get("video_token_mask"), [bool(clips[_key(s)].frames) for s in videos]),
            "audio": _counts(data.get("audio_token_mask"), [clips[_key(s)].waveform is not None for s in audio]),
        }
        text = self._expand(text, counts, history)
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and text[0].startswith(bos))
        ids = self.tokenizer(text, add_special_tokens=add_special_tokens, return_token_type_ids=False)
        self._check(text, ids["input_ids"])
        if padding or (padding is None and return_tensors is not None):
            ids = self.tokenizer.pad(
                ids, padding=padding or True, padding_side=padding_side, pad_to_multiple_of=pad_to_multiple_of
            )
        if return_tensors is not None:
            ids = BatchFeature(dict(ids), tensor_type=return_tensors)
        return BatchFeature({**ids, **data})

    def encode_history(self, history: list[list[dict]]) -> dict[str, torch.Tensor]:
        """Utterances for the conversation compressor, each followed by `<MEM>`.

        Args:
            history (`list[list[dict]]`): for each row its utterances `{"speaker", "text"}`.

        Returns:
            `dict`: `history_input_ids` and `history_attention_mask` of shape `(batch, length)`, right-padded.

        Raises:
            ValueError: an utterance has an unknown speaker.
        """
        rows = [
            "".join(self._neutralise(render_utterance(u), self.history_tokenizer) + MEMORY_TOKEN for u in utterances)
            for utterances in history
        ]
        encoded = self.history_tokenizer(
            rows,
            padding=True,
            padding_side="right",
            add_special_tokens=False,
            return_token_type_ids=False,
            return_tensors="pt",
        )
        return {
            "history_input_ids": encoded["input_ids"].long(),
            "history_attention_mask": encoded["attention_mask"].long(),
        }

    def model_settings(self) -> dict[str, Any]:
        """The fields of `MultiMoodConfig` that follow from the processor."""
        return {
            "image_token_id": self.video_token_id,  # TRL suppresses this one in generation
            "video_token_id": self.video_token_id,
            "audio_token_id": self.audio_token_id,
            "history_token_id": self.history_token_id,
            "memory_token_id": self.memory_token_id,
            "turn_grammar": self.turn_grammar(),
            "vocab_size": len(self.tokenizer),
            "history_vocab_size": len(self.history_tokenizer),
            "pad_token_id": self.tokenizer.pad_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
        }

    def turn_grammar(self) -> dict[str, Any]:
        """Token ids of the four lines' fixed parts and of every label, as they stand after the generation prompt.

        Returns:
            `dict`: `fields` (each with `name`, `prefix` and `labels`), `response_prefix`, `eos_token_id`.

        Raises:
            ValueError: the tokenizer joins a label with what surrounds it, so that the parts do not add up.
        """
        opening = self.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=True)
        before = self.tokenizer(opening, add_special_tokens=False)["input_ids"]

        def encode(texts: list[str]) -> list[list[int]]:
            ids = self.tokenizer([opening + text for text in texts], add_special_tokens=False)["input_ids"]
            if any(row[: len(before)] != before for row in ids):
                raise ValueError("the tokenizer joins the generation prompt with the turn; use another chat template")
            return [row[len(before) :] for row in ids]

        grammar = {"fields": [], "eos_token_id": self.tokenizer.eos_token_id}
        head, head_ids = "", []
        for name, labels in LABELS.items():
            prefix = ("\n" if head else "") + PREFIXES[name]
            prefix_ids = encode([head + prefix])[0][len(head_ids) :]
            start = len(head_ids) + len(prefix_ids)
            rows = encode([f"{head}{prefix} {label}" for label in labels])
            grammar["fields"].append(
                {
                    "name": name,
                    "prefix": prefix_ids,
                    "labels": {k: row[start:] for k, row in zip(labels, rows, strict=True)},
                }
            )
            head, head_ids = f"{head}{prefix} {labels[-1]}", rows[-1]
        response = "\n" + PREFIXES["response"]
        grammar["response_prefix"] = encode([head + response])[0][len(head_ids) :]

        choices = list(itertools.product(*LABELS.values()))
        heads = ["\n".join(f"{PREFIXES[n]} {v}" for n, v in zip(LABELS, c, strict=True)) + response for c in choices]
        for choice, whole in zip(choices, encode(heads), strict=True):
            parts = [f["prefix"] + f["labels"][label] for f, label in zip(grammar["fields"], choice, strict=True)]
            if sum(parts, []) + grammar["response_prefix"] != whole:
                raise ValueError(
                    f"the tokenizer splits the labels {choice} differently in context; use another tokenizer"
                )
        return grammar

    def _flatten(self, messages: list[dict], videos: list, audio: list, history: list) -> list[dict]:
        """Messages with string contents; the sources of their blocks are appended to the lists."""
        flat, memory = [], None
        for message in messages:
            content = message.get("content") or ""
            if isinstance(content, str):
                text = self._neutralise(content, self.tokenizer)
            else:
                parts = []
                for block in content:
                    block = {key: value for key, value in block.items() if value is not None}  # Arrow fills in None
                    kind = block.get("type")
                    if kind == "text":
                        parts.append(self._neutralise(block["text"], self.tokenizer))
                    elif kind in ("video", "audio"):
                        (videos if kind == "video" else audio).append(block[kind])
                        parts.append(PLACEHOLDERS[kind])
                    elif kind == "history":
                        if memory is not None:
                            raise ValueError("a conversation has two history blocks; join their utterances")
                        memory = block["slots"] if "slots" in block else list(block["history"])
                        parts.append(HISTORY_TOKEN)
                    else:
                        raise ValueError(f"unknown block type {kind!r}; allowed: text, video, audio, history")
                text = "".join(parts)
            flat.append({**{k: v for k, v in message.items() if v is not None}, "content": text})
        history.append(memory)
        return flat

    def _neutralise(self, text: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """Break special tokens that a user typed, by a zero-width space after their first character."""
        control = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special and len(t.content) > 1]
        pattern = "|".join(re.escape(token) for token in sorted(control, key=len, reverse=True))
        return re.sub(pattern, lambda m: m[0][0] + ZERO_WIDTH_SPACE + m[0][1:], text)

    def _load(self, videos: list, audio: list) -> dict[Any, Clip]:
        """Each distinct source, read once."""
        seen, heard = {_key(source) for source in videos}, {_key(source) for source in audio}
        return {
            key: load_clip(
                source,
                num_frames=self.num_frames,
                fps=self.fps,
                video=key in seen,
                audio=key in heard,
                max_audio_seconds=self.audio_window / SAMPLING_RATE,
            )
            for key, source in {_key(source): source for source in (*videos, *audio)}.items()
        }

    def _video_inputs(self, clips: list[Clip]) -> dict[str, torch.Tensor]:
        clips = [clip for clip in clips if clip.frames]
        if not clips:
            return {}
        frames = [frame for clip in clips for frame in clip.frames]
        pixels = self.image_processor(frames, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        lengths = [len(clip.frames) for clip in clips]
        videos = torch.nn.utils.rnn.pad_sequence(pixels.split(lengths), batch_first=True)  # (N, T, 3, H, W)
        tokens = torch.tensor([video_tokens(length, self.video_grid) for length in lengths])
        return {"pixel_values_videos": videos, "video_token_mask": torch.arange(int(tokens.max())) < tokens[:, None]}

    def _audio_inputs(self, clips: list[Clip]) -> dict[str, torch.Tensor]:
        waveforms = [clip.waveform for clip in clips if clip.waveform is not None]
        if not waveforms:
            return {}
        features = self.feature_extractor(
            waveforms,
            sampling_rate=SAMPLING_RATE,
            padding="max_length",
            max_length=self.audio_window,
            truncation=True,
            return_tensors="pt",
        )[self.feature_extractor.model_input_names[0]]
        tokens = torch.tensor([valid_audio_tokens(len(w), self.audio_window, self.audio_tokens) for w in waveforms])
        return {"input_features": features, "audio_token_mask": torch.arange(self.audio_tokens) < tokens[:, None]}

    def _history_inputs(self, history: list) -> dict[str, torch.Tensor]:
        rows = [utterances or [] for utterances in history if not isinstance(utterances, int)]
        if not any(rows):
            return {}
        if len(rows) < len(history):
            raise ValueError("some rows of the batch have utterances as history and others slots; give all the same")
        return self.encode_history(rows)

    def _expand(self, text: list[str], counts: dict[str, list[int]], history: list) -> list[str]:
        """Repeat each placeholder as often as its block has tokens."""
        if len(history) != len(text):
            raise ValueError(f"{len(text)} prompts, but history for {len(history)}")
        for kind, values in counts.items():
            if (found := sum(t.count(PLACEHOLDERS[kind]) for t in text)) != len(values):
                raise ValueError(f"{found} {PLACEHOLDERS[kind]} in the prompts, but {len(values)} {kind} sources")
        streams = {PLACEHOLDERS[kind]: iter(values) for kind, values in counts.items()}
        expanded = []
        for row, utterances in zip(text, history, strict=True):
            if row.count(HISTORY_TOKEN) != (utterances is not None):
                raise ValueError(
                    f"{row.count(HISTORY_TOKEN)} {HISTORY_TOKEN} in a prompt; history wants one where given"
                )
            slots = utterances if isinstance(utterances, int) else len(utterances or ())
            per_row = {**streams, HISTORY_TOKEN: iter([slots])}
            pattern = "|".join(re.escape(token) for token in per_row)
            expanded.append(re.sub(pattern, lambda m, s=per_row: m[0] * next(s[m[0]]), row))
        return expanded

    def _check(self, text: list[str], input_ids: list[list[int]]) -> None:
        for row, ids in zip(text, input_ids, strict=True):
            for kind, token in PLACEHOLDERS.items():
                if ids.count(getattr(self, f"{kind}_token_id")) != row.count(token):
                    raise ValueError(f"the tokenizer does not keep {token} as one token; add it as a special token")
            if len(ids) > self.tokenizer.model_max_length:
                raise ValueError(
                    f"the prompt has {len(ids)} tokens, the language model takes {self.tokenizer.model_max_length}; shorten "
                    "the text, move older utterances to the history block, or use fewer frames"
                )


_PADDING_ARGUMENTS = ("padding", "padding_side", "pad_to_multiple_of", "truncation", "max_length")


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    token_id = tokenizer.get_vocab().get(token)
    if token_id is None:
        raise ValueError(f"{type(tokenizer).__name__} lacks {token}; build the processor by from_backbones")
    return token_id


def _key(source: Any) -> Any:
    """Equal for sources that are the same clip."""
    if isinstance(source, (list, tuple)):
        return tuple(_key(part) for part in source)
    return source if isinstance(source, str) else id(source)


def _counts(mask: torch.Tensor | None, present: list[bool]) -> list[int]:
    """Tokens of each block: those of its row of the mask, or 0 where the source lacks the modality."""
    rows = iter(mask.sum(1).tolist() if mask is not None else ())
    return [next(rows) if there else 0 for there in present]


def _frame_size(image_processor: Any) -> tuple[int, int]:
    """(height, width) of the frames that an image processor makes."""
    frame = np.zeros((64, 64, 3), dtype=np.uint8)
    return tuple(
        image_processor(frame, input_data_format="channels_last", return_tensors="pt")["pixel_values"].shape[-2:]
    )


def _prepare_tokenizers(tokenizer: PreTrainedTokenizerBase, history_tokenizer: PreTrainedTokenizerBase) -> None:
    """Add what MultiMood needs to the tokenizers, in place."""
    tokens = list(PLACEHOLDERS.values())
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE
        tokens += ["<|im_start|>", "<|im_end|>"]
        tokenizer.eos_token = "<|im_end|>"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = "<|pad|>"
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    history_tokenizer.add_tokens([AddedToken(MEMORY_TOKEN, special=True, normalized=False)], special_tokens=True)
    if history_tokenizer.pad_token is None:
        history_tokenizer.pad_token = history_tokenizer.eos_token or MEMORY_TOKEN


__all__ = ["MultiMoodProcessor"]
