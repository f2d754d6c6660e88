"""Rows as trainers want them: prompts and completions, streams shared among processes, and balanced classes.

Nothing is decoded here: clips stay paths or bytes in the messages, until the processor makes a batch.
"""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset, load_dataset
from datasets.distributed import split_dataset_by_node

from multimood.processors.turn import VERBATIM_PAIRS, build_completion, build_prompt

from .schema import read_rows


def stream_rows(
    source: str | Path,
    config: str | None = None,
    split: str = "train",
    *,
    rank: int = 0,
    world_size: int = 1,
    shuffle_seed: int | None = None,
    buffer_size: int = 256,
) -> IterableDataset:
    """Rows one at a time: of a JSON-lines file, a built folder or a dataset on the Hub.

    Every row goes to one process, and there to one worker of its `DataLoader`; where there are at least as many files as
    processes, none reads another's.

    Args:
        source: a file of rows, a folder, or "user/name".
        config: configuration of the dataset, such as "official".
        split: of the dataset.
        rank: of this process.
        world_size: number of processes.
        shuffle_seed: shuffles files, and rows within a buffer; `set_epoch` gives another order.
        buffer_size: rows that the shuffling holds in memory.

    Raises:
        RowError: with file and line, while a JSON-lines file is read.
    """
    if Path(source).is_file():
        dataset = IterableDataset.from_generator(_read_files, gen_kwargs={"paths": [str(source)]})
    else:
        dataset = load_dataset(str(source), config, split=split, streaming=True)
    if shuffle_seed is not None:
        dataset = dataset.shuffle(seed=shuffle_seed, buffer_size=buffer_size)
    return split_dataset_by_node(dataset, rank, world_size) if world_size > 1 else dataset


def _read_files(paths: list[str]) -> Iterable[dict]:
    for path in paths:
        yield from read_rows(path)


def with_prompts(
    dataset: Dataset | IterableDataset, verbatim_pairs: int = VERBATIM_PAIRS
) -> Dataset | IterableDataset:
    """TRL's conversational `prompt` and `completion` beside a row's own columns, made when the row is taken.

    Raises:
        ValueError: when a row is taken that has no labels or no response to learn.
    """
    add = partial(_add_prompt, verbatim_pairs=verbatim_pairs)
    if isinstance(dataset, IterableDataset):
        return dataset.map(add)
    # Messages have blocks of many kinds, which Arrow would fill up with every other kind's fields: nothing is stored.
    return dataset.with_transform(partial(_transform, add=add))


def _add_prompt(row: dict[str, Any], verbatim_pairs: int) -> dict[str, Any]:
    return {**row, "prompt": build_prompt(row, verbatim_pairs), "completion": build_completion(row)}


def _transform(columns: dict[str, list], add) -> dict[str, list]:
    rows = [add(dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def class_weights(labels: Iterable[str | None]) -> dict[str, float]:
    """Weights of a loss under which each label counts as much in sum: n / (classes · count).

    Rows without a label do not count, and a label that does not occur has no weight.

    Raises:
        ValueError: there is no label at all.
    """
    counts = Counter(label for label in labels if label is not None)
    if not counts:
        raise ValueError("no row has a label; weights need some")
    return {label: counts.total() / (len(counts) * count) for label, count in counts.most_common()}


def balanced_sample(dataset: Dataset, field: str = "client_emotion", seed: int = 0) -> Dataset:
    """As many rows as `dataset` has with a label, drawn with replacement so that each label is as likely.

    Raises:
        ValueError: no row has a label, or the dataset is a stream.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError("a stream cannot be drawn from at random; load the dataset without streaming")
    labels = dataset[field]
    weights = class_weights(labels)
    probabilities = np.array([0.0 if label is None else weights[label] for label in labels])
    count = int(np.count_nonzero(probabilities))
    drawn = np.random.default_rng(seed).choice(len(labels), count, p=probabilities / probabilities.sum())
    return dataset.select(drawn)
