"""Stage 1: the conversation compressor learns to put an utterance into one vector that a frozen LLM can read back.

The compressor reads a run of utterances and gives one vector for each; from the vector of one of them alone the frozen
LLM must repeat its words. Only the compressor and its projection learn. Stage "utterance" reads single utterances, stage
"dialogue" long runs, so that a vector holds its own utterance, whatever was said before.

    accelerate launch training/pretrain_compressor.py --model outputs/tiny/backbones \
        --train_file outputs/tiny/corpus/mixed.jsonl --output_dir outputs/tiny/compressor

Source: MultiMood (arXiv 2511.10011), after the in-context autoencoder (arXiv 2307.06945).
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, set_seed
from trl import TrlParser

from multimood import MultiMoodForConditionalGeneration, MultiMoodProcessor
from multimood.datasets_scripts.schema import read_rows
from multimood.processors.turn import render_utterance
from multimood.training.trainers.checkpoints import last_checkpoint
from multimood.training.trainers.collator import MultiMoodCollator

REPEAT = "Repeat what was said."


@dataclass
class CompressorArguments:
    """What to pretrain, on what."""

    model: str = field(metadata={"help": "Folder or Hub id of the model whose compressor learns."})
    train_file: str = field(metadata={"help": "Rows (JSON lines) whose histories are compressed."})
    utterance_steps: int = field(default=300, metadata={"help": "Steps on single utterances."})
    dialogue_steps: int = field(default=100, metadata={"help": "Steps on runs of utterances."})
    run_length: int = field(default=24, metadata={"help": 'Most utterances in a run of stage "dialogue".'})
    samples: int = field(default=6, metadata={"help": "Utterances of a run that are repeated, each by itself."})


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
    return "\n".join(map(render_utterance, run))


class RepeatCollator:
    """Runs → a batch whose rows each repeat one utterance.

    To the keys of [`MultiMoodCollator`] it adds `slots` (B,): which of all the runs' vectors, one after the other, each
    row is given; `history_input_ids` (runs, L) hold the whole runs.
    """

    def __init__(self, processor: MultiMoodProcessor, samples: int, seed: int):
        self.processor, self.samples, self.rng = processor, samples, random.Random(seed)
        self.collate = MultiMoodCollator(processor, repeat_prompt, transcript)

    def __call__(self, runs: list[list[dict]]) -> dict[str, torch.Tensor]:
        rows, slots, start = [], [], 0
        for run in runs:
            for place in self.rng.sample(range(len(run)), min(self.samples, len(run))):
                rows.append([run[place]])
                slots.append(start + place)
            start += len(run)
        return {**self.collate(rows), **self.processor.encode_history(runs), "slots": torch.tensor(slots)}


class CompressorTrainer(Trainer):
    """transformers' trainer, with each row reading one vector of a longer run."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        bare = self.accelerator.unwrap_model(model)
        ids, mask, slots = (inputs.pop(key) for key in ("history_input_ids", "history_attention_mask", "slots"))
        vectors = torch.cat(bare.get_history_features(ids, mask))  # (utterances of all runs, hidden)
        outputs = model(**inputs, history_memory=[vectors[slot : slot + 1] for slot in slots.tolist()])
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def main() -> None:
    script, args = TrlParser((CompressorArguments, TrainingArguments)).parse_args_and_config()
    set_seed(args.seed)
    args.remove_unused_columns = False
    processor = MultiMoodProcessor.from_pretrained(script.model)
    model = MultiMoodForConditionalGeneration.from_pretrained(script.model)
    model.freeze("vision", "connector", "audio", "audio_projector", "language_model")
    rows = list(read_rows(script.train_file))
    collator = RepeatCollator(processor, script.samples, args.seed)
    output_dir = Path(args.output_dir)
    rows_a_step = args.per_device_train_batch_size * script.samples
    for stage, length, steps, runs_a_step in (
        ("utterance", 1, script.utterance_steps, rows_a_step),
        ("dialogue", script.run_length, script.dialogue_steps, args.per_device_train_batch_size),
    ):
        runs = UtteranceRuns(rows, length, args.seed)
        print(f"stage {stage}: {steps} steps on {len(runs)} runs of at most {length} utterances")
        args.output_dir, args.max_steps = str(output_dir / stage), steps
        args.per_device_train_batch_size = runs_a_step
        trainer = CompressorTrainer(model=model, args=args, train_dataset=runs, data_collator=collator)
        trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    print(f"wrote {output_dir}")


if __name__ == "__main__":
    main()
