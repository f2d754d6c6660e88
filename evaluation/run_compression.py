"""What a conversation's memory still knows, by compression ratio, beside simpler memories of the same size.

    python -m multimood.evaluation.run_compression --model outputs/mesc_small/compressor \
        --rows outputs/mesc_small/rows/validation.jsonl

A conversation is cut into slots of at most so many words; each memory may use one vector, or one word token, a slot:

- `compressor`: the model's own memory vectors.
- `mean pooling`: the mean of a slot's word vectors, scaled to the length of one (`pooled_words`).
- `truncation`: the last tokens of the conversation, as many as there are slots, kept as words.

Measures, all read by the same language model:

- `token_accuracy`: share of the words' tokens that are the most probable ones, given the memory and the true words
  before them. Truncation gets the tokens that it keeps for free; the others are guessed without memory.
- `bleu`, `names_numbers`: of what is written back greedily, turn by turn: corpus BLEU-4, and the share of names and numbers
  that is there. Truncation writes what it kept.
- `perplexity`: of the therapist's next answer, given the memory of all turns before the client's, which stands there
  itself. Also given all of them as words ("whole text"), and given nothing.

Intervals are 95 % of bootstrap samples of dialogues.
"""

import argparse
import math
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from multimood import MultiMoodForConditionalGeneration, MultiMoodProcessor
from multimood.datasets_scripts.memory_slots import (
    continue_prompt,
    cut_utterances,
    longest_conversations,
    repeat_prompt,
    transcript,
)
from multimood.datasets_scripts.schema import read_rows
from multimood.evaluation.results_file import write_results
from multimood.modeling_multimood.pooled_words import pooled_words
from multimood.processors.prompt_text import neutralise
from multimood.processors.turn import render_utterance

COMPRESSOR, POOLING, TRUNCATION = "compressor", "mean pooling", "truncation"
WHOLE_TEXT, NOTHING = "whole text", "nothing"
NUMBER_WORDS = frozenset(
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million".split()
)
MEASURES = ("token_accuracy", "bleu", "names_numbers", "perplexity")


def names_and_numbers(text: str) -> Counter:
    """Names (capitalised words that open no sentence, other than "I") and numbers (digits, or words from two on)."""
    found: Counter = Counter()
    for match in re.finditer(r"[\w]+(?:['’][\w]+)?", text):
        word, before = match[0], text[: match.start()].rstrip(" \"'“‘(-–—")
        opens = not before or before[-1] in ".!?…:"
        is_name = word[0].isupper() and not opens and re.split("['’]", word)[0] != "I"
        if is_name or any(map(str.isdigit, word)) or word.lower() in NUMBER_WORDS:
            found[word] += 1
    return found


def bleu_counts(written: list[str], true: list[str]) -> list[int]:
    """Of 1- to 4-grams: matches and how many were written; then the lengths of what was written and of what is true.

    The sums over texts give corpus BLEU (Papineni et al., 2002), by [`bleu`].
    """
    counts = []
    for n in range(1, 5):
        of = [Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (written, true)]
        counts += [(of[0] & of[1]).total(), of[0].total()]
    return [*counts, len(written), len(true)]


def bleu(counts: list[int]) -> float:
    """Corpus BLEU-4 in [0, 1] of summed [`bleu_counts`], without smoothing."""
    *grams, written, true = counts
    pairs = list(zip(grams[::2], grams[1::2], strict=True))
    if not all(matches for matches, _ in pairs):
        return 0.0
    precision = sum(math.log(matches / total) for matches, total in pairs) / len(pairs)
    return math.exp(precision + min(0.0, 1 - true / written))


