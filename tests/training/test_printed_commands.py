"""The commands in the docstrings of the training scripts, as printed, but stopped after a step or two."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from judge_server import running_server

from multimood.datasets_scripts.schema import write_rows
from multimood.datasets_scripts.synthetic import generate_rows

ROOT = Path(__file__).parents[2]
OUTPUTS = {"sft": "outputs/sft", "grpo": "outputs/grpo-tiny"}  # where the recipe names the folder
SHORTENED = {
    "pretrain_compressor": "--utterance_steps 1 --dialogue_steps 1",
    "sft": "--max_steps 2 --eval_steps 2 --save_steps 2",
    "grpo": "--max_steps 1 --synthetic_rows 8 --synthetic_eval_rows 4 --per_device_train_batch_size 8",
}


def printed_commands(script: str) -> list[str]:
    """The indented commands of a script's docstring, continued lines joined."""
    text = ast.get_docstring(ast.parse((ROOT / "training" / f"{script}.py").read_text()), clean=False)
    lines = text.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.startswith("    accelerate launch ")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder like the project's, with the rows that the commands name."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("training", "assets"):
        (folder / name).symlink_to(ROOT / name)
    for split, count in (("train", 16), ("validation", 4)):
        write_rows(generate_rows(split, count, 0, folder / "clips"), folder / f"data/synthetic/{split}.jsonl")
    return folder


@pytest.mark.parametrize(
    ("script", "number"),
    [(script, number) for script in SHORTENED for number in range(len(printed_commands(script)))],
)
def test_a_printed_command_runs(script, number, workplace):
    command = f"{printed_commands(script)[number]} {SHORTENED[script]}"
    with running_server() as judge:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "OPENAI_BASE_URL": judge.base_url,
            "OPENAI_API_KEY": "none",
        }
        done = subprocess.run(
            command, shell=True, cwd=workplace, env=environment, capture_output=True, text=True, timeout=300
        )
        asked = judge.stats()["requests"]
    assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
    named = re.search(r"--output_dir (\S+)", command)
    output = workplace / (named[1] if named else OUTPUTS[script])
    assert list(output.glob("*.safetensors")), f"no weights in {output}"
    assert bool(asked) == ("--judge" in command)


def test_every_stage_prints_commands():
    assert {script: len(printed_commands(script)) for script in SHORTENED} == {
        "pretrain_compressor": 1,
        "sft": 3,
        "grpo": 2,
    }
