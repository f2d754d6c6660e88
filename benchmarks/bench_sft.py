"""Rows a second of fine-tuning, clips and all: this package's collator, beside the naive chain.

The naive chain's dataset decodes the clips of a row and runs the frozen towers on them in `__getitem__`, so it must stay
in the training process; rows are then trained on one at a time, with their gradients added up. Ours reads clips in two
workers and trains on the packed media of eight rows at once, and like TRL's trainer it makes logits only where there is
a loss. Both sides read clips with this package's own decoder and take the same optimizer steps on the same rows, by turns.
The share of time in which ours waits for its workers is printed.

    python benchmarks/bench_sft.py
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import reporting
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers.utils import logging

from multimood import MultiMoodForConditionalGeneration, MultiMoodProcessor
from multimood.datasets_scripts.schema import Row
from multimood.datasets_scripts.synthetic import generate_rows
from multimood.processors.turn import build_prompt
from multimood.training.sft import turn_target
from multimood.training.trainers.collator import MultiMoodCollator, last_logits

BATCH, WORKERS = 8, 2  # rows an optimizer step, readers of ours
FREEZE = ("vision", "audio")


class EncodedRows(Dataset):
    """The naive dataset: a row is decoded and encoded when it is taken."""

    def __init__(self, rows: list[Row], collate: MultiMoodCollator, model: MultiMoodForConditionalGeneration):
        self.rows, self.collate, self.model = rows, collate, model

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        item = self.collate([self.rows[index]])
        model = self.model.model
        if "pixel_values_videos" in item:
            item["video_tower_features"] = model.encode_video(item.pop("pixel_values_videos").to(model.device))
        if "input_features" in item:
            item["audio_tower_features"] = model.encode_audio(item.pop("input_features").to(model.device))
        return item


class Side:
    """A model with its optimizer and its endless loader."""

    def __init__(self, name: str, model_folder: str, rows: list[Row]):
        self.model = MultiMoodForConditionalGeneration.from_pretrained(model_folder).train()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.model.freeze(*FREEZE)
        processor = MultiMoodProcessor.from_pretrained(model_folder)
        prompt = partial(build_prompt, verbatim_pairs=processor.verbatim_pairs)
        collate = MultiMoodCollator(processor, prompt, turn_target)
        if name == "naive":
            loader, self.accumulate = DataLoader(EncodedRows(rows, collate, self.model), batch_size=None), BATCH
            self.model_inputs = dict  # all logits
        else:
            loader = DataLoader(
                rows, BATCH, collate_fn=collate, num_workers=WORKERS, persistent_workers=True, drop_last=True
            )
            self.accumulate, self.model_inputs = 1, last_logits
        self.batches = endless(loader)
        learned = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, 1e-5)

    def step(self) -> float:
        """One optimizer step on `BATCH` rows; seconds spent waiting for data."""
        waited = 0.0
        for _ in range(self.accumulate):
            start = time.perf_counter()
            batch = next(self.batches)
            waited += time.perf_counter() - start
            batch = {key: value.to(self.model.device) for key, value in batch.items()}
            (self.model(**self.model_inputs(batch)).loss / self.accumulate).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return waited


def endless(batches: Iterable) -> Iterator:
    while True:
        yield from batches


def peak_memory(name: str, model_folder: str, rows: list[Row], threads: int) -> float | None:
    """MB by which a fresh process grew at most in two steps (on CUDA: that were allocated there); `None` where unknown.

    The workers of ours come on top.
    """
    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    side = Side(name, model_folder, rows)
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif not reset.exists():
        return None
    else:
        reset.write_text("5")  # forget the peak so far

    def kilobytes(field: str) -> int:
        return int(status.read_text().split(f"{field}:")[1].split()[0])

    before = kilobytes("VmRSS") if not torch.cuda.is_available() else 0
    for _ in range(2):
        side.step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return (kilobytes("VmHWM") - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="assets/multimood-tiny")
    parser.add_argument("--rows", type=int, default=64, help="synthetic rows with face and voice")
    parser.add_argument("--rounds", type=int, default=7, help="times that each side takes `--steps` steps")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of 8 rows each")
    parser.add_argument("--seed", type=int, default=0, help="of the rows")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    args = parser.parse_args()
    if args.rows < BATCH:
        parser.error(f"--rows is {args.rows}; a step takes {BATCH}")
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()

    names = ("multimood", "naive")
    with tempfile.TemporaryDirectory() as folder:
        rows = generate_rows("train", args.rows, args.seed, folder, tracks="both")
        sides = {name: Side(name, args.model, rows) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}  # a row
        waits: dict[str, list[float]] = {name: [] for name in names}  # share of the time
        print(f"{args.rows} rows, {args.rounds} rounds of {args.steps} steps of {BATCH} rows")
        for number in tqdm(range(args.rounds + 1), unit="round"):
            for name in names[:: 1 if number % 2 else -1]:
                # Batches that workers made while the other side had its turn are no merit of theirs.
                for _ in range(WORKERS * 2 + 1 if name == "multimood" else 0):
                    next(sides[name].batches)
                start = time.perf_counter()
                waited = sum(sides[name].step() for _ in range(args.steps))
                took = time.perf_counter() - start
                if number:  # the first round warms up
                    seconds[name].append(took / (args.steps * BATCH))
                    waits[name].append(waited / took)
        memory = {}
        for name in names:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                memory[name] = pool.submit(peak_memory, name, args.model, rows, args.threads).result()

    medians = {name: statistics.median(seconds[name]) for name in names}
    wait_share = statistics.median(waits["multimood"])
    for name in names:
        peak = "unknown" if memory[name] is None else f"{memory[name]:.0f} MB"
        print(f"{name:>10}: {1 / medians[name]:7.2f} rows/s, memory grows by {peak}")
    print(f"multimood waits for its {WORKERS} workers {wait_share:.1%} of the time")
    ratio = medians["naive"] / medians["multimood"]
    path = reporting.write(
        "sft",
        {
            "rows_a_second": {name: 1 / value for name, value in medians.items()},
            "peak_memory_mb": memory,
            "share_of_time_waiting_for_data": wait_share,
            "ratios": {"sft": ratio},
        },
        model=args.model,
        rows=args.rows,
        rounds=args.rounds,
        steps=args.steps,
        batch=BATCH,
        workers=WORKERS,
        threads=args.threads,
        seed=args.seed,
    )
    print(f"wrote {path}")
    print(f"ratio sft {ratio:.2f}")


if __name__ == "__main__":
    main()
