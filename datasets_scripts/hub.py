"""Rows to the Hub and back: parquet with embedded clips, or a folder of clips, that `load_dataset` reads as rows.

A dataset's folder is what its repository will be: `README.md` (the card) and, for each configuration, a folder with the
files of its splits and `statistics.json`. So `load_dataset(folder, config)` and `load_dataset("user/name", config)` give
the same rows, whose `videos` are `{"bytes", "path"}`: the processor takes them as they are.
"""

import json
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, List, Value, Video
from huggingface_hub import HfApi

from .dataset_card import CORPORA, write_card
from .inspect_rows import RowStatistics
from .schema import Row, RowError, validate_row, write_rows

FORMS = ("rows", "parquet", "folder")
FEATURES = Features(
    {
        "dialogue_id": Value("string"),
        "turn_id": Value("int32"),
        "problem_type": Value("string"),
        "situation": Value("string"),
        "history": List({name: Value("string") for name in ("speaker", "text", "emotion", "strategy")}),
        "videos": List(Video(decode=False)),  # decoded by the processor, when a row is used
        "utterance": Value("string"),
        "client_emotion": Value("string"),
        "therapist_emotion": Value("string"),
        "strategy": Value("string"),
        "response": Value("string"),
        "corpus_emotion": Value("string"),
    }
)
SHARD_BYTES = 128 << 20  # small enough that ranks and workers have shards of their own
GROUP_BYTES = 16 << 20  # what a reader holds in memory at once
GROUP_ROWS = 1000
FILES_PER_FOLDER = 1000  # the Hub refuses folders of more than 10,000 files


def write_dataset(
    out: str | Path, corpus: str, config: str, splits: Mapping[str, Iterable[Row]], form: str, how: str
) -> dict[str, RowStatistics]:
    """Write one configuration of a corpus; a folder's other configurations stay, and its card tells of all.

    Args:
        out: the dataset's folder.
        corpus: key of `CORPORA`.
        config: name of the configuration, such as "official".
        splits: name → rows, which are taken one at a time.
        form: "rows" (JSON lines beside the clips as they are, for training here), "parquet" (clips embedded) or "folder"
            (copies of the clips and `metadata.jsonl`).
        how: how the rows were made, for the card.

    Returns:
        `dict`: split → what was written.

    Raises:
        ValueError: unknown form or corpus, nothing to write, or "folder" without clips.
        RowError: a row breaks the schema or stands twice.
        OSError: a clip cannot be read.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; use one of {', '.join(FORMS)}")
    out = Path(out)
    if corpus not in CORPORA:
        raise ValueError(f"corpus is {corpus!r}; use one of {', '.join(CORPORA)}")
    for name, about in built_configs(out).items():
        # `datasets` reads all configurations by one builder, and would find no rows in those of another form.
        if name != config and (about["corpus"], about["form"]) != (corpus, form):
            raise ValueError(f"{out / name} is {about['corpus']} in the form {about['form']}; give another folder")
    target, part = out / config, out / f".{config}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    writers = {"rows": _write_json_lines, "parquet": _write_parquet, "folder": _write_folder}
    statistics = {}
    for split, rows in splits.items():
        statistics[split] = RowStatistics()
        writers[form](_checked(rows, statistics[split]), part, split)
    if not any(of.rows for of in statistics.values()):
        raise ValueError(f"{config} of {corpus} has no rows: nothing to write")
    if form == "folder" and not any(of.clips for of in statistics.values()):
        raise ValueError("there are no clips for a folder of clips; use the form parquet")
    about = {
        "corpus": corpus,
        "form": form,
        "how": how,
        "splits": {split: of.summary() for split, of in statistics.items()},
    }
    (part / "statistics.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    write_card(out, built_configs(out), FEATURES._to_yaml_list())
    return statistics


def built_configs(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Configuration → its `statistics.json`, of a dataset's folder."""
    return {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(Path(folder).glob("[!.]*/statistics.json"))
    }


