"""The original's weights, converted: the same answers, nothing lost, nothing guessed, nothing executed."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import original_builders
import pytest
import torch
from original_builders import original_config, original_tensors, original_tokenizer, save_config, save_original
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

from multimood import cli, conversion
from multimood.modeling_multimood import convert_original
from multimood.modeling_multimood.modeling_multimood import MultiMoodForConditionalGeneration
from multimood.modeling_multimood.original_checkpoint import open_checkpoint

FIXTURE = Path(__file__).parents[2].parent / "shared" / "data" / "reference_fixture"


@pytest.fixture(scope="module")
def model():
    return original_builders.tiny_model()


@pytest.fixture(scope="module")
def inputs(model):
    """A row with everything: 5 frames of which the last is dropped, 998 frames of sound, two utterances."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    video = torch.randn(1, 5, 3, 44, 44, generator=generator)
    sound = torch.randn(1, 998, 128, generator=generator)
    history = torch.randint(0, 80, (1, 12), generator=generator)
    history[0, [4, 11]] = original_builders.MEMORY_TOKEN_ID
    prompt = [7, 8, *[config.history_token_id] * 2, 9]
    prompt += [config.video_token_id] * (2 * 2 * 2) + [config.audio_token_id] * (62 * 8) + [3, 4, 5]
    return {
        "input_ids": torch.tensor([prompt]),
        "pixel_values_videos": video,
        "input_features": sound,
        "history_input_ids": history,
    }


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.skipif(not FIXTURE.exists(), reason="../shared/data/reference_fixture is not here")
def test_the_fixtures_answers_are_the_originals(tmp_path):
    assert cli.main(["convert", str(FIXTURE), str(tmp_path / "out")]) == 0
    golden = load_file(FIXTURE / "golden.safetensors")
    trunk = AutoModel.from_pretrained(tmp_path / "out").eval()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert isinstance(model, MultiMoodForConditionalGeneration)
    sound = (golden["audio"][:, 0] - 15.41663) / (2 * 6.55582)
    with torch.no_grad():
        video = trunk.get_video_features(golden["video"])
        audio = trunk.get_audio_features(sound)
        history = torch.stack(trunk.get_history_features(golden["history"]))
    for name, features in (("video", video), ("audio", audio), ("history", history)):
        torch.testing.assert_close(features, golden[f"{name}_features"], atol=1e-5, rtol=0)

    ids = {
        -201: [model.config.video_token_id] * video.shape[1] + [model.config.audio_token_id] * audio.shape[1],
        -203: [model.config.history_token_id] * history.shape[1],
    }
    prompts, labels = [], []
    for row, row_labels in zip(golden["input_ids"].tolist(), golden["labels"].tolist(), strict=True):
        prompts.append([new for token in row for new in ids.get(token, [token])])
        labels.append([label for token, label in zip(row, row_labels, strict=True) for _ in ids.get(token, [token])])
    with torch.no_grad():
        outputs = model(
            input_ids=torch.tensor(prompts),
            pixel_values_videos=golden["video"],
            input_features=sound,
            history_input_ids=golden["history"],
            labels=torch.tensor(labels),
        )
    torch.testing.assert_close(outputs.logits, golden["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.loss, golden["loss"][0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["safetensors", "shards", "bin", "bin shards"])
def test_other_sizes_and_files_give_the_same_answers(model, inputs, kind, tmp_path):
    original = save_original(tmp_path / "original", original_tensors(model), original_config(model), kind)
    report, has_processor = conversion.convert(str(original), tmp_path / "out")
    assert report.written == len(model.state_dict())
    assert len(report.unused) == 4
    assert not has_processor
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]
    torch.testing.assert_close(logits(loaded.eval(), inputs), logits(model, inputs), atol=1e-5, rtol=1e-5)
    assert loaded.config.vision_config.image_size == original_builders.IMAGE_SIZE
    saved = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert set(saved["unused"]) == set(report.unused)


def test_a_real_config_names_a_known_tower(model, tmp_path):
    """The released config.json is flat, and SigLIP's heads follow from its width."""
    original = save_original(tmp_path, original_tensors(model), original_config(model))
    (tmp_path / "config.json").write_text(json.dumps(original_config(model)))
    with pytest.raises(ValueError, match=r"vision tower of width 36.*--vision"):
        convert_original.original_config(open_checkpoint(original))
    model.config.vision_config.save_pretrained(tmp_path / "vision")
    conversion.convert(str(original), tmp_path / "out", vision=str(tmp_path / "vision"))
    assert (
        AutoModel.from_pretrained(tmp_path / "out").config.vision_config.num_attention_heads == original_builders.HEADS
    )


def test_half_precision_stays(inputs, tmp_path):
    model = original_builders.tiny_model(dtype=torch.bfloat16)
    original = save_original(tmp_path / "original", original_tensors(model), original_config(model))
    conversion.convert(str(original), tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert loaded.dtype == torch.bfloat16
    assert all(
        torch.equal(got, want)
        for got, want in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )


def test_large_models_are_written_in_several_files(model, inputs, tmp_path, monkeypatch):
    original = save_original(tmp_path / "original", original_tensors(model), original_config(model), "shards")
    monkeypatch.setattr(convert_original, "SHARD_SIZE", 100_000)
    report, _ = conversion.convert(str(original), tmp_path / "out")
    assert len(report.files) > 5
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(loaded, inputs), logits(model, inputs), atol=1e-5, rtol=1e-5)


def test_from_pretrained_reads_the_originals_layout_as_it_is(model, inputs, tmp_path):
    original = save_original(tmp_path, original_tensors(model), original_config(model))
    config = convert_original.original_config(open_checkpoint(original))
    loaded, info = MultiMoodForConditionalGeneration.from_pretrained(
        original,
        config=config,
        key_mapping=convert_original.original_key_mapping(config),
        output_loading_info=True,
    )
    assert not info["missing_keys"]
    torch.testing.assert_close(logits(loaded.eval(), inputs), logits(model, inputs), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def adapted(model, tmp_path_factory):
    """(base, adapters as the original's training leaves them, what PEFT makes of both)"""
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapted")
    tensors = original_tensors(model)
    base = save_original(folder / "base", tensors, original_config(model))
    merged = original_builders.tiny_model()
    wrapped = peft.get_peft_model(
        merged, peft.LoraConfig(r=4, lora_alpha=6, target_modules=r".*language_model.*(q_proj|down_proj)")
    )
    torch.manual_seed(1)
    lora = {}
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
            lora[name.replace("model.language_model.", "model.").replace(".default", "")] = parameter.detach().clone()
    merged = wrapped.merge_and_unload()
    # The projectors are trained whole.
    trained = {}
    for name, tensor in original_tensors(merged).items():
        if name.startswith(("model.mm_projector", "model.mamba_compressor.memory_projection")):
            trained[f"base_model.model.{name}"] = torch.randn_like(tensor) * 0.1
    state = {name.removeprefix("base_model.model."): tensor for name, tensor in trained.items()}
    renamed = {theirs: ours for ours, theirs in zip(merged.state_dict(), original_tensors(merged), strict=False)}
    merged.load_state_dict({renamed[name]: tensor for name, tensor in state.items()}, strict=False)

    adapters = folder / "adapters"
    save_config(adapters, original_config(model))
    save_file(lora, adapters / "adapter_model.safetensors")
    torch.save(trained, adapters / "non_lora_trainables.bin")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "base_model_name_or_path": str(base)}
    (adapters / "adapter_config.json").write_text(json.dumps(settings))
    return base, adapters, merged.eval()


def test_adapters_are_merged_as_peft_does(adapted, inputs, tmp_path):
    _, adapters, merged = adapted
    report, _ = conversion.convert(str(adapters), tmp_path / "out")
    assert report.merged == 6
    assert set(report.replaced.values()) == {"non_lora_trainables.bin"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(loaded, inputs), logits(merged, inputs), atol=1e-5, rtol=1e-5)


def test_adapters_that_do_not_fit_are_named(adapted, tmp_path):
    _, adapters, _ = adapted
    settings = json.loads((adapters / "adapter_config.json").read_text())
    for file in ("config.json", "non_lora_trainables.bin"):
        (tmp_path / file).write_bytes((adapters / file).read_bytes())
    lora = load_file(adapters / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))

    half = dict(list(lora.items())[1:])
    save_file(half, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"only one of lora_A and lora_B for model\.layers\.0"):
        conversion.convert(str(tmp_path), tmp_path / "out")
    save_file(
        {name.replace("layers.0", "layers.9"): t for name, t in lora.items()}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(ValueError, match=r"changes weights that .* has not: model\.layers\.9"):
        conversion.convert(str(tmp_path), tmp_path / "out")
    save_file({name: t[:, :-1].contiguous() for name, t in lora.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"model\.layers\.\d\..* they do not fit"):
        conversion.convert(str(tmp_path), tmp_path / "out")
    for change in ({"use_dora": True}, {"peft_type": "IA3"}, {"rank_pattern": {"q_proj": 8}}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings | change))
        with pytest.raises(ValueError, match="merge the adapter with PEFT"):
            conversion.convert(str(tmp_path), tmp_path / "out")


SOME_TENSORS = (
    "lm_head.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.mm_projector.s1.b2.conv1.bn.weight",
    "model.mm_projector_a.2.bias",
    "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.weight",
    "model.vision_tower.vision_tower.vision_model.encoder.layers.2.mlp.fc1.weight",
    "model.vision_tower.vision_tower.vision_model.post_layernorm.weight",
    "model.audio_tower.layer_norm.weight",
    "model.audio_tower.encoder.layer_norm.weight",
    "model.audio_tower.post_extract_proj.weight",
    "model.audio_tower.encoder.pos_conv.0.weight_g",
    "model.mamba_compressor.mamba.norm_f.weight",
    "model.audio_tower.encoder.layers.1.fc1.weight",
    "model.mamba_compressor.mamba.layers.0.mixer.A_log",
    "model.mamba_compressor.mamba.layers.1.mixer.dt_proj.weight",
    "model.mamba_compressor.memory_projection.weight",
)


@pytest.mark.parametrize("name", SOME_TENSORS)
def test_a_missing_tensor_is_named(model, name, tmp_path, capsys):
    tensors = original_tensors(model)
    del tensors[name]
    original = save_original(tmp_path / "original", tensors, original_config(model))
    assert cli.main(["convert", str(original), str(tmp_path / "out")]) == 2
    assert name in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["original"]


@pytest.mark.parametrize("name", SOME_TENSORS)
def test_a_tensor_of_a_wrong_shape_is_named(model, name, tmp_path, capsys):
    tensors = original_tensors(model)
    tensors[name] = torch.cat([tensors[name], tensors[name][:1]])
    original = save_original(tmp_path / "original", tensors, original_config(model))
    assert cli.main(["convert", str(original), str(tmp_path / "out")]) == 2
    assert name in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["original"]


def test_an_unknown_tensor_is_named_and_can_be_ignored(model, tmp_path):
    tensors = original_tensors(model) | {"model.mystery.weight": torch.zeros(2), "model.layers.7.norm": torch.zeros(2)}
    original = save_original(tmp_path / "original", tensors, original_config(model))
    with pytest.raises(ValueError, match=r"of no known use .*: model\.layers\.7\.norm, model\.mystery\.weight"):
        conversion.convert(str(original), tmp_path / "out")
    report, _ = conversion.convert(str(original), tmp_path / "out", ignore=["model.mystery.*", "model.layers.7.*"])
    assert report.unused["model.mystery.weight"] == "left out on demand"


@pytest.mark.parametrize("part", ["model.mamba_compressor.", "model.audio_tower.", "model.mm_projector.", "model."])
def test_a_whole_part_that_is_missing_is_named(model, part, tmp_path):
    tensors = {name: tensor for name, tensor in original_tensors(model).items() if not name.startswith(part)}
    original = save_original(tmp_path / "original", tensors, original_config(model))
    with pytest.raises(ValueError, match=r"lacks .*model\."):
        conversion.convert(str(original), tmp_path / "out")


@pytest.mark.parametrize(("kind", "kept"), [("safetensors", 0.7), ("safetensors", 0.01), ("bin", 0.7), ("bin", 0.0)])
def test_a_file_that_was_cut_off_is_named(model, kind, kept, tmp_path):
    original = save_original(tmp_path / "original", original_tensors(model), original_config(model), kind)
    file = next(path for path in original.iterdir() if path.suffix != ".json")
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=rf"{file.name} is .*cut off") as error:
        conversion.convert(str(original), tmp_path / "out")
    if (kind, kept) == ("safetensors", 0.7):  # its header tells which tensors lie beyond the end
        assert "these tensors are not whole: model." in str(error.value)
    assert not (tmp_path / "out").exists()


