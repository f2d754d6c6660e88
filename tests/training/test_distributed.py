"""Several real processes, joined by gloo."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from whole_builders import save_tiny

from multimood.datasets_scripts.schema import write_rows
from multimood.datasets_scripts.synthetic import generate_rows

HERE = Path(__file__).parent
CONFIGS = HERE.parent.parent / "training" / "accelerate_configs"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(*command) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)], capture_output=True, text=True, timeout=240, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.slow
def test_two_processes_learn_as_one_does_with_the_same_global_batch(tmp_path):
    model = save_tiny(tmp_path / "model")
    # With and without clips: in some steps a process sees none, and has no gradients for the towers.
    rows = generate_rows("train", 6, 0, tmp_path / "clips", tracks="both", distances=(10, 14))
    rows += generate_rows("train", 6, 1, tmp_path / "clips", tracks="none", distances=(10, 14))
    train_file = write_rows(rows, tmp_path / "train.jsonl")
    settings = (
        *("--model_name_or_path", model, "--train_file", train_file, "--max_steps", 4, "--logging_steps", 1),
        *("--learning_rate", "1e-3", "--save_strategy", "no", "--bf16", "false", "--report_to", "none"),
        *("--use_cpu", "true", "--freeze", "vision"),
    )
    worker = HERE / "sft_worker.py"
    run("accelerate.commands.launch", "--num_processes", 1, "--cpu", worker, *settings, "--output_dir", tmp_path / "one",
        "--per_device_train_batch_size", 4)  # fmt: skip
    two = run("accelerate.commands.launch", "--config_file", CONFIGS / "two_cpu.yaml", worker, *settings,
        "--output_dir", tmp_path / "two", "--per_device_train_batch_size", 2)  # fmt: skip

    weights = re.findall(r"weights (\w+) in process (\d) of (\d)", two)
    assert {(process, processes) for _, process, processes in weights} == {("0", "2"), ("1", "2")}
    assert len({digest for digest, _, _ in weights}) == 1, "the processes' weights differ"
    assert len(losses(tmp_path / "one")) == 4
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


def test_a_process_without_clips_takes_part_in_sharded_towers():
    output = run("torch.distributed.run", "--standalone", "--nproc_per_node", 2, HERE / "sharded_worker.py")
    assert output.count("of 2: 142 gradients") == 2
    assert output.count("of 2: 65 gradients") == 2


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_knows_every_key_of_the_configurations(config):
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(config))
    assert loaded.num_processes == yaml.safe_load(config.read_text())["num_processes"]
