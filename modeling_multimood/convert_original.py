"""The released MultiMood weights, in the layout of their authors' training code → this package's layout.

Sizes are read off the tensors wherever these determine them. Tensors are renamed one by one, so that memory holds one
file of the output and what is mapped of the input's, whatever the model's size.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import GenerationConfig, MambaConfig, PreTrainedConfig, Qwen2Config, SiglipVisionConfig

from .configuration_beats import BeatsConfig
from .configuration_multimood import MultiMoodConfig
from .modeling_multimood import MultiMoodForConditionalGeneration
from .original_checkpoint import OriginalCheckpoint, TensorReader, listed

SHARD_SIZE = 10**9  # bytes of an output file
# What the original's files hold, and the model's answers do not depend on.
UNUSED = {
    "model.vision_tower.vision_tower.vision_model.head.*": "the vision tower's pooling; a layer before it is read",
    "model.audio_tower.predictor.*": "the audio tower's classifier",
    "model.audio_tower.encoder.layers.*.self_attn.relative_attention_bias.weight": "repeats the first layer's table",
    "*.rotary_emb.inv_freq": "follows from the configuration",
    "*.position_ids": "follows from the configuration",
}
# Attention heads of SigLIP's vision towers (Zhai et al., 2023, arXiv:2303.15343) by their width.
SIGLIP_HEADS = {768: 12, 1024: 16, 1152: 16}
VISION, CONNECTOR = "model.vision_tower.vision_tower.vision_model.", "model.mm_projector."
AUDIO, PROJECTOR = "model.audio_tower.", "model.mm_projector_a."
COMPRESSOR = "model.mamba_compressor."


@dataclass(frozen=True)
class ConversionReport:
    """
    What became of each tensor.

    Attributes:
        written (`int`): tensors of the new model; each comes from one of the original's.
        merged (`int`): of these, the ones with an adapter in them.
        unused (`dict[str, str]`): tensors of the original that are left out, and why.
        replaced (`dict[str, str]`): tensors of the base model in whose place a later file's were taken, and which file.
        files (`list[str]`): what was written.
    """

    written: int
    merged: int
    unused: dict[str, str]
    replaced: dict[str, str]
    files: list[str]


def original_config(
    original: OriginalCheckpoint, vision: PreTrainedConfig | None = None, **token_ids: int
) -> MultiMoodConfig:
    """
    The configuration of an original checkpoint.

    Args:
        original (`OriginalCheckpoint`): from `open_checkpoint`.
        vision (`PreTrainedConfig`, *optional*): of the vision tower, whose number of heads shows in no tensor. SigLIP's
            released towers are known by their width.
        **token_ids: `video_token_id`, `audio_token_id`, `history_token_id`, `memory_token_id`, where a tokenizer says
            them. By default the placeholders follow the language model's vocabulary: they need no row of it. `<MEM>` is
            the last token of the compressor's, as in the original.

    Raises:
        ValueError: the checkpoint is of another kind, lacks a tensor from which a size is read, or a setting
            contradicts its tensors.
    """
    settings = original.settings
    for name, known in (
        ("model_type", ("videollama2_qwen2",)),
        ("mm_projector_type", ("stc_connector_v35",)),
        ("mm_projector_a_type", ("mlp2x_gelu",)),
        ("mm_vision_select_feature", ("patch",)),
    ):
        if settings.get(name, known[0]) not in known:
            raise ValueError(
                f"the original's {name} is {settings[name]!r}; only {' or '.join(known)} can be converted"
            )
    fields = {*Qwen2Config().to_dict(), "rope_theta", "rope_scaling"} - {"model_type", "architectures", "dtype"}
    text = Qwen2Config.from_dict({name: value for name, value in settings.items() if name in fields})
    history = _mamba_config(original)
    dtype = _stored(original, "model.embed_tokens.weight").dtype
    vocab_size = text.vocab_size
    ids = {
        "video_token_id": vocab_size,
        "audio_token_id": vocab_size + 1,
        "history_token_id": vocab_size + 2,
        "memory_token_id": settings.get("mem_token_id", history.vocab_size - 1),
    } | token_ids
    if not 0 <= ids["memory_token_id"] < history.vocab_size:
        raise ValueError(
            f"<MEM> has the id {ids['memory_token_id']}, but the compressor has {history.vocab_size} tokens: is the "
            "tokenizer the checkpoint's own?"
        )
    return MultiMoodConfig(
        vision_config=vision or _vision_config(original),
        audio_config=_beats_config(original),
        history_config=history,
        text_config=text,
        vision_feature_layer=settings.get("mm_vision_select_layer", -2),
        connector_depth=_count(original, f"{CONNECTOR}s1.b", start=1),
        image_token_id=ids["video_token_id"],
        dtype=dtype,
        **ids,
    )


def _vision_config(original: OriginalCheckpoint) -> SiglipVisionConfig:
    dims, name = original.dims, original.settings.get("mm_vision_tower") or ""
    embeddings = f"{VISION}embeddings."
    _, channels, patch, _ = _shape(original, f"{embeddings}patch_embedding.weight", 4)
    width = _agreed(
        original,
        (f"{embeddings}patch_embedding.bias", 0),
        (f"{embeddings}position_embedding.weight", 1),
        (f"{VISION}post_layernorm.weight", 0),
    )
    grid = round(_shape(original, f"{embeddings}position_embedding.weight", 2)[0] ** 0.5)
    heads = dims.get("v_heads") or SIGLIP_HEADS.get(width)
    if heads is None:
        raise ValueError(
            f"a vision tower of width {width} is none of SigLIP's: its number of attention heads shows in no tensor; "
            "give its configuration (--vision)"
        )
    # Released towers end in their resolution, of which a rest that fills no patch is not seen.
    resolution = re.search(r"-(\d+)$", name)
    sizes = [dims.get("img"), resolution and int(resolution[1]), grid * patch]
    return SiglipVisionConfig(
        hidden_size=width,
        num_channels=channels,
        patch_size=patch,
        image_size=next(size for size in sizes if size and size // patch == grid),
        intermediate_size=_shape(original, f"{VISION}encoder.layers.0.mlp.fc1.weight", 2)[0],
        num_hidden_layers=dims.get("v_layers") or _count(original, f"{VISION}encoder.layers."),
        num_attention_heads=heads,
        vision_use_head=False,
    )


def _beats_config(original: OriginalCheckpoint) -> BeatsConfig:
    given = original.beats
    for name, known in (
        ("layer_norm_first", False),
        ("deep_norm", True),
        ("conv_bias", False),
        ("relative_position_embedding", True),
        ("gru_rel_pos", True),
    ):
        if given.get(name, known) != known:
            raise ValueError(f"the audio tower's {name} is {given[name]}; only BEATs with {known} can be converted")
    layer = f"{AUDIO}encoder.layers.0."
    _, _, patch, _ = _shape(original, f"{AUDIO}patch_embedding.weight", 4)
    _, group, kernel = _shape(original, f"{AUDIO}encoder.pos_conv.0.weight_v", 3)
    projection = f"{AUDIO}post_extract_proj."
    embed = _agreed(
        original, (f"{AUDIO}layer_norm.weight", 0), (f"{AUDIO}layer_norm.bias", 0), (f"{projection}weight", 1)
    )
    width = _agreed(
        original,
        (f"{AUDIO}encoder.layer_norm.weight", 0),
        (f"{AUDIO}encoder.layer_norm.bias", 0),
        (f"{projection}bias", 0),
    )
    buckets, heads = _shape(original, f"{layer}self_attn.relative_attention_bias.weight", 2)
    return BeatsConfig(
        patch_size=patch,
        patch_embed_dim=embed,
        hidden_size=width,
        num_hidden_layers=given.get("encoder_layers") or _count(original, f"{AUDIO}encoder.layers."),
        num_attention_heads=heads,
        intermediate_size=_shape(original, f"{layer}fc1.weight", 2)[0],
        hidden_act=given.get("activation_fn", "gelu"),
        num_conv_pos_embeddings=kernel,
        num_conv_pos_embedding_groups=width // group,
        num_buckets=buckets,
        max_bucket_distance=given.get("max_distance", 800),
    )


def _mamba_config(original: OriginalCheckpoint) -> MambaConfig:
    prefix = f"{COMPRESSOR}mamba."
    mixer = f"{prefix}layers.0.mixer."
    vocab_size, _ = _shape(original, f"{prefix}embeddings.weight", 2)
    width = _agreed(
        original,
        (f"{prefix}embeddings.weight", 1),
        (f"{prefix}norm_f.weight", 0),
        (f"{COMPRESSOR}memory_projection.weight", 1),
    )
    channels, state_size = _shape(original, f"{mixer}A_log", 2)
    return MambaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        state_size=state_size,
        num_hidden_layers=original.dims.get("m_layers") or _count(original, f"{prefix}layers."),
        expand=channels // width,
        intermediate_size=channels,
        conv_kernel=_shape(original, f"{mixer}conv1d.weight", 3)[2],
        time_step_rank=_shape(original, f"{mixer}dt_proj.weight", 2)[1],
        use_bias=f"{mixer}in_proj.bias" in original.tensors,
        use_conv_bias=f"{mixer}conv1d.bias" in original.tensors,
    )


def _stored(original: OriginalCheckpoint, name: str):
    if name not in original.tensors:
        raise ValueError(f"the original lacks the tensor {name}: is it a whole MultiMood checkpoint?")
    return original.tensors[name]


def _shape(original: OriginalCheckpoint, name: str, axes: int) -> tuple[int, ...]:
    """
    The shape of a tensor from which sizes are read. Of a layer's tensor it is the one that most layers agree on, so that
    a single tensor of a wrong shape is found to be the wrong one.
    """
    _stored(original, name)
    pattern = re.compile(re.escape(name).replace(r"\.0\.", r"\.\d+\.") + "$")
    shapes = Counter(tensor.shape for other, tensor in original.tensors.items() if pattern.match(other))
    shape = shapes.most_common(1)[0][0]
    if len(shape) != axes:
        raise ValueError(f"{name} has the shape {shape}; it must have {axes} axes")
    return shape


def _agreed(original: OriginalCheckpoint, *places: tuple[str, int]) -> int:
    """A size that stands in several tensors, each with an axis: what most of them say, as in `_shape`."""
    sizes = Counter(size for name, axis in places for size in _stored(original, name).shape[axis : axis + 1])
    if not sizes:
        raise ValueError(f"these tensors have too few axes: {listed([name for name, _ in places])}")
    return sizes.most_common(1)[0][0]


def _count(original: OriginalCheckpoint, prefix: str, start: int = 0) -> int:
    """How many layers of a name there are."""
    indices = [int(found[1]) for name in original.tensors if (found := re.match(re.escape(prefix) + r"(\d+)\.", name))]
    if not indices:
        raise ValueError(f"the original lacks all tensors {prefix}*: is it a whole MultiMood checkpoint?")
    return max(indices) + 1 - start


def original_names(config: MultiMoodConfig) -> dict[str, str]:
    """The beginnings of this package's names, and what they are in the original; the first that fits counts."""
    conv = "model.audio_tower.encoder.pos_conv.0."
    names = {
        "lm_head.": "lm_head.",
        "model.language_model.": "model.",
        "model.vision_tower.": VISION,
        f"{conv}parametrizations.weight.original0": f"{conv}weight_g",
        f"{conv}parametrizations.weight.original1": f"{conv}weight_v",
        "model.audio_tower.": AUDIO,
        "model.audio_projector.linear1.": f"{PROJECTOR}0.",
        "model.audio_projector.linear2.": f"{PROJECTOR}2.",
        "model.compressor.reader.": f"{COMPRESSOR}mamba.",
        "model.compressor.projector.": f"{COMPRESSOR}memory_projection.",
        "model.connector.sampler.": f"{CONNECTOR}sampler.0.",
        "model.connector.linear1.": f"{CONNECTOR}readout.0.",
        "model.connector.linear2.": f"{CONNECTOR}readout.2.",
    }
    block = {"squeeze_excite.": "se.", "shortcut.0.": "downsample.conv.", "shortcut.1.": "downsample.bn."}
    for number in (1, 2, 3):
        block |= {f"conv{number}.": f"conv{number}.conv.", f"norm{number}.": f"conv{number}.bn."}
    for stage in (1, 2):
        for index in range(config.connector_depth):
            ours, theirs = f"model.connector.stage{stage}.{index}.", f"{CONNECTOR}s{stage}.b{index + 1}."
            names |= {ours + part: theirs + original for part, original in block.items()}
    return names


