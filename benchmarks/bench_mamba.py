"""Mamba and Mamba-2 as compressors: reading a history, and learning from it.

For Mamba, the scan of this package beside transformers' own path in plain torch, on the same weights; for Mamba-2,
which streams exactly as it is, transformers' own path, for comparison. All sides run in this process, by turns; weights
are random, whose speed is that of trained ones. On a CPU, ratios are of the process's CPU time, which does not depend on
who else uses the machine; the time on the clock is kept beside it. What a pass takes in memory is the growth of the
resident memory at its peak, in a process of its own each.

    OMP_NUM_THREADS=1 python benchmarks/bench_mamba.py                      # 1024 wide, 48 layers; half an hour
    OMP_NUM_THREADS=1 python benchmarks/bench_mamba.py --width 768 --layers 24
"""

import argparse
import contextlib
import ctypes
import gc
import multiprocessing
import statistics
import threading
import time

import psutil
import reporting
import torch
from transformers import Mamba2Config, Mamba2Model, MambaConfig, MambaModel
from transformers.utils import logging

from multimood.modeling_multimood.compressor import ConversationCompressor
from multimood.modeling_multimood.conversation_memory import ConversationMemory
from multimood.modeling_multimood.mamba_scan import with_exact_scan

VOCABULARY = 1000
SIDES = ("mamba", "mamba in transformers", "mamba2")


