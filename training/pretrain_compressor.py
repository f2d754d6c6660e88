"""Stage 1: the conversation compressor learns to put what was said into vectors that a frozen LLM can read back.

The compressor reads a run of utterances and gives one vector for each; an utterance of more than `slot_words` words is
cut into several, with a vector each. From one vector alone the frozen LLM must repeat its words. Only the compressor and
its projection learn. Stage "utterance" reads single utterances; stage "dialogue" reads long runs, so that a vector holds
its own utterance, whatever was said before, and can add the loss of the therapist's next answer, given the run's memory.

    accelerate launch training/pretrain_compressor.py --model assets/multimood-tiny \
        --train_file data/synthetic/train.jsonl --output_dir outputs/compressor

A run that was stopped goes on from its last checkpoint when it is started again: each sample is a function of the seed
and its number alone.

Source: MultiMood (arXiv 2511.10011), after the in-context autoencoder (arXiv 2307.06945), whose continuation loss it
takes too.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, set_seed
from trl import TrlParser

from multimood import MultiMoodForConditionalGeneration, MultiMoodProcessor
from multimood.datasets_scripts.memory_slots import (
    continue_prompt,
    cut_utterances,
    longest_conversations,
    repeat_prompt,
    transcript,
)
from multimood.datasets_scripts.schema import read_rows
from multimood.training.trainers.checkpoints import last_checkpoint
from multimood.training.trainers.collator import MultiMoodCollator, last_logits


@dataclass
class CompressorArguments:
    """What to pretrain, on what."""

    model: str = field(metadata={"help": "Folder or Hub id of the model whose compressor learns."})
    train_file: str = field(metadata={"help": "Rows (JSON lines) whose dialogues are compressed."})
    utterance_steps: int = field(default=300, metadata={"help": "Steps on single utterances."})
    dialogue_steps: int = field(default=100, metadata={"help": "Steps on runs of utterances."})
    run_length: int = field(default=24, metadata={"help": 'Most slots in a run of stage "dialogue".'})
    samples: int = field(
        default=6, metadata={"help": "Slots of a run that are repeated, or answers that are asked for."}
    )
    slot_words: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Most words of a slot, one of these by chance for each batch; a longer utterance takes several "
            "slots. By default an utterance takes one."
        },
    )
    swap: float = field(
        default=0.0,
        metadata={
            "help": "Share of words that are swapped for any other of the corpus, so that rare ones (names, numbers) "
            "are learned as often as common ones, and copied instead of guessed."
        },
    )
    continuation: float = field(
        default=0.0,
        metadata={
            "help": 'Share of the batches of stage "dialogue" that ask for the therapist\'s next answers, each given the '
            "memory of what came before the client's words, in place of the utterances."
        },
    )


class MemoryTasks(Dataset):
    """Item `i` → `{"run": utterances to compress, "asks": [{"slots": (first, end), "prompt", "target"}, …]}`.

    Args:
        conversations: whole dialogues.
        size: how many items there are; each is drawn anew, from `seed` and its number.
        length: most slots in a run.
        group: neighbouring items that ask for the same and are cut to slots of one size, so that a batch of them is hardly
            padded.
        seed: of the draws.
        script: the other settings.
    """

    def __init__(
        self,
        conversations: list[list[dict]],
        size: int,
        length: int,
        group: int,
        seed: int,
        script: CompressorArguments,
    ):
        self.conversations, self.script = conversations, script
        self.size, self.length, self.group, self.seed = size, length, group, seed
        self.words = sorted({word for said in conversations for one in said for word in one["text"].split()})

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        rng = random.Random(f"{self.seed}/{index}")
        of_group = random.Random(f"{self.seed}/{index // self.group}/group")
        words = of_group.choice(self.script.slot_words or [0])
        goes_on = of_group.random() < self.script.continuation and self.length > 1
        said = rng.choice(self.conversations)
        pieces = self._pieces(said, words, rng)
        start = rng.randrange(max(len(pieces) - self.length, 0) + 1)
        pieces = pieces[start : start + self.length]
        asks = self._answers(said, pieces, start, words) if goes_on else []
        if not asks:
            asks = [
                {"slots": (place, place + 1), "prompt": repeat_prompt([piece]), "target": transcript([piece])}
                for place, piece in enumerate(pieces)
            ]
        return {"run": pieces, "asks": rng.sample(asks, min(self.script.samples, len(asks)))}

    def _answers(self, said: list[dict], pieces: list[dict], start: int, words: int) -> list[dict]:
        """Asks for all answers to a client before whose turn some of the run was said, which begins at slot `start`."""
        asks = []
        for i in range(2, len(said)):
            end = len(self._cut(said[: i - 1], words)) - start
            if said[i]["speaker"] == "therapist" != said[i - 1]["speaker"] and 0 < end <= len(pieces):
                prompt = continue_prompt(pieces[:end], said[i - 1]["text"])
                asks.append({"slots": (0, end), "prompt": prompt, "target": said[i]["text"]})
        return asks

    def _cut(self, said: list[dict], words: int) -> list[dict]:
        return cut_utterances(said, words) if words else said

    def _pieces(self, said: list[dict], words: int, rng: random.Random) -> list[dict]:
        said = self._cut(said, words)
        if not self.script.swap:
            return said
        # Some pieces are left as they are, others are hardly language any more.
        return [{**piece, "text": self._swapped(piece["text"], rng)} for piece in said]

    def _swapped(self, text: str, rng: random.Random) -> str:
        share = rng.random() * 2 * self.script.swap
        return " ".join(rng.choice(self.words) if rng.random() < share else word for word in text.split())


class MemoryCollator:
    """Items of [`MemoryTasks`] → a batch with a row for each thing asked.

    To the keys of [`MultiMoodCollator`] it adds `slots` (B, 2): of all the runs' vectors, one after the other, the first
    that a row is given and the one after its last; `history_input_ids` (runs, L) hold the whole runs.
    """

    def __init__(self, processor: MultiMoodProcessor):
        self.processor = processor
        self.collate = MultiMoodCollator(processor, lambda ask: ask["prompt"], lambda ask: ask["target"])

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        asks, slots, start = [], [], 0
        for item in items:
            asks += item["asks"]
            slots += [[start + first, start + end] for first, end in (ask["slots"] for ask in item["asks"])]
            start += len(item["run"])
        runs = self.processor.encode_history([item["run"] for item in items])
        return {**self.collate(asks), **runs, "slots": torch.tensor(slots)}


class CompressorTrainer(Trainer):
    """transformers' trainer, with each row reading some vectors of a longer run."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        bare = self.accelerator.unwrap_model(model)
        ids, mask, slots = (inputs.pop(key) for key in ("history_input_ids", "history_attention_mask", "slots"))
        vectors = torch.cat(bare.get_history_features(ids, mask))  # (utterances of all runs, hidden)
        memory = [vectors[first:end] for first, end in slots.tolist()]
        outputs = model(**last_logits(inputs), history_memory=memory, num_items_in_batch=num_items_in_batch)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def main() -> None:
    script, args = TrlParser((CompressorArguments, TrainingArguments)).parse_args_and_config()
    if min(script.slot_words, default=1) < 1:
        raise SystemExit(f"--slot_words is {script.slot_words}; a slot holds at least 1 word")
    set_seed(args.seed)
    args.remove_unused_columns = False
    args.train_sampling_strategy = "sequential"  # each item is drawn by chance already
    processor = MultiMoodProcessor.from_pretrained(script.model)
    model = MultiMoodForConditionalGeneration.from_pretrained(script.model)
    model.freeze("vision", "connector", "audio", "audio_projector", "language_model")
    conversations = longest_conversations(list(read_rows(script.train_file)))
    if not conversations:
        raise SystemExit(f"{script.train_file} has no rows to learn from")
    output_dir = Path(args.output_dir)
    rows_a_step = args.per_device_train_batch_size * script.samples
    for stage, length, steps, runs_a_step in (
        ("utterance", 1, script.utterance_steps, rows_a_step),
        ("dialogue", script.run_length, script.dialogue_steps, args.per_device_train_batch_size),
    ):
        args.output_dir, args.max_steps = str(output_dir / stage), steps
        args.per_device_train_batch_size = runs_a_step
        size = steps * runs_a_step * args.gradient_accumulation_steps * args.world_size
        tasks = MemoryTasks(conversations, size, length, runs_a_step, args.seed, script)
        print(f"stage {stage}: {steps} steps on runs of at most {length} of {len(conversations)} dialogues")
        trainer = CompressorTrainer(
            model=model, args=args, train_dataset=tasks, data_collator=MemoryCollator(processor)
        )
        trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    print(f"wrote {output_dir}")


if __name__ == "__main__":
    main()
