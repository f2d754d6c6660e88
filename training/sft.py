"""Stage 2: supervised fine-tuning on turns, by TRL's stock `SFTTrainer` with our collator.

The loss is on the therapist's turn alone: three labels and the response.

    accelerate launch training/sft.py --config training/recipes/tiny_sft.yaml
    accelerate launch training/sft.py --model_name_or_path assets/multimood-tiny \
        --train_file data/synthetic/train.jsonl --output_dir outputs/sft --max_steps 100 --freeze vision audio

A run that was stopped goes on from its last checkpoint when it is started again.
"""

from dataclasses import dataclass, field
from functools import partial

from datasets import Dataset
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config

from multimood import MultiMoodForConditionalGeneration, MultiMoodProcessor
from multimood.datasets_scripts.schema import read_rows
from multimood.processors.turn import build_completion, build_prompt
from multimood.training.trainers.checkpoints import last_checkpoint
from multimood.training.trainers.collator import MultiMoodCollator


@dataclass
class SFTScriptArguments:
    """What is trained on what, beside TRL's `SFTConfig` and `ModelConfig`."""

    train_file: str = field(metadata={"help": "Rows (JSON lines) to learn from."})
    eval_file: str | None = field(default=None, metadata={"help": "Rows (JSON lines) to watch the loss on."})
    freeze: list[str] = field(
        default_factory=lambda: ["vision", "audio"],
        metadata={
            "help": "Parts that do not learn: vision, connector, audio, audio_projector, compressor, language_model."
        },
    )


def turn_target(row: dict) -> str:
    """The four lines a row's turn is trained on."""
    return build_completion(row)[0]["content"]


def main() -> None:
    script, args, model_args = TrlParser((SFTScriptArguments, SFTConfig, ModelConfig)).parse_args_and_config()
    # The collator makes the batches: TRL must neither tokenize rows nor drop their columns.
    args.remove_unused_columns = False
    args.dataset_kwargs = {"skip_prepare_dataset": True}
    args.max_length = None

    processor = MultiMoodProcessor.from_pretrained(model_args.model_name_or_path)
    model = MultiMoodForConditionalGeneration.from_pretrained(
        model_args.model_name_or_path, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation
    )
    model.freeze(*script.freeze)
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(list(read_rows(script.train_file))),
        eval_dataset=Dataset.from_list(list(read_rows(script.eval_file))) if script.eval_file else None,
        data_collator=MultiMoodCollator(
            processor, partial(build_prompt, verbatim_pairs=processor.verbatim_pairs), turn_target
        ),
        processing_class=processor,
        peft_config=get_peft_config(model_args),
    )
    learning = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    print(f"{learning:,} parameters learn, frozen: {', '.join(script.freeze) or 'none'}")
    checkpoint = last_checkpoint(args.output_dir)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(args.output_dir)
    processor.save_pretrained(args.output_dir)
    print(f"wrote {args.output_dir}")


if __name__ == "__main__":
    main()