def test_shards_that_are_missing_are_named(model, tmp_path):
    original = save_original(tmp_path / "original", original_tensors(model), original_config(model), "shards")
    (original / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"not there: model-00002-of-00003\.safetensors"):
        conversion.convert(str(original), tmp_path / "out")


class Malicious:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("file", ["pytorch_model.bin", "non_lora_trainables.bin"])
def test_a_malicious_pickle_is_refused(adapted, model, file, zipped, tmp_path, capsys):
    prey = tmp_path / "prey"
    content = original_tensors(model) | {"model.norm.weight": Malicious(f"touch {prey}")}
    folder = tmp_path / "original"
    save_config(folder, original_config(model))
    torch.save(content, folder / file, _use_new_zipfile_serialization=zipped)
    if file == "non_lora_trainables.bin":
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / name).write_bytes((adapted[1] / name).read_bytes())
    assert cli.main(["convert", str(folder), str(tmp_path / "out")]) == 2
    assert f"{file} is refused: it would run code" in capsys.readouterr().err
    assert not prey.exists()
    assert not (tmp_path / "out").exists()
    torch.load(folder / file, weights_only=False)  # it does bite
    assert prey.exists()


def test_a_plain_pickle_is_refused(model, tmp_path):
    save_config(tmp_path / "original", original_config(model))
    (tmp_path / "original" / "pytorch_model.bin").write_bytes(pickle.dumps({"a": [1, 2]}))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        conversion.convert(str(tmp_path / "original"), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "videollama2_mistral"}, "model_type is 'videollama2_mistral'"),
        ({"mm_projector_type": "stc_connector"}, "mm_projector_type is 'stc_connector'"),
        ({"mem_token_id": 88}, "<MEM> has the id 88, but the compressor has 88 tokens"),
        ({"vocab_size": 999}, r"lm_head\.weight \[211, 40\] instead of \[999, 40\]"),
    ],
)
def test_settings_that_cannot_be_followed_are_named(model, changes, message, tmp_path):
    original = save_original(tmp_path / "original", original_tensors(model), original_config(model, **changes))
    with pytest.raises(ValueError, match=message):
        conversion.convert(str(original), tmp_path / "out")


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ValueError, match="is there already"):
        conversion.convert("nobody/nothing", tmp_path / "out")
    with pytest.raises(ValueError, match="neither a folder nor a Hub id"):
        conversion.convert("nothing", tmp_path / "other")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(model, folder of an original with its tokenizer)"""
    folder, tokenizer = tmp_path_factory.mktemp("whole") / "original", original_tokenizer()
    # As in the released one, the language model has rows to spare, and the compressor exactly one a token.
    model = original_builders.tiny_model(vocab_size=len(tokenizer) + 20, history_vocab_size=len(tokenizer))
    memory = tokenizer.convert_tokens_to_ids("<MEM>")
    config = original_config(model, mem_token_id=memory, image_aspect_ratio="pad")
    save_original(folder, original_tensors(model), config)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"top_p": 0.8, "do_sample": True}))
    return model, folder


def test_the_tokenizer_becomes_a_processor(whole, tmp_path):
    import media_files

    _, folder = whole
    _, has_processor = conversion.convert(str(folder), tmp_path / "out")
    assert has_processor
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    settings = processor.model_settings()
    for name in ("video_token_id", "audio_token_id", "history_token_id", "memory_token_id"):
        assert getattr(loaded.config, name) == settings[name]
    assert loaded.config.memory_token_id == json.loads((folder / "config.json").read_text())["config"]["mem_token_id"]
    assert loaded.config.turn_grammar == settings["turn_grammar"]
    assert loaded.generation_config.top_p == 0.8
    assert (processor.num_frames, processor.original_sampling, processor.square_frames) == (6, True, True)

    clip = media_files.write_clip(tmp_path / "clip.mp4")
    blocks = [
        {"type": "history", "history": [{"speaker": "client", "text": "My sister is called Ruth."}]},
        {"type": "video", "video": clip},
        {"type": "audio", "audio": clip},
        {"type": "text", "text": "I did not sleep."},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": blocks}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    assert inputs["input_features"].shape == (1, 2998, 128)
    assert int((inputs["input_ids"] == loaded.config.audio_token_id).sum()) == 187 * 8
    turn = loaded.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert turn.shape[1] == inputs["input_ids"].shape[1] + 4


@pytest.mark.slow
def test_from_the_hub_and_back(whole, tmp_path):
    import hub_stub

    _, folder = whole
    script = f"""
from pathlib import Path
from huggingface_hub import HfApi
from multimood import cli
from transformers import AutoModelForCausalLM, AutoProcessor
api = HfApi()
api.create_repo({hub_stub.USER + "/original"!r})
api.upload_folder(repo_id={hub_stub.USER + "/original"!r}, folder_path={str(folder)!r})
assert cli.main(["convert", {hub_stub.USER + "/original"!r}, {str(tmp_path / "out")!r}]) == 0
AutoModelForCausalLM.from_pretrained({str(tmp_path / "out")!r}).push_to_hub({hub_stub.USER + "/converted"!r})
AutoProcessor.from_pretrained({str(tmp_path / "out")!r}).push_to_hub({hub_stub.USER + "/converted"!r})
model = AutoModelForCausalLM.from_pretrained({hub_stub.USER + "/converted"!r})
assert AutoProcessor.from_pretrained({hub_stub.USER + "/converted"!r}).memory_token_id == model.config.memory_token_id
"""
    with hub_stub.running_hub() as endpoint:
        environment = {**os.environ, **hub_stub.client_environment(endpoint, tmp_path / "home")}
        result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