def build(side: str, width: int, layers: int, seed: int) -> torch.nn.Module:
    """A model with random weights; both Mambas have the same."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "vocab_size": VOCABULARY}
    if side == "mamba2":
        return Mamba2Model(Mamba2Config(**sizes, num_heads=width // 32, head_dim=64, n_groups=1)).eval()
    model = MambaModel(MambaConfig(**sizes)).eval()
    return with_exact_scan(model) if side == "mamba" else model


def forward(model: torch.nn.Module, ids: torch.LongTensor) -> None:
    with torch.no_grad():
        model(ids, use_cache=False)


def backward(model: torch.nn.Module, ids: torch.LongTensor) -> None:
    model(ids, use_cache=False).last_hidden_state.square().mean().backward()
    model.zero_grad(set_to_none=True)


PASSES = {"forward": forward, "backward": backward}


def seconds(run, *args) -> tuple[float, float]:
    """(seconds that ratios are made of: the process's on a CPU, on the clock elsewhere; seconds on the clock)"""
    start, start_own = time.perf_counter(), time.process_time()
    run(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    own, clock = time.process_time() - start_own, time.perf_counter() - start
    return (clock if torch.cuda.is_available() else own), clock


def measure_memory(
    writer, side: str, width: int, layers: int, seed: int, name: str, length: int, threads: int
) -> None:
    """Sends to `writer` how much memory a pass takes beside the model, in bytes; runs in a process of its own."""
    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    cuda = torch.cuda.is_available()
    model = build(side, width, layers, seed).to("cuda" if cuda else "cpu")
    ids = torch.randint(0, VOCABULARY, (1, length), device=model.device)
    if cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        PASSES[name](model, ids)
        writer.send(torch.cuda.max_memory_allocated() - before)
        return
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    PASSES[name](model, ids)
    done.set()
    watcher.join()
    writer.send(peak - before)


def memory(*args) -> int | None:
    """As [`measure_memory`] says; `None` where the pass does not fit into this machine."""
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=measure_memory, args=(writer, *args))
    process.start()
    process.join()
    return reader.recv() if process.exitcode == 0 else None


def release() -> None:
    """Gives back to the machine what this process no longer uses, which the C library would keep."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def free_bytes(device: str) -> int:
    """What a process of its own can still take."""
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def streaming_error(width: int, layers: int, seed: int) -> float:
    """The largest difference between memory vectors that were appended and compressed at once, 512 tokens."""
    torch.manual_seed(seed)
    config = MambaConfig(hidden_size=width, num_hidden_layers=layers, vocab_size=VOCABULARY)
    compressor = ConversationCompressor(config, width, VOCABULARY - 1).eval()
    ids = torch.randint(0, VOCABULARY - 1, (1, 512))
    ids[:, 15::16] = VOCABULARY - 1
    stream = ConversationMemory(compressor)
    for piece in ids.split([16, 48, 192, 256], dim=1):
        stream.append(piece)
    with torch.no_grad():
        return (stream.vectors[0] - compressor(ids)[0]).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048], help="tokens")
    parser.add_argument("--rounds", type=int, default=3, help="times each is measured")
    parser.add_argument(
        "--longest", type=int, default=128, help="tokens up to which transformers' backward is measured"
    )
    parser.add_argument("--no_memory", action="store_true", help="measure times only")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = torch.get_num_threads()
    models = {side: build(side, args.width, args.layers, args.seed).to(device) for side in SIDES}
    print(
        f"{args.width} wide, {args.layers} layers, {args.rounds} rounds on {device}, {threads} thread(s)", flush=True
    )

    times, clocks, memories = {}, {}, {}
    for name, run in PASSES.items():
        for length in args.lengths:
            ids = torch.randint(0, VOCABULARY, (1, length), device=device)
            # transformers' backward keeps every step of every layer: it outgrows the machine.
            sides = [
                s for s in SIDES if not (s == "mamba in transformers" and name == "backward" and length > args.longest)
            ]
            if not args.no_memory:  # first, since what does not fit would end this process, too
                for side in sides:
                    taken = memories.setdefault(name, {}).setdefault(side, {})  # by length
                    needed = min(
                        (took * length // shorter for shorter, took in taken.items() if took), default=0
                    )  # at most
                    fits = needed < free_bytes(device)
                    of = (side, args.width, args.layers, args.seed, name, length, threads)
                    taken[length] = memory(*of) if fits else None
                    if taken[length] is None:
                        why = f", {needed / 1e9:.0f} GB by the shorter" if needed else ""
                        print(f"{name:<9} {length:>5} tokens  {side:<22} does not fit into memory{why}", flush=True)
                sides = [side for side in sides if memories[name][side][length] is not None]
            measured = {side: [] for side in sides}
            for side in sides:
                run(models[side], ids[:, :16])  # warms up
            for _ in range(args.rounds):
                for side in sides:
                    measured[side].append(seconds(run, models[side], ids))
                    release()  # what one side has used is no burden of the next
            for side in sides:
                medians = [statistics.median(values) for values in zip(*measured[side], strict=True)]
                for kept, median in zip((times, clocks), medians, strict=True):
                    kept.setdefault(name, {}).setdefault(side, {})[length] = median
                took = memories.get(name, {}).get(side, {}).get(length)
                print(
                    f"{name:<9} {length:>5} tokens  {side:<22} {times[name][side][length]:>8.2f} s"
                    + (f" {took / 1e9:>7.2f} GB" if took is not None else ""),
                    flush=True,
                )

    ratios = {}
    for name in PASSES:
        theirs = times[name]["mamba in transformers"]
        for length in theirs:
            ratios[f"{name}_speedup_{length}"] = theirs[length] / times[name]["mamba"][length]
    ours = times["backward"]["mamba"]
    first, last = args.lengths[0], args.lengths[-1]
    ratios[f"backward_per_token_{last}_over_{first}"] = (ours[last] / last) / (ours[first] / first)
    error = streaming_error(args.width, args.layers, args.seed)
    print(f"streamed and whole differ by at most {error:.1e}")
    path = reporting.write(
        f"mamba-{args.width}x{args.layers}",
        {
            "median_seconds": times,
            "median_seconds_on_the_clock": clocks,
            "peak_bytes": memories,
            "streaming_error": error,
            "ratios": ratios,
        },
        threads=threads,
        rounds=args.rounds,
        seed=args.seed,
    )
    print(f"wrote benchmarks/results/{path.name}")
    for name, value in ratios.items():
        print(f"ratio {name} {value:.2f}")


if __name__ == "__main__":
    main()