def push_dataset(folder: str | Path, repo_id: str, *, public: bool = False, have_rights: bool = False) -> str:
    """Push a dataset's folder to the Hub, into a private repository unless told otherwise.

    Files that are there already are not sent again, so an interrupted push can be repeated.

    Args:
        folder: written by [`write_dataset`] in the form "parquet" or "folder".
        repo_id: "user/name".
        public: create a public repository, or push into one.
        have_rights: the caller has the rights to media that nobody else may distribute.

    Returns:
        `str`: the repository's address.

    Warns:
        UserWarning: the corpus's licence forbids redistribution.

    Raises:
        ValueError: the folder is no dataset, its rows lie beside their clips, media need rights, or the repository is
            public and `public` is not set.
    """
    configs = built_configs(folder)
    if not configs:
        raise ValueError(f"{folder} holds no dataset; build one first")
    for name, about in configs.items():
        if about["form"] == "rows":
            raise ValueError(f"{folder}/{name} names clips of this machine; build it in the form parquet or folder")
    (corpus,) = {CORPORA[about["corpus"]] for about in configs.values()}
    clips = sum(split["clips"] for about in configs.values() for split in about["splits"].values())
    if clips and corpus.media_needs_rights and not have_rights:
        raise ValueError(
            f"{clips:,} clips of {corpus.title} are not yours to distribute: {corpus.terms} Push text only, or say that "
            "you have the rights with --i-have-the-rights"
        )
    if not corpus.redistribution:
        mend = "check that you may publish this" if public else "keep the repository private"
        warnings.warn(f"{corpus.title} may not be passed on; {mend}. {corpus.terms}", stacklevel=2)
    api = HfApi()
    url = api.create_repo(repo_id, repo_type="dataset", private=not public, exist_ok=True)
    if not public and api.dataset_info(repo_id).private is False:
        raise ValueError(f"{repo_id} is public; make it private first, push to another, or say --public")
    api.upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=folder,
        allow_patterns=["README.md", *(f"{name}/**" for name in configs)],
        delete_patterns=[f"{name}/**" for name in configs],  # files of an earlier build that is replaced
        commit_message=f"Rows of {', '.join(configs)}",
    )
    return str(url)


def _checked(rows: Iterable[Row], statistics: RowStatistics) -> Iterator[Row]:
    """Rows that follow the schema, each once; they are counted."""
    seen: set[tuple[str, int]] = set()
    for row in rows:
        key = (row["dialogue_id"], row["turn_id"])
        if key in seen:
            raise RowError(f"turn {key[1]} of dialogue {key[0]} stands twice; remove one")
        seen.add(key)
        statistics.add(validate_row(row))
        yield row


def _write_json_lines(rows: Iterator[Row], folder: Path, split: str) -> None:
    write_rows(rows, folder / f"{split}.jsonl")


def _write_parquet(rows: Iterator[Row], folder: Path, split: str) -> None:
    """Files `{split}-00000.parquet`, …, with clips embedded."""
    schema = FEATURES.arrow_schema
    writer, shard, shard_bytes = None, 0, 0
    for group, size in _groups(_embedded(row) for row in rows):
        if writer is not None and shard_bytes + size > SHARD_BYTES:
            writer.close()
            writer, shard, shard_bytes = None, shard + 1, 0
        if writer is None:
            writer = pq.ParquetWriter(folder / f"{split}-{shard:05}.parquet", schema)
        writer.write_table(pa.Table.from_pylist(group, schema=schema))
        shard_bytes += size
    if writer is not None:
        writer.close()


def _embedded(row: Row) -> dict[str, Any]:
    return {**row, "videos": [{"bytes": _read_clip(clip), "path": Path(clip).name} for clip in row["videos"]]}


def _read_clip(path: str) -> bytes:
    content = Path(path).read_bytes()
    if not content:
        raise RowError(f"{path} is empty (0 bytes); record or export it again")
    return content


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Runs of rows that fit into memory together, with the bytes of their clips and about those of their words."""
    group, size = [], 0
    for row in rows:
        group.append(row)
        size += sum(len(clip["bytes"]) for clip in row["videos"]) + sum(len(said["text"]) for said in row["history"])
        if size >= GROUP_BYTES or len(group) >= GROUP_ROWS:
            yield group, size
            group, size = [], 0
    if group:
        yield group, size


def _write_folder(rows: Iterator[Row], folder: Path, split: str) -> None:
    """`{split}/metadata.jsonl`, in which `videos_file_names` are paths below it, as `datasets` has it."""
    folder = folder / split
    folder.mkdir()
    names: dict[str, str] = {}
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            for clip in row["videos"]:
                if clip not in names:
                    number = len(names)
                    names[clip] = f"clips/{number // FILES_PER_FOLDER:03}/{number:06}-{Path(clip).name}"
                    copy = folder / names[clip]
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(_read_clip(clip))
            entry = {name: row.get(name) for name in FEATURES if name != "videos"}
            entry["videos_file_names"] = [names[clip] for clip in row["videos"]]
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
