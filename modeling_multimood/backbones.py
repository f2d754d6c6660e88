"""Loads the four backbones of a MultiMood model, each from a Hub id, a folder or a configuration."""

import os

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

Backbone = str | os.PathLike | PreTrainedConfig


def backbone_config(source: Backbone, part: str) -> PreTrainedConfig:
    """
    The configuration of one part of a checkpoint.

    Args:
        source (`str`, `os.PathLike` or `PreTrainedConfig`)
        part (`str`): `"vision"`, `"audio"`, `"history"` or `"text"`. Where the checkpoint is of several towers (CLIP,
            SigLIP, a vision-language model), the one that is asked for is taken.
    """
    config = source if isinstance(source, PreTrainedConfig) else AutoConfig.from_pretrained(source)
    return getattr(config, f"{part}_config", config)


def load_encoder(source: Backbone, part: str, dtype: torch.dtype, **kwargs) -> PreTrainedModel:
    """A vision, audio or history backbone, random where `source` is a configuration."""
    config = backbone_config(source, part)
    if isinstance(source, PreTrainedConfig):
        model = AutoModel.from_config(config, dtype=dtype, **kwargs)
    else:
        model = AutoModel.from_pretrained(source, config=config, dtype=dtype, **kwargs)
    return model.get_encoder() if config.is_encoder_decoder else model


def load_language_model(source: Backbone, dtype: torch.dtype | str, **kwargs) -> PreTrainedModel:
    """The causal language model with its head, random where `source` is a configuration."""
    config = backbone_config(source, "text")
    if isinstance(source, PreTrainedConfig):
        return AutoModelForCausalLM.from_config(config, dtype=None if dtype == "auto" else dtype, **kwargs)
    return AutoModelForCausalLM.from_pretrained(source, config=config, dtype=dtype, **kwargs)


__all__ = ["Backbone", "backbone_config", "load_encoder", "load_language_model"]