class Reader:
    """The language model, reading memories."""

    def __init__(self, model: MultiMoodForConditionalGeneration, processor: MultiMoodProcessor, batch_size: int):
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self.nothing = model.get_input_embeddings().weight.new_zeros(0, model.config.text_config.hidden_size)

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, whose special tokens are broken as in prompts."""
        return self.processor.tokenizer(neutralise(text, self.processor.tokenizer), add_special_tokens=False)[
            "input_ids"
        ]

    def compress(self, pieces: list[dict]) -> torch.Tensor:
        """`(slots, hidden)`"""
        encoded = self.processor.encode_history([pieces])
        return self.model.get_history_features(**{key: value.to(self.model.device) for key, value in encoded.items()})[
            0
        ]

    def pool(self, pieces: list[dict]) -> torch.Tensor:
        """`(slots, hidden)`"""
        return pooled_words(self.model.get_input_embeddings(), [self.ids(render_utterance(piece)) for piece in pieces])

    def _prompts(self, prompts: list[list[dict]], memories: list[torch.Tensor]):
        """Prompts whose history block has become so many slots, padded on the left."""
        prompts = [
            [{"role": m["role"], "content": [_slots(block, len(memory)) for block in m["content"]]} for m in messages]
            for messages, memory in zip(prompts, memories, strict=True)
        ]
        return self.processor.apply_chat_template(
            prompts,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            padding=True,
            padding_side="left",
        ).to(self.model.device)

    def log_probs(
        self, prompts: list[list[dict]], memories: list[torch.Tensor], targets: list[list[int]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For each prompt the log-probabilities of its target's tokens and whether they are the most probable."""
        found = []
        for start in range(0, len(prompts), self.batch_size):
            part = slice(start, start + self.batch_size)
            inputs = self._prompts(prompts[part], memories[part])
            longest = max(map(len, targets[part]))
            pad = self.processor.tokenizer.pad_token_id
            answer = torch.tensor(
                [ids + [pad] * (longest - len(ids)) for ids in targets[part]], device=self.model.device
            )
            outputs = self.model(
                input_ids=torch.cat([inputs["input_ids"], answer], dim=1),
                attention_mask=torch.cat([inputs["attention_mask"], torch.ones_like(answer)], dim=1),
                position_ids=_positions(torch.cat([inputs["attention_mask"], torch.ones_like(answer)], dim=1)),
                history_memory=memories[part],
                logits_to_keep=longest + 1,
            )
            logits = outputs.logits[:, :-1].float().log_softmax(-1)  # (B, longest, vocabulary)
            chosen = logits.gather(-1, answer[..., None])[..., 0]
            best = logits.argmax(-1) == answer
            found += [
                (row[: len(ids)], hit[: len(ids)]) for row, hit, ids in zip(chosen, best, targets[part], strict=True)
            ]
        return found

    def write(self, prompts: list[list[dict]], memories: list[torch.Tensor], lengths: list[int]) -> list[str]:
        """What is written greedily to each prompt, at most half as many tokens again as `lengths`, and 8."""
        texts: list[str] = []
        for start in range(0, len(prompts), self.batch_size):
            part = slice(start, start + self.batch_size)
            inputs = self._prompts(prompts[part], memories[part])
            output = self.model.generate(
                **inputs,
                history_memory=memories[part],
                do_sample=False,
                max_new_tokens=max(lengths[part]) * 3 // 2 + 8,
            )
            texts += self.processor.tokenizer.batch_decode(
                output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
        return texts


def _slots(block: dict, slots: int) -> dict:
    return {"type": "history", "slots": slots} if block["type"] == "history" else block


def _positions(attention_mask: torch.Tensor) -> torch.Tensor:
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def measure_dialogue(reader: Reader, said: list[dict], words: int) -> dict[str, dict]:
    """By memory the sums that a dialogue adds to each measure, and under "size" its tokens and slots."""
    pieces = [cut_utterances([one], words) for one in said]  # by turn
    flat = [piece for of in pieces for piece in of]
    whole = [reader.ids(render_utterance(one)) for one in said]
    spoken = [reader.ids(" " + one["text"]) for one in said]
    slots = len(flat)
    sums: dict[str, dict] = {"size": {"tokens": sum(map(len, whole)), "slots": slots}}

    openings = [len(reader.ids(render_utterance({**piece, "text": ""}).rstrip())) for piece in flat]
    targets = [reader.ids(transcript([piece])) for piece in flat]
    prompts = [repeat_prompt([piece]) for piece in flat]
    memories = {COMPRESSOR: reader.compress(flat), POOLING: reader.pool(flat)}
    lengths = [len(ids) for ids in targets]
    for name, vectors in memories.items():
        each = list(vectors.split(1))
        hits = [
            hit[opening:] for (_, hit), opening in zip(reader.log_probs(prompts, each, targets), openings, strict=True)
        ]
        written = iter(_after_speaker(text) for text in reader.write(prompts, each, lengths))
        turns = [" ".join(next(written) for _ in of) for of in pieces]
        sums[name] = {
            "right": sum(int(hit.sum()) for hit in hits),
            "of": sum(map(len, hits)),
            **_written_sums(turns, said),
        }

    # Truncation: how many of each turn's words are among the last `slots` tokens.
    left, kept = slots, []
    for whole_turn, words_of in zip(reversed(whole), reversed(spoken), strict=True):
        kept.insert(0, min(left, len(words_of)))
        left = max(left - len(whole_turn), 0)
    blind = reader.log_probs(
        [repeat_prompt([])] * len(said),
        [reader.nothing] * len(said),
        [reader.ids(render_utterance(one)) for one in said],
    )
    right = 0
    for (_, hit), keep, turn in zip(blind, kept, spoken, strict=True):
        hit = hit[len(hit) - len(turn) :]
        right += int(hit[: len(turn) - keep].sum()) + keep
    decode = reader.processor.tokenizer.decode
    turns = [decode(turn[len(turn) - keep :]).strip() for turn, keep in zip(spoken, kept, strict=True)]
    sums[TRUNCATION] = {"right": right, "of": sum(map(len, spoken)), **_written_sums(turns, said)}

    _add_perplexity(reader, said, words, sums)
    return sums


def _after_speaker(text: str) -> str:
    return text.partition(":")[2].strip()


def _written_sums(turns: list[str], said: list[dict]) -> dict:
    counts = [bleu_counts(turn.split(), one["text"].split()) for turn, one in zip(turns, said, strict=True)]
    true = [names_and_numbers(one["text"]) for one in said]
    found = sum(
        sum(min(count, len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", turn))) for word, count in names.items())
        for turn, names in zip(turns, true, strict=True)
    )
    return {
        "bleu": [sum(column) for column in zip(*counts, strict=True)],
        "found": found,
        "names": sum(map(Counter.total, true)),
    }


def _add_perplexity(reader: Reader, said: list[dict], words: int, sums: dict[str, dict]) -> None:
    """Adds `log_prob` and `answer_tokens` of all answers that come after at least one turn before the client's."""
    answers = [i for i in range(2, len(said)) if said[i]["speaker"] == "therapist" != said[i - 1]["speaker"]]
    for name in (COMPRESSOR, POOLING, TRUNCATION, WHOLE_TEXT, NOTHING):
        sums.setdefault(name, {}).update({"log_prob": 0.0, "answer_tokens": 0})
    if not answers:
        return
    targets = [reader.ids(said[answer]["text"]) for answer in answers]
    prompts: dict[str, list] = {name: [] for name in (COMPRESSOR, POOLING, TRUNCATION, WHOLE_TEXT, NOTHING)}
    memories: dict[str, list[torch.Tensor]] = {name: [] for name in prompts}
    for answer in answers:
        before, client = said[: answer - 1], said[answer - 1]["text"]
        run = cut_utterances(before, words)
        text = transcript(before)
        for name, how in ((COMPRESSOR, reader.compress), (POOLING, reader.pool)):
            prompts[name].append(continue_prompt(run, client))
            memories[name].append(how(run))
        tokens = reader.ids(text)[-len(run) :]
        for name, recent in (
            (TRUNCATION, reader.processor.tokenizer.decode(tokens) + "\n"),
            (WHOLE_TEXT, text + "\n"),
            (NOTHING, ""),
        ):
            prompts[name].append(continue_prompt([], client, recent))
            memories[name].append(reader.nothing)
    for name in prompts:
        scored = reader.log_probs(prompts[name], memories[name], targets)
        sums[name]["log_prob"] = float(sum(log_probs.sum() for log_probs, _ in scored))
        sums[name]["answer_tokens"] = sum(map(len, targets))


def _figures(dialogues: list[dict], name: str) -> dict[str, float]:
    """The measures of one memory over dialogues."""

    def total(key: str) -> float:
        return sum(sums[name][key] for sums in dialogues)

    figures = {"perplexity": math.exp(-total("log_prob") / total("answer_tokens"))}
    if "right" in dialogues[0][name]:
        figures["token_accuracy"] = total("right") / total("of")
        figures["bleu"] = bleu([sum(column) for column in zip(*(s[name]["bleu"] for s in dialogues), strict=True)])
        figures["names_numbers"] = total("found") / max(total("names"), 1)
    return figures


def summarise(dialogues: list[dict], seed: int, samples: int = 1000) -> dict:
    """Measures of each memory with 95 % intervals, and intervals of the compressor's lead over the others."""
    names = [COMPRESSOR, POOLING, TRUNCATION, WHOLE_TEXT, NOTHING]
    rng = random.Random(seed)
    draws = [rng.choices(dialogues, k=len(dialogues)) for _ in range(samples)]
    resampled = {name: [_figures(draw, name) for draw in draws] for name in names}
    size = {key: sum(sums["size"][key] for sums in dialogues) for key in ("tokens", "slots")}
    result: dict = {"ratio": size["tokens"] / size["slots"], **size}
    for name in names:
        result[name] = {
            key: {"value": value, "interval": _interval([sample[key] for sample in resampled[name]])}
            for key, value in _figures(dialogues, name).items()
        }
    result["lead"] = {
        name: {
            key: _interval(
                [(own[key] - other[key]) for own, other in zip(resampled[COMPRESSOR], resampled[name], strict=True)]
            )
            for key in MEASURES
        }
        for name in (POOLING, TRUNCATION)
    }
    return result


def _interval(values: list[float]) -> list[float]:
    values = sorted(values)
    return [values[round(0.025 * (len(values) - 1))], values[round(0.975 * (len(values) - 1))]]


def evaluate(
    reader: Reader, conversations: list[list[dict]], slot_words: list[int], seed: int, progress: Callable = tqdm
) -> dict[str, dict]:
    """By size of a slot the result of [`summarise`]."""
    results = {}
    for words in slot_words:
        with torch.inference_mode():
            dialogues = [
                measure_dialogue(reader, said, words) for said in progress(conversations, desc=f"{words} words a slot")
            ]
        results[str(words)] = summarise(dialogues, seed)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model with a compressor")
    parser.add_argument("--rows", required=True, help="rows (JSON lines) that it was not trained on")
    parser.add_argument("--slot_words", type=int, nargs="+", default=[4, 8, 16, 64], help="most words of a slot")
    parser.add_argument("--dialogues", type=int, help="only the first so many")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--name", default="compression", help="of the file of results")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    model = MultiMoodForConditionalGeneration.from_pretrained(args.model).eval()
    reader = Reader(model, MultiMoodProcessor.from_pretrained(args.model), args.batch_size)
    conversations = longest_conversations(list(read_rows(args.rows)))[: args.dialogues]
    results = evaluate(reader, conversations, args.slot_words, args.seed)

    print(f"{'words':>5} {'ratio':>6} {'memory':14}" + "".join(f"{measure:>16}" for measure in MEASURES))
    for words, result in results.items():
        for name in (COMPRESSOR, POOLING, TRUNCATION, WHOLE_TEXT, NOTHING):
            cells = [f"{result[name][m]['value']:16.3f}" if m in result[name] else " " * 15 + "-" for m in MEASURES]
            print(f"{words:>5} {result['ratio']:6.2f} {name:14}" + "".join(cells))
    settings = {"model": args.model, "rows": args.rows, "dialogues": len(conversations), "seed": args.seed}
    print(f"wrote {write_results(args.out, args.name, results, **settings)}")


if __name__ == "__main__":
    main()
