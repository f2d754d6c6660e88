"""Fine-tuning: what it measures and writes, and that bad input is named at the door."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import hub_stub
import pytest
import torch
from PIL import Image
from trl import ModelConfig, SFTConfig
from whole_builders import save_tiny, tiny_pair

from multimood import MultiMoodForConditionalGeneration
from multimood.datasets_scripts.schema import RowError, write_rows
from multimood.datasets_scripts.synthetic import generate_rows
from multimood.processors.media_source import MediaError
from multimood.processors.turn import EMOTIONS, STRATEGIES, SupportTurn, build_prompt
from multimood.training import sft
from multimood.training.trainers.collator import IGNORE_INDEX
from multimood.training.trainers.recipes import parse_arguments
from multimood.training.trainers.turn_parts import PARTS, TurnCollator, turn_parts
from multimood.training.trainers.turn_trainer import TurnTrainer

RECIPES = Path(sft.__file__).parent / "recipes"
COMMON = "--use_cpu true --bf16 false --report_to none --learning_rate 1e-2 --logging_steps 1".split()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return generate_rows("train", 8, 0, tmp_path_factory.mktemp("clips"), distances=(10, 14))


@pytest.fixture(scope="module")
def train_file(tmp_path_factory, rows):
    return write_rows(rows, tmp_path_factory.mktemp("corpus") / "train.jsonl")


@pytest.fixture
def launch(monkeypatch, tmp_path, model_folder, train_file):
    def launch_sft(*arguments) -> Path:
        settings = {"--model_name_or_path": model_folder, "--train_file": train_file, "--output_dir": tmp_path / "out"}
        given = [str(part) for pair in settings.items() if pair[0] not in arguments for part in pair]
        monkeypatch.setattr(sys, "argv", ["sft.py", *given, *COMMON, *map(str, arguments)])
        sft.main()
        return tmp_path / "out"

    return launch_sft


@pytest.fixture(scope="module")
def collated(rows):
    model, processor = tiny_pair()
    collator = TurnCollator(processor, lambda row: build_prompt(row, verbatim_pairs=2), sft.turn_target)
    return model, processor, collator(rows[:4])


def test_each_part_of_a_turn_has_its_own_tokens(collated, rows):
    _, processor, batch = collated
    for row, labels, parts in zip(rows, batch["labels"], batch["turn_parts"], strict=False):
        for number, part in enumerate(PARTS, start=1):
            text = processor.tokenizer.decode(labels[parts == number])
            end = processor.tokenizer.eos_token if part == "response" else ""
            assert text == f" {row[part]}{end}"
        assert (parts[labels == IGNORE_INDEX] == 0).all()


def test_every_label_is_found(collated):
    _, processor, _ = collated
    grammar = processor.turn_grammar()
    for emotion, strategy in zip((*EMOTIONS, "joy", "joy", "joy"), STRATEGIES, strict=True):
        text = SupportTurn(emotion, "neutral", strategy, "I see.").render()
        ids = torch.tensor([processor.tokenizer(text, add_special_tokens=False)["input_ids"]])
        parts = turn_parts(ids, grammar)[0]
        found = [processor.tokenizer.decode(ids[0][parts == number]).strip() for number in (1, 2, 3, 4)]
        assert found == [emotion, "neutral", strategy, "I see."]


def test_what_is_no_turn_is_refused(collated):
    _, processor, _ = collated
    ids = torch.tensor([processor.tokenizer("Client's emotion: hungry\nTherapist's")["input_ids"]])
    with pytest.raises(ValueError, match="client_emotion"):
        turn_parts(ids, processor.turn_grammar())


def trainer_of(model, processor, rows, tmp_path, **kwargs) -> TurnTrainer:
    from datasets import Dataset

    args = SFTConfig(
        str(tmp_path), use_cpu=True, bf16=False, report_to="none", remove_unused_columns=False, max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True}, gradient_checkpointing=False,
    )  # fmt: skip
    collator = TurnCollator(processor, lambda row: build_prompt(row, verbatim_pairs=2), sft.turn_target)
    dataset = Dataset.from_list(rows)
    return TurnTrainer(
        model=model, args=args, train_dataset=dataset, data_collator=collator, processing_class=processor, **kwargs
    )


def test_the_loss_on_each_part_is_that_of_its_tokens_and_labels_may_weigh_more(collated, rows, tmp_path):
    model, processor, batch = collated
    parts = batch["turn_parts"][:, 1:]
    inputs = {key: value for key, value in batch.items() if key != "turn_parts"}
    with torch.no_grad():
        log_probs = model(**inputs).logits[:, :-1].log_softmax(-1)
    targets = batch["labels"][:, 1:]
    nll = -log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    top1 = log_probs.argmax(-1) == targets
    learned = targets != IGNORE_INDEX

    trainer = trainer_of(model, processor, rows, tmp_path, label_weight=3.0)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    weights = torch.where((parts > 0) & (parts < 4), 3.0, 1.0)
    assert loss.item() == pytest.approx(((nll * weights)[learned].sum() / learned.sum()).item(), rel=1e-4)

    trainer.period_start = 0.0  # set by a step of training
    metrics = trainer._metrics_of_turns("train")
    for number, part in enumerate(PARTS, start=1):
        assert metrics[f"loss/{part}"] == pytest.approx(nll[parts == number].mean().item(), rel=1e-4)
        if part != "response":
            right = [(row[p == number]).all().item() for row, p in zip(top1, parts, strict=True)]
            assert metrics[f"accuracy/{part}"] == sum(right) / len(right)
    history = inputs["history_input_ids"][inputs["history_attention_mask"].bool()]
    slots = (history == model.config.memory_token_id).sum().item()
    assert metrics["memory_ratio"] == pytest.approx((len(history) - slots) / slots)


def test_metrics_curves_and_card_are_left_beside_the_weights(launch, train_file):
    folder = launch(
        *("--eval_file", train_file, "--eval_rows", 3, "--eval_strategy", "steps", "--eval_steps", 1),
        *("--max_steps", 2, "--per_device_train_batch_size", 2, "--save_steps", 1, "--label_weight", 2),
    )
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    training = next(entry for entry in history if "loss" in entry)
    validation = next(entry for entry in history if "eval_loss" in entry)
    assert {"samples_per_second", "tokens_per_second", "memory_ratio", "grad_norm"} <= training.keys()
    assert {f"loss/{part}" for part in PARTS} <= training.keys()
    assert {f"eval_accuracy/{part}" for part in PARTS[:3]} <= validation.keys()
    with Image.open(folder / "curves.png") as picture:
        assert len(picture.convert("RGB").getcolors(maxcolors=100_000)) > 3
    card = (folder / "README.md").read_text()
    for text in ("3 rows of `train.jsonl`", "| learning_rate | 0.01 |", "curves.png"):
        assert text in card
    assert f"| eval_loss | {[e for e in history if 'eval_loss' in e][-1]['eval_loss']:.4g} | 2 |" in card


PUSH = """
from huggingface_hub import HfApi
from multimood.training import sft
sft.main()
print("files:", *HfApi().list_repo_files("{repo}"))
"""


def test_it_is_pushed_to_the_hub_with_its_card(tmp_path, model_folder, train_file):
    repo = f"{hub_stub.USER}/tuned"
    with hub_stub.running_hub() as endpoint:
        done = subprocess.run(
            [
                *(sys.executable, "-c", PUSH.format(repo=repo), "--model_name_or_path", model_folder),
                *("--train_file", train_file, "--output_dir", tmp_path / "out", "--max_steps", "1", *COMMON),
                *("--save_strategy", "no", "--push_to_hub", "true", "--hub_model_id", repo),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", **hub_stub.client_environment(endpoint, tmp_path / "home")},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    files = done.stdout.split("files:")[1].split()
    assert {"README.md", "curves.png", "model.safetensors", "processor_config.json", "multimood_model.py"} <= set(
        files
    )


def test_adapters_go_to_the_language_model_and_the_other_parts_learn_whole(launch, model_folder):
    from peft import PeftModel
    from safetensors.torch import load_file

    folder = launch(
        *("--max_steps", 2, "--per_device_train_batch_size", 2, "--save_strategy", "no", "--use_peft"),
        *("--freeze", "vision", "audio", "compressor"),
    )
    names = load_file(folder / "adapter_model.safetensors").keys()
    assert all(any(part in name for name in names) for part in ("connector", "audio_projector"))
    assert all("language_model" in name for name in names if "lora" in name)
    assert any("lora" in name for name in names)
    assert not any("tower" in name or "compressor" in name for name in names)
    PeftModel.from_pretrained(MultiMoodForConditionalGeneration.from_pretrained(model_folder), folder)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_quantisation_without_bitsandbytes_says_what_is_missing(launch):
    with pytest.raises(ImportError, match=r"multimood\[gpu\]"):
        launch("--max_steps", 1, "--use_peft", "--load_in_4bit", "true")


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_a_quantised_language_model_learns_through_adapters(launch):
    with pytest.raises(ValueError, match="use_peft"):
        launch("--max_steps", 1, "--load_in_4bit", "true")
    with pytest.raises(ValueError, match="half precision"):
        launch("--max_steps", 1, "--load_in_4bit", "true", "--use_peft")
    quantised = ("--load_in_4bit", "true", "--bnb_4bit_quant_type", "nf4", "--bf16", "true", "--dtype", "bfloat16")
    folder = launch("--max_steps", 2, "--use_peft", *quantised)
    assert (folder / "adapter_model.safetensors").exists()


def test_a_broken_row_is_named_with_its_line(launch, rows, tmp_path):
    broken = write_rows([*rows[:2], {**rows[2], "strategy": None}], tmp_path / "broken.jsonl")
    with pytest.raises(RowError, match=r"broken\.jsonl, line 3: .*strategy"):
        launch("--train_file", broken)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=r"empty\.jsonl has no rows"):
        launch("--train_file", tmp_path / "empty.jsonl")


def test_a_clip_that_cannot_be_read_is_named_also_by_a_worker(launch, rows, tmp_path):
    clip = tmp_path / "half.mp4"
    clip.write_bytes(b"not a film")
    broken = write_rows([{**rows[0], "videos": [str(clip)]}], tmp_path / "clip.jsonl")
    with pytest.raises(MediaError, match=r"half\.mp4"):
        launch("--train_file", broken, "--dataloader_num_workers", 1)


def test_a_full_disk_says_so(launch, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode
    ):
        pytest.skip("a disk of 1 MB cannot be mounted here: not root")
    try:
        with pytest.raises(OSError, match=r"The disk has .* MB left.*begins anew"):
            launch("--output_dir", disk / "run", "--max_steps", 2, "--save_steps", 1)
        assert not list((disk / "run").glob("checkpoint-*")), "what was written of it is gone"
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("recipe", sorted([RECIPES / "sft.yaml", *RECIPES.glob("paper_*.yaml")]), ids=lambda p: p.stem)
@pytest.mark.parametrize("form", ["--recipe {}", "--recipe={}", "--config {}"])
def test_every_argument_of_a_recipe_is_known(monkeypatch, recipe, form):
    files = ["--train_file", "rows.jsonl", "--model_name_or_path", "model", "--output_dir", "out"]
    monkeypatch.setattr(
        sys, "argv", ["sft.py", *form.format(recipe).split(), *files, "--bf16", "false", "--tf32", "false"]
    )
    script, args, _ = parse_arguments(sft.SFTScriptArguments, SFTConfig, ModelConfig)
    assert script.train_file == "rows.jsonl"
    assert args.learning_rate > 0
