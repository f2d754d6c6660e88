"""Stage 3: reinforcement of turns by GRPO, with rewards for their form, their labels and seven dimensions of trust.

    accelerate launch training/grpo.py --config training/recipes/grpo_tiny.yaml
    accelerate launch training/grpo.py --config training/recipes/grpo_tiny.yaml \
        --train_file data/synthetic/train.jsonl --eval_file data/synthetic/validation.jsonl \
        --judge gpt-4o --use_peft --lora_target_modules '.*language_model.*(q_proj|v_proj)' \
        --output_dir outputs/grpo-judged

The judge "rules" is embedded and weak: it is there to try the machinery without a model. Any other name is a model
behind the OpenAI-compatible endpoint of `OPENAI_BASE_URL`, whose verdicts are kept in the output folder.

Without files it learns from fresh rows of the synthetic corpus. The mean reward on held-out prompts, before and after,
is printed and written to `grpo_results.json` beside the checkpoint. A run that was stopped goes on from its last
checkpoint when it is started again.

Source: GRPO of DeepSeekMath (arXiv 2402.03300), for support turns as in MultiMood (arXiv 2511.10011).
"""

import json
import platform
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
import trl
from accelerate.utils import set_seed
from datasets import Dataset
from trl import GRPOConfig, ModelConfig, TrlParser, get_peft_config

from multimood import MultiMoodForConditionalGeneration, MultiMoodProcessor
from multimood.datasets_scripts.schema import Row, read_rows
from multimood.datasets_scripts.synthetic import generate_rows
from multimood.processors.turn import build_prompt
from multimood.training.rewards import format_reward, label_reward, trust_rewards
from multimood.training.trainers.checkpoints import last_checkpoint
from multimood.training.trainers.grpo_trainer import MultiMoodGRPOTrainer
from multimood.trust.judge import Judge, OpenAIJudge
from multimood.trust.rule_judge import RuleJudge
from multimood.trust.verdict_cache import VerdictCache


@dataclass
class GRPOScriptArguments:
    """What is reinforced on what, beside TRL's `GRPOConfig` and `ModelConfig`."""

    train_file: str | None = field(default=None, metadata={"help": "Rows (JSON lines); synthetic ones by default."})
    eval_file: str | None = field(default=None, metadata={"help": "Held-out rows; synthetic ones by default."})
    synthetic_rows: int = field(default=256, metadata={"help": "Synthetic rows to learn from."})
    synthetic_eval_rows: int = field(default=64, metadata={"help": "Synthetic rows held out."})
    synthetic_seed: int = field(
        default=1000, metadata={"help": "Of the synthetic rows; not the one SFT learned from."}
    )
    judge: str = field(
        default="rules", metadata={"help": 'Scores the dimensions of trust: "rules", or the name of a served model.'}
    )
    freeze: list[str] = field(
        default_factory=lambda: ["vision", "audio"],
        metadata={
            "help": "Parts that do not learn: vision, connector, audio, audio_projector, compressor, language_model."
        },
    )


def prompt_dataset(rows: list[Row], verbatim_pairs: int) -> Dataset:
    """Rows as a dataset with a `prompt` beside their own columns, made when a row is taken."""

    def add_prompts(columns: dict[str, list]) -> dict[str, list]:
        taken = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        # A prompt has blocks of many kinds, which Arrow would fill up with every other kind's fields.
        return {**columns, "prompt": [build_prompt(row, verbatim_pairs) for row in taken]}

    return Dataset.from_list(rows).with_transform(add_prompts)


def load_rows(script: GRPOScriptArguments, output_dir: str) -> tuple[list[Row], list[Row]]:
    """(rows to learn from, rows held out), from files or made."""
    made = {
        "train": (script.train_file, script.synthetic_rows),
        "validation": (script.eval_file, script.synthetic_eval_rows),
    }
    clips = Path(output_dir) / "clips"
    return tuple(
        list(read_rows(file)) if file else generate_rows(split, count, script.synthetic_seed, clips)
        for split, (file, count) in made.items()
    )


def make_judge(name: str, output_dir: str) -> Judge:
    """The judge that `--judge` names."""
    if name == "rules":
        return RuleJudge()
    return OpenAIJudge(name, cache=VerdictCache(Path(output_dir) / "verdicts"))


def held_out_reward(trainer: MultiMoodGRPOTrainer) -> dict[str, float]:
    """Mean rewards of turns sampled for the held-out prompts; always with the same random numbers."""
    set_seed(trainer.args.seed, device_specific=True)
    metrics = trainer.evaluate()
    return {
        "reward": metrics["eval_reward"],
        **{name: metrics[f"eval_rewards/{name}/mean"] for name in trainer.reward_func_names},
    }


def main() -> None:
    script, args, model_args = TrlParser((GRPOScriptArguments, GRPOConfig, ModelConfig)).parse_args_and_config()
    with args.main_process_first(desc="rows"):  # the others find the clips drawn
        rows, held_out = load_rows(script, args.output_dir)
    processor = MultiMoodProcessor.from_pretrained(model_args.model_name_or_path)
    model = MultiMoodForConditionalGeneration.from_pretrained(
        model_args.model_name_or_path, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation
    )
    model.freeze(*script.freeze)
    judge = make_judge(script.judge, args.output_dir)
    trainer = MultiMoodGRPOTrainer(
        model=model,
        reward_funcs=[format_reward, label_reward, *trust_rewards(judge)],
        args=args,
        train_dataset=prompt_dataset(rows, processor.verbatim_pairs),
        eval_dataset=prompt_dataset(held_out, processor.verbatim_pairs),
        processing_class=processor,
        peft_config=get_peft_config(model_args),
    )
    print(f"judge of trust: {judge!r}")
    learning = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    print(f"{len(rows)} prompts, {len(held_out)} held out; {learning:,} parameters learn")

    results_file = Path(args.output_dir) / "grpo_results.json"
    checkpoint = last_checkpoint(args.output_dir)
    if checkpoint and results_file.is_file():
        results = json.loads(results_file.read_text())
    else:
        results = {"before": held_out_reward(trainer)}
        if trainer.accelerator.is_main_process:
            results_file.parent.mkdir(parents=True, exist_ok=True)
            results_file.write_text(json.dumps(results))
    trainer.train(resume_from_checkpoint=checkpoint)
    results |= {
        "after": held_out_reward(trainer),
        "steps": trainer.state.global_step,
        "seed": args.seed,
        "judge": judge.name,
        "processes": trainer.accelerator.num_processes,
        "machine": f"{platform.machine()}, {trainer.accelerator.device.type}",
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, trl)},
    }
    trainer.save_model(args.output_dir)
    if trainer.accelerator.is_main_process:
        processor.save_pretrained(args.output_dir)
        results_file.write_text(json.dumps(results, indent=2) + "\n")
        for name, before in results["before"].items():
            print(f"held-out {name}: {before:.3f} before, {results['after'][name]:.3f} after {results['steps']} steps")
        print(f"wrote {args.output_dir}")


if __name__ == "__main__":
    main()
