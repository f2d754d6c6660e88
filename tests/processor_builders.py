"""Tiny processors for tests, made from nothing."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
)

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


def tiny_vision(kind: str = "siglip"):
    """(image processor, vision configuration) with 32 × 32 pixels and patches of 8."""
    size = {"height": 32, "width": 32}
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {
        "siglip": lambda: (
            SiglipImageProcessorPil(size=size),
            SiglipVisionConfig(image_size=32, patch_size=8, **config),
        ),
    }[kind]()


def tiny_audio(kind: str = "whisper"):
    """(feature extractor, audio configuration) with a window of about 1 s."""
    return {
        "whisper": lambda: (
            WhisperFeatureExtractor(feature_size=16, chunk_length=1),
            WhisperConfig(
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
        ),
    }[kind]()


def tiny_processor(vision: str = "siglip", audio: str = "whisper", **settings) -> MultiMoodProcessor:
    """A processor of 4 frames and 1 s of sound; `settings` go to `from_backbones`."""
    image_processor, vision_config = tiny_vision(vision)
    feature_extractor, audio_config = tiny_audio(audio)
    return MultiMoodProcessor.from_backbones(
        image_processor,
        feature_extractor,
        tiny_tokenizer(400),
        tiny_tokenizer(),
        vision_config=vision_config,
        audio_config=audio_config,
        **{"num_frames": 4, **settings},
    )
