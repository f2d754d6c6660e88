"""What it costs to remember one more utterance, after 10, 100 and 1000 of them.

Beside it: compressing the whole history again, as a model without a streaming memory does at each turn. Both sides
run in this process, by turns, on a Mamba-2 compressor with random weights, whose speed is that of trained ones.

    python benchmarks/bench_memory.py
"""

import argparse
import copy
import statistics
import time

import reporting
import torch
from transformers import Mamba2Config
from transformers.utils import logging

from multimood.modeling_multimood.compressor import ConversationCompressor
from multimood.modeling_multimood.conversation_memory import ConversationMemory

LENGTHS = (10, 100, 1000)  # utterances before the one that is timed
TOKENS = 16  # of an utterance, with its <MEM>
APPENDS = 5  # for one recompression, which takes so much longer
VOCABULARY = 1000
MEMORY_TOKEN = VOCABULARY - 1


def build_compressor(seed: int) -> ConversationCompressor:
    """Four layers of Mamba-2, 256 wide, into a language model of width 896."""
    torch.manual_seed(seed)
    config = Mamba2Config(
        hidden_size=256,
        num_hidden_layers=4,
        vocab_size=VOCABULARY,
        state_size=64,
        num_heads=8,
        head_dim=64,
        n_groups=1,
    )
    return ConversationCompressor(config, 896, MEMORY_TOKEN).eval()


def utterances(count: int) -> torch.LongTensor:
    """Random ids `(1, count · TOKENS)` with `<MEM>` after each utterance."""
    ids = torch.randint(0, MEMORY_TOKEN, (count, TOKENS))
    ids[:, -1] = MEMORY_TOKEN
    return ids.view(1, -1)


def seconds(run) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="times each length is measured")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.set_verbosity_error()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    compressor = build_compressor(args.seed).to(device)
    histories = {length: utterances(length).to(device) for length in LENGTHS}
    new = utterances(1).to(device)
    memories = {}
    for length, history in histories.items():
        memories[length] = ConversationMemory(compressor)
        memories[length].append(history)

    times = {(side, length): [] for side in ("append", "recompress") for length in LENGTHS}
    print(f"{args.rounds} rounds of {LENGTHS} utterances of {TOKENS} tokens on {device}")
    for number in range(args.rounds + 1):
        for length, history in histories.items():
            whole = torch.cat([history, new], dim=1)
            measured = []
            for _ in range(APPENDS):
                # Each time another utterance after just `length`; the compressor is shared, not copied.
                memory = copy.deepcopy(memories[length], {id(compressor): compressor})
                measured.append(("append", seconds(lambda memory=memory: memory.append(new))))
            with torch.no_grad():
                measured.append(("recompress", seconds(lambda whole=whole: compressor(whole))))
            if number:  # the first round warms up
                for side, value in measured:
                    times[side, length].append(value)

    medians = {side: {length: statistics.median(times[side, length]) for length in LENGTHS} for side, _ in times}
    print(f"{'utterances':>10} {'append':>12} {'recompress':>12}")
    for length in LENGTHS:
        print(
            f"{length:>10} {medians['append'][length] * 1e3:>9.2f} ms {medians['recompress'][length] * 1e3:>9.2f} ms"
        )
    first, last = LENGTHS[0], LENGTHS[-1]
    ratios = {
        f"append_{last}_over_{first}": medians["append"][last] / medians["append"][first],
        f"recompress_over_append_{last}": medians["recompress"][last] / medians["append"][last],
    }
    path = reporting.write("memory", {"median_seconds": medians, "ratios": ratios}, rounds=args.rounds, seed=args.seed)
    print(f"wrote benchmarks/results/{path.name}")
    for name, value in ratios.items():
        print(f"ratio {name} {value:.2f}")


if __name__ == "__main__":
    main()
