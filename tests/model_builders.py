"""Tiny random models of every supported kind of tower, and batches made by hand: no processor needed."""

from dataclasses import dataclass

import torch
import transformers
from transformers import PreTrainedConfig

from multimood.modeling_multimood.configuration_beats import BeatsConfig
from multimood.modeling_multimood.configuration_multimood import MultiMoodConfig
from multimood.modeling_multimood.modeling_multimood import MultiMoodForConditionalGeneration

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_CONVOLUTIONS = {"conv_dim": (16, 16, 16), "conv_kernel": (10, 4, 4), "conv_stride": (5, 4, 4)}
_SPEECH = {**SIZES, **_CONVOLUTIONS, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
_DECODER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}

VISION = {
    "siglip": lambda: transformers.SiglipVisionConfig(image_size=32, patch_size=8, **SIZES),
    "siglip2": lambda: transformers.Siglip2VisionConfig(num_patches=16, patch_size=8, **SIZES),
    "clip": lambda: transformers.CLIPVisionConfig(image_size=32, patch_size=8, **SIZES),
    "dinov2": lambda: transformers.Dinov2Config(image_size=32, patch_size=8, mlp_ratio=2, **SIZES),
    "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersConfig(
        image_size=32, patch_size=8, mlp_ratio=2, **SIZES
    ),
}
AUDIO = {
    "whisper": lambda: transformers.WhisperConfig(
        d_model=32,
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
    "wav2vec2": lambda: transformers.Wav2Vec2Config(**_SPEECH),
    "hubert": lambda: transformers.HubertConfig(**_SPEECH),
    "wavlm": lambda: transformers.WavLMConfig(**_SPEECH),
    "ast": lambda: transformers.ASTConfig(
        patch_size=4, frequency_stride=4, time_stride=4, max_length=32, num_mel_bins=16, **SIZES
    ),
    "beats": lambda: BeatsConfig(
        patch_embed_dim=16,
        num_mel_bins=32,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        **SIZES,
    ),
}
# One sound as the tower takes it, and the vectors it makes of it.
AUDIO_SHAPES = {
    "whisper": ((16, 100), 50),
    "wav2vec2": ((1600,), 19),
    "hubert": ((1600,), 19),
    "wavlm": ((1600,), 19),
    "audio-spectrogram-transformer": ((32, 16), 32),
    "beats": ((64, 32), 8),
}
HISTORY = {
    "mamba2": lambda: transformers.Mamba2Config(
        hidden_size=32,
        num_hidden_layers=2,
        vocab_size=64,
        state_size=8,
        num_heads=4,
        head_dim=16,
        n_groups=1,
        chunk_size=16,
    ),
    "mamba": lambda: transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=8),
    "qwen2": lambda: transformers.Qwen2Config(
        **{**_DECODER, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 64}
    ),
}
TEXT = {
    "qwen2": lambda: transformers.Qwen2Config(**_DECODER),
    "qwen3": lambda: transformers.Qwen3Config(head_dim=16, **_DECODER),
    "llama": lambda: transformers.LlamaConfig(**{**_DECODER, "tie_word_embeddings": False}),
    "gemma2": lambda: transformers.Gemma2Config(head_dim=16, final_logit_softcapping=5.0, **_DECODER),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        head_dim=16, sliding_window=16, layer_types=["sliding_attention", "full_attention"], **_DECODER
    ),
    "smollm3": lambda: transformers.SmolLM3Config(**_DECODER),
}
DEFAULTS = {"vision": "siglip", "audio": "whisper", "history": "mamba2", "text": "qwen2"}
# Each supported kind of each part once, in a model whose other parts are the defaults.
KINDS = [{**DEFAULTS}] + [
    {**DEFAULTS, part: kind}
    for part, kinds in (("vision", VISION), ("audio", AUDIO), ("history", HISTORY), ("text", TEXT))
    for kind in kinds
    if kind != DEFAULTS[part]
]

SETTINGS = {
    "image_token_id": 120,
    "video_token_id": 120,
    "audio_token_id": 121,
    "history_token_id": 122,
    "memory_token_id": 60,
}
WORDS = 100  # ids below are words, in both vocabularies up to MEMORY
NUM_FRAMES = 4
FRAME_SIZE = 32


def kind_name(kinds: dict[str, str]) -> str:
    """A test id for an entry of `KINDS`."""
    return "-".join(f"{part}={kind}" for part, kind in kinds.items() if kind != DEFAULTS[part]) or "defaults"


