"""Builds a MultiMood model of four backbones, each from a Hub id, a folder or a configuration."""

import copy
import os
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .configuration_multimood import MultiMoodConfig
from .mamba_scan import with_exact_scan

if TYPE_CHECKING:
    from .modeling_multimood import MultiMoodForConditionalGeneration

Backbone = str | os.PathLike | PreTrainedConfig


def backbone_config(source: Backbone, part: str) -> PreTrainedConfig:
    """
    The configuration of one part of a checkpoint.

    Args:
        source (`str`, `os.PathLike` or `PreTrainedConfig`): Hub id, folder or configuration.
        part (`str`): `"vision"`, `"audio"`, `"history"` or `"text"`. Of a checkpoint with several towers (CLIP, SigLIP,
            a vision-language model), the one of this name is taken.
    """
    is_config = isinstance(source, PreTrainedConfig)
    config = copy.deepcopy(source) if is_config else AutoConfig.from_pretrained(source)
    return getattr(config, f"{part}_config", config)


def load_encoder(
    source: Backbone, part: str, dtype: torch.dtype, attn_implementation: str | None = None
) -> PreTrainedModel:
    """A vision, audio or history backbone; random where `source` is a configuration."""
    config = backbone_config(source, part)
    if isinstance(source, PreTrainedConfig):
        model = AutoModel.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
    else:
        model = AutoModel.from_pretrained(source, config=config, dtype=dtype, attn_implementation=attn_implementation)
    return model.get_encoder() if config.is_encoder_decoder else model


def load_language_model(
    source: Backbone, dtype: torch.dtype | None, attn_implementation: str | None = None
) -> PreTrainedModel:
    """A causal language model with its head; random where `source` is a configuration."""
    config = backbone_config(source, "text")
    if isinstance(source, PreTrainedConfig):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
    return AutoModelForCausalLM.from_pretrained(
        source, config=config, dtype=dtype or "auto", attn_implementation=attn_implementation
    )


def build(
    model_class: type["MultiMoodForConditionalGeneration"],
    vision: Backbone | None,
    audio: Backbone | None,
    history: Backbone | None,
    text: Backbone,
    dtype: torch.dtype | None,
    attn_implementation: str | None,
    settings: dict,
) -> "MultiMoodForConditionalGeneration":
    """The work of `MultiMoodForConditionalGeneration.from_backbones`, which says what the arguments are."""
    settings = dict(settings)
    vocab_size = settings.pop("vocab_size", 0)
    history_vocab_size = settings.pop("history_vocab_size", 0)
    generation_ids = {name: settings.pop(name) for name in ("pad_token_id", "eos_token_id") if name in settings}

    language_model = load_language_model(text, dtype, attn_implementation)
    dtype = language_model.dtype
    vision_tower = load_encoder(vision, "vision", dtype, attn_implementation) if vision is not None else None
    audio_tower = load_encoder(audio, "audio", dtype, attn_implementation) if audio is not None else None
    reader = load_encoder(history, "history", dtype, "eager") if history is not None else None
    config = MultiMoodConfig(
        vision_config=vision_tower and vision_tower.config,
        audio_config=audio_tower and audio_tower.config,
        history_config=reader and reader.config,
        text_config=language_model.config,
        dtype=dtype,
        **settings,
    )
    with torch.device("meta"):  # only the new parts are given memory below; the backbones bring their own
        model = model_class(config)
    inner, new_parts = model.model, []
    inner.language_model, model.lm_head = language_model.get_decoder(), language_model.get_output_embeddings()
    if vision_tower is not None:
        inner.vision_tower = vision_tower
        new_parts.append(inner.connector)
    if audio_tower is not None:
        inner.audio_tower = audio_tower
        new_parts.append(inner.audio_projector)
    if reader is not None:
        inner.compressor.reader = with_exact_scan(reader)
        new_parts += [part for part in inner.compressor.children() if part is not reader]
    for part in new_parts:
        part.to_empty(device="cpu").to(dtype).apply(model._init_weights)
    # What the composite model knows of its parts (weights to tie, modules not to split, …) is now the backbones'.
    inner.post_init()
    model.post_init()

    if vocab_size > config.text_config.vocab_size:
        model.resize_token_embeddings(vocab_size)
    if reader is not None and history_vocab_size > config.history_config.vocab_size:
        reader.resize_token_embeddings(history_vocab_size)

    # The language model's own sampling settings stay; what a turn must not contain is the composite model's.
    language_model.generation_config.suppress_tokens = model.generation_config.suppress_tokens
    model.generation_config = language_model.generation_config
    for name, token_ids in generation_ids.items():
        setattr(model.generation_config, name, token_ids)
    return model


__all__ = ["Backbone", "backbone_config", "build", "load_encoder", "load_language_model"]
