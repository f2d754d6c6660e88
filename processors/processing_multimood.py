"""Media and dialogue → tensors: the one processor of MultiMood."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    BatchFeature,
    PreTrainedConfig,
)
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .audio_features import audio_features
from .feature_extraction_beats import BeatsFeatureExtractor  # noqa: F401 (registers it, for saved processors)
from .frames import fixed_size_image_processor, pixel_values
from .lengths import (
    CONNECTOR_STRIDE,
    audio_input_shape,
    audio_tower_lengths,
    pooled,
    valid_audio_tokens,
    video_grid,
    video_tokens,
)
from .media import SAMPLING_RATE, load_clip
from .original_sampling import pad_to_square, sound_pieces
from .prompt_text import PLACEHOLDERS, Sources, expand, flatten, neutralise, render
from .special_tokens import MEMORY_TOKEN, history_tokenizer_with_tokens, text_tokenizer_with_tokens
from .turn import VERBATIM_PAIRS, render_utterance
from .turn_tokens import build_turn_grammar

LONGEST_CLIP = 24 * 3600.0  # seconds whose sound is read whole, where pieces are taken from all of it


class _Media(NamedTuple):
    """A source, ready for the towers."""

    pixels: torch.Tensor | None  # (frames, 3, height, width)
    waveform: np.ndarray | None  # (samples,)


class MultiMoodProcessor(ProcessorMixin):
    r"""
    Turns conversations with history, video, audio and text blocks into the tensors of `MultiMoodModel`.

    Made by [`MultiMoodProcessor.from_backbones`], which finds the lengths, or by `from_pretrained`.

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
        audio_pooling (`int`): vectors of the audio tower that the projector joins into one.
        verbatim_pairs (`int`): client/therapist pairs that `build_prompt` is to leave as text.
        original_sampling (`bool`): take of a clip what the code of the released weights takes: frames by their numbers,
            eight pieces of two seconds of the sound, and a placeholder also for the silence after it.
        square_frames (`bool`): pad frames to squares in the colour of the image processor's mean, as some of the
            original's training does, instead of stretching them.

    Raises:
        ValueError: a tokenizer lacks its tokens, or `num_frames` or `fps` is out of range.
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
        original_sampling: bool = False,
        square_frames: bool = False,
    ):
        if num_frames < 1 or num_frames % CONNECTOR_STRIDE:
            raise ValueError(f"num_frames is {num_frames}; give a positive multiple of {CONNECTOR_STRIDE}")
        if fps is not None and fps <= 0:
            raise ValueError(f"fps is {fps}; give a positive number, or None for a fixed number of frames")
        if fps is not None and original_sampling:
            raise ValueError("the original's sampling takes a fixed number of frames: leave out fps")
        self.num_frames = num_frames
        self.fps = fps
        self.video_grid = tuple(video_grid)
        self.audio_window = audio_window
        self.audio_tokens = audio_tokens
        self.audio_pooling = audio_pooling
        self.verbatim_pairs = verbatim_pairs
        self.original_sampling = original_sampling
        self.square_frames = square_frames
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
        history: str | os.PathLike | PreTrainedTokenizerBase,
        text: str | os.PathLike | PreTrainedTokenizerBase,
        vision_config: PreTrainedConfig | None = None,
        audio_config: PreTrainedConfig | None = None,
        num_frames: int = 8,
        fps: float | None = None,
        audio_pooling: int = 1,
        audio_seconds: float | None = None,
        verbatim_pairs: int = VERBATIM_PAIRS,
        original_sampling: bool = False,
        square_frames: bool = False,
    ) -> "MultiMoodProcessor":
        """Build the processor that fits four backbones.

        The tokenizers get their special tokens; the language model's `eos_token` becomes the token that ends a turn in
        its chat template, so that trainers, `generate` and the turn grammar agree on it.

        Args:
            vision: Hub id or folder of the vision tower, or its image processor.
            audio: Hub id or folder of the audio tower, or its feature extractor.
            history: Hub id or folder of the compressor's language model, or its tokenizer, which is copied.
            text: Hub id or folder of the language model, or its tokenizer, which is copied.
            vision_config: of the vision tower, where `vision` is an image processor.
            audio_config: of the audio tower, where `audio` is a feature extractor.
            num_frames: see [`MultiMoodProcessor`].
            fps: see [`MultiMoodProcessor`].
            audio_pooling: see [`MultiMoodProcessor`].
            audio_seconds: the audio tower's window; by default its own where it is fixed (Whisper, AST), else 30 s.
            verbatim_pairs: see [`MultiMoodProcessor`].
            original_sampling: see [`MultiMoodProcessor`].
            square_frames: see [`MultiMoodProcessor`].

        Raises:
            ValueError: a config is missing; the audio tower is of no known kind; a feature extractor does not fit its
                tower; or the language model's tokenizer or chat template cannot hold a turn.
        """
        if isinstance(vision, (str, os.PathLike)):
            vision_config = vision_config or AutoConfig.from_pretrained(vision)
            vision = AutoImageProcessor.from_pretrained(vision)
        if isinstance(audio, (str, os.PathLike)):
            audio_config = audio_config or AutoConfig.from_pretrained(audio)
            audio = AutoFeatureExtractor.from_pretrained(audio)
        for name, config in (("vision", vision_config), ("audio", audio_config)):
            if config is None:
                raise ValueError(f"{name} is no Hub id or folder: give its tower's configuration as {name}_config too")
        vision_config = getattr(vision_config, "vision_config", vision_config)
        audio_config = getattr(audio_config, "audio_config", audio_config)
        tokenizer = text_tokenizer_with_tokens(text)

        window, vectors = audio_tower_lengths(audio_config, audio_seconds)
        made = tuple(audio_features(audio, [np.zeros(window, dtype=np.float32)], window).shape[1:])
        if made != (taken := audio_input_shape(audio_config, window)):
            raise ValueError(f"{type(audio).__name__} makes features of shape {made}, its tower takes {taken}")
        vision = fixed_size_image_processor(vision, vision_config)
        frame = pixel_values(vision, [np.zeros((64, 64, 3), dtype=np.uint8)])  # (1, 3, height, width)
        return cls(
            vision,
            audio,
            tokenizer,
            history_tokenizer_with_tokens(history),
            chat_template=tokenizer.get_chat_template(),
            num_frames=num_frames,
            fps=fps,
            video_grid=video_grid(tuple(frame.shape[-2:]), vision_config.patch_size),
            audio_window=window,
            audio_tokens=pooled(vectors, audio_pooling),
            audio_pooling=audio_pooling,
            verbatim_pairs=verbatim_pairs,
            original_sampling=original_sampling,
            square_frames=square_frames,
        )

    @property
    def model_input_names(self) -> list[str]:
        """Keys of a batch that has all modalities."""
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
        return_assistant_tokens_mask: bool = False,
        **kwargs,
    ) -> str | list[str] | list[list[int]] | torch.Tensor | BatchFeature:
        """Render one or more conversations with the chat template and, with `tokenize`, make their tensors.

        Args:
            conversation: messages, or a list of conversations. Contents are strings or lists of blocks as in
                `docs/architecture.md`. Special tokens typed in texts are neutralised by a zero-width space.
            chat_template: instead of the processor's own.
            add_generation_prompt: end with the opening of the assistant's message.
            tokenize: give tensors instead of text.
            return_dict: with `tokenize`, all tensors instead of `input_ids` alone.
            return_tensors: `"pt"`, which pads by default; `None` for lists of ids.
            processor_kwargs: arguments of `__call__`; those for padding may be given flat, too.
            return_assistant_tokens_mask: not supported.
            kwargs: variables of the template.

        Returns:
            The rendered text (a list of them for a list of conversations); or `input_ids`, always with a batch axis; or
            what `__call__` returns.

        Raises:
            ValueError: a block is of unknown type, or a conversation has two history blocks.
            MediaError: a source cannot be used.
        """
        if return_assistant_tokens_mask:
            raise ValueError(
                "there is no assistant mask; mask the prompt by its length, as training/trainers/collator.py does"
            )
        batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        call_kwargs = {name: kwargs.pop(name) for name in _PADDING_ARGUMENTS if name in kwargs}
        sources = Sources()
        flat = [
            flatten(messages, self.tokenizer, sources) for messages in (conversation if batched else [conversation])
        ]
        text = render(
            flat,
            self.tokenizer,
            chat_template=chat_template or self.chat_template,
            add_generation_prompt=add_generation_prompt,
            **kwargs,
        )
        if not tokenize:
            return text if batched else text[0]
        batch = self(
            text=text,
            videos=sources.videos,
            audio=sources.audio,
            history=sources.history,
            return_tensors=return_tensors,
            add_special_tokens=False,  # the template has written them
            **call_kwargs,
            **(processor_kwargs or {}),
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
            text: prompts with one placeholder a video, audio and history block.
            videos: one source a placeholder, in order of appearance over the batch; see [`load_clip`]. A list is one
                source: a timeline. What occurs among the audio, too, is read once.
            audio: as `videos`.
            history: for each prompt a list of utterances `{"speaker", "text"}`, the number of memory slots that the
                caller will give to the model, or `None`.
            return_tensors: `"pt"`, which pads by default, or `None` for lists of ids. Media are tensors either way.
            padding: as in tokenizers.
            padding_side: as in tokenizers.
            pad_to_multiple_of: as in tokenizers.
            add_special_tokens: as in tokenizers; by default unless the prompt begins with them.
            truncation: refused; a prompt cut in two would lose media.
            max_length: refused.

        Raises:
            ValueError: placeholders and sources do not match, or a prompt is too long for the language model.
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
        history = [None] * len(text) if history is None else list(history)
        media = self._load(videos or [], audio or [])
        seen, heard = [media[_key(source)] for source in videos or ()], [media[_key(source)] for source in audio or ()]
        data = {**self._video_inputs(seen), **self._audio_inputs(heard), **self._history_inputs(history)}
        counts = {
            "video": _token_counts(data.get("video_token_mask"), [item.pixels is not None for item in seen]),
            "audio": _token_counts(data.get("audio_token_mask"), [item.waveform is not None for item in heard]),
        }
        text = expand(text, counts, history)
        if add_special_tokens is None:
            add_special_tokens = not (self.tokenizer.bos_token and text[0].startswith(self.tokenizer.bos_token))
        if padding is None:
            padding = return_tensors is not None
        ids = self.tokenizer(
            text,
            add_special_tokens=add_special_tokens,
            padding=padding,
            padding_side=padding_side,
            pad_to_multiple_of=pad_to_multiple_of,
            return_token_type_ids=False,
        )
        self._check(text, ids["input_ids"], ids["attention_mask"])
        return BatchFeature({**BatchFeature(dict(ids), tensor_type=return_tensors), **data})

    def encode_history(self, history: list[list[dict]]) -> dict[str, torch.Tensor]:
        """Utterances for the conversation compressor, each followed by `<MEM>`.

        Args:
            history (`list[list[dict]]`): for each row its utterances `{"speaker", "text"}`.

        Returns:
            `dict`: `history_input_ids` and `history_attention_mask` of shape `(batch, length)`, right-padded.

        Raises:
            ValueError: an utterance has an unknown speaker.
        """
        tokenizer = self.history_tokenizer
        encoded = tokenizer(
            ["".join(neutralise(render_utterance(u), tokenizer) + MEMORY_TOKEN for u in row) for row in history],
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
        """What `MultiMoodForConditionalGeneration.from_backbones` takes from the processor: token ids, turn grammar,
        pooling of the audio, sizes of both vocabularies."""
        return {
            "image_token_id": self.video_token_id,  # the one that TRL knows, and keeps from being generated
            "video_token_id": self.video_token_id,
            "audio_token_id": self.audio_token_id,
            "history_token_id": self.history_token_id,
            "memory_token_id": self.memory_token_id,
            "audio_pooling": self.audio_pooling,
            "turn_grammar": self.turn_grammar(),
            "vocab_size": len(self.tokenizer),
            "history_vocab_size": len(self.history_tokenizer),
            "pad_token_id": self.tokenizer.pad_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
        }

    def turn_grammar(self) -> dict[str, Any]:
        """Token ids of the turn's fixed parts and labels after the generation prompt; see `build_turn_grammar`."""
        prompt = [{"role": "user", "content": "x"}]
        opening = self.apply_chat_template(prompt, add_generation_prompt=True)
        if not self.apply_chat_template([*prompt, {"role": "assistant", "content": "y"}]).startswith(opening + "y"):
            raise ValueError(
                "the chat template writes an answer elsewhere than after its generation prompt; change it"
            )
        return build_turn_grammar(self.tokenizer, opening)

    def _load(self, videos: list, audio: list) -> dict[Any, _Media]:
        """Read each distinct source once, several at a time."""
        seen, heard = {_key(source) for source in videos}, {_key(source) for source in audio}
        sources = {_key(source): source for source in (*videos, *audio)}
        workers = max(1, min(len(sources), torch.get_num_threads()))

        def load(key: Any) -> _Media:
            in_pieces = self.original_sampling and key in seen  # of sound alone it hears all
            clip = load_clip(
                sources[key],
                num_frames=self.num_frames,
                fps=self.fps,
                video=key in seen,
                audio=key in heard,
                max_audio_seconds=LONGEST_CLIP if in_pieces else self.audio_window / SAMPLING_RATE,
                threads=torch.get_num_threads() // workers,
                by_count=self.original_sampling,
            )
            if in_pieces and clip.waveform is not None:
                clip.waveform = sound_pieces(clip.waveform, SAMPLING_RATE)[-self.audio_window :]
            if self.square_frames:
                clip.frames = [pad_to_square(frame, self.image_processor.image_mean) for frame in clip.frames]
            return _Media(pixel_values(self.image_processor, clip.frames) if clip.frames else None, clip.waveform)

        if workers == 1:
            return {key: load(key) for key in sources}
        with ThreadPoolExecutor(workers) as pool:
            return dict(zip(sources, pool.map(load, sources), strict=True))

    def _video_inputs(self, media: list[_Media]) -> dict[str, torch.Tensor]:
        pixels = [item.pixels for item in media if item.pixels is not None]
        if not pixels:
            return {}
        counts = torch.tensor([video_tokens(len(frames), self.video_grid) for frames in pixels])
        # (videos, longest, 3, height, width); a single video is not copied
        videos = pad_sequence(pixels, batch_first=True) if len(pixels) > 1 else pixels[0][None]
        return {
            "pixel_values_videos": videos,
            "video_token_mask": torch.arange(int(counts.max())) < counts[:, None],
        }

    def _audio_inputs(self, media: list[_Media]) -> dict[str, torch.Tensor]:
        waveforms = [item.waveform for item in media if item.waveform is not None]
        if not waveforms:
            return {}
        counts = [valid_audio_tokens(len(waveform), self.audio_window, self.audio_tokens) for waveform in waveforms]
        if self.original_sampling:
            counts = [self.audio_tokens] * len(waveforms)
        return {
            "input_features": audio_features(self.feature_extractor, waveforms, self.audio_window),
            "audio_token_mask": torch.arange(self.audio_tokens) < torch.tensor(counts)[:, None],
        }

    def _history_inputs(self, history: list) -> dict[str, torch.Tensor]:
        rows = [utterances or [] for utterances in history if not isinstance(utterances, int)]
        if not any(rows):
            return {}
        if len(rows) < len(history):
            raise ValueError(
                "some prompts of the batch have utterances as history and others slots; give all the same"
            )
        return self.encode_history(rows)

    def _check(self, text: list[str], input_ids: list[list[int]], attention_mask: list[list[int]]) -> None:
        most = self.tokenizer.model_max_length
        for row, ids, mask in zip(text, input_ids, attention_mask, strict=True):
            for kind, token in PLACEHOLDERS.items():
                if ids.count(getattr(self, f"{kind}_token_id")) != row.count(token):
                    raise ValueError(f"the tokenizer does not keep {token} as one token; add it as a special token")
            if sum(mask) > most:
                raise ValueError(
                    f"the prompt has {sum(mask)} tokens, the language model takes {most}; shorten the text, move older "
                    "utterances to the history block, or use fewer frames"
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
    return str(source) if isinstance(source, (str, os.PathLike)) else id(source)


def _token_counts(mask: torch.Tensor | None, present: list[bool]) -> list[int]:
    """Tokens of each block: those of its row of the mask, or 0 where its source lacks the modality."""
    rows = iter(mask.sum(1).tolist() if mask is not None else ())
    return [next(rows) if there else 0 for there in present]


# `save_pretrained` and `push_to_hub` take the code along, for `trust_remote_code=True` where this package is not.
MultiMoodProcessor.register_for_auto_class()

__all__ = ["MultiMoodProcessor"]
