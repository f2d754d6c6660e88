"""A small model of MESC's words from nothing: rows, tokenizer, language model, then the real training scripts.

    python -m multimood.training.mesc_small --mesc path/to/mesc --work outputs/mesc_small

1. Rows of the episode-disjoint split; `test.jsonl` is written for the evaluation and read by no stage. On validation a
   checkpoint of stage 4 is chosen. Stages 2 and 3 share the dialogues of train between them.
2. Tokenizer and language model, from the words of `train_language.jsonl` alone. The language model learns to speak, to
   repeat what it sees as pooled word vectors (`modeling_multimood/pooled_words.py`), and to answer. A *pretrained*
   language model, from which the real model starts, reads soft vectors without having been told; this is its stand-in.
3. `pretrain_compressor.py`, against the frozen language model, on `train_compressor.jsonl`.
4. `sft.py` on text alone.
5. With `--clips`: `sft.py` on the same labels and words with clips drawn from the labels. The towers are those of
   `assets/multimood-tiny` and stay frozen.

A stage that is finished is not repeated; one that was stopped goes on from its last checkpoint. Rows and weights hold the
text of a television series: keep them to yourself.
"""

import argparse
import random
import subprocess
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import (
    Mamba2Config,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Trainer,
    TrainingArguments,
    set_seed,
)

from multimood import MultiMoodForConditionalGeneration, MultiMoodProcessor
from multimood.datasets_scripts.drawn_clip import Person, render_clip
from multimood.datasets_scripts.memory_slots import (
    CONTINUE,
    REPEAT,
    continue_prompt,
    cut_utterances,
    longest_conversations,
    repeat_prompt,
    transcript,
)
from multimood.datasets_scripts.mesc import SPLITS, load_mesc
from multimood.datasets_scripts.schema import Row, read_rows, write_rows
from multimood.modeling_multimood.pooled_words import pooled_words
from multimood.processors.turn import SYSTEM_PROMPT, build_completion, render_utterance
from multimood.training.trainers.checkpoints import last_checkpoint
from multimood.training.trainers.collator import MultiMoodCollator, last_logits

RECIPES = Path(__file__).parent / "recipes"
TOWERS = Path(__file__).parents[1] / "assets" / "multimood-tiny"
HIDDEN, LAYERS, VOCABULARY = 192, 4, 3072
SLOT_WORDS = (4, 8, 16, 64)  # 64: nearly every turn in one slot
SFT_SLOT_WORDS = 8
VERBATIM_PAIRS = 2
NEIGHBOURS = 10  # dialogues, mostly of one episode, that stay together where train is shared out
CLIP_SECONDS = 2.0


def write_splits(mesc: Path, folder: Path) -> None:
    """`train.jsonl`, `validation.jsonl` and `test.jsonl`, no episode on two sides."""
    for split in SPLITS:
        if not (folder / f"{split}.jsonl").exists():
            write_rows(load_mesc(mesc, split=split, scheme="episode_disjoint"), folder / f"{split}.jsonl")


