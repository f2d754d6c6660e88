"""The trunk of MultiMood: video, sound, words and the memory of earlier talk, joined in one language model."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, Cache, PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from .compressor import ConversationCompressor
from .configuration_multimood import MultiMoodConfig
from .connector import AudioProjector, SpatioTemporalConvConnector
from .conversation_memory import ConversationMemory
from .modeling_beats import BeatsModel  # noqa: F401 (registers the model type "beats")
from .sharding import blank_frames, blank_sound, is_sharded
from .towers import encode_frames, encode_sound

# Inputs that `generate` feeds once, with the prompt, by the placeholder that stands for them.
MEDIA_INPUTS = {
    "video": ("pixel_values_videos", "video_tower_features", "video_token_mask"),
    "audio": ("input_features", "audio_tower_features", "audio_token_mask"),
    "history": ("history_input_ids", "history_attention_mask", "history_memory"),
}


@dataclass
class MultiMoodModelOutputWithPast(ModelOutput):
    """
    Output of [`MultiMoodModel`], all of it the language model's.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`)
        past_key_values (`Cache`): where `use_cache` is on.
        hidden_states (`tuple[torch.FloatTensor]`): where `output_hidden_states=True`.
        attentions (`tuple[torch.FloatTensor]`): where `output_attentions=True`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class MultiMoodPreTrainedModel(PreTrainedModel):
    """What [`MultiMoodModel`] and [`MultiMoodForConditionalGeneration`] share: loading, saving, what is supported."""

    config_class = MultiMoodConfig
    base_model_prefix = "model"
    input_modalities = ("video", "audio", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ("RegNetBlock",)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs) -> None:
        """As ever, but a single name is not meant for the compressor, since Mamba refuses any other than "eager"."""
        if isinstance(attn_implementation, str):
            parts = {"", *self.config.sub_configs} - {"history_config"}
            attn_implementation = dict.fromkeys(parts, attn_implementation)
        super().set_attn_implementation(attn_implementation, **kwargs)


