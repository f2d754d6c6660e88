"""Stage 2: supervised fine-tuning on turns, by TRL's `SFTTrainer` with our collator.

The loss is on the therapist's turn alone: three labels and the response.

    accelerate launch training/sft.py --recipe training/recipes/sft.yaml
    accelerate launch training/sft.py --recipe training/recipes/sft.yaml --max_steps 20 --use_peft \
        --output_dir outputs/sft-lora
    accelerate launch --config_file training/accelerate_configs/two_cpu.yaml \
        training/sft.py --recipe training/recipes/sft.yaml --max_steps 20 --output_dir outputs/sft-two

The first trains everything but the frozen towers; the second gives the language model LoRA adapters, while connector,
audio projector and compressor learn whole; `--load_in_4bit` makes it QLoRA. To train only connector and projector, as
an alignment stage, `--freeze vision audio compressor language_model`.

A run that was stopped, also by SIGTERM, which saves a checkpoint first, goes on from its last checkpoint when it is
started again. Metrics: `training/trainers/turn_trainer.py`; at the end `README.md` (the model card), `curves.png` and
`trainer_state.json` lie beside the weights.

Source: MultiMood (arXiv 2511.10011); QLoRA: arXiv 2305.14314.
"""

import os
import sys
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec

from datasets import Dataset
from trl import ModelConfig, SFTConfig, get_peft_config, get_quantization_config

from multimood import MultiMoodForConditionalGeneration, MultiMoodProcessor
from multimood.datasets_scripts.schema import RowError, read_rows
from multimood.modeling_multimood.modeling_multimood import PARTS
from multimood.processors.turn import build_completion, build_prompt
from multimood.training.trainers.checkpoints import last_checkpoint, writing
from multimood.training.trainers.recipes import parse_arguments
from multimood.training.trainers.turn_parts import TurnCollator
from multimood.training.trainers.turn_trainer import TurnTrainer

# Linear layers of the language model: LoRA's default, and all that is quantised.
LANGUAGE_MODEL_LINEAR = r".*language_model\..*(q|k|v|o|qkv|gate|up|down|gate_up)_proj"
STOPPED_BY_SIGTERM = 143  # what shells and schedulers expect: 128 + 15


@dataclass
class SFTScriptArguments:
    """What is trained on what, beside TRL's `SFTConfig` and `ModelConfig`."""

    train_file: str = field(metadata={"help": "Rows (JSON lines) to learn from."})
    eval_file: str | None = field(
        default=None, metadata={"help": "Rows (JSON lines) to measure loss and labels on, by `--eval_strategy`."}
    )
    eval_rows: int = field(default=256, metadata={"help": "How many of them, evenly spread; 0 for all."})
    freeze: list[str] = field(
        default_factory=lambda: ["vision", "audio"],
        metadata={
            "help": "Parts that do not learn: vision, connector, audio, audio_projector, compressor, language_model."
        },
    )
    label_weight: float = field(
        default=1.0, metadata={"help": "Weight in the loss of a label's tokens; the other tokens of a turn have 1."}
    )


def turn_target(row: dict) -> str:
    """The four lines a row's turn is trained on."""
    return build_completion(row)[0]["content"]