def tiny_config(settings: dict | None = None, **kinds: str | None) -> MultiMoodConfig:
    """Configuration of `tiny_model`."""
    known = {"vision": VISION, "audio": AUDIO, "history": HISTORY, "text": TEXT}
    parts: dict[str, PreTrainedConfig | None] = {
        f"{part}_config": known[part][kind]() if kind else None for part, kind in {**DEFAULTS, **kinds}.items()
    }
    return MultiMoodConfig(**parts, **{**SETTINGS, "connector_depth": 1, **(settings or {})})


def tiny_model(settings: dict | None = None, seed: int = 0, **kinds: str | None) -> MultiMoodForConditionalGeneration:
    """
    A random model of about 200k parameters, in evaluation mode.

    `settings` are fields of the configuration; `vision`, `audio`, `history` and `text` name a kind of each part, `None`
    leaves it out.
    """
    torch.manual_seed(seed)
    return MultiMoodForConditionalGeneration(tiny_config(settings, **kinds)).eval()


@dataclass(frozen=True)
class Row:
    """What one row of a batch holds. Its contents follow from `seed`, whatever rows stand beside it."""

    seed: int
    videos: int = 1
    audios: int = 1
    utterances: int = 3
    words: int = 6


# Everything, nothing but words, and each medium alone; several clips; a row without words before the media.
MIXED_ROWS = [
    Row(0),
    Row(1, videos=0, audios=0, utterances=0, words=9),
    Row(2, audios=0, utterances=0),
    Row(3, videos=0, utterances=0, words=3),
    Row(4, videos=0, audios=0, utterances=7),
    Row(5, videos=2, audios=2, utterances=1),
]


def tiny_batch(model: MultiMoodForConditionalGeneration, rows: list[Row], padding_side: str = "left") -> dict:
    """What the processor would make of `rows`: see "Tensors" in docs/architecture.md."""
    config = model.config
    prompts, histories, videos, sounds, video_masks, audio_masks = [], [], [], [], [], []
    for row in rows:
        generator = torch.Generator().manual_seed(row.seed)
        prompt = (
            torch.randint(3, WORDS, (2,), generator=generator).tolist() + [config.history_token_id] * row.utterances
        )
        for _ in range(row.videos):
            videos.append(torch.randn(NUM_FRAMES, 3, FRAME_SIZE, FRAME_SIZE, generator=generator))
            video_masks.append(torch.ones((NUM_FRAMES // 2) * (FRAME_SIZE // 16) ** 2, dtype=torch.bool))
            if row.seed % 2:  # the last two frames are padding
                video_masks[-1][-4:] = False
            prompt += [config.video_token_id] * int(video_masks[-1].sum())
        for _ in range(row.audios):
            shape, num_vectors = AUDIO_SHAPES[config.audio_config.model_type]
            sounds.append(torch.randn(shape, generator=generator))
            num_tokens = -(-num_vectors // config.audio_pooling)
            audio_masks.append(torch.arange(num_tokens) < num_tokens - row.seed)  # silence at the end
            prompt += [config.audio_token_id] * int(audio_masks[-1].sum())
        prompts.append(prompt + torch.randint(3, WORDS, (row.words,), generator=generator).tolist())
        histories.append(tiny_history(row.utterances, generator))

    batch = {}
    batch["input_ids"], batch["attention_mask"] = _pad(prompts, padding_side)
    if videos:
        batch["pixel_values_videos"], batch["video_token_mask"] = torch.stack(videos), torch.stack(video_masks)
    if sounds:
        batch["input_features"], batch["audio_token_mask"] = torch.stack(sounds), torch.stack(audio_masks)
    if any(histories):
        batch["history_input_ids"], batch["history_attention_mask"] = _pad(histories, "right")
    return batch


def tiny_history(utterances: int, generator: torch.Generator) -> list[int]:
    """Ids of so many utterances of 1 to 9 words, each with its `<MEM>`."""
    memory_token_id, ids = SETTINGS["memory_token_id"], []
    for _ in range(utterances):
        length = int(torch.randint(1, 10, (), generator=generator))
        ids += [*torch.randint(3, memory_token_id, (length,), generator=generator).tolist(), memory_token_id]
    return ids


def _pad(rows: list[list[int]], side: str) -> tuple[torch.LongTensor, torch.LongTensor]:
    length = max(map(len, rows))
    ids = [[0] * (length - len(row)) + row if side == "left" else row + [0] * (length - len(row)) for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    mask = mask if side == "left" else [row[::-1] for row in mask]
    return torch.tensor(ids), torch.tensor(mask)
