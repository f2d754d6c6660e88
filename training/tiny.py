"""Makes `assets/multimood-tiny` from nothing: corpus, tokenizer, language model, then the real training scripts.

    make tiny        # python -m multimood.training.tiny --out assets/multimood-tiny

1. A synthetic corpus is drawn (`datasets_scripts/synthetic.py`), and a tokenizer and a small language model learn its
   language. The language model never sees a clip: a word stands for the face, and a sum of word vectors for each
   remembered utterance. The real model starts from a *pretrained* language model; this is its stand-in.
2. `pretrain_compressor.py`: the compressor learns to write memory vectors that the frozen language model can read.
3. `sft.py` three times: on clips without sound, where vision tower and connector learn to see; on sounds, where audio
   tower and projector learn to hear; then all parts on whole rows.

A stage that is finished is not repeated when the command is run again.
"""

import argparse
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (
    Mamba2Config,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    set_seed,
)

from multimood import MultiMoodForConditionalGeneration, MultiMoodProcessor
from multimood.datasets_scripts.memory_slots import REPEAT, repeat_prompt, transcript
from multimood.datasets_scripts.schema import Row, write_rows
from multimood.datasets_scripts.synthetic import generate_rows, told_facts
from multimood.processors.turn import SYSTEM_PROMPT, build_prompt
from multimood.training.sft import turn_target
from multimood.training.trainers.collator import MultiMoodCollator

RECIPES = Path(__file__).parent / "recipes"
HIDDEN = 128
RECALL = "What do you remember?"
AUDIO_SECONDS, AUDIO_POOLING = 5, 10
VERBATIM_PAIRS = 2


