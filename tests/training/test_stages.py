"""The training scripts, whole: real rows, real clips, a few steps."""

import sys

import pytest
import torch
from peft import PeftModel
from whole_builders import save_tiny

from multimood import MultiMoodForConditionalGeneration, MultiMoodProcessor
from multimood.datasets_scripts.schema import write_rows
from multimood.datasets_scripts.synthetic import generate_rows
from multimood.training import pretrain_compressor, sft

pytestmark = pytest.mark.filterwarnings("ignore:.*of sound, of which the last")

COMMON = "--use_cpu true --bf16 false --report_to none --learning_rate 1e-2 --logging_steps 1".split()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return write_rows(generate_rows("train", 8, 0, folder / "clips", distances=(10, 14)), folder / "train.jsonl")


def launch(monkeypatch, script, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments), *COMMON])
    script.main()


def changed_parts(before, after) -> set[str]:
    """Names of the model's parts in which a weight differs."""
    old, new = (MultiMoodForConditionalGeneration.from_pretrained(folder).state_dict() for folder in (before, after))
    assert old.keys() == new.keys()
    return {name.split(".")[1] for name in old if name.startswith("model.") and not torch.equal(old[name], new[name])}


def test_compressor_pretraining_changes_the_compressor_alone(monkeypatch, tmp_path, model_folder, train_file):
    launch(
        monkeypatch,
        pretrain_compressor,
        *("--model", model_folder, "--train_file", train_file, "--output_dir", tmp_path, "--save_strategy", "no"),
        *("--utterance_steps", 2, "--dialogue_steps", 1, "--run_length", 3, "--per_device_train_batch_size", 4),
    )
    assert changed_parts(model_folder, tmp_path) == {"compressor"}


def test_fine_tuning_leaves_frozen_towers_and_goes_on_after_a_stop(
    monkeypatch, tmp_path, capsys, model_folder, train_file
):
    settings = (
        *("--model_name_or_path", model_folder, "--train_file", train_file, "--output_dir", tmp_path),
        *("--freeze", "vision", "audio", "--per_device_train_batch_size", 2, "--save_steps", 2),
    )
    launch(monkeypatch, sft, *settings, "--max_steps", 2)
    assert changed_parts(model_folder, tmp_path) == {
        "connector",
        "audio_projector",
        "compressor",
        "language_model",
    }
    capsys.readouterr()
    launch(monkeypatch, sft, *settings, "--max_steps", 3)
    assert capsys.readouterr().out.count("'loss'") == 1, "one step was left to do"
    assert MultiMoodProcessor.from_pretrained(tmp_path).verbatim_pairs == 2


def test_an_adapter_is_trained_saved_and_loaded_again(monkeypatch, tmp_path, model_folder, train_file):
    launch(
        monkeypatch,
        sft,
        *("--model_name_or_path", model_folder, "--train_file", train_file, "--output_dir", tmp_path),
        *("--max_steps", 2, "--per_device_train_batch_size", 2, "--save_strategy", "no", "--use_peft", "true"),
        *("--lora_target_modules", "q_proj", "v_proj", "--lora_modules_to_save", "connector", "audio_projector"),
    )
    model = MultiMoodForConditionalGeneration.from_pretrained(model_folder)
    adapted = PeftModel.from_pretrained(model, tmp_path).eval()
    weights = {name for name, weight in adapted.named_parameters() if "lora_B" in name and weight.abs().max() > 0}
    assert weights, "the adapter learned and came back"
