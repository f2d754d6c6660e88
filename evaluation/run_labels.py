"""How well a model tells emotion and strategy on rows of a corpus, beside always saying the most common label.

    python -m multimood.evaluation.run_labels --model outputs/mesc_small/sft \
        --train_rows outputs/mesc_small/rows/train_slots.jsonl --rows outputs/mesc_small/rows/validation_slots.jsonl

Accuracy and macro-F1 (over the labels that occur, as truth or as answer) of `predict_labels`, which always gives one of the
labels, so that no row drops out. Intervals are 95 % of bootstrap samples of dialogues, since the rows of one are alike;
those of the lead over the most common label of the training rows are paired. Rows that share a dialogue with the training
rows are refused.
"""

import argparse
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from multimood import MultiMoodForConditionalGeneration, MultiMoodProcessor
from multimood.datasets_scripts.schema import Row, read_rows
from multimood.evaluation.results_file import write_results
from multimood.processors.turn import build_prompt

FIELDS = ("client_emotion", "therapist_emotion", "strategy")


def accuracy(truth: Sequence[str], answers: Sequence[str]) -> float:
    """Share of right answers, in [0, 1]."""
    return sum(map(str.__eq__, truth, answers)) / len(truth)


def macro_f1(truth: Sequence[str], answers: Sequence[str]) -> float:
    """Mean F1 of the labels that occur in `truth` or `answers`, in [0, 1]."""
    right = Counter(label for label, answer in zip(truth, answers, strict=True) if label == answer)
    true, said = Counter(truth), Counter(answers)
    return sum(2 * right[label] / (true[label] + said[label]) for label in true | said) / len(true | said)


MEASURES = {"accuracy": accuracy, "macro_f1": macro_f1}


def score(dialogues: Sequence[str], truth: Sequence[str], answers: Sequence[str], common: str, seed: int) -> dict:
    """Measures of the answers and of always saying `common`, with 95 % intervals.

    Args:
        dialogues: of each row; rows of one are drawn together.
        truth: the labels.
        answers: the model's.
        common: the most common label of the training rows.
        seed: of the 2,000 bootstrap samples.
    """
    places = defaultdict(list)
    for place, dialogue in enumerate(dialogues):
        places[dialogue].append(place)
    groups, rng = list(places.values()), random.Random(seed)
    draws = [[place for group in rng.choices(groups, k=len(groups)) for place in group] for _ in range(2000)]
    majority = [common] * len(truth)
    result: dict = {"rows": len(truth), "majority_label": common, "answered": dict(Counter(answers).most_common())}
    for name, measure in MEASURES.items():
        own, other = (
            [measure([truth[i] for i in draw], [given[i] for i in draw]) for draw in draws]
            for given in (answers, majority)
        )
        result[name] = {
            "value": measure(truth, answers),
            "interval": _interval(own),
            "majority": measure(truth, majority),
            "lead_interval": _interval([a - b for a, b in zip(own, other, strict=True)]),
        }
    return result


def _interval(values: list[float]) -> list[float]:
    values = sorted(values)
    return [values[round(0.025 * (len(values) - 1))], values[round(0.975 * (len(values) - 1))]]


def answers_of(
    model: MultiMoodForConditionalGeneration, processor: MultiMoodProcessor, rows: Sequence[Row], batch_size: int
) -> dict[str, list[str]]:
    """By field the model's most probable label for each row."""
    answers: dict[str, list[str]] = {field: [] for field in FIELDS}
    for start in tqdm(range(0, len(rows), batch_size), desc="labels"):
        prompts = [
            build_prompt(row, verbatim_pairs=processor.verbatim_pairs) for row in rows[start : start + batch_size]
        ]
        inputs = processor.apply_chat_template(
            prompts,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            padding=True,
            padding_side="left",
        ).to(model.device)
        for field, probabilities in model.predict_labels(**inputs).items():
            answers[field] += [model.label_names[field][best] for best in probabilities.argmax(-1).tolist()]
    return answers


def evaluate(
    model: MultiMoodForConditionalGeneration,
    processor: MultiMoodProcessor,
    train: Sequence[Row],
    rows: Sequence[Row],
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, dict]:
    """By field the result of [`score`], over the rows that are labelled in it.

    Raises:
        ValueError: a dialogue occurs in `train` and in `rows`, or a field has no labels.
    """
    if both := {row["dialogue_id"] for row in train} & {row["dialogue_id"] for row in rows}:
        raise ValueError(f"{len(both)} dialogues are in the training rows, too, such as {min(both)}; take other rows")
    answers = answers_of(model, processor, rows, batch_size)
    results = {}
    for field in FIELDS:
        labelled = [i for i, row in enumerate(rows) if row[field] is not None]
        known = Counter(row[field] for row in train if row[field] is not None)
        if not (labelled and known):
            raise ValueError(f"no row has a {field}; there is nothing to compare with")
        results[field] = score(
            [rows[i]["dialogue_id"] for i in labelled],
            [rows[i][field] for i in labelled],
            [answers[field][i] for i in labelled],
            known.most_common(1)[0][0],
            seed,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train_rows", required=True, help="rows (JSON lines) that the model was trained on")
    parser.add_argument("--rows", required=True, help="rows (JSON lines) to be told")
    parser.add_argument("--without_clips", action="store_true", help="words alone, also where the rows have clips")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--name", default="labels", help="of the file of results")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    model = MultiMoodForConditionalGeneration.from_pretrained(args.model).eval()
    processor = MultiMoodProcessor.from_pretrained(args.model)
    rows = [{**row, "videos": []} if args.without_clips else row for row in read_rows(args.rows)]
    results = evaluate(model, processor, list(read_rows(args.train_rows)), rows, args.batch_size, args.seed)

    print(f"{'field':18} {'measure':9} {'value':>6}  {'95 %':^15} {'majority':>8}  {'lead, 95 %':^17}")
    for field, result in results.items():
        for name in MEASURES:
            low, high, *lead = (*result[name]["interval"], *result[name]["lead_interval"])
            print(
                f"{field:18} {name:9} {result[name]['value']:6.3f}  [{low:.3f}, {high:.3f}] "
                f"{result[name]['majority']:8.3f}  [{lead[0]:+.3f}, {lead[1]:+.3f}]"
            )
    settings = {"model": args.model, "rows": args.rows, "without_clips": args.without_clips, "seed": args.seed}
    print(f"wrote {write_results(args.out, args.name, results, **settings)}")


if __name__ == "__main__":
    main()
