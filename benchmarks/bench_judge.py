"""Judging 64 replies by a server that takes a second for each, and reading verdicts from the cache.

Beside it: the serial chain, which judges one reply after the other and calls a similarity service for each, with a pause of
0.25 s. Both sides send the same requests to the same server process and compare by the same encoder: tiny, with random
weights, whose scores mean nothing and cost little on either side.

    python benchmarks/bench_judge.py
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import openai
import reporting
import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from transformers import BertConfig, BertModel, BertTokenizerFast
from transformers.utils import logging

from multimood.trust.judge import OpenAIJudge
from multimood.trust.judge_prompt import Exchange, answer_form, judge_messages
from multimood.trust.similarity import LateInteraction
from multimood.trust.verdict_cache import VerdictCache

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from judge_server import running_server

LATENCY, PAUSE = 1.0, 0.25  # seconds
REPLIES = 64
KEPT, PASSES = 1000, 10  # verdicts in the cache, and how often all are read
REFERENCE = "It sounds lonely in the quiet house. What do you miss most about your sister in the evenings?"
CONVERSATION = [
    {"speaker": "client", "text": "My sister moved out last week and the house is so quiet."},
    {"speaker": "therapist", "text": "That is a big change after so many years."},
    {"speaker": "client", "text": "I cry every evening and I don't know what to do about it."},
]


def exchanges(count: int) -> list[Exchange]:
    reply = "That sounds lonely, and it makes sense that you cry. What are your evenings like now, number {}?"
    return [Exchange(CONVERSATION, reply.format(number), "none", "sadness") for number in range(count)]


def build_similarity(folder: Path, seed: int) -> LateInteraction:
    """Late interaction on two layers of BERT, 128 wide, with random weights, and whole words for tokens."""
    words = sorted({word.strip(".,?'").lower() for word in f"{REFERENCE} {exchanges(1)[0].reply}".split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", *words]
    BertTokenizerFast(vocab={word: number for number, word in enumerate(vocabulary)}).save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(folder)
    modules = [Transformer(str(folder)), MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    return LateInteraction(MultiVectorEncoder(modules=modules))


def concurrent_seconds(judge: OpenAIJudge, similarity: LateInteraction, asked: list[Exchange]) -> float:
    """All requests at once, and one batch of similarities meanwhile."""

    async def run() -> list:
        replies = [exchange.reply for exchange in asked]
        return await asyncio.gather(
            judge.ascore(asked), asyncio.to_thread(similarity, replies, [REFERENCE] * len(asked))
        )

    start = time.perf_counter()
    verdicts, scores = asyncio.run(run())
    taken = time.perf_counter() - start
    if None in verdicts or len(scores) != len(asked):
        raise RuntimeError(f"not every reply was judged: {judge.report()}")
    return taken


def serial_seconds(base_url: str, judge: OpenAIJudge, similarity: LateInteraction, asked: list[Exchange]) -> float:
    """One reply after the other: a request, a similarity, a pause."""
    client = openai.OpenAI(base_url=base_url, api_key="none")
    start = time.perf_counter()
    for exchange in asked:
        form = answer_form(judge.rubric, exchange.risk)
        answer = client.chat.completions.create(
            model="test",
            messages=judge_messages(judge.rubric, exchange),
            temperature=0,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "verdict", "strict": True, "schema": form.schema},
            },
        )
        if form.parse(answer.choices[0].message.content) is None:
            raise RuntimeError("a reply was not judged")
        similarity([exchange.reply], [REFERENCE])
        time.sleep(PAUSE)
    return time.perf_counter() - start


def cached_rates(folder: Path) -> list[tuple[float, float]]:
    """Verdicts a second from a cache on disk, a pass: by the clock, and by this process's own processor time."""
    asked = exchanges(KEPT)
    with (
        running_server() as server,
        OpenAIJudge("test", base_url=server.base_url, cache=VerdictCache(folder)) as judge,
    ):
        judge.score(asked)
    rates = []
    with OpenAIJudge("test", base_url=server.base_url, cache=VerdictCache(folder)) as judge:  # the server is gone
        for _ in range(PASSES):
            start, busy = time.perf_counter(), time.process_time()
            if None in judge.score(asked):
                raise RuntimeError(f"a verdict was not in the cache: {judge.report()}")
            rates.append((KEPT / (time.perf_counter() - start), KEPT / (time.process_time() - busy)))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times each side is measured; the serial one takes 80 s")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    asked = exchanges(REPLIES)
    times = {"concurrent": [], "serial": []}
    print(f"{args.rounds} rounds of {REPLIES} replies, each side whole; server latency {LATENCY} s, pause {PAUSE} s")
    with tempfile.TemporaryDirectory() as folder, running_server(latency=LATENCY) as server:
        similarity = build_similarity(Path(folder) / "encoder", args.seed)
        similarity([asked[0].reply], [REFERENCE])  # both sides find it warm
        with OpenAIJudge("test", base_url=server.base_url) as judge:
            judge.score(asked[:1])  # imports openai
            for _ in range(args.rounds):
                times["concurrent"].append(concurrent_seconds(judge, similarity, asked))
                times["serial"].append(serial_seconds(server.base_url, judge, similarity, asked))
                print(f"concurrent {times['concurrent'][-1]:.2f} s, serial {times['serial'][-1]:.2f} s", flush=True)
        rates = [rate for number in range(args.rounds) for rate in cached_rates(Path(folder) / f"cache {number}")]

    medians = {side: statistics.median(values) for side, values in times.items()}
    by_clock, by_processor = (statistics.median(values) for values in zip(*rates, strict=True))
    print(f"concurrent {medians['concurrent']:.2f} s, serial {medians['serial']:.2f} s (medians)")
    print(
        f"cached: {by_clock:.0f} verdicts/s by the clock, {by_processor:.0f} by this process's processor time "
        f"(medians of {len(rates)} passes over {KEPT})"
    )
    ratios = {"judge": medians["serial"] / medians["concurrent"], "judge_cached_over_10000_per_second": by_clock / 1e4}
    # What else ran on the machine decides much of this: say how much, and how this process was ranked among it.
    surroundings = {"load_average": os.getloadavg()[0], "niceness": os.nice(0)}
    results = {
        "surroundings": surroundings,
        "median_seconds": medians,
        "seconds": times,
        "median_cached_verdicts_per_second": {"clock": by_clock, "processor": by_processor},
        "ratios": ratios,
    }
    path = reporting.write(
        "judge", results, rounds=args.rounds, seed=args.seed, replies=REPLIES, latency=LATENCY, pause=PAUSE
    )
    print(f"load average {surroundings['load_average']:.1f}, niceness {surroundings['niceness']}")
    print(f"wrote benchmarks/results/{path.name}")
    for name, value in ratios.items():
        print(f"ratio {name} {value:.2f}")


if __name__ == "__main__":
    main()
