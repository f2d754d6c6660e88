"""Checkpoints of a run that was stopped, and how it stops."""

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def last_checkpoint(output_dir: str) -> str | None:
    """The newest complete `checkpoint-*` folder of a run, from which it goes on, or `None` where there is none yet.

    The trainer writes its state last, so a folder without one, or with half of one, was cut off while it was written.
    """
    folders = [
        folder
        for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if folder.name.rpartition("-")[2].isdecimal()
    ]
    for folder in sorted(folders, key=lambda folder: int(folder.name.rpartition("-")[2]), reverse=True):
        try:
            json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            print(f"passed over {folder}: it was cut off while it was written")
            continue
        return str(folder)
    return None


@contextmanager
def writing(folder: Path, output_dir: str) -> Iterator[None]:
    """
    Around the writing of a checkpoint or a model to `folder`: a failure takes away what was written of it, so that it
    does not fill the disk.

    Raises:
        OSError: which names the folder, the cause, the space that is left, and from where the run can go on.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # of Python, torch.save and safetensors
        free = shutil.disk_usage(Path(output_dir)).free / 1e6
        if Path(folder) != Path(output_dir):
            shutil.rmtree(folder, ignore_errors=True)
        checkpoint = last_checkpoint(output_dir)
        going_on = f"goes on from {checkpoint}" if checkpoint else "begins anew, as there is no checkpoint yet"
        raise OSError(
            f"Could not write {folder}: {error}. The disk has {free:.1f} MB left. Make room, or choose another "
            f"`output_dir`, and start the same command again: it {going_on}."
        ) from error


class StopOnSigterm(TrainerCallback):
    """On SIGTERM the trainer finishes its step, saves a checkpoint and leaves the training loop, on all processes.

    `stopped` says afterwards that it was so.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.signalled = self.stopped = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.previous = signal.signal(signal.SIGTERM, self._note)

    def _note(self, signum, frame) -> None:
        self.signalled = True

    def on_step_end(self, args, state, control, **kwargs):
        # The signal reaches the processes at different moments; they must stop after the same step.
        signalled = torch.tensor(int(self.signalled), device=self.accelerator.device)
        if self.accelerator.reduce(signalled).item() and not self.stopped:
            print(f"SIGTERM: saving a checkpoint after step {state.global_step}")
            self.stopped = True
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        signal.signal(signal.SIGTERM, self.previous)
