"""A run that is stopped goes on as if nothing had happened: real processes, real signals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from whole_builders import save_tiny

from multimood.datasets_scripts.schema import write_rows
from multimood.datasets_scripts.synthetic import generate_rows
from multimood.training.trainers.checkpoints import last_checkpoint

STEPS = 8


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    # With dropout, so that the state of the random numbers counts.
    model = save_tiny(folder / "model")
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.1
    (model / "config.json").write_text(json.dumps(config))
    rows = generate_rows("train", 10, 0, folder / "clips", distances=(10, 14))
    train_file = write_rows(rows, folder / "train.jsonl")
    return (
        *("--model_name_or_path", model, "--train_file", train_file, "--max_steps", STEPS, "--logging_steps", 1),
        *("--per_device_train_batch_size", 2, "--save_steps", 3, "--learning_rate", "1e-2", "--use_cpu", "true"),
        *("--bf16", "false", "--report_to", "none", "--lr_scheduler_type", "cosine"),
    )


def start(settings, output_dir: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "multimood.training.sft", *settings, "--output_dir", output_dir]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )


def signal_after(process: subprocess.Popen, steps: int, number: int) -> tuple[int, str]:
    """Sends a signal once `steps` more steps are logged; (exit status, what was printed from then on)."""
    for line in process.stdout:
        steps -= "'loss'" in line
        if steps == 0:
            process.send_signal(number)
            break
    rest, _ = process.communicate(timeout=120)
    return process.returncode, rest


def losses(folder: Path) -> dict[int, float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def test_losses_are_those_of_an_uninterrupted_run_after_sigterm_and_kill(settings, tmp_path):
    whole = start(settings, tmp_path / "whole")
    status, printed = signal_after(start(settings, tmp_path / "cut"), 2, signal.SIGTERM)
    assert status == 143
    stopped_at = int(Path(last_checkpoint(tmp_path / "cut")).name.removeprefix("checkpoint-"))
    assert 2 <= stopped_at < STEPS, "the checkpoint of SIGTERM"
    assert f"goes on from {last_checkpoint(tmp_path / 'cut')}" in printed

    status, _ = signal_after(start(settings, tmp_path / "cut"), 2, signal.SIGKILL)
    assert status == -signal.SIGKILL
    last = start(settings, tmp_path / "cut")
    last_printed, _ = last.communicate(timeout=120)
    assert last.returncode == 0
    assert 0 < last_printed.count("'loss'") < STEPS

    assert whole.communicate(timeout=120)[0]
    expected = losses(tmp_path / "whole")
    assert sorted(expected) == list(range(1, STEPS + 1))
    assert losses(tmp_path / "cut") == pytest.approx(expected, abs=1e-6)


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path, capsys):
    assert last_checkpoint(tmp_path / "nothing") is None
    for name, state in (
        ("checkpoint-9", "{}"),
        ("checkpoint-10", '{"glob'),
        ("checkpoint-11", None),
        ("checkpoint-x", "{}"),
    ):
        (tmp_path / name).mkdir()
        if state is not None:
            (tmp_path / name / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    assert "checkpoint-10" in capsys.readouterr().out
