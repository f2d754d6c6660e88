"""GRPO on turns: TRL's trainer, with video, sound and history also in the log-probabilities.

Group relative policy optimisation: DeepSeekMath (arXiv 2402.03300). TRL's `GRPOTrainer` (1.16) generates with whatever
the processor makes, but scores the completions with images alone. Here every forward pass sees what generation saw.
"""

import functools
import hashlib
import json
import pickle
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from trl import GRPOConfig, GRPOTrainer
from trl.data_utils import prepare_multimodal_messages

VIDEO_KEYS = ("video_token_mask", "pixel_values_videos", "video_tower_features")
AUDIO_KEYS = ("audio_token_mask", "input_features", "audio_tower_features")
HISTORY_KEYS = ("history_input_ids", "history_attention_mask")


class MultiMoodGRPOTrainer(GRPOTrainer):
    """A [`~trl.GRPOTrainer`] for prompts with video, audio and history blocks.

    Rows need `prompt`, the messages of `build_prompt`; their other columns reach the reward functions. The arguments
    are TRL's, with a `MultiMoodProcessor` as `processing_class`.

    Each different prompt of a generation batch is read and decoded once, and a frozen tower looks at it once: all its
    generations, and every pass that scores them, share the tensors. The placeholders of media and memory are never
    generated.

    Raises:
        ValueError: if `args.use_vllm` is set.
    """

    # Media of the samples that the next forward pass scores, one dict a sample.
    _media: list[dict[str, torch.Tensor]] | None = None

    def __init__(self, model, reward_funcs, args: GRPOConfig | None = None, **kwargs):
        if args is not None and args.use_vllm:
            raise ValueError("vLLM takes images only: leave `use_vllm` off for prompts with video, audio and history.")
        super().__init__(model, reward_funcs, args, **kwargs)
        config = self.accelerator.unwrap_model(self.model).config
        placeholders = {config.video_token_id, config.audio_token_id, config.history_token_id}
        suppressed = sorted(placeholders | set(self.generation_kwargs.get("suppress_tokens") or ()))
        self.generation_kwargs["suppress_tokens"] = suppressed
        self.generation_config.suppress_tokens = suppressed

    def _tokenize_prompts(self, prompts: list[list[dict]]):
        """Token ids of each prompt, no images, and the media of the whole batch for `generate`."""
        keys = [_prompt_key(prompt) for prompt in prompts]
        unique = dict(zip(keys, prompts, strict=True))
        batch = self.processing_class.apply_chat_template(
            list(unique.values()),
            chat_template=self.chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            **self.chat_template_kwargs,
        )
        ids = [
            row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        model = self.accelerator.unwrap_model(self.model)
        config = model.config
        media = split_media(encode_once(model, batch), config.video_token_id, config.audio_token_id)

        places = {key: place for place, key in enumerate(unique)}
        self._media = [media[places[key]] for key in keys]
        return [ids[places[key]] for key in keys], None, join_media(self._media)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # Contents of one form only, so that TRL can also write the prompts to its table of completions.
        inputs = [{**row, "prompt": prepare_multimodal_messages(row["prompt"])} for row in inputs]
        output = super()._generate_and_score_completions(inputs)
        # A list travels with the samples through TRL's shuffling and splitting.
        output["media"], self._media = self._media, None
        return output

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs
    ):
        size = batch_size or len(input_ids)
        chunks = []
        for start in range(0, len(input_ids), size):
            chunk = slice(start, start + size)
            media = {key: value.to(input_ids.device) for key, value in join_media(self._media[chunk]).items()}
            seeing = functools.partial(model, **media)
            chunks.append(
                super()._get_per_token_logps_and_entropies(
                    seeing, input_ids[chunk], attention_mask[chunk], logits_to_keep, **kwargs
                )
            )
        logps, entropies, aux_losses = zip(*chunks, strict=True)
        return (
            torch.cat(logps),
            None if entropies[0] is None else torch.cat(entropies),
            None if aux_losses[0] is None else torch.stack(aux_losses).mean(),
        )

    def _compute_loss(self, model, inputs):
        self._media = inputs["media"]
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._media = None


@torch.no_grad()
def encode_once(model, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch with what frozen towers make of its clips, in place of frames and spectrograms.

    A tower that learns, or whose parameters are sharded over processes, is left to the forward pass.
    """
    batch = dict(batch)
    for tower, encode, raw, features in (
        ("vision_tower", "encode_video", "pixel_values_videos", "video_tower_features"),
        ("audio_tower", "encode_audio", "input_features", "audio_tower_features"),
    ):
        parameters = [parameter for name, parameter in model.named_parameters() if f"{tower}." in name]
        if raw in batch and not any(
            parameter.requires_grad or isinstance(parameter, DTensor) or hasattr(parameter, "ds_id")  # FSDP, ZeRO-3
            for parameter in parameters
        ):
            batch[features] = getattr(model, encode)(batch.pop(raw).to(model.device))
    return batch


def split_media(batch: dict[str, torch.Tensor], video_token_id: int, audio_token_id: int) -> list[dict]:
    """The media of each row of a processor's batch, apart; `join_media` puts any of them together again.

    Args:
        batch: Output of `MultiMoodProcessor` or `encode_once`, with `input_ids` (B, L); see `docs/architecture.md` for
            the keys.
        video_token_id: Placeholder of video in `input_ids`.
        audio_token_id: Placeholder of audio in `input_ids`.

    Returns:
        For each of the B rows, a dict of the same keys: media of shape (media of the row, …), history of shape (1, …).
    """
    rows: list[dict] = [{} for _ in batch["input_ids"]]
    for keys, token_id in ((VIDEO_KEYS, video_token_id), (AUDIO_KEYS, audio_token_id)):
        if keys[0] not in batch:
            continue
        # Media come in order of appearance, so those of a row end where the row's placeholders do.
        row_ends = (batch["input_ids"] == token_id).sum(1).cumsum(0)  # (B,)
        media_ends = batch[keys[0]].sum(1).cumsum(0)  # (N,)
        counts = torch.searchsorted(row_ends, media_ends).bincount(minlength=len(rows)).tolist()
        for key in batch.keys() & set(keys):
            for row, value in zip(rows, batch[key].split(counts), strict=True):
                row[key] = value
    for key in HISTORY_KEYS:
        if key in batch:
            for row, value in zip(rows, batch[key].split(1), strict=True):
                row[key] = value
    return rows


def join_media(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The media of several rows of one `split_media`, as the processor would batch them: absent ones are absent keys."""
    keys = rows[0].keys()
    batch = {key: torch.cat([row[key] for row in rows]) for key in keys}
    if "history_attention_mask" in batch and not batch["history_attention_mask"].any():
        batch = {key: value for key, value in batch.items() if key not in HISTORY_KEYS}
    return {key: value for key, value in batch.items() if len(value)}


def _prompt_key(prompt: list[dict]) -> str:
    """Equal for equal prompts, whatever their media are."""
    return json.dumps(prompt, sort_keys=True, default=lambda value: hashlib.sha256(pickle.dumps(value)).hexdigest())
