"""Tiny models and hand-made batches for tests, built without the processors."""

import torch
from transformers import Mamba2Config, Qwen2Config, SiglipVisionConfig, WhisperConfig

from multimood.modeling_multimood.configuration_multimood import MultiMoodConfig
from multimood.modeling_multimood.modeling_multimood import MultiMoodForConditionalGeneration

SIZE = 32

VISION = {
    "siglip": lambda: SiglipVisionConfig(
        hidden_size=SIZE,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        vision_use_head=False,
    ),
}
AUDIO = {
    "whisper": lambda: WhisperConfig(
        d_model=SIZE,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        num_mel_bins=16,
        max_source_positions=50,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
}
HISTORY = {
    "mamba2": lambda: Mamba2Config(
        hidden_size=SIZE,
        num_hidden_layers=2,
        vocab_size=64,
        state_size=8,
        num_heads=4,
        head_dim=16,
        n_groups=1,
        expand=2,
        chunk_size=16,
    ),
}
TEXT = {
    "qwen2": lambda: Qwen2Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        tie_word_embeddings=True,
    ),
}
SETTINGS = {
    "image_token_id": 100,
    "video_token_id": 100,
    "audio_token_id": 101,
    "history_token_id": 102,
    "memory_token_id": 60,
}


def tiny_model(settings=None, vision="siglip", audio="whisper", history="mamba2", text="qwen2", seed=0):
    """A random model of about 100k parameters. `settings`: `processor.model_settings()`."""
    settings = dict(SETTINGS if settings is None else settings)
    settings = {name: settings[name] for name in settings if name not in ("vocab_size", "history_vocab_size")}
    known = {"vision": VISION, "audio": AUDIO, "history": HISTORY, "text": TEXT}
    names = {"vision": vision, "audio": audio, "history": history, "text": text}
    configs = {f"{part}_config": known[part][name]() if name else None for part, name in names.items()}
    torch.manual_seed(seed)
    return MultiMoodForConditionalGeneration(MultiMoodConfig(**configs, **settings)).eval()


__all__ = ["SETTINGS", "tiny_model"]
