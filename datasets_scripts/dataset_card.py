"""The card of a dataset, made from its statistics: sizes, labels, licence, and how it was built."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from multimood.processors.turn import LABELS

from .schema import Row

DATA_FILES = {
    "rows": "{config}/{split}.jsonl",
    "parquet": "{config}/{split}-*.parquet",
    "folder": "{config}/{split}/**",
}
SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class Corpus:
    """What may be done with a corpus.

    Args:
        title: its name.
        license: as the Hub calls it.
        terms: what the licence says, in sentences.
        redistribution: whether it may be passed on.
        media_needs_rights: whether its clips belong to somebody who gave nobody leave.
    """

    title: str
    license: str
    terms: str
    redistribution: bool
    media_needs_rights: bool = False


_AGREEMENT = "Licensed to each user by an agreement for research, which forbids passing clips or annotations on."
CORPORA = {
    "mesc": Corpus(
        "MESC",
        "other",
        "The annotations are published for research and quote the words of the series In Treatment; its pictures and "
        "sound are under copyright and are not distributed.",
        redistribution=False,
        media_needs_rights=True,
    ),
    "dfew": Corpus("DFEW", "other", _AGREEMENT, redistribution=False),
    "mafw": Corpus("MAFW", "other", _AGREEMENT, redistribution=False),
    "meld": Corpus(
        "MELD",
        "gpl-3.0",
        "The annotations are under GPL-3.0; pictures and sound of the series Friends are under copyright.",
        redistribution=False,
    ),
    "own": Corpus("Own recordings", "other", "The terms are those of whoever recorded them.", redistribution=True),
}


def write_card(folder: str | Path, configs: Mapping[str, Mapping[str, Any]], features: list[dict]) -> Path:
    """Write `README.md` of a dataset's folder.

    Args:
        folder: where.
        configs: configuration → {"corpus", "form", "how", "splits": {split: summary of its statistics}}.
        features: of the rows, in the card's own notation.
    """
    corpus = CORPORA[next(iter(configs.values()))["corpus"]]
    rows = max(sum(split["rows"] for split in about["splits"].values()) for about in configs.values())
    media = any(split["clips"] for about in configs.values() for split in about["splits"].values())
    data = DatasetCardData(
        pretty_name=corpus.title,
        license=corpus.license,
        language=None,
        size_categories=[next((name for limit, name in SIZE_CATEGORIES if rows < limit), "n>1M")],
        task_categories=["video-text-to-text" if media else "text-generation"],
        tags=["multimood", "emotional-support", "emotion-recognition"],
        configs=[
            {
                "config_name": config,
                "data_files": [
                    {"split": split, "path": DATA_FILES[about["form"]].format(config=config, split=split)}
                    for split, sizes in about["splits"].items()
                    if sizes["rows"]
                ],
                # Parquet knows its features; a folder's clips would be decoded on reading, with torchcodec.
                **({"features": features, "decode_num_threads": 0} if about["form"] == "folder" else {}),
            }
            for config, about in configs.items()
        ],
    )
    path = Path(folder) / "README.md"
    path.write_text(f"---\n{data.to_yaml()}\n---\n\n{_body(corpus, configs)}", encoding="utf-8")
    return path


def _body(corpus: Corpus, configs: Mapping[str, Mapping[str, Any]]) -> str:
    config = next(iter(configs))
    split = next(iter(configs[config]["splits"]))
    parts = [
        f"# {corpus.title}",
        "Turns of dialogues for emotional support and emotion recognition, one row at each hand-over from client to "
        "therapist, in the form of [MultiMood](https://arxiv.org/abs/2511.10011).",
        f'```python\nfrom datasets import load_dataset\n\nrows = load_dataset("user/name", "{config}", split="{split}", '
        'streaming=True)\n```\n`videos` are the clips of a turn in order, `{"bytes", "path"}`, undecoded: '
        "`MultiMoodProcessor` takes them as they are.",
        "## Licence",
        corpus.terms + ("" if corpus.redistribution else " **It may not be passed on.**"),
        "## Sizes",
        _sizes(configs),
    ]
    for name, about in configs.items():
        parts += [f"## Labels: {name}"]
        parts += [_labels(label, about["splits"]) for label in (*LABELS, "problem_type")]
    parts += ["## How it was built", *(f"- `{name}`: {about['how']}" for name, about in configs.items())]
    parts += ["## Fields", ", ".join(f"`{name}`" for name in Row.__annotations__)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str("–" if value is None else value).replace("|", "\\|")


def _sizes(configs: Mapping[str, Mapping[str, Any]]) -> str:
    names = {
        "rows": "rows",
        "dialogues": "dialogues",
        "rows_with_clips": "rows with clips",
        "clips": "clips",
        "mean_history_utterances": "earlier utterances a row",
        "mean_words": "words a turn",
        "mean_response_words": "words a response",
    }
    rows = [
        [config, split, *(sizes[name] for name in names)]
        for config, about in configs.items()
        for split, sizes in about["splits"].items()
    ]
    return _table(["configuration", "split", *names.values()], rows)


def _labels(label: str, splits: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of one label's counts in each split; nothing where no row has the label."""
    counts = {split: sizes["labels"][label] for split, sizes in splits.items()}
    names = list(dict.fromkeys(name for of in counts.values() for name in of))
    if names in ([], ["(none)"]):
        return ""
    rows = [[name, *(of.get(name, 0) for of in counts.values())] for name in names]
    return _table([label.replace("_", " "), *counts], rows)
