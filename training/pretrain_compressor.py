"""Stage 1: the conversation compressor learns to put an utterance into one vector that a frozen LLM can read back.

The history is compressed to one vector an utterance; from these vectors alone the frozen LLM must repeat the words.
Only the compressor and its projection learn. Stage "utterance" shows single utterances, stage "dialogue" runs of
them, so that the recurrent state learns to go on.

    accelerate launch training/pretrain_compressor.py --model outputs/tiny/backbones \
        --train_file outputs/tiny/corpus/train.jsonl --output_dir outputs/tiny/compressor

Source: MultiMood (arXiv 2511.10011), after the in-context autoencoder (arXiv 2307.06945).
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import TrlParser

from multimood import MultiMoodForConditionalGeneration, MultiMoodProcessor
from multimood.datasets_scripts.schema import read_rows
from multimood.training.trainers.collator import MultiMoodCollator

REPEAT = "Repeat what was said."


@dataclass
class CompressorArguments:
    """What to pretrain, on what."""

    model: str = field(metadata={"help": "Folder or Hub id of the model whose compressor learns."})
    train_file: str = field(metadata={"help": "Rows (JSON lines) whose histories are compressed."})
    utterance_steps: int = field(default=300, metadata={"help": "Steps on single utterances."})
    dialogue_steps: int = field(default=100, metadata={"help": "Steps on runs of utterances."})
    run_length: int = field(default=6, metadata={"help": "Most utterances in a run."})


class UtteranceRuns(Dataset):
    """Runs of consecutive utterances of the rows' histories: item `i` → `[{"speaker", "text"}, …]`."""

    def __init__(self, rows: list[dict], length: int, seed: int):
        rng = random.Random(seed)
        self.runs = []
        for row in rows:
            history = [{"speaker": u["speaker"], "text": u["text"]} for u in row["history"]]
            starts = range(0, max(len(history) - length, 0) + 1, length)
            self.runs += [history[start : start + length] for start in starts]
        rng.shuffle(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> list[dict]:
        return self.runs[index]


def repeat_prompt(run: list[dict]) -> list[dict]:
    """Chat messages that ask for a run's words, given only as memory."""
    return [{"role": "user", "content": [{"type": "history", "history": run}, {"type": "text", "text": REPEAT}]}]


def transcript(run: list[dict]) -> str:
    """The run's words, one utterance a line: what has to be read back."""
    return "\n".join(f"{utterance['speaker'].capitalize()}: {utterance['text']}" for utterance in run)


def main() -> None:
    script, args = TrlParser((CompressorArguments, TrainingArguments)).parse_args_and_config()
    set_seed(args.seed)
    args.remove_unused_columns = False
    processor = MultiMoodProcessor.from_pretrained(script.model)
    model = MultiMoodForConditionalGeneration.from_pretrained(script.model)
    model.freeze("vision", "connector", "audio", "audio_projector", "language_model")
    rows = list(read_rows(script.train_file))
    collator = MultiMoodCollator(processor, repeat_prompt, transcript)
    output_dir = Path(args.output_dir)
    for stage, length, steps in (
        ("utterance", 1, script.utterance_steps),
        ("dialogue", script.run_length, script.dialogue_steps),
    ):
        runs = UtteranceRuns(rows, length, args.seed)
        print(f"stage {stage}: {steps} steps on {len(runs)} runs of at most {length} utterances")
        args.output_dir, args.max_steps = str(output_dir / stage), steps
        trainer = Trainer(model=model, args=args, train_dataset=runs, data_collator=collator)
        trainer.train(
            resume_from_checkpoint=get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
        )
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    print(f"wrote {output_dir}")


if __name__ == "__main__":
    main()