def original_key_mapping(config: MultiMoodConfig) -> dict[str, str]:
    """`key_mapping` for `from_pretrained`, which then reads a checkpoint in the original's layout as it is."""
    names = {theirs: ours for ours, theirs in original_names(config).items() if theirs not in (ours, "model.")}
    mapping = {f"^{re.escape(theirs)}": ours for theirs, ours in names.items()}
    return mapping | {r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1."}


def convert_weights(
    original: OriginalCheckpoint,
    config: MultiMoodConfig,
    folder: Path,
    ignore: Sequence[str] = (),
    generation: dict | None = None,
) -> ConversionReport:
    """
    Writes a folder that `from_pretrained` reads: weights in files of at most 1 GB, configuration, code.

    Args:
        original (`OriginalCheckpoint`): from `open_checkpoint`.
        config (`MultiMoodConfig`): from `original_config`.
        folder (`Path`): where to; it must exist.
        ignore (sequence of `str`): patterns (as of file names) of the original's tensors to leave out.
        generation (`dict`, *optional*): settings for the generation configuration, e.g. `eos_token_id`.

    Raises:
        ValueError: tensors are missing, of another shape than the configuration says, or of no known use; all of them
            are named, and nothing is written.
    """
    with torch.device("meta"):
        model = MultiMoodForConditionalGeneration(config)
    targets = model.state_dict()
    if config.tie_word_embeddings:
        del targets["lm_head.weight"]
    prefixes = original_names(config)
    sources = {name: _original_name(name, prefixes) for name in targets}
    unused = _check(original, config, targets, sources, ignore)

    # In the order of the original's files, so that each is opened once.
    order = sorted(sources, key=lambda name: (str(original.tensors[sources[name]].file), name))
    empty = {name: torch.empty_like(targets[name], dtype=original.tensors[sources[name]].dtype) for name in order}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=SHARD_SIZE)
    read, read_adapter = TensorReader(), TensorReader()
    for file, names in split.filename_to_tensors.items():
        tensors = {}
        for name in names:
            tensors[name] = read(original.tensors[sources[name]])
            if (adapter := original.adapters.get(sources[name])) is not None:
                delta = read_adapter(adapter.B).float() @ read_adapter(adapter.A).float()
                tensors[name] += (delta * adapter.scale).to(tensors[name].dtype)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        del tensors
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    settings = _generation_settings(original) | (generation or {})
    GenerationConfig(**settings, suppress_tokens=model.generation_config.suppress_tokens).save_pretrained(folder)
    report = ConversionReport(
        written=len(targets),
        merged=sum(source in original.adapters for source in sources.values()),
        unused=unused,
        replaced=original.replaced,
        files=sorted(split.filename_to_tensors),
    )
    (folder / "conversion.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


def _original_name(name: str, prefixes: dict[str, str]) -> str:
    ours, theirs = next((ours, theirs) for ours, theirs in prefixes.items() if name.startswith(ours))
    return theirs + name[len(ours) :]


def _check(
    original: OriginalCheckpoint,
    config: MultiMoodConfig,
    targets: dict[str, torch.Tensor],
    sources: dict[str, str],
    ignore: Sequence[str],
) -> dict[str, str]:
    """The unused tensors and why, where all others fit the new model's."""
    reasons = dict.fromkeys(ignore, "left out on demand") | UNUSED
    if config.tie_word_embeddings:
        reasons["lm_head.weight"] = "the same as the embeddings"
    unused, extra = {}, []
    for name in sorted(original.tensors.keys() - sources.values()):
        reason = next((why for pattern, why in reasons.items() if fnmatchcase(name, pattern)), None)
        extra += [name] if reason is None else []
        unused |= {} if reason is None else {name: reason}
    missing = sorted(source for source in sources.values() if source not in original.tensors)
    wrong = [
        f"{source} {list(original.tensors[source].shape)} instead of {list(targets[name].shape)}"
        for name, source in sources.items()
        if source in original.tensors and original.tensors[source].shape != targets[name].shape
    ]
    problems = [
        f"{kind}: {listed(names)}"
        for kind, names in (
            ("missing tensors", missing),
            ("tensors of a wrong shape", wrong),
            ("tensors of no known use (--ignore leaves them out)", extra),
            ("adapters of unused weights", sorted(original.adapters.keys() - sources.values())),
        )
        if names
    ]
    if problems:
        raise ValueError(f"the original cannot be converted; {'; '.join(problems)}")
    return unused


def _generation_settings(original: OriginalCheckpoint) -> dict:
    file = next(
        (
            place / "generation_config.json"
            for place in original.folders
            if (place / "generation_config.json").is_file()
        ),
        None,
    )
    if file is None:
        return {}
    settings = json.loads(file.read_text(encoding="utf-8"))
    return {name: value for name, value in settings.items() if name not in ("transformers_version", "suppress_tokens")}


__all__ = ["ConversionReport", "convert_weights", "original_config", "original_key_mapping", "original_names"]
