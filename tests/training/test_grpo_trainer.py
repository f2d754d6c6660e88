"""GRPO sees video, sound and history wherever it sees words, on a tiny random model and real clips."""

import copy

import pytest
import torch
import whole_builders
from trl import GRPOConfig

from multimood import MultiMoodForConditionalGeneration, MultiMoodProcessor
from multimood.datasets_scripts.drawn_clip import Person, render_clip
from multimood.processors.turn import build_prompt
from multimood.training.grpo import prompt_dataset
from multimood.training.rewards import format_reward, label_reward
from multimood.training.trainers.grpo_trainer import MultiMoodGRPOTrainer, join_media, split_media

COMPLETION = [40, 41, 42, 43, 44]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Paths of two clips of one length, and one without sound."""
    folder = tmp_path_factory.mktemp("clips")
    paths = {name: str(folder / f"{name}.mp4") for name in ("joy", "fear", "silent")}
    render_clip(paths["joy"], Person.from_seed(1), "joy", seconds=1.0)
    render_clip(paths["fear"], Person.from_seed(2), "fear", seconds=1.0)
    render_clip(paths["silent"], Person.from_seed(3), "anger", seconds=1.0, sound=False)
    return paths


def make_row(utterance="Hello.", videos=(), history=("hello", "how are you", "sad today", "well"), **labels):
    speakers = ("client", "therapist")
    return {
        "problem_type": "poor sleep",
        "situation": None,
        "history": [{"speaker": speakers[i % 2], "text": text} for i, text in enumerate(history)],
        "videos": list(videos),
        "utterance": utterance,
        "client_emotion": "joy",
        "therapist_emotion": "neutral",
        "strategy": "approval",
        **labels,
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return whole_builders.save_tiny(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def make_trainer(tmp_path, clips, checkpoint):
    def make(reward_funcs=(format_reward, label_reward), **options):
        # From a folder, because GRPO loads its reference model from there.
        model = MultiMoodForConditionalGeneration.from_pretrained(checkpoint)
        model.freeze("vision", "audio")
        rows = [
            make_row("Both.", [clips["joy"]]),
            make_row("Seen only.", [clips["silent"]], history=()),
            make_row("Words only."),
            make_row("Two clips.", [clips["fear"], clips["joy"]], history=("hello",) * 7),
        ]
        args = GRPOConfig(
            output_dir=str(tmp_path / "output"),
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=6,
            max_steps=2,
            learning_rate=1e-3,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            **options,
        )
        return MultiMoodGRPOTrainer(
            model=model,
            reward_funcs=list(reward_funcs),
            args=args,
            train_dataset=prompt_dataset(rows, verbatim_pairs=1),
            processing_class=MultiMoodProcessor.from_pretrained(checkpoint),
        )

    return make


def scores(trainer, prompts):
    """Log-probabilities (prompts, 5) of one completion after each prompt, as the trainer's loss takes them."""
    prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
    width = max(map(len, prompt_ids))
    pad = trainer.processing_class.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row + COMPLETION for row in prompt_ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * (len(row) + len(COMPLETION)) for row in prompt_ids])
    trainer.model.eval()
    with torch.no_grad():
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, len(COMPLETION), batch_size=2
        )
    return logps


def prompt_of(row):
    return build_prompt(row, verbatim_pairs=1)


def test_log_probabilities_change_with_video_audio_and_history_alone(make_trainer, clips):
    trainer = make_trainer()
    prompt = prompt_of(make_row("Hello.", [clips["joy"]]))
    changed = {kind: copy.deepcopy(prompt) for kind in ("video", "audio", "history")}
    for kind, messages in changed.items():
        block = next(block for block in messages[1]["content"] if block["type"] == kind)
        block[kind] = [{"speaker": "client", "text": "glad now"}] * 2 if kind == "history" else [clips["fear"]]
    first, again, *others = scores(trainer, [prompt, copy.deepcopy(prompt), *changed.values()])
    torch.testing.assert_close(first, again, rtol=0, atol=1e-5)
    for kind, other in zip(changed, others, strict=True):
        assert (first - other).abs().max() > 1e-4, f"another {kind} changes nothing"


