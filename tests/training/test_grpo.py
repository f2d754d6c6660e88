"""The GRPO script, whole: synthetic rows, two steps, results and checkpoint."""

import json
import sys

import whole_builders

from multimood import MultiMoodForConditionalGeneration, MultiMoodProcessor
from multimood.processors.turn import build_prompt
from multimood.training import grpo
from multimood.trust.rubric import DIMENSIONS


def test_prompts_stand_beside_the_rows_own_columns():
    row = {
        "history": [{"speaker": "client", "text": "hello", "emotion": None, "strategy": None}],
        "problem_type": "poor sleep",
        "situation": None,
        "videos": ["a.mp4"],
        "utterance": "Hi.",
        "client_emotion": "joy",
    }
    dataset = grpo.prompt_dataset([row, {**row, "utterance": "Bye."}], verbatim_pairs=0)
    assert len(dataset) == 2
    assert dataset[1]["prompt"] == build_prompt({**row, "utterance": "Bye."}, verbatim_pairs=0)
    assert dataset[0]["client_emotion"] == "joy"


def test_the_script_writes_rewards_before_and_after_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    checkpoint, output = whole_builders.save_tiny(tmp_path / "checkpoint"), tmp_path / "output"

    def run(steps):
        arguments = {
            "model_name_or_path": checkpoint,
            "output_dir": output,
            "max_steps": steps,
            "synthetic_rows": 2,
            "synthetic_eval_rows": 2,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "num_generations": 2,
            "max_completion_length": 4,
            "save_strategy": "steps",
            "save_steps": 1,
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
        }
        argv = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", ["grpo.py", *argv])
        grpo.main()
        return json.loads((output / "grpo_results.json").read_text())

    first = run(1)
    assert first["steps"] == 1
    rewards = {"reward", "format_reward", "label_reward", *(f"{dimension}_reward" for dimension in DIMENSIONS)}
    assert first["before"].keys() == first["after"].keys() == rewards
    assert 0 <= first["before"]["format_reward"] <= 1
    assert first["versions"]["trl"]

    second = run(2)
    assert second["steps"] == 2
    assert second["before"] == first["before"]
    MultiMoodForConditionalGeneration.from_pretrained(output)
    MultiMoodProcessor.from_pretrained(output)
