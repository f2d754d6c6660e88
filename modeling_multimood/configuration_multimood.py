"""Configuration of MultiMood: four backbones, the token ids that join them, and the connectors' settings."""

import os
import shutil
from pathlib import Path
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_beats import BeatsConfig  # noqa: F401 (registers the model type "beats")

# Which class of the code beside the weights each AutoClass takes with `trust_remote_code=True`. All are taken from one
# file: transformers gives each file that is named here its own copy of what it imports, and the BEATs configuration of
# one copy would mean nothing to another's AutoModel.
_CLASSES = {
    "AutoConfig": "MultiMoodConfig",
    "AutoModel": "MultiMoodModel",
    "AutoModelForCausalLM": "MultiMoodForConditionalGeneration",
    "AutoModelForImageTextToText": "MultiMoodForConditionalGeneration",
    "AutoModelForMultimodalLM": "MultiMoodForConditionalGeneration",
}
AUTO_MAP = {auto_class: f"modeling_multimood.{name}" for auto_class, name in _CLASSES.items()}
AUTO_MAP["AutoProcessor"] = "processing_multimood.MultiMoodProcessor"


@strict
class MultiMoodConfig(PreTrainedConfig):
    r"""
    Configuration of a [`MultiMoodModel`].

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            The vision encoder; `None` for a model without video.
        audio_config (`dict` or `PreTrainedConfig`, *optional*):
            The audio encoder; `None` for a model without audio.
        history_config (`dict` or `PreTrainedConfig`, *optional*):
            The sequence model that compresses earlier utterances; `None` for a model without memory.
        text_config (`dict` or `PreTrainedConfig`, *optional*, defaults to Qwen2):
            The decoder.
        video_token_id, audio_token_id, history_token_id (`int`, *optional*):
            Placeholders in the decoder's vocabulary, one for each feature vector.
        image_token_id (`int`, *optional*):
            Not fed by MultiMood; TRL reads it of every multimodal processor and model. The same as `video_token_id`.
        memory_token_id (`int`, *optional*):
            `<MEM>` in the *history* vocabulary; it follows each utterance.
        memory_pooling (`str`, *optional*, defaults to `"token"`):
            What stands for an utterance in the memory: `"token"`, the compressor's hidden state at `<MEM>` (the paper), or
            `"mean"`, those of all its tokens, weighted.
        vision_feature_layer (`int`, *optional*, defaults to -2):
            Which of the vision encoder's hidden states is read (the paper: the second-to-last layer).
        connector_depth (`int`, *optional*, defaults to 4):
            Blocks in each of the video connector's two RegNet stages.
        audio_pooling (`int`, *optional*, defaults to 1):
            Consecutive audio vectors that are stacked into one before the projection: one LLM token each group.
        turn_grammar (`dict`, *optional*):
            Token ids of the four lines of a turn, as `MultiMoodProcessor.turn_grammar()` makes it.
        tie_word_embeddings (`bool`, *optional*):
            Follows `text_config`.
    """

    model_type = "multimood"
    sub_configs_defaults: ClassVar[dict] = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="siglip_vision_model", optional=True),
        "audio_config": SubConfigSpec(config_class=AutoConfig, model_type="whisper", optional=True),
        "history_config": SubConfigSpec(config_class=AutoConfig, model_type="mamba2", optional=True),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    history_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int | None = None
    video_token_id: int | None = None
    audio_token_id: int | None = None
    history_token_id: int | None = None
    memory_token_id: int | None = None
    memory_pooling: str = "token"
    vision_feature_layer: int = -2
    connector_depth: int = 4
    audio_pooling: int = 1
    turn_grammar: dict | None = None
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs):
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        for name in ("connector_depth", "audio_pooling"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.memory_pooling not in ("token", "mean"):
            raise ValueError(f"`memory_pooling` must be 'token' or 'mean', got {self.memory_pooling!r}.")

    def to_dict(self) -> dict:
        """As ever. The map of AutoClasses means the code that is saved along, wherever the model came from."""
        return super().to_dict() | {"auto_map": dict(AUTO_MAP)}

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """As ever, and with this folder's code, for `trust_remote_code=True`. Models save their configuration by this."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        for file in Path(__file__).parent.glob("*.py"):
            if file.name != "__init__.py":
                shutil.copyfile(file, Path(save_directory) / file.name)
        super().save_pretrained(save_directory, **kwargs)


__all__ = ["AUTO_MAP", "MultiMoodConfig"]
