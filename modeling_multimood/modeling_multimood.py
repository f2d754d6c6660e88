"""MultiMood with its head: from a conversation and a clip to the support turn."""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Cache, GenerationMixin
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import ModelOutput, can_return_tuple

from .backbones import Backbone, build
from .configuration_multimood import MultiMoodConfig
from .conversation_memory import ConversationMemory
from .multimood_model import MEDIA_INPUTS, MultiMoodModel, MultiMoodPreTrainedModel
from .turn_grammar import LabelPredictionMixin

# What `freeze` knows, and the modules of `MultiMoodModel` that it means.
PARTS = {
    "vision": "vision_tower",
    "connector": "connector",
    "audio": "audio_tower",
    "audio_projector": "audio_projector",
    "compressor": "compressor",
    "language_model": "language_model",
}


@dataclass
class MultiMoodCausalLMOutputWithPast(ModelOutput):
    """
    Output of [`MultiMoodForConditionalGeneration`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`): cross-entropy of the next tokens, where `labels` are given.
        logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`)
        past_key_values (`Cache`): where `use_cache` is on.
        hidden_states (`tuple[torch.FloatTensor]`): where `output_hidden_states=True`.
        attentions (`tuple[torch.FloatTensor]`): where `output_attentions=True`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class MultiMoodForConditionalGeneration(LabelPredictionMixin, MultiMoodPreTrainedModel, GenerationMixin):
    """MultiMood with its language modelling head: predicts a support turn, labels and response, token by token."""

    def __init__(self, config: MultiMoodConfig):
        super().__init__(config)
        for name in ("logit_scale", "logits_scaling"):
            if getattr(config.text_config, name, None) not in (None, 1, 1.0):
                raise ValueError(
                    f"A {config.text_config.model_type} scales its logits (`{name}`), which MultiMood's head does not: "
                    "take another language model, for example Qwen, Llama, Gemma or SmolLM."
                )
        self.model = MultiMoodModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        embeddings = self.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()
        # A placeholder that is generated would ask for a feature that is not there.
        placeholders = {config.image_token_id, config.video_token_id, config.audio_token_id, config.history_token_id}
        self.generation_config.suppress_tokens = sorted(placeholders - {None}) or None

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
        """
        Builds a model of pretrained parts; the connector and the projectors are new.

        ```python
        model = MultiMoodForConditionalGeneration.from_backbones(
            vision="google/siglip-so400m-patch14-384",
            audio="openai/whisper-small",
            history="state-spaces/mamba2-370m-hf",
            text="Qwen/Qwen2.5-1.5B-Instruct",
            processor=processor,
        )
        ```

        Args:
            vision (`str`, `os.PathLike` or `PreTrainedConfig`, *optional*): the vision encoder: a Hub id or folder for
                pretrained weights, a configuration for random ones, `None` for a model without. So the next three.
            audio (`str`, `os.PathLike` or `PreTrainedConfig`, *optional*): the audio encoder.
            history (`str`, `os.PathLike` or `PreTrainedConfig`, *optional*): the compressor's reader.
            text (`str`, `os.PathLike` or `PreTrainedConfig`): the causal language model, never `None`.
            processor (`MultiMoodProcessor`, *optional*): its `model_settings()` (token ids, turn grammar, sizes of both
                vocabularies) become the model's. Embeddings grow where a vocabulary needs it, and never shrink.
            freeze (sequence of `str`): parts not to be trained; see `freeze`.
            dtype (`torch.dtype`, *optional*): of all weights; the language model's own by default.
            attn_implementation (`str`, *optional*): `"sdpa"`, `"flash_attention_2"`, …, of towers and language model.
            **config_overrides: other fields of [`MultiMoodConfig`]; they go before the processor's.

        Raises:
            ValueError: without `text`, or for an unknown part in `freeze`.
        """
        if text is None:
            raise ValueError("`text` is missing: a MultiMood model needs a language model.")
        settings = (processor.model_settings() if processor is not None else {}) | config_overrides
        model = build(cls, vision, audio, history, text, dtype, attn_implementation, settings)
        model.freeze(*freeze)
        return model.eval()

    def freeze(self, *parts: str) -> None:
        """
        Takes parts out of training. A frozen tower also stays in evaluation mode. A part that the model has not is
        passed over, so that one recipe fits models with and without audio.

        Args:
            *parts (`str`): of `"vision"`, `"connector"`, `"audio"`, `"audio_projector"`, `"compressor"` and
                `"language_model"`.

        Raises:
            ValueError: for any other name.
        """
        if unknown := [part for part in parts if part not in PARTS]:
            raise ValueError(f"Unknown part(s) to freeze: {', '.join(unknown)}. Known: {', '.join(PARTS)}.")
        for part in parts:
            if (module := getattr(self.model, PARTS[part], None)) is not None:
                module.requires_grad_(False)
        if "language_model" in parts:  # its head is a sibling, and where the weights are tied the embedding itself
            self.lm_head.requires_grad_(False)
        self.train(self.training)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def get_video_features(self, pixel_values_videos: torch.FloatTensor) -> torch.FloatTensor:
        """See [`MultiMoodModel.get_video_features`]."""
        return self.model.get_video_features(pixel_values_videos)

    def get_audio_features(self, input_features: torch.FloatTensor) -> torch.FloatTensor:
        """See [`MultiMoodModel.get_audio_features`]."""
        return self.model.get_audio_features(input_features)

    def encode_video(self, pixel_values_videos: torch.FloatTensor) -> torch.FloatTensor:
        """See [`MultiMoodModel.encode_video`]."""
        return self.model.encode_video(pixel_values_videos)

    def encode_audio(self, input_features: torch.FloatTensor) -> torch.FloatTensor:
        """See [`MultiMoodModel.encode_audio`]."""
        return self.model.encode_audio(input_features)

    def get_history_features(
        self, history_input_ids: torch.LongTensor, history_attention_mask: torch.Tensor | None = None
    ) -> list[torch.FloatTensor]:
        """See [`MultiMoodModel.get_history_features`]."""
        return self.model.get_history_features(history_input_ids, history_attention_mask)

    def new_memory(self, batch_size: int = 1, max_slots: int | None = None) -> ConversationMemory:
        """See [`MultiMoodModel.new_memory`]."""
        return self.model.new_memory(batch_size, max_slots)

    def load_memory(self, path: str | os.PathLike) -> ConversationMemory:
        """See [`MultiMoodModel.load_memory`]."""
        return self.model.load_memory(path)

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
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> MultiMoodCausalLMOutputWithPast:
        """
        Inputs are those of [`MultiMoodModel.forward`] and these: `labels` `(batch_size, sequence_length)`, token ids to
        be predicted, -100 where none is (they are shifted here), and `logits_to_keep`, the number of last positions, or
        the positions, to compute logits for; 0 for all. What else is given goes to the language model and the loss.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values_videos=pixel_values_videos,
            video_tower_features=video_tower_features,
            video_token_mask=video_token_mask,
            input_features=input_features,
            audio_tower_features=audio_tower_features,
            audio_token_mask=audio_token_mask,
            history_input_ids=history_input_ids,
            history_attention_mask=history_attention_mask,
            history_memory=history_memory,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        if (cap := getattr(self.config.text_config, "final_logit_softcapping", None)) is not None:  # Gemma
            logits = torch.tanh(logits / cap) * cap
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

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration=False, **kwargs) -> dict:
        """Feeds the media with the prompt only, and not at all where a cache that was passed has read them."""
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if not kwargs.get("use_cache", True):  # the whole sequence is read again at each step
            if not is_first_iteration and kwargs.get("inputs_embeds") is not None:
                raise ValueError("To generate from embeddings, or several answers to media, takes `use_cache=True`.")
            return model_inputs
        fed = model_inputs.get("input_ids")
        for kind, names in MEDIA_INPUTS.items():
            if not is_first_iteration or self._has_been_read(kind, input_ids, fed):
                for name in names:
                    model_inputs.pop(name, None)
        return model_inputs

    def _has_been_read(self, kind: str, input_ids: torch.LongTensor, fed: torch.LongTensor | None) -> bool:
        """Whether all placeholders of a kind in the prompt lie before what is fed now, the rest of it."""
        token_id = getattr(self.config, f"{kind}_token_id")
        if token_id is None or fed is None or fed.shape[1] == input_ids.shape[1]:
            return False
        is_placeholder = input_ids == token_id
        return bool(is_placeholder.any()) and not bool(is_placeholder[:, -fed.shape[1] :].any())

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """
        For beams and several answers to a prompt, media are encoded once a prompt and go on as embeddings. The first
        dimension of media inputs is the number of clips, which does not repeat with the batch. A cache that has read the
        prompts (of a `TurnOpening`) repeats with them; the one that was passed is left as it is.
        """
        cache = model_kwargs.get("past_key_values")
        if expand_size > 1 and cache is not None and cache.get_seq_length():
            model_kwargs["past_key_values"] = cache = copy.deepcopy(cache)
            cache.batch_repeat_interleave(expand_size)
        names = [name for names in MEDIA_INPUTS.values() for name in names]
        media = {name: model_kwargs.pop(name) for name in names if model_kwargs.get(name) is not None}
        if expand_size > 1 and media:
            media = {
                name: value.to(self.device) if isinstance(value, torch.Tensor) else value
                for name, value in media.items()
            }
            media = {"inputs_embeds": self.model.embed(input_ids.to(self.device), **media)}
        return super()._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
            **media,
        )


# Remote code finds all AutoClasses here.
__all__ = ["MultiMoodConfig", "MultiMoodForConditionalGeneration", "MultiMoodModel", "MultiMoodPreTrainedModel"]