class MultiMoodModel(MultiMoodPreTrainedModel):
    """
    The towers, what projects their features to the language model's width, and the language model without its head.

    A part whose configuration is `None` is absent: a model may do without video, audio or history.
    """

    def __init__(self, config: MultiMoodConfig):
        super().__init__(config)
        for part, token in (
            ("vision_config", "video_token_id"),
            ("audio_config", "audio_token_id"),
            ("history_config", "history_token_id"),
            ("history_config", "memory_token_id"),
        ):
            if getattr(config, part) is not None and getattr(config, token) is None:
                raise ValueError(
                    f"A model with a `{part}` needs `{token}`; the processor's `model_settings()` has it."
                )
        text_size = config.text_config.hidden_size
        if config.vision_config is not None:
            self.vision_tower = AutoModel.from_config(config.vision_config)
            self.connector = SpatioTemporalConvConnector(
                config.vision_config.hidden_size, text_size, config.connector_depth
            )
        if config.audio_config is not None:
            audio = AutoModel.from_config(config.audio_config)
            self.audio_tower = audio.get_encoder() if config.audio_config.is_encoder_decoder else audio
            self.audio_projector = AudioProjector(config.audio_config.hidden_size, text_size, config.audio_pooling)
        if config.history_config is not None:
            self.compressor = ConversationCompressor(
                config.history_config, text_size, config.memory_token_id, config.memory_pooling
            )
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def train(self, mode: bool = True) -> "MultiMoodModel":
        """As ever, but a tower whose parameters are all frozen stays in evaluation mode: no dropout, no masking."""
        super().train(mode)
        for name in ("vision_tower", "audio_tower"):
            if (tower := getattr(self, name, None)) is not None:
                tower.train(mode and _is_trained(tower))
        return self

    def _part(self, name: str, inputs: str) -> nn.Module:
        if (module := getattr(self, name, None)) is None:
            raise ValueError(
                f"`{inputs}` needs the part `{name}`, which this model has not: leave it out, or build one with it."
            )
        return module

    def get_video_features(self, pixel_values_videos: torch.FloatTensor) -> torch.FloatTensor:
        """
        Encodes and projects videos. Argument and errors as in `encode_video`.

        Returns:
            `torch.FloatTensor` of shape `(num_videos, video_tokens, hidden_size)`, time-major.
        """
        features = self.encode_video(pixel_values_videos)
        return self.connector(features)

    def encode_video(self, pixel_values_videos: torch.FloatTensor) -> torch.FloatTensor:
        """
        The vision tower's part of the work, which need be done but once for a clip while the tower is frozen.

        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(num_videos, num_frames, 3, height, width)`): frames as
                the vision tower's image processor makes them.

        Returns:
            `torch.FloatTensor` of shape `(num_videos, num_frames, grid_height, grid_width, vision_hidden_size)`.

        Raises:
            ValueError: if the shape is another, or the model has no vision tower.
        """
        vision_tower = self._part("vision_tower", "pixel_values_videos")
        if pixel_values_videos.ndim != 5:
            raise ValueError(
                "`pixel_values_videos` must have the shape (videos, frames, 3, height, width), got "
                f"{tuple(pixel_values_videos.shape)}."
            )
        num_videos, num_frames = pixel_values_videos.shape[:2]
        frames = pixel_values_videos.flatten(0, 1)  # (N · T, 3, height, width)
        with _grad_if_needed(vision_tower, frames):
            features = encode_frames(
                vision_tower, frames, self.config.vision_feature_layer
            )  # (N · T, rows, columns, D)
        return features.unflatten(0, (num_videos, num_frames))

    def get_audio_features(self, input_features: torch.FloatTensor) -> torch.FloatTensor:
        """
        Encodes and projects sound. Argument and errors as in `encode_audio`.

        Returns:
            `torch.FloatTensor` of shape `(num_audios, audio_tokens, hidden_size)`, in the order of time.
        """
        features = self.encode_audio(input_features)
        return self.audio_projector(features)

    def encode_audio(self, input_features: torch.FloatTensor) -> torch.FloatTensor:
        """
        The audio tower's part of the work, as `encode_video`.

        Args:
            input_features (`torch.FloatTensor` of shape `(num_audios, …)`): what the audio tower's feature extractor
                makes, padded to its full window.

        Returns:
            `torch.FloatTensor` of shape `(num_audios, num_vectors, audio_hidden_size)`, in the order of time.

        Raises:
            ValueError: if the model has no audio tower.
        """
        audio_tower = self._part("audio_tower", "input_features")
        with _grad_if_needed(audio_tower, input_features):
            return encode_sound(audio_tower, input_features)

    def get_history_features(
        self, history_input_ids: torch.LongTensor, history_attention_mask: torch.Tensor | None = None
    ) -> list[torch.FloatTensor]:
        """
        Compresses earlier utterances; see [`ConversationCompressor`].

        Args:
            history_input_ids (`torch.LongTensor` of shape `(batch_size, history_length)`): right-padded, with one
                `<MEM>` after each utterance.
            history_attention_mask (`torch.Tensor` of shape `(batch_size, history_length)`, *optional*): 0 at padding.

        Returns:
            `list[torch.FloatTensor]`: for each row `(utterances, hidden_size)`.

        Raises:
            ValueError: if the model has no compressor, or the history is padded on the left.
        """
        return self._part("compressor", "history_input_ids")(history_input_ids, history_attention_mask)

    def embed(
        self,
        input_ids: torch.LongTensor,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_tower_features: torch.FloatTensor | None = None,
        video_token_mask: torch.BoolTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        audio_tower_features: torch.FloatTensor | None = None,
        audio_token_mask: torch.BoolTensor | None = None,
        history_input_ids: torch.LongTensor | None = None,
        history_attention_mask: torch.Tensor | None = None,
        history_memory: ConversationMemory | Sequence[torch.FloatTensor] | None = None,
        take_part: bool = True,
    ) -> torch.FloatTensor:
        """
        Embeds a prompt, with the features of its media in the places of their placeholders. Arguments and errors as in
        `forward`, and this: where parameters are spread over processes (FSDP, DeepSpeed), a part that gets no input here
        reads a blank one if `take_part` is set, since other processes may have clips, and all must run the same parts.
        Nothing of it enters the embeddings, and its gradients are zeros.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`.
        """
        _given_once(pixel_values_videos=pixel_values_videos, video_tower_features=video_tower_features)
        _given_once(input_features=input_features, audio_tower_features=audio_tower_features)
        _given_once(history_input_ids=history_input_ids, history_memory=history_memory)
        video = audio = history = None
        blanks = []  # features of blank inputs; in the same order on all processes, as their collectives are
        take_part = take_part and is_sharded(self)
        if pixel_values_videos is not None:
            video = self.get_video_features(pixel_values_videos)
        elif video_tower_features is not None:
            video = self._part("connector", "video_tower_features")(video_tower_features)
        elif take_part and self.config.vision_config is not None:
            blanks.append(self.get_video_features(blank_frames(self.config.vision_config, input_ids.device)))
        if video is not None:
            video = _select(video, video_token_mask, "video_token_mask")
        if input_features is not None:
            audio = self.get_audio_features(input_features)
        elif audio_tower_features is not None:
            audio = self._part("audio_projector", "audio_tower_features")(audio_tower_features)
        elif take_part and self.config.audio_config is not None:
            blanks.append(self.get_audio_features(blank_sound(self.config.audio_config, input_ids.device)))
        if audio is not None:
            audio = _select(audio, audio_token_mask, "audio_token_mask")
        if history_memory is not None:
            history = list(getattr(history_memory, "vectors", history_memory))
        elif history_input_ids is not None:
            history = self.get_history_features(history_input_ids, history_attention_mask)
        elif take_part and self.config.history_config is not None:
            blanks += self.get_history_features(torch.full_like(input_ids[:1, :1], self.config.memory_token_id))
        if history is not None:
            self._check_history(input_ids, [len(vectors) for vectors in history])
            history = torch.cat(history)

        inputs_embeds = self.get_input_embeddings()(self._words(input_ids))
        for kind, features in (("video", video), ("audio", audio), ("history", history)):
            inputs_embeds = self._scatter(inputs_embeds, input_ids, kind, features)
        for features in blanks:
            inputs_embeds = inputs_embeds + features[:0].sum()  # exactly 0, whatever the features are
        return inputs_embeds

    def _words(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        """Some word in each placeholder's stead: features take their places, so they need no row of the embeddings."""
        for kind in MEDIA_INPUTS:
            if (token_id := getattr(self.config, f"{kind}_token_id")) is not None:
                input_ids = input_ids.masked_fill(input_ids == token_id, 0)
        return input_ids

    def _check_history(self, input_ids: torch.LongTensor, slots: list[int]) -> None:
        """Each row has as many placeholders as memory vectors: a sum that fits might mix two people's pasts."""
        placeholders = (input_ids == self.config.history_token_id).sum(1).tolist()
        if placeholders != slots:
            raise ValueError(
                f"The rows of the prompt have {placeholders} history placeholders (id {self.config.history_token_id}) "
                f"for {slots} memory vectors."
            )

    def _scatter(
        self, inputs_embeds: torch.Tensor, input_ids: torch.LongTensor, kind: str, features: torch.Tensor | None
    ) -> torch.Tensor:
        """`inputs_embeds` `(B, L, D)` with `features` `(n, D)` in the places of the `n` placeholders, in their order."""
        token_id = getattr(self.config, f"{kind}_token_id")
        if token_id is None:
            return inputs_embeds
        is_placeholder = input_ids == token_id
        num_placeholders = int(is_placeholder.sum())
        num_features = 0 if features is None else len(features)
        if num_placeholders != num_features:
            missing = f" None of {', '.join(MEDIA_INPUTS[kind])} was passed." if features is None else ""
            raise ValueError(
                f"The prompt has {num_placeholders} {kind} placeholders (id {token_id}) for {num_features} {kind} "
                f"features; make both with the same processor.{missing}"
            )
        if not num_features:
            return inputs_embeds
        is_placeholder = is_placeholder.unsqueeze(-1).to(inputs_embeds.device)
        return inputs_embeds.masked_scatter(is_placeholder, features.to(inputs_embeds))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_tower_features: torch.FloatTensor | None = None,
        video_token_mask: torch.BoolTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        audio_tower_features: torch.FloatTensor | None = None,
        audio_token_mask: torch.BoolTensor | None = None,
        history_input_ids: torch.LongTensor | None = None,
        history_attention_mask: torch.Tensor | None = None,
        history_memory: ConversationMemory | Sequence[torch.FloatTensor] | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> MultiMoodModelOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                The prompt, with one placeholder for each feature vector of its media.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                0 at padding, which may be on either side.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Positions of the tokens.
            past_key_values (`Cache`, *optional*):
                The language model's state after what came before `input_ids`.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                In place of `input_ids` and all media, e.g. from `embed`.
            pixel_values_videos (`torch.FloatTensor` of shape `(num_videos, num_frames, 3, height, width)`, *optional*):
                The batch's videos in the order in which they appear.
            video_tower_features (`torch.FloatTensor`, *optional*):
                What `encode_video` made of them, in their place.
            video_token_mask (`torch.BoolTensor` of shape `(num_videos, video_tokens)`, *optional*):
                Which of the connector's outputs have a placeholder; all by default.
            input_features (`torch.FloatTensor` of shape `(num_audios, …)`, *optional*):
                The batch's sounds in the order in which they appear, each padded to the audio tower's window.
            audio_tower_features (`torch.FloatTensor`, *optional*):
                What `encode_audio` made of them, in their place.
            audio_token_mask (`torch.BoolTensor` of shape `(num_audios, audio_tokens)`, *optional*):
                Which of the audio projector's outputs have a placeholder; all by default.
            history_input_ids (`torch.LongTensor` of shape `(batch_size, history_length)`, *optional*):
                Earlier utterances, right-padded, with one `<MEM>` after each.
            history_attention_mask (`torch.Tensor` of shape `(batch_size, history_length)`, *optional*):
                0 at padding.
            history_memory ([`ConversationMemory`] or one tensor `(slots, hidden_size)` a row, *optional*):
                In place of `history_input_ids`.
            use_cache (`bool`, *optional*):
                Whether `past_key_values` are returned.
            **kwargs: passed on to the language model.

        Raises:
            ValueError: if placeholders and features differ in number (for the history row by row), a mask has not the
                shape of its features, media come for a part that the model has not, or not exactly one of `input_ids`
                and `inputs_embeds` is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        media = {
            "pixel_values_videos": pixel_values_videos,
            "video_tower_features": video_tower_features,
            "video_token_mask": video_token_mask,
            "input_features": input_features,
            "audio_tower_features": audio_tower_features,
            "audio_token_mask": audio_token_mask,
            "history_input_ids": history_input_ids,
            "history_attention_mask": history_attention_mask,
            "history_memory": history_memory,
        }
        if inputs_embeds is None:
            # After the prompt no process has media any more.
            reads_on = past_key_values is not None and past_key_values.get_seq_length() > 0
            inputs_embeds = self.embed(input_ids, **media, take_part=not reads_on)
        elif given := [name for name, value in media.items() if value is not None]:
            raise ValueError(
                f"`inputs_embeds` must hold the media's features already; got {', '.join(given)} as well."
            )
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return MultiMoodModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def new_memory(self, batch_size: int = 1, max_slots: int | None = None) -> ConversationMemory:
        """An empty [`ConversationMemory`] for `batch_size` conversations of at most `max_slots` vectors each."""
        return ConversationMemory(self._part("compressor", "new_memory"), batch_size, max_slots)

    def load_memory(self, path: str | os.PathLike) -> ConversationMemory:
        """The memory that [`ConversationMemory.save`] wrote to `path` with this model."""
        return ConversationMemory.load(path, self._part("compressor", "load_memory"))


def _is_trained(tower: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in tower.parameters())


def _grad_if_needed(tower: nn.Module, inputs: torch.Tensor) -> torch.set_grad_enabled:
    """
    No gradients through a frozen tower. None would be asked for, but `enable_input_require_grads` (PEFT with gradient
    checkpointing) makes the towers' embeddings ask, and all of the tower's activations would be kept.
    """
    return torch.set_grad_enabled(torch.is_grad_enabled() and (_is_trained(tower) or inputs.requires_grad))


def _given_once(**inputs) -> None:
    """Two forms of one thing would leave it open which counts."""
    if all(value is not None for value in inputs.values()):
        raise ValueError(f"Give {' or '.join(f'`{name}`' for name in inputs)}, not both.")


def _select(features: torch.Tensor, token_mask: torch.Tensor | None, name: str) -> torch.Tensor:
    """Features `(N, tokens, D)` → those that have a placeholder, `(n, D)`."""
    if token_mask is None:
        return features.flatten(0, 1)
    if token_mask.shape != features.shape[:2]:
        raise ValueError(
            f"`{name}` has the shape {tuple(token_mask.shape)}, but the model makes {features.shape[1]} tokens of each of "
            f"{features.shape[0]} clips; the processor and the model have different settings."
        )
    return features[token_mask.to(features.device, torch.bool)]


__all__ = ["MEDIA_INPUTS", "MultiMoodModel", "MultiMoodPreTrainedModel"]
