"""A tiny random model with its processor, whole: what sessions, commands and pages run on in tests."""

from pathlib import Path

import model_builders
import processor_builders
import torch

from multimood.modeling_multimood.modeling_multimood import MultiMoodForConditionalGeneration
from multimood.processors.processing_multimood import MultiMoodProcessor


def tiny_pair(verbatim_pairs: int = 2) -> tuple[MultiMoodForConditionalGeneration, MultiMoodProcessor]:
    """(model in eval mode, processor)"""
    _, vision_config = processor_builders.tiny_vision()
    _, audio_config = processor_builders.tiny_audio()
    processor = processor_builders.tiny_processor()
    processor.verbatim_pairs = verbatim_pairs
    text_config = model_builders.TEXT["qwen2"]()
    # Small random weights, or embeddings that are resized, would hardly tell one token from another.
    text_config.initializer_range = 0.2
    text_config.vocab_size = len(processor.tokenizer)
    torch.manual_seed(0)
    model = MultiMoodForConditionalGeneration.from_backbones(
        vision=vision_config,
        audio=audio_config,
        history=model_builders.HISTORY["mamba2"](),
        text=text_config,
        processor=processor,
    )
    return model.eval(), processor


def save_tiny(folder: Path) -> Path:
    """A checkpoint folder of `tiny_pair`."""
    for part in tiny_pair():
        part.save_pretrained(folder)
    return folder