def write_halves(folder: Path) -> tuple[Path, Path]:
    """`train.jsonl` in two halves, one for the language model and one for the compressor.

    What a language model knows by heart it needs no memory for, so only words that are new to it show what a memory has to
    hold.
    """
    rows = list(read_rows(folder / "train.jsonl"))
    places = {dialogue: place for place, dialogue in enumerate(dict.fromkeys(row["dialogue_id"] for row in rows))}
    halves = folder / "train_language.jsonl", folder / "train_compressor.jsonl"
    for half, path in enumerate(halves):
        if not path.exists():
            write_rows([row for row in rows if places[row["dialogue_id"]] // NEIGHBOURS % 2 == half], path)
    return halves


def in_slots(row: Row) -> Row:
    """The row with a history whose long utterances are cut, for a memory slot each."""
    pieces = cut_utterances(row["history"], SFT_SLOT_WORDS)
    return {**row, "history": [{**piece, "emotion": None, "strategy": None} for piece in pieces]}


def with_clip(row: Row, folder: Path) -> Row:
    """The row with a clip in which its client, one person a dialogue, shows the emotion of the label."""
    return {**row, "videos": [str(folder / f"{row['dialogue_id']}-{row['turn_id']}.mp4")]}


def draw_clip(row: Row) -> None:
    """Draws the clip of a row, unless it is there."""
    path = Path(row["videos"][0])
    if not path.exists():
        part = path.with_suffix(".part.mp4")
        seed = zlib.crc32(path.stem.encode())
        person = Person.from_seed(zlib.crc32(row["dialogue_id"].encode()))
        render_clip(part, person, row["client_emotion"], seconds=CLIP_SECONDS, seed=seed)
        part.replace(path)


def train_tokenizer(rows: list[Row]) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the rows' words."""

    def texts():
        yield f"{SYSTEM_PROMPT}\nsystem user assistant Problem: Situation: {CONTINUE} {REPEAT}"
        for said in longest_conversations(rows):
            yield transcript(said)
        for row in rows:
            yield build_completion({**row, "response": "x"})[0]["content"]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", model_max_length=4096
    )


def build(tokenizer: PreTrainedTokenizerFast) -> tuple[MultiMoodForConditionalGeneration, MultiMoodProcessor]:
    """The untrained model, but for its towers, and its processor."""
    towers = MultiMoodForConditionalGeneration.from_pretrained(TOWERS)
    tiny = MultiMoodProcessor.from_pretrained(TOWERS)
    processor = MultiMoodProcessor.from_backbones(
        vision=tiny.image_processor,
        audio=tiny.feature_extractor,
        history=tokenizer,
        text=tokenizer,
        vision_config=towers.config.vision_config,
        audio_config=towers.config.audio_config,
        num_frames=tiny.num_frames,
        audio_pooling=tiny.audio_pooling,
        verbatim_pairs=VERBATIM_PAIRS,
    )
    text = Qwen3Config(
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // 32,
        num_key_value_heads=HIDDEN // 32,  # all of a memory vector can be read at once
        head_dim=32,
        vocab_size=len(processor.tokenizer),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    history = Mamba2Config(
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        vocab_size=len(processor.history_tokenizer),
        state_size=64,
        num_heads=HIDDEN // 32,
        head_dim=64,
        n_groups=1,
        expand=2,
        chunk_size=32,
    )
    model = MultiMoodForConditionalGeneration.from_backbones(
        vision=towers.config.vision_config,
        audio=towers.config.audio_config,
        history=history,
        text=text,
        processor=processor,
        freeze=(),
        connector_depth=towers.config.connector_depth,
        vision_feature_layer=towers.config.vision_feature_layer,
        audio_pooling=tiny.audio_pooling,
        memory_pooling="mean",
    )
    for part in ("vision_tower", "audio_tower"):
        getattr(model.model, part).load_state_dict(getattr(towers.model, part).state_dict())
    # Word vectors of the usual 0.02 hardly tell words apart at this width.
    model.get_input_embeddings().weight.data.mul_(5)
    # Attention starts by handing on what it looks at, as trained models do (mimetic initialisation, arXiv 2305.09828):
    # repeating words is then a matter of where to look.
    for layer in model.model.language_model.layers[1:3]:
        layer.self_attn.v_proj.weight.data.copy_(torch.eye(HIDDEN))
        layer.self_attn.o_proj.weight.data.copy_(torch.eye(HIDDEN) * 0.2)
    return model, processor


class LanguageTasks(Dataset):
    """Item `i` → the rows of step `i`, all of one task: speak, repeat or answer.

    A row is `{"prompt", "target", "run": utterances that are pooled}`. Repeating comes first (`answering` is false): to
    answer from memory, it has to be read.
    """

    def __init__(self, conversations: list[list[dict]], steps: int, answering: bool, seed: int):
        self.conversations, self.steps, self.answering, self.seed = conversations, steps, answering, seed
        self.words = sorted({word for said in conversations for one in said for word in one["text"].split()})

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[dict]:
        rng = random.Random(f"{self.seed}/{self.answering}/{step}")
        weights = (1, 1, 1) if self.answering else (1, 4, 0) if step < 0.7 * self.steps else (1, 2, 2)
        task, size = rng.choices(((self._speak, 8), (self._repeat, 40), (self._answer, 12)), weights)[0]
        easy = not self.answering and step < 0.3 * self.steps
        words = rng.choices(SLOT_WORDS, (1, 1, 0, 0) if easy else (3, 3, 2, 1))[0]
        return [task(rng.choice(self.conversations), words, rng) for _ in range(size)]

    def _speak(self, said: list[dict], words: int, rng: random.Random) -> dict:
        start = rng.randrange(len(said))
        return {"prompt": repeat_prompt([]), "target": transcript(said[start : start + 10]), "run": []}

    def _repeat(self, said: list[dict], words: int, rng: random.Random) -> dict:
        piece = rng.choice(cut_utterances(said, words))
        share = rng.choice((0, 0.2, 1 if words <= 8 else 0.2))  # of words that are not to be guessed from the others
        text = " ".join(rng.choice(self.words) if rng.random() < share else word for word in piece["text"].split())
        run = [{"speaker": piece["speaker"], "text": text}]
        return {"prompt": repeat_prompt(run), "target": transcript(run), "run": run}

    def _answer(self, said: list[dict], words: int, rng: random.Random) -> dict:
        answers = [i for i in range(1, len(said)) if said[i]["speaker"] == "therapist" != said[i - 1]["speaker"]]
        if not answers:
            return self._speak(said, words, rng)
        answer = rng.choice(answers)
        run, recent = [], ""
        form = rng.random()
        if form < 0.5 and answer > 1:
            run = cut_utterances(said[: answer - 1], words)
        elif form < 0.8 and answer > 1:
            recent = transcript(said[rng.randrange(answer - 1) : answer - 1]) + "\n"
        return {
            "prompt": continue_prompt(run, said[answer - 1]["text"], recent),
            "target": said[answer]["text"],
            "run": run,
        }


class LanguageTrainer(Trainer):
    """transformers' trainer, with pooled words in the places of memory."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        embeddings, lengths, run = model.get_input_embeddings(), inputs.pop("lengths"), inputs.pop("run")
        vectors = pooled_words(embeddings, run) if run else embeddings.weight.new_zeros(0, HIDDEN)
        outputs = model(**last_logits(inputs), history_memory=vectors.split(lengths))
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def language_collator(processor: MultiMoodProcessor):
    """Items of [`LanguageTasks`] → a batch."""
    collate = MultiMoodCollator(processor, lambda row: row["prompt"], lambda row: row["target"])
    tokenizer = processor.tokenizer

    def together(steps: list[list[dict]]) -> dict:
        (rows,) = steps
        batch = dict(collate(rows))
        for key in ("history_input_ids", "history_attention_mask"):
            batch.pop(key, None)
        texts = [render_utterance(piece) for row in rows for piece in row["run"]]
        run = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return {**batch, "run": run, "lengths": [len(row["run"]) for row in rows]}

    return together


def train_language_model(folder: Path, rows: list[Row], steps: int, seed: int) -> None:
    """Writes tokenizer, language model and an untrained compressor that shares its word vectors to `folder`; `steps` are
    those of repeating; answering has 60 % as many."""
    model, processor = build(train_tokenizer(rows))
    model.freeze("vision", "connector", "audio", "audio_projector", "compressor")
    for answering, length in ((False, steps), (True, steps * 3 // 5)):
        args = TrainingArguments(
            output_dir=str(folder / ("answering" if answering else "repeating")),
            max_steps=length,
            per_device_train_batch_size=1,  # an item is a batch
            train_sampling_strategy="sequential",
            learning_rate=1e-3 if answering else 2e-3,
            lr_scheduler_type="cosine",
            warmup_steps=length // 20,
            weight_decay=0.05,
            adam_beta2=0.98,
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=50,
            save_steps=200,
            save_total_limit=1,
            report_to="none",
            seed=seed,
        )
        trainer = LanguageTrainer(
            model=model,
            args=args,
            train_dataset=LanguageTasks(longest_conversations(rows), length, answering, seed),
            data_collator=language_collator(processor),
        )
        trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))
    model.requires_grad_(True)
    start_as_pooling(model, processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@torch.no_grad()
def start_as_pooling(model: MultiMoodForConditionalGeneration, processor: MultiMoodProcessor) -> None:
    """Sets the compressor's weights such that it gives about the pooled word vectors of an utterance, which the language
    model can read, so that learning begins there: its word vectors are the language model's, its layers add nothing to
    them yet, and it pools the mean."""
    compressor, words = model.model.compressor, model.get_input_embeddings().weight
    known, vectors = processor.memory_token_id, compressor.reader.get_input_embeddings().weight
    vectors[:known] = words[:known]  # the vocabularies are the same up to here
    vectors[known] = 0
    for layer in compressor.reader.layers:
        layer.mixer.out_proj.weight.zero_()
    compressor.projector.weight.copy_(torch.eye(HIDDEN) * words.norm(dim=1).mean() / HIDDEN**0.5)
    compressor.projector.bias.zero_()
    compressor.salience.weight.zero_()
    compressor.salience.bias.zero_()


def run(stage: Path, script: str, recipe: str, *arguments: str) -> None:
    """Runs a training script, unless its result is already there."""
    if not ((stage / "model.safetensors").exists()):
        command = [sys.executable, "-m", f"multimood.training.{script}", "--config", str(RECIPES / recipe)]
        command += [*arguments, "--output_dir", str(stage)]
        print("$", " ".join(command[1:]), flush=True)
        subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mesc", type=Path, required=True, help="folder with MESC.csv")
    parser.add_argument("--work", type=Path, default=Path("outputs/mesc_small"), help="rows, clips and stages")
    parser.add_argument("--language_steps", type=int, default=1000, help="until it can repeat")
    parser.add_argument("--clips", action="store_true", help="also draw clips from the labels and train on them")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw clips")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_seed(args.seed)

    rows = args.work / "rows"
    write_splits(args.mesc, rows)
    for_language, for_compressor = write_halves(rows)
    for split in SPLITS:
        if not (rows / f"{split}_slots.jsonl").exists():
            write_rows(map(in_slots, read_rows(rows / f"{split}.jsonl")), rows / f"{split}_slots.jsonl")

    language = args.work / "language"
    if not (language / "model.safetensors").exists():
        train_language_model(language, list(read_rows(for_language)), args.language_steps, args.seed)
    compressor = args.work / "compressor"
    recipe = ("--model", str(language), "--train_file", str(for_compressor))
    run(compressor, "pretrain_compressor", "mesc_small_compressor.yaml", *recipe)
    start = ("--model_name_or_path", str(compressor), "--train_file")
    chosen_on = ("--eval_file", str(rows / "validation_slots.jsonl"))  # of a run's checkpoints the best is kept
    run(args.work / "sft", "sft", "mesc_small_sft.yaml", *start, str(rows / "train_slots.jsonl"), *chosen_on)

    if args.clips:
        folder = args.work / "clips"
        folder.mkdir(exist_ok=True)
        for split in SPLITS:
            drawn = [with_clip(row, folder.resolve()) for row in read_rows(rows / f"{split}_slots.jsonl")]
            with ProcessPoolExecutor(args.workers) as pool:
                list(tqdm(pool.map(draw_clip, drawn, chunksize=16), total=len(drawn), desc=f"drawing {split} clips"))
            write_rows(drawn, folder / f"{split}.jsonl")
        run(args.work / "sft_clips", "sft", "mesc_small_clips.yaml", *start, str(folder / "train.jsonl"))


if __name__ == "__main__":
    main()
