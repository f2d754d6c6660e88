"""Supervised fine-tuning on turns: TRL's trainer, which also says how well it does on each part of a turn."""

import time
from pathlib import Path

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from multimood.training.trainers.checkpoints import StopOnSigterm, writing
from multimood.training.trainers.model_card import write_model_card
from multimood.training.trainers.turn_parts import PARTS

# Dense bf16 FLOP/s, by what the name of the device has in it; of NVIDIA's data sheets.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}


class TurnTrainer(SFTTrainer):
    """
    A [`~trl.SFTTrainer`] for the batches of `TurnCollator`.

    The loss is TRL's: the mean over the target's tokens, those of the labels weighted by `label_weight`. To its metrics
    these are added, in training and in evaluation, all of them over the whole period that a log entry stands for:

    - `loss/<part>`: mean negative log-likelihood of the part's tokens; the fixed words of the lines are no part.
    - `accuracy/<label>`: share of turns whose label's tokens are all the most probable ones, given the target before them.
    - `memory_ratio`: words' tokens of the history that one memory vector stands for.
    - `samples_per_second`, `tokens_per_second`: of all processes together; training only.
    - `mfu`: the language model's FLOPs in matrix products with its parameters over the devices' peak; training on a CUDA
      device whose peak is known. Towers and attention are left out, so it is a lower bound.

    It stops on SIGTERM after the current step, with a checkpoint; `stopped` says so.

    Args:
        label_weight (`float`): weight of a label's tokens in the loss; the other tokens of a turn have 1.
        card (`dict[str, str]`): what the model card says beside settings and results: heading → text.
    """

    def __init__(self, *args, label_weight: float = 1.0, card: dict[str, str] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.label_weight, self.card = label_weight, card or {}
        self.sums = {"train": {}, "eval": {}}
        self.period_start = None
        self.stop = StopOnSigterm(self.accelerator)
        self.add_callback(self.stop)

    @property
    def stopped(self) -> bool:
        """Whether a signal ended the training."""
        return self.stop.stopped

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        parts = inputs.pop("turn_parts")[:, 1:]  # (B, L - 1), of the token that each position predicts

        def weighing(**kwargs):
            outputs = model(**kwargs)
            self._count(inputs, outputs, parts)
            if self.label_weight != 1:
                is_label = (parts > 0) & (parts < len(PARTS))
                outputs.log_probs = outputs.log_probs * torch.where(is_label, self.label_weight, 1.0)
            return outputs

        return super().compute_loss(weighing, inputs, return_outputs, num_items_in_batch)

    def _add(self, **values: torch.Tensor | int) -> None:
        sums = self.sums["train" if self.model.training else "eval"]
        for name, value in values.items():
            sums[name] = sums.get(name, 0) + value

    @torch.no_grad()
    def _count(self, inputs, outputs, parts: torch.Tensor) -> None:
        for part, name in enumerate(PARTS, start=1):
            of_part = parts == part
            self._add(**{f"loss/{name}": -outputs.log_probs.detach()[of_part].sum(), f"tokens/{name}": of_part.sum()})
            if name != "response":
                wrong = (of_part & ~outputs.is_top1.bool()).any(1)
                labelled = of_part.any(1)
                self._add(**{f"right/{name}": (labelled & ~wrong).sum(), f"turns/{name}": labelled.sum()})
        self._add(samples=len(parts), tokens=inputs["attention_mask"].sum())
        if "history_input_ids" in inputs:
            memory_token_id = self.accelerator.unwrap_model(self.model).config.memory_token_id
            slots = (inputs["history_input_ids"] == memory_token_id).sum()
            self._add(slots=slots, history_tokens=inputs["history_attention_mask"].sum() - slots)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        if self.sums[mode]:
            prefix = "" if mode == "train" else "eval_"
            logs.update({f"{prefix}{name}": value for name, value in self._metrics_of_turns(mode).items()})
        super().log(logs, start_time)

    def _metrics_of_turns(self, mode: str) -> dict[str, float]:
        names = [f"{kind}/{part}" for part in PARTS for kind in ("loss", "tokens", "right", "turns")]
        names += ["samples", "tokens", "slots", "history_tokens"]
        local = torch.tensor(
            [float(self.sums[mode].get(name, 0)) for name in names], dtype=torch.float64, device=self.args.device
        )
        sums = dict(zip(names, self.accelerator.reduce(local).tolist(), strict=True))
        self.sums[mode] = {}
        metrics = {}
        for part in PARTS:
            if sums[f"tokens/{part}"]:
                metrics[f"loss/{part}"] = sums[f"loss/{part}"] / sums[f"tokens/{part}"]
            if sums[f"turns/{part}"]:
                metrics[f"accuracy/{part}"] = sums[f"right/{part}"] / sums[f"turns/{part}"]
        if sums["slots"]:
            metrics["memory_ratio"] = sums["history_tokens"] / sums["slots"]
        if mode == "train":
            seconds = time.perf_counter() - self.period_start
            metrics["samples_per_second"] = sums["samples"] / seconds
            metrics["tokens_per_second"] = sums["tokens"] / seconds
            if peak := self._peak_flops():
                metrics["mfu"] = self._flops_a_token() * sums["tokens"] / seconds / (peak * self.args.world_size)
        self.period_start = time.perf_counter()  # evaluation is not counted, saving is
        return metrics

    def _peak_flops(self) -> float | None:
        """Of one device, in FLOP/s; `None` where it is not known."""
        device = self.args.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        return next((peak for known, peak in PEAK_FLOPS.items() if known in name), None)

    def _flops_a_token(self) -> float:
        """2 forward and 2 backward for each parameter of the language model, and 2 more where it learns."""
        language_model = self.accelerator.unwrap_model(self.model).get_decoder()
        learns = language_model.num_parameters(only_trainable=True, exclude_embeddings=True)
        return 4 * language_model.num_parameters(exclude_embeddings=True) + 2 * learns

    def training_step(self, *args, **kwargs):
        if self.period_start is None:
            self.period_start = time.perf_counter()
        return super().training_step(*args, **kwargs)

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with writing(folder, self.args.output_dir):
            super()._save_checkpoint(model, trial)

    def create_model_card(self, *args, **kwargs) -> None:
        """Writes `README.md` and `curves.png`: settings, data and results so far, in place of TRL's general card."""
        if self.is_world_process_zero():
            write_model_card(self.args, self.state.log_history, self.card, self._tag_names)
