"""Checkpoints of a run that was stopped."""

from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint


def last_checkpoint(output_dir: str) -> str | None:
    """The newest `checkpoint-*` folder of a run, from which it goes on, or `None` where there is none yet."""
    return get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
