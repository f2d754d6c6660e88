"""Measures a model on fresh synthetic test turns, with and without each thing it has to look at.

    make eval-tiny   # python -m multimood.evaluation.run_synthetic --model assets/multimood-tiny --rows 500 --seed 20261123

The corpus is made so that each ablation must fail in its own way: without face and voice the emotion cannot be told,
without the history the fact cannot be named. A turn that cannot be parsed counts as wrong in every column.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import LogitsProcessorList

from multimood import MultiMoodForConditionalGeneration, MultiMoodProcessor
from multimood.datasets_scripts.schema import Row
from multimood.datasets_scripts.synthetic import asked_fact, generate_rows
from multimood.evaluation.results_file import write_results
from multimood.modeling_multimood.turn_grammar import SupportTurnLogitsProcessor
from multimood.processors.turn import SupportTurn, build_prompt

# What each condition leaves of a row's messages: names of blocks that are taken out.
ABLATIONS: dict[str, frozenset[str]] = {
    "video + audio": frozenset(),
    "video only": frozenset({"audio"}),
    "audio only": frozenset({"video"}),
    "text only": frozenset({"video", "audio"}),
}
NO_HISTORY = "no history"


def without(messages: list[dict], kinds: frozenset[str]) -> list[dict]:
    """The messages less the blocks of some kinds."""
    return [
        {**message, "content": [block for block in message["content"] if block["type"] not in kinds]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


def write_turns(
    model: MultiMoodForConditionalGeneration,
    processor: MultiMoodProcessor,
    rows: list[Row],
    prompt: Callable[[Row], list[dict]],
    batch_size: int,
    description: str,
) -> list[SupportTurn]:
    """Greedy turns inside the label grammar, one a row."""
    turns = []
    for start in tqdm(range(0, len(rows), batch_size), desc=description):
        inputs = processor.apply_chat_template(
            [prompt(row) for row in rows[start : start + batch_size]],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            padding=True,
            padding_side="left",
        ).to(model.device)
        length = inputs["input_ids"].shape[1]
        grammar = LogitsProcessorList([SupportTurnLogitsProcessor(model.config.turn_grammar, length)])
        output = model.generate(**inputs, logits_processor=grammar, do_sample=False, max_new_tokens=128)
        texts = processor.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
        turns += [SupportTurn.parse(text) for text in texts]
    return turns


def evaluate(
    model: MultiMoodForConditionalGeneration, processor: MultiMoodProcessor, rows: list[Row], batch_size: int = 50
) -> dict[str, dict[str, float]]:
    """Shares of `rows`, in [0, 1], by condition: right labels, named facts and valid turns."""

    def full_prompt(row: Row) -> list[dict]:
        return build_prompt(row, verbatim_pairs=processor.verbatim_pairs)

    prompts = {
        name: lambda row, kinds=kinds: without(full_prompt(row), kinds) for name, kinds in ABLATIONS.items()
    } | {NO_HISTORY: lambda row: full_prompt({**row, "history": []})}
    return {
        name: _scores(rows, write_turns(model, processor, rows, prompt, batch_size, name))
        for name, prompt in prompts.items()
    }


def _scores(rows: list[Row], turns: list[SupportTurn]) -> dict[str, float]:
    pairs = list(zip(rows, turns, strict=True))
    right = {
        field: sum(getattr(turn, field) == row[field] for row, turn in pairs)
        for field in ("client_emotion", "therapist_emotion", "strategy")
    }
    named = sum(asked_fact(row)[1] in (turn.response or "") for row, turn in pairs)
    valid = sum(turn.is_valid for turn in turns)
    return {key: count / len(rows) for key, count in {**right, "fact": named, "valid": valid}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="assets/multimood-tiny")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--seed", type=int, default=20261123, help="of the test turns; training uses 0 to 3")
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    model = MultiMoodForConditionalGeneration.from_pretrained(args.model).eval()
    processor = MultiMoodProcessor.from_pretrained(args.model)
    with tempfile.TemporaryDirectory() as clips:
        rows = generate_rows("test", args.rows, args.seed, clips, tracks="both", distances=(10, 60), workers=2)
        with torch.inference_mode():
            results = evaluate(model, processor, rows, args.batch_size)

    columns = ("client_emotion", "therapist_emotion", "strategy", "fact", "valid")
    print(f"{'condition':16}" + "".join(f"{column:>19}" for column in columns))
    for name, scores in results.items():
        print(f"{name:16}" + "".join(f"{scores[column]:>18.1%} " for column in columns))
    path = write_results(args.out, "synthetic", results, model=args.model, rows=args.rows, seed=args.seed)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
