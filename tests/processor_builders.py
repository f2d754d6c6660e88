"""Tiny processors for tests, made from nothing."""

import model_builders
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from multimood.modeling_multimood.configuration_beats import BeatsConfig
from multimood.processors.feature_extraction_beats import BeatsFeatureExtractor
from multimood.processors.processing_multimood import MultiMoodProcessor
from multimood.processors.turn import EMOTIONS, PREFIXES, STRATEGIES

CORPUS = [
    *PREFIXES.values(),
    *EMOTIONS,
    *STRATEGIES,
    "You are a therapist who supports the client. Client: I feel sad today. Therapist: How are you doing?",
    "system user assistant Problem: Situation: hello what would you like to talk about",
]


def tiny_tokenizer(vocab_size: int = 600) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|pad|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|endoftext|>")


_SQUARE = {"height": 32, "width": 32}
VISION = {
    "siglip": lambda: (
        transformers.SiglipImageProcessorPil(size=_SQUARE),
        model_builders.VISION["siglip"](),
    ),
    "siglip2": lambda: (
        transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
        model_builders.VISION["siglip2"](),
    ),
    "clip": lambda: (
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size=_SQUARE),
        model_builders.VISION["clip"](),
    ),
    "dinov2": lambda: (
        transformers.BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=_SQUARE),
        model_builders.VISION["dinov2"](),
    ),
}
# Towers whose window is that of real ones, 1 s, where model_builders' is as short as can be.
_LONG = {"conv_kernel": (10, 8, 4), "conv_stride": (5, 8, 4)}
AUDIO = {
    "whisper": lambda: (
        transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1),
        model_builders.AUDIO["whisper"](),
    ),
    **{
        kind: lambda kind=kind: (
            transformers.Wav2Vec2FeatureExtractor(),
            type(config := model_builders.AUDIO[kind]()).from_dict({**config.to_dict(), **_LONG}),
        )
        for kind in ("wav2vec2", "hubert", "wavlm")
    },
    "ast": lambda: (
        transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=100),
        transformers.ASTConfig(num_mel_bins=32, max_length=100, **model_builders.SIZES),
    ),
    "beats": lambda: (
        BeatsFeatureExtractor(chunk_length=1),
        BeatsConfig(
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, patch_embed_dim=16, **model_builders.SIZES
        ),
    ),
}
_WINDOW = {"whisper": None, "ast": None}  # fixed by the tower


def tiny_vision(kind: str = "siglip"):
    """(image processor, vision configuration) of 32 × 32 pixels and patches of 8."""
    return VISION[kind]()


def tiny_audio(kind: str = "whisper"):
    """(feature extractor, audio configuration) with a window of about 1 s."""
    return AUDIO[kind]()


def tiny_processor(vision: str = "siglip", audio: str = "whisper", **settings) -> MultiMoodProcessor:
    """A processor of 4 frames and 1 s of sound; `settings` go to `from_backbones`."""
    image_processor, vision_config = tiny_vision(vision)
    feature_extractor, audio_config = tiny_audio(audio)
    defaults = {
        "history": tiny_tokenizer(400),
        "text": tiny_tokenizer(),
        "num_frames": 4,
        "audio_seconds": _WINDOW.get(audio, 1.0),
        "vision_config": vision_config,
        "audio_config": audio_config,
    }
    return MultiMoodProcessor.from_backbones(
        image_processor,
        feature_extractor,
        **{**defaults, **settings},
    )