def train_tokenizer(rows: list[Row]) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the corpus: every word of it becomes one token, and any other text still has tokens."""

    def texts():
        yield f"{SYSTEM_PROMPT}\nsystem user assistant Problem: Situation: {RECALL} {REPEAT}"
        for row in rows:
            yield f"Problem: {row['problem_type']}\nClient: {row['utterance']}\n{turn_target(row)}"
            yield "\n" + transcript(row["history"])

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1280, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", model_max_length=4096
    )


def build(tokenizer: PreTrainedTokenizerFast) -> tuple[MultiMoodForConditionalGeneration, MultiMoodProcessor]:
    """The untrained model and its processor."""
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
        vision_use_head=False,
    )
    audio = WhisperConfig(
        d_model=64,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=192,
        num_mel_bins=64,
        max_source_positions=AUDIO_SECONDS * 50,
        decoder_layers=1,  # dropped with the decoder; small, since it is built first
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    processor = MultiMoodProcessor.from_backbones(
        vision=SiglipImageProcessorPil(size={"height": 64, "width": 64}),
        audio=WhisperFeatureExtractor(feature_size=64, chunk_length=AUDIO_SECONDS),
        history=tokenizer,
        text=tokenizer,
        vision_config=vision,
        audio_config=audio,
        num_frames=8,
        audio_pooling=AUDIO_POOLING,
        verbatim_pairs=VERBATIM_PAIRS,
    )
    text = Qwen3Config(
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=len(processor.tokenizer),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    history = Mamba2Config(
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        vocab_size=len(processor.history_tokenizer),
        state_size=64,
        num_heads=4,
        head_dim=64,
        n_groups=1,
        expand=2,
        chunk_size=32,
    )
    model = MultiMoodForConditionalGeneration.from_backbones(
        vision=vision,
        audio=audio,
        history=history,
        text=text,
        processor=processor,
        freeze=(),
        connector_depth=1,
        vision_feature_layer=-1,
        audio_pooling=AUDIO_POOLING,
    )
    # Word vectors of the usual 0.02 hardly tell words apart at this width: names would not be learned in minutes.
    model.get_input_embeddings().weight.data.mul_(5)
    return model, processor


class LanguageTasks:
    """Batches for the language model: whole turns, recalling facts, and repeating utterances."""

    def __init__(self, rows: list[Row], processor: MultiMoodProcessor, seed: int):
        self.rows, self.rng = rows, random.Random(seed)
        self.collate = MultiMoodCollator(processor, lambda task: task["prompt"], lambda task: task["target"])

    def batch(self, progress: float) -> dict:
        """A batch for a share of the way in [0, 1]: what one utterance says, then which of many says it, then turns."""
        weights = (0, 0, 1) if progress < 0.4 else (0, 0.7, 0.3) if progress < 0.7 else (0.6, 0.3, 0.1)
        task, size = self.rng.choices(((self._turn, 12), (self._recall, 24), (self._repeat, 48)), weights)[0]
        return self.collate([task(row) for row in self.rng.sample(self.rows, size)])

    def _turn(self, row: Row) -> dict:
        words = f"The client shows {row['client_emotion']}.\n"
        system, user = build_prompt(row, verbatim_pairs=VERBATIM_PAIRS)
        user["content"].insert(-1, {"type": "text", "text": words})
        return {"prompt": [system, user], "target": turn_target(row)}

    def _recall(self, row: Row) -> dict:
        told = told_facts(row)
        places = {len(row["history"]) - back for _, back in told.values()}
        others = range(len(row["history"]))
        places |= set(self.rng.sample(others, self.rng.randint(0, len(others))))
        subjects = self.rng.sample(sorted(told), len(told))
        blocks = [
            {"type": "history", "history": self._utterances(row, sorted(places))},
            {"type": "text", "text": RECALL},
        ]
        target = " ".join(f"You told me about your {subject}, {told[subject][0]}." for subject in subjects)
        return {"prompt": [{"role": "user", "content": blocks}], "target": target}

    def _repeat(self, row: Row) -> dict:
        _, back = self.rng.choice(sorted(told_facts(row).values()))
        start = len(row["history"]) - (back if self.rng.random() < 0.7 else self.rng.randint(2, len(row["history"])))
        run = self._utterances(row, range(start, start + self.rng.choice((1, 1, 1, 2))))
        return {"prompt": repeat_prompt(run), "target": transcript(run)}

    @staticmethod
    def _utterances(row: Row, places: Iterable[int]) -> list[dict]:
        return [{key: row["history"][place][key] for key in ("speaker", "text")} for place in places]


def summed_words(model: MultiMoodForConditionalGeneration, batch: dict) -> list[torch.Tensor]:
    """A stand-in for memory: each utterance as the scaled sum of its word vectors, one `(slots, hidden)` a row."""
    memory_token = model.config.memory_token_id
    vectors = []
    for ids, mask in zip(batch.pop("history_input_ids"), batch.pop("history_attention_mask"), strict=True):
        ids = ids[mask.bool()]
        slot = (ids == memory_token).cumsum(0) - (ids == memory_token).long()  # (tokens,): which utterance
        words = ids != memory_token
        slots = int((~words).sum())
        total = torch.zeros(slots, HIDDEN).index_add(0, slot[words], model.get_input_embeddings()(ids[words]))
        vectors.append(total / slot[words].bincount(minlength=slots).sqrt()[:, None])
    return vectors


def train_language_model(
    model: MultiMoodForConditionalGeneration, processor: MultiMoodProcessor, rows: list[Row], steps: int, seed: int
) -> None:
    """Teaches the language model alone; then hands its word vectors to the compressor."""
    model.freeze("vision", "connector", "audio", "audio_projector", "compressor")
    model.train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    tasks = LanguageTasks(rows, processor, seed)
    for step in (progress := tqdm(range(steps), desc="language model")):
        batch = dict(tasks.batch(step / steps))
        loss = model(history_memory=summed_words(model, batch), **batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    model.requires_grad_(True)
    compressor, words = model.model.compressor, model.get_input_embeddings().weight.data
    shared = processor.memory_token_id  # the vocabularies are the same up to here
    compressor.reader.get_input_embeddings().weight.data[:shared] = words[:shared]
    compressor.projector.weight.data.copy_(torch.eye(HIDDEN) * 0.3)


def run(stage: Path, script: str, *arguments: str) -> None:
    """Runs a training script, unless its result is already there."""
    if not (stage / "model.safetensors").exists():
        command = [sys.executable, "-m", f"multimood.training.{script}", *arguments, "--output_dir", str(stage)]
        print("$", " ".join(command[1:]), flush=True)
        subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets/multimood-tiny"))
    parser.add_argument("--work", type=Path, default=Path("outputs/tiny"), help="corpus and stages in between")
    parser.add_argument("--rows", type=int, default=3200, help="training rows with clips, of each stage")
    parser.add_argument("--language_steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_seed(args.seed)

    corpus = args.work / "corpus"
    if not (corpus / "sound.jsonl").exists():
        for seed, tracks in enumerate(("mixed", "picture", "sound"), start=args.seed):
            drawn = generate_rows("train", args.rows, seed, corpus / "clips", tracks=tracks, workers=2)
            write_rows(
                ({**row, "history": row["history"] if tracks == "mixed" else []} for row in drawn),
                corpus / f"{tracks}.jsonl",
            )

    backbones = args.work / "backbones"
    if not (backbones / "model.safetensors").exists():
        words = generate_rows("train", 20_000, args.seed + 3, corpus / "clips", tracks="none")
        model, processor = build(train_tokenizer(words))
        train_language_model(model, processor, words, args.language_steps, args.seed)
        model.save_pretrained(backbones)
        processor.save_pretrained(backbones)

    run(args.work / "compressor", "pretrain_compressor", "--config", f"{RECIPES}/tiny_compressor.yaml")
    # One after the other: of face and voice together the model would learn to use the easier one alone.
    align = ("--config", f"{RECIPES}/tiny_align.yaml", "--train_file")
    run(
        args.work / "seeing",
        "sft",
        *align,
        f"{corpus}/picture.jsonl",
        "--model_name_or_path",
        f"{args.work}/compressor",
    )
    run(args.work / "hearing", "sft", *align, f"{corpus}/sound.jsonl", "--model_name_or_path", f"{args.work}/seeing")
    run(args.work / "sft", "sft", "--config", f"{RECIPES}/tiny_sft.yaml")

    # The package brings the code; a model pushed to the Hub takes it along (`save_pretrained`).
    shutil.rmtree(args.out, ignore_errors=True)
    left_out = shutil.ignore_patterns("*.py", "*.bin", "checkpoint-*", "runs", "trainer_state.json", "curves.png")
    shutil.copytree(args.work / "sft", args.out, ignore=left_out)
    shutil.copy(RECIPES / "tiny_card.md", args.out / "README.md")
    size = sum(file.stat().st_size for file in args.out.rglob("*"))
    print(f"wrote {args.out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