def read_turns(path: str, most: int = 0) -> Dataset:
    """The rows of a file, or `most` of them, evenly spread; each has a whole turn to learn.

    Raises:
        RowError: with file and line, for a row that breaks the schema or lacks a part of its turn.
        ValueError: if there is no row.
    """
    rows = []
    for number, row in enumerate(read_rows(path), start=1):
        try:
            turn_target(row)
        except ValueError as error:
            raise RowError(f"{path}, line {number}: {error}; fine-tuning needs all of it") from error
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} has no rows.")
    if 0 < most < len(rows):
        rows = [rows[i * len(rows) // most] for i in range(most)]
    return Dataset.from_list(rows)


def load_model(args: SFTConfig, model_args: ModelConfig, learning: list[str]) -> MultiMoodForConditionalGeneration:
    """The model to be tuned; with `load_in_4bit` or `load_in_8bit` its language model is quantised.

    Raises:
        ImportError: quantisation needs bitsandbytes.
        ValueError: a quantised language model is to learn without adapters or half precision.
    """
    quantization = get_quantization_config(model_args)
    if quantization is not None:
        if find_spec("bitsandbytes") is None:
            raise ImportError(
                "Training with a quantised language model needs bitsandbytes: pip install 'multimood[gpu]', or leave "
                "out `load_in_4bit` and `load_in_8bit`."
            )
        if not model_args.use_peft and "language_model" in learning:
            raise ValueError("A quantised language model learns only through adapters: set `use_peft`, or freeze it.")
        if not args.bf16 and not args.fp16:
            raise ValueError("A quantised language model is trained in half precision: set `bf16`.")
        kept = [f"model.{name}" for part, name in PARTS.items() if part != "language_model"]
        quantization.llm_int8_skip_modules = [*kept, "lm_head"]
    return MultiMoodForConditionalGeneration.from_pretrained(
        model_args.model_name_or_path,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization,
    )


def adapter_config(model_args: ModelConfig, learning: list[str]):
    """LoRA on the language model's linear layers; the other parts that learn do so whole, and are saved with it."""
    config = get_peft_config(model_args)
    if config is not None:
        config.target_modules = config.target_modules or LANGUAGE_MODEL_LINEAR
        if config.modules_to_save is None:
            config.modules_to_save = [PARTS[part] for part in learning if part != "language_model"]
    return config


def main() -> None:
    script, args, model_args = parse_arguments(SFTScriptArguments, SFTConfig, ModelConfig)
    # The collator makes the batches: TRL must neither tokenize rows nor drop their columns.
    args.remove_unused_columns = False
    args.dataset_kwargs = {"skip_prepare_dataset": True}
    args.max_length = None
    if script.label_weight <= 0:
        raise ValueError(f"`label_weight` is {script.label_weight}; give a number above 0.")
    if args.world_size != (launched := int(os.environ.get("WORLD_SIZE", 1))):
        raise RuntimeError(f"{launched} processes were launched, but each of them trains as one of {args.world_size}.")

    train_dataset = read_turns(script.train_file)
    eval_dataset = read_turns(script.eval_file, script.eval_rows) if script.eval_file else None
    processor = MultiMoodProcessor.from_pretrained(model_args.model_name_or_path)
    learning = [part for part in PARTS if part not in script.freeze]
    model = load_model(args, model_args, learning)
    model.freeze(*script.freeze)
    trainer = TurnTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=TurnCollator(
            processor, partial(build_prompt, verbatim_pairs=processor.verbatim_pairs), turn_target
        ),
        processing_class=processor,
        peft_config=adapter_config(model_args, learning),
        label_weight=script.label_weight,
        card={
            "Data": "\n".join(
                f"- {use}: {len(dataset)} rows of `{os.path.basename(file)}`"
                for use, dataset, file in (
                    ("learned from", train_dataset, script.train_file),
                    ("validated on", eval_dataset, script.eval_file),
                )
                if dataset is not None
            ),
            "Training": (
                f"Supervised fine-tuning of `{model_args.model_name_or_path}` on support turns. Parts that learned: "
                f"{', '.join(learning) or 'none'}{', the language model through LoRA' if model_args.use_peft else ''}. "
                f"A label's tokens weigh {script.label_weight:g} in the loss, the others 1. The accuracies of labels "
                "are those of the most probable tokens, given the true lines before them."
            ),
        },
    )
    learned = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    # Computed in half precision, but kept in full, or small steps would be rounded away. DeepSpeed sees to it itself.
    if (args.bf16 or args.fp16) and not trainer.is_deepspeed_enabled:
        for parameter in learned:
            parameter.data = parameter.data.float()
    parameters = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in learned)  # ZeRO-3 empties them
    print(
        f"{parameters:,} parameters learn, frozen: {', '.join(script.freeze) or 'none'}; "
        f"process {args.process_index + 1} of {args.world_size}"
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))
    if trainer.stopped:
        print(f"stopped; the same command goes on from {last_checkpoint(args.output_dir)}")
        sys.exit(STOPPED_BY_SIGTERM)
    with writing(args.output_dir, args.output_dir):
        trainer.save_model(args.output_dir, _internal_call=True)  # else it would push already, without the rest
        trainer.save_state()
        trainer.create_model_card()
    if args.push_to_hub:
        trainer.push_to_hub()
    print(f"wrote {args.output_dir}")


if __name__ == "__main__":
    main()
