import yaml

from multimood.datasets_scripts.dataset_card import write_card
from multimood.datasets_scripts.inspect_rows import RowStatistics

ROW = {
    "dialogue_id": "d",
    "turn_id": 0,
    "problem_type": "work | home",
    "situation": None,
    "history": [],
    "videos": [],
    "utterance": "I am here.",
    "client_emotion": "sadness",
    "therapist_emotion": None,
    "strategy": "open question",
    "response": "Tell me.",
}


def about(form: str = "parquet", corpus: str = "mesc", **splits) -> dict:
    sizes = {name: RowStatistics.of(rows).summary() for name, rows in splits.items()}
    return {"corpus": corpus, "form": form, "how": "by a test", "splits": sizes}


def card(folder, **configs) -> tuple[dict, str]:
    text = write_card(folder, configs, [{"name": "turn_id", "dtype": "int32"}]).read_text(encoding="utf-8")
    _, metadata, body = text.split("---\n", 2)
    return yaml.safe_load(metadata), body


def test_sizes_labels_licence_and_making_come_from_the_data(tmp_path):
    rows = [{**ROW, "turn_id": i, "client_emotion": "joy" if i % 3 else "fear"} for i in range(1500)]
    metadata, body = card(tmp_path, official=about(train=rows, test=rows[:3]), other=about(train=rows[:2]))
    assert metadata["license"] == "other"
    assert metadata["size_categories"] == ["1K<n<10K"]
    assert metadata["task_categories"] == ["text-generation"]
    assert [config["config_name"] for config in metadata["configs"]] == ["official", "other"]
    assert metadata["configs"][0]["data_files"] == [
        {"split": "train", "path": "official/train-*.parquet"},
        {"split": "test", "path": "official/test-*.parquet"},
    ]
    assert "| official | train | 1,500 | 1 | 0 | 0 | 0.0 | 3.0 | 2.0 |" in body
    assert "| joy | 1,000 | 2 |" in body
    assert "| fear | 500 | 1 |" in body
    assert r"| work \| home | 1,500 | 3 |" in body
    assert "| therapist emotion |" not in body, "a table of nothing is left out"
    assert "**It may not be passed on.**" in body
    assert "`official`: by a test" in body


def test_a_folder_of_clips_tells_that_they_are_not_to_be_decoded(tmp_path):
    rows = [{**ROW, "videos": ["clip.mp4"]}]
    metadata, body = card(tmp_path, default=about("folder", "own", train=rows, test=[]))
    (config,) = metadata["configs"]
    assert config["data_files"] == [{"split": "train", "path": "default/train/**"}], "an empty split has no files"
    assert config["features"] == [{"name": "turn_id", "dtype": "int32"}]
    assert config["decode_num_threads"] == 0
    assert metadata["task_categories"] == ["video-text-to-text"]
    assert "passed on" not in body
