"""Tiny random checkpoints in the layout of the original MultiMood code, of any sizes.

The names are written here anew, from the original's side: the conversion is tested against them.
"""

import json
import re
from pathlib import Path

import torch
import transformers
from processor_builders import tiny_tokenizer
from safetensors.torch import save_file

from multimood.modeling_multimood.configuration_beats import BeatsConfig
from multimood.modeling_multimood.configuration_multimood import MultiMoodConfig
from multimood.modeling_multimood.modeling_multimood import MultiMoodForConditionalGeneration

# Deliberately unlike the reference fixture in every size.
HEADS = 3
IMAGE_SIZE = 44  # does not fill whole patches of 9
MEMORY_TOKEN_ID = 87


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32, vocab_size: int = 211, history_vocab_size: int = 88):
    """A model of this package whose weights `original_tensors` can name in the original's way."""
    torch.manual_seed(seed)
    config = MultiMoodConfig(
        vision_config=transformers.SiglipVisionConfig(
            hidden_size=36,
            intermediate_size=50,
            num_hidden_layers=4,
            num_attention_heads=HEADS,
            image_size=IMAGE_SIZE,
            patch_size=9,
            vision_use_head=False,
        ),
        audio_config=BeatsConfig(
            patch_embed_dim=20,
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=6,
            intermediate_size=70,
            num_conv_pos_embeddings=10,
            num_conv_pos_embedding_groups=8,
            num_buckets=64,
            max_bucket_distance=100,
        ),
        history_config=transformers.MambaConfig(
            hidden_size=24,
            num_hidden_layers=3,
            vocab_size=history_vocab_size,
            state_size=5,
            time_step_rank=3,
            conv_kernel=3,
        ),
        text_config=transformers.Qwen2Config(
            hidden_size=40,
            intermediate_size=72,
            num_hidden_layers=3,
            num_attention_heads=5,
            num_key_value_heads=1,
            vocab_size=vocab_size,
            rope_theta=1e6,
            initializer_range=0.2,
            bos_token_id=None,
        ),
        connector_depth=2,
        vision_feature_layer=-2,
        video_token_id=vocab_size,
        audio_token_id=vocab_size + 1,
        history_token_id=vocab_size + 2,
        memory_token_id=MEMORY_TOKEN_ID,
    )
    return MultiMoodForConditionalGeneration(config).to(dtype).eval()


def original_tensors(model: MultiMoodForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The weights by the original's names, with what it has beside them."""
    rules = (
        (r"^model\.language_model\.", "model."),
        (r"^model\.vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
        (r"^(model\.audio_tower\..*)parametrizations\.weight\.original0", r"\1weight_g"),
        (r"^(model\.audio_tower\..*)parametrizations\.weight\.original1", r"\1weight_v"),
        (r"^model\.audio_projector\.linear1", "model.mm_projector_a.0"),
        (r"^model\.audio_projector\.linear2", "model.mm_projector_a.2"),
        (r"^model\.compressor\.reader", "model.mamba_compressor.mamba"),
        (r"^model\.compressor\.projector", "model.mamba_compressor.memory_projection"),
        (r"^(model\.connector\..*)\.squeeze_excite\.", r"\1.se."),
        (r"^(model\.connector\..*)\.shortcut\.0\.", r"\1.downsample.conv."),
        (r"^(model\.connector\..*)\.shortcut\.1\.", r"\1.downsample.bn."),
        (r"^(model\.connector\..*)\.conv(\d)\.", r"\1.conv\2.conv."),
        (r"^(model\.connector\..*)\.norm(\d)\.", r"\1.conv\2.bn."),
        (r"^model\.connector\.sampler", "model.mm_projector.sampler.0"),
        (r"^model\.connector\.linear1", "model.mm_projector.readout.0"),
        (r"^model\.connector\.linear2", "model.mm_projector.readout.2"),
    )
    tensors = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if found := re.match(r"model\.connector\.stage(\d)\.(\d)\.(.*)", name):
            name = f"model.mm_projector.s{found[1]}.b{int(found[2]) + 1}.{found[3]}"
        tensors[name] = tensor.clone()
    table = tensors["model.audio_tower.encoder.layers.0.self_attn.relative_attention_bias.weight"]
    for layer in range(1, model.config.audio_config.num_hidden_layers):
        tensors[f"model.audio_tower.encoder.layers.{layer}.self_attn.relative_attention_bias.weight"] = table.clone()
    tensors["model.audio_tower.predictor.weight"] = torch.randn(4, 48)
    tensors["model.vision_tower.vision_tower.vision_model.head.probe"] = torch.randn(1, 1, 36)
    return tensors


def original_config(model: MultiMoodForConditionalGeneration, **changes) -> dict:
    """What the original's config.json says: the language model, and little of the rest."""
    text = model.config.text_config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {
        **{name: getattr(text, name) for name in (*names, "num_key_value_heads", "rms_norm_eps")},
        "rope_theta": 1e6,
        "tie_word_embeddings": text.tie_word_embeddings,
        "model_type": "videollama2_qwen2",
        "torch_dtype": str(model.dtype).removeprefix("torch."),
        "mm_projector_type": "stc_connector_v35",
        "mm_projector_a_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": f"somebody/siglip-tiny-patch9-{IMAGE_SIZE}",
        "num_frames": 6,
        "mem_token_id": MEMORY_TOKEN_ID,
        **changes,
    }


def save_config(folder: Path, config: dict) -> None:
    """As the reference fixture has it: the audio tower's settings and sizes that show in no tensor beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"config": config, "beats": {"max_distance": 100}, "dims": {"v_heads": HEADS}}
    (folder / "config.json").write_text(json.dumps(content))


def save_original(folder: Path, tensors: dict[str, torch.Tensor], config: dict, kind: str = "safetensors") -> Path:
    """A checkpoint of one file, or of three with an index (`kind` "shards" or "bin shards"), or pickled ("bin")."""
    save_config(folder, config)
    stem, suffix = ("pytorch_model", "bin") if "bin" in kind else ("model", "safetensors")

    def save(part: dict, file: Path) -> None:
        torch.save(part, file) if suffix == "bin" else save_file(part, file)

    if "shards" not in kind:
        save(tensors, folder / f"{stem}.{suffix}")
        return folder
    names = list(tensors)
    weight_map = {}
    for number in range(3):
        file = f"{stem}-{number + 1:05d}-of-00003.{suffix}"
        part = {name: tensors[name] for name in names[number::3]}
        save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def original_tokenizer(vocab_size: int = 400):
    """The one tokenizer of the original, of the language model and of the compressor."""
    tokenizer = tiny_tokenizer(vocab_size)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<history>", "<video>", "<MEM>"]}
    )
    return tokenizer
