"""MultiMood: video, sound, words and the memory of earlier talk, joined in one language model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import ModelOutput, can_return_tuple

from .backbones import Backbone, backbone_config, load_encoder, load_language_model
from .compressor import ConversationCompressor
from .configuration_multimood import MultiMoodConfig
from .connector import AudioProjector, SpatioTemporalConvConnector
from .conversation_memory import ConversationMemory
from .towers import AudioTower, VisionTower

# Inputs that `generate` feeds once, with the prompt, and the placeholder that stands for each.
MEDIA_INPUTS = {
    "video": ("pixel_values_videos", "video_token_mask"),
    "audio": ("input_features", "audio_token_mask"),
    "history": ("history_input_ids", "history_attention_mask", "history_memory"),
}


@dataclass
class MultiMoodModelOutputWithPast(ModelOutput):
    """Output of [`MultiMoodModel`]: the language model's."""

    last_hidden_state: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class MultiMoodCausalLMOutputWithPast(ModelOutput):
    """Output of [`MultiMoodForConditionalGeneration`]."""

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class MultiMoodPreTrainedModel(PreTrainedModel):
    config_class = MultiMoodConfig
    base_model_prefix = "model"
    input_modalities = ("video", "audio", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ("past_key_values",)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True


class MultiMoodModel(MultiMoodPreTrainedModel):
    def __init__(self, config: MultiMoodConfig):
        super().__init__(config)
        text_size = config.text_config.hidden_size
        if config.vision_config is not None:
            self.vision_tower = VisionTower(config.vision_config, config.vision_feature_layer)
            self.connector = SpatioTemporalConvConnector(
                config.vision_config.hidden_size, text_size, config.connector_depth
            )
        if config.audio_config is not None:
            self.audio_tower = AudioTower(config.audio_config)
            self.audio_projector = AudioProjector(config.audio_config.hidden_size, text_size, config.audio_pooling)
        if config.history_config is not None:
            self.compressor = ConversationCompressor(config.history_config, text_size, config.memory_token_id)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def get_video_features(self, pixel_values_videos: torch.FloatTensor) -> torch.FloatTensor:
        num_videos, num_frames = pixel_values_videos.shape[:2]
        features = self.vision_tower(pixel_values_videos.flatten(0, 1))  # (N·T, H, W, D)
        return self.connector(features.unflatten(0, (num_videos, num_frames)))

    def get_audio_features(self, input_features: torch.FloatTensor) -> torch.FloatTensor:
        return self.audio_projector(self.audio_tower(input_features))

    def get_history_features(
        self, history_input_ids: torch.LongTensor, history_attention_mask: torch.Tensor | None = None
    ) -> list[torch.FloatTensor]:
        return self.compressor(history_input_ids, history_attention_mask)

    def new_memory(self, batch_size: int = 1, max_slots: int | None = None) -> ConversationMemory:
        return ConversationMemory(self.compressor, batch_size, max_slots)

    def _scatter(self, inputs_embeds, input_ids, token_id, features, name):
        is_placeholder = input_ids == token_id
        count = int(is_placeholder.sum())
        found = 0 if features is None else len(features)
        if count != found:
            raise ValueError(
                f"The prompt has {count} {name} placeholders (id {token_id}) for {found} {name} features."
            )
        if not count:
            return inputs_embeds
        features = features.to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(is_placeholder[..., None], features)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_token_mask: torch.BoolTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        audio_token_mask: torch.BoolTensor | None = None,
        history_input_ids: torch.LongTensor | None = None,
        history_attention_mask: torch.Tensor | None = None,
        history_memory: ConversationMemory | Sequence[torch.FloatTensor] | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> MultiMoodModelOutputWithPast:
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
            video = audio = history = None
            if pixel_values_videos is not None:
                video = self.get_video_features(pixel_values_videos)
                video = video.flatten(0, 1) if video_token_mask is None else video[video_token_mask]
            if input_features is not None:
                audio = self.get_audio_features(input_features)
                audio = audio.flatten(0, 1) if audio_token_mask is None else audio[audio_token_mask]
            if history_memory is not None:
                history_memory = getattr(history_memory, "vectors", history_memory)
                history = torch.cat(list(history_memory))
            elif history_input_ids is not None:
                history = torch.cat(self.get_history_features(history_input_ids, history_attention_mask))
            inputs_embeds = self._scatter(inputs_embeds, input_ids, self.config.video_token_id, video, "video")
            inputs_embeds = self._scatter(inputs_embeds, input_ids, self.config.audio_token_id, audio, "audio")
            inputs_embeds = self._scatter(inputs_embeds, input_ids, self.config.history_token_id, history, "history")
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


class MultiMoodForConditionalGeneration(MultiMoodPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MultiMoodConfig):
        super().__init__(config)
        self.model = MultiMoodModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_backbones(
        cls,
        vision: Backbone | None = None,
        audio: Backbone | None = None,
        history: Backbone | None = None,
        text: Backbone | None = None,
        processor=None,
        freeze: Sequence[str] = ("vision", "audio"),
        dtype: torch.dtype | None = None,
        attn_implementation: str | None = None,
        **config_overrides,
    ) -> "MultiMoodForConditionalGeneration":
        settings = processor.model_settings() | config_overrides if processor is not None else config_overrides
        vocab_size = settings.pop("vocab_size", None)
        history_vocab_size = settings.pop("history_vocab_size", None)
        generation_ids = {name: settings.pop(name) for name in ("pad_token_id", "eos_token_id") if name in settings}

        language_model = load_language_model(text, dtype or "auto", attn_implementation=attn_implementation)
        dtype = language_model.dtype
        sources = {"vision": vision, "audio": audio, "history": history}
        configs = {f"{part}_config": source and backbone_config(source, part) for part, source in sources.items()}
        config = MultiMoodConfig(**configs, text_config=language_model.config, dtype=dtype, **settings)
        with torch.device("meta"):  # the backbones come with their weights; the new parts are made anew below
            model = cls(config)
        inner = model.model
        inner.language_model = language_model.get_decoder()
        model.lm_head = language_model.get_output_embeddings()
        new_parts = []
        if vision is not None:
            inner.vision_tower.encoder = load_encoder(vision, "vision", dtype, attn_implementation=attn_implementation)
            new_parts.append(inner.connector)
        if audio is not None:
            inner.audio_tower.encoder = load_encoder(audio, "audio", dtype, attn_implementation=attn_implementation)
            new_parts.append(inner.audio_projector)
        if history is not None:
            inner.compressor.reader = load_encoder(history, "history", dtype, attn_implementation="eager")
            new_parts.append(inner.compressor.projector)
        for part in new_parts:
            part.to_empty(device="cpu").to(dtype)
            part.apply(model._init_weights)
        model.post_init()

        if vocab_size is not None and vocab_size > config.text_config.vocab_size:
            model.resize_token_embeddings(vocab_size)
        if history is not None and history_vocab_size is not None:
            if history_vocab_size > config.history_config.vocab_size:
                inner.compressor.reader.resize_token_embeddings(history_vocab_size)
        for name, value in generation_ids.items():
            setattr(model.generation_config, name, value)
        placeholders = {config.image_token_id, config.video_token_id, config.audio_token_id, config.history_token_id}
        model.generation_config.suppress_tokens = sorted(placeholders - {None}) or None
        model.freeze(*freeze)
        return model.eval()

    def freeze(self, *parts: str) -> None:
        modules = {
            "vision": "vision_tower",
            "connector": "connector",
            "audio": "audio_tower",
            "audio_projector": "audio_projector",
            "compressor": "compressor",
            "language_model": "language_model",
        }
        for part in parts:
            if part not in modules:
                raise ValueError(f"Unknown part {part!r}: choose from {', '.join(modules)}.")
            if (module := getattr(self.model, modules[part], None)) is not None:
                module.requires_grad_(False)
        self.train(self.training)

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def new_memory(self, batch_size: int = 1, max_slots: int | None = None) -> ConversationMemory:
        return self.model.new_memory(batch_size, max_slots)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_token_mask: torch.BoolTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        audio_token_mask: torch.BoolTensor | None = None,
        history_input_ids: torch.LongTensor | None = None,
        history_attention_mask: torch.Tensor | None = None,
        history_memory: ConversationMemory | Sequence[torch.FloatTensor] | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> MultiMoodCausalLMOutputWithPast:
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values_videos=pixel_values_videos,
            video_token_mask=video_token_mask,
            input_features=input_features,
            audio_token_mask=audio_token_mask,
            history_input_ids=history_input_ids,
            history_attention_mask=history_attention_mask,
            history_memory=history_memory,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return MultiMoodCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration=False, **kwargs):
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for names in MEDIA_INPUTS.values():
                for name in names:
                    model_inputs.pop(name, None)
        return model_inputs


__all__ = ["MultiMoodForConditionalGeneration", "MultiMoodModel", "MultiMoodPreTrainedModel"]
