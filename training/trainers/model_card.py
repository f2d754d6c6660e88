"""What a training leaves to read: settings, data, results and curves."""

import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import TrainingArguments

from multimood.training.trainers.curves import draw_curves
from multimood.training.trainers.turn_parts import PARTS

LIBRARIES = ("torch", "transformers", "trl", "accelerate")
SETTINGS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "gradient_checkpointing",
    "bf16",
    "optim",
    "seed",
)
PANELS = {
    "Loss": ("loss", "eval_loss"),
    "Loss on each part, training": [f"loss/{part}" for part in PARTS],
    "Loss on each part, validation": [f"eval_loss/{part}" for part in PARTS],
    "Accuracy of labels, validation": [f"eval_accuracy/{part}" for part in PARTS],
    "Learning rate": ("learning_rate",),
    "Samples per second": ("samples_per_second",),
}
RESULTS = {
    *(name for names in PANELS.values() for name in names if name != "learning_rate"),
    *(f"accuracy/{part}" for part in PARTS),
    "memory_ratio",
    "tokens_per_second",
    "mfu",
}
CAUTION = (
    "It is research software and no substitute for care. Emotions that it reads from a face, a voice or words are "
    "estimates, and often wrong."
)


def write_model_card(
    args: TrainingArguments, log_history: Sequence[dict], about: dict[str, str], tags: Iterable[str]
) -> Path:
    """
    Writes `README.md` and, where something was logged, `curves.png` to `args.output_dir`.

    Args:
        args: the settings of the training.
        log_history (sequence of `dict`): `trainer.state.log_history`.
        about (`dict[str, str]`): heading → text, before settings and results.
        tags (iterable of `str`): for the Hub.
    """
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    curves = draw_curves(log_history, PANELS, folder / "curves.png")
    name = args.hub_model_id or folder.resolve().name
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=sorted({"multimood", *tags}),
        model_name=name,
    )
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type
    machine = f"{args.world_size} × {device}, {platform.machine()}"
    versions = ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
    sections = [
        f"# {name.rpartition('/')[2]}",
        CAUTION,
        *(f"## {heading}\n{text}" for heading, text in about.items()),
        "## Settings\n" + _table(("setting", "value"), [(key, _plain(getattr(args, key))) for key in SETTINGS]),
        "## Results\n" + _results(log_history),
        *(["![curves](curves.png)"] if curves else []),
        f"Trained with MultiMood on {machine}; {versions}.",
    ]
    path = folder / "README.md"
    ModelCard(f"---\n{data}\n---\n\n" + "\n\n".join(sections) + "\n").save(path)
    return path


def _plain(value):
    return getattr(value, "value", value)  # of an enumeration


def _results(log_history: Sequence[dict]) -> str:
    """The last value of each metric, and the step it was measured at."""
    last = {name: (value, entry["step"]) for entry in log_history for name, value in entry.items() if name in RESULTS}
    if not last:
        return "Nothing was logged."
    return _table(
        ("metric", "last value", "step"), [(name, f"{value:.4g}", step) for name, (value, step) in last.items()]
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