def test_a_mixed_batch_is_scored_as_its_rows_alone_and_as_the_model_does(make_trainer, clips):
    trainer = make_trainer()
    rows = [
        make_row("Both.", [clips["joy"]]),
        make_row("Words only.", history=()),
        make_row("Seen only.", [clips["silent"]]),
        make_row("Two clips.", [clips["fear"], clips["joy"]], history=("hello",) * 9),
        make_row("Words and memory."),
    ]
    prompts = [prompt_of(row) for row in rows]
    together = scores(trainer, prompts)
    alone = torch.cat([scores(trainer, [prompt]) for prompt in prompts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)

    for prompt, logps in zip(prompts, together, strict=True):
        batch = dict(
            trainer.processing_class.apply_chat_template(
                [prompt], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        )
        batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([COMPLETION])], 1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        with torch.no_grad():
            logits = trainer.model(**batch).logits[0, -len(COMPLETION) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(COMPLETION)[:, None])[:, 0]
        torch.testing.assert_close(logps, expected, rtol=0, atol=1e-4)


def test_splitting_and_joining_gives_the_batch_back(make_trainer, clips):
    trainer = make_trainer()
    processor, config = trainer.processing_class, trainer.model.config
    rows = [make_row(), make_row("Clip.", [clips["joy"]]), make_row("Silent.", [clips["silent"]], history=())]
    batch = processor.apply_chat_template(
        [prompt_of(row) for row in rows], tokenize=True, return_dict=True, return_tensors="pt"
    )
    parts = split_media(batch, config.video_token_id, config.audio_token_id)
    assert [len(part["pixel_values_videos"]) for part in parts] == [0, 1, 1]
    assert [len(part["input_features"]) for part in parts] == [0, 1, 0]
    joined = join_media(parts)
    assert joined.keys() == batch.keys() - {"input_ids", "attention_mask"}
    for key, value in joined.items():
        torch.testing.assert_close(value, batch[key])
    assert join_media(parts[2:]).keys() == {"pixel_values_videos", "video_token_mask"}


def test_a_prompt_is_decoded_once_for_all_its_generations(make_trainer, clips):
    trainer = make_trainer()
    one, other = prompt_of(make_row("Hello.", [clips["joy"]])), prompt_of(make_row("Hello.", [clips["fear"]]))
    ids, images, fields = trainer._tokenize_prompts([one, copy.deepcopy(one), other, copy.deepcopy(one)])
    media = trainer._media
    assert media[0] is media[1] is media[3]
    assert media[0] is not media[2]
    assert ids[0] == ids[1] == ids[3]
    assert images is None
    assert len(fields["video_tower_features"]) == 4


@pytest.mark.parametrize(("learns", "looks"), [(False, 1), (True, 4)])
def test_a_frozen_tower_looks_at_a_prompt_once(make_trainer, clips, learns, looks):
    trainer = make_trainer()
    model = trainer.model.model
    seen = {"vision_tower": 0, "audio_tower": 0}

    def count(name):
        def hook(tower, args, kwargs, output):
            seen[name] += len(args[0] if args else kwargs["pixel_values"])

        return hook

    for name in seen:
        getattr(model, name).requires_grad_(learns).register_forward_hook(count(name), with_kwargs=True)
    scores(trainer, [prompt_of(make_row("Hello.", [clips["joy"]])) for _ in range(4)])
    assert seen == {"vision_tower": looks * trainer.processing_class.num_frames, "audio_tower": looks}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0.05},
        {"num_iterations": 2, "gradient_accumulation_steps": 2},
        {"log_completions": True, "num_completions_to_print": 1},
    ],
    ids=["plain", "reference", "iterations", "logged"],
)
def test_two_steps_run_and_change_the_trainable_parts(make_trainer, options):
    def rewards_differ(completions, completion_ids, **kwargs):
        return [float(sum(ids) % 7) for ids in completion_ids]

    trainer = make_trainer([rewards_differ, label_reward], **options)
    parameters = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 2
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert torch.isfinite(torch.tensor(losses)).all()
    changed = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, parameters[name])}
    for part in ("connector", "audio_projector", "compressor", "language_model"):
        assert any(part in name for name in changed), f"{part} did not learn"
    assert not any("tower" in name for name in changed)


def test_placeholders_are_never_generated(make_trainer):
    seen = []

    def watch(completions, completion_ids, **kwargs):
        seen.extend(token for ids in completion_ids for token in ids)
        return [0.0] * len(completions)

    trainer = make_trainer([watch], generation_kwargs={"suppress_tokens": [77]})
    config = trainer.model.config
    forbidden = [config.video_token_id, config.audio_token_id, config.history_token_id, 77]

    def prefer_forbidden(module, inputs, logits):
        logits = logits.clone()
        logits[..., forbidden] += 1000
        return logits

    trainer.model.lm_head.register_forward_hook(prefer_forbidden)
    trainer.train()
    assert len(seen) >= 8
    assert not set(seen) & set(forbidden)


def test_vllm_is_refused(tmp_path):
    args = GRPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to="none", use_vllm=True)
    with pytest.raises(ValueError, match="use_vllm"):
        MultiMoodGRPOTrainer("not loaded", [format_reward], args)
