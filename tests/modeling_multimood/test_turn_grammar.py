import itertools
import json

import numpy as np
import pytest
import torch
import whole_builders
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LogitsProcessorList, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from multimood.modeling_multimood.turn_grammar import LabelPredictionMixin, SupportTurnLogitsProcessor
from multimood.processors.turn import EMOTIONS, STRATEGIES, SupportTurn

EMOTIONS, STRATEGIES = list(EMOTIONS), list(STRATEGIES)
LINES = ["Client's emotion:", "\nTherapist's emotion:", "\nTherapist's strategy:", "\nTherapist's response:"]
FIELDS = ["client_emotion", "therapist_emotion", "strategy"]
PROMPTS = ["I feel sad", "My boss shouted at me again, and then I could not sleep", "Hm."]


class LabellingQwen2(LabelPredictionMixin, Qwen2ForCausalLM):
    pass


@pytest.fixture(scope="module")
def tokenizer():
    torch.set_num_threads(1)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    # A vocabulary this small splits most labels; "adv" and "app", "re" and "se" share their beginnings.
    backend.train_from_iterator(
        [" ".join([*LINES, "the person and their therapist talk"])] * 20,
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=["<pad>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<|im_end|>", padding_side="left"
    )


def make_grammar(tokenizer, strategies=STRATEGIES):
    def encode(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    return {
        "fields": [
            {"name": name, "prefix": encode(line), "labels": [[label, encode(f" {label}")] for label in labels]}
            for name, line, labels in zip(FIELDS, LINES[:3], [EMOTIONS, EMOTIONS, strategies], strict=True)
        ],
        "response_prefix": encode(LINES[3]),
        "eos_token_id": tokenizer.eos_token_id,
        "blank_token_ids": [
            token for token in range(len(tokenizer)) if not tokenizer.decode(token, skip_special_tokens=True).strip()
        ],
    }


@pytest.fixture(scope="module")
def grammar(tokenizer):
    return make_grammar(tokenizer)


@pytest.fixture(scope="module")
def model(tokenizer, grammar):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,  # far from uniform, so that a wrong position or mask shows
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.turn_grammar = grammar
    return LabellingQwen2(config).eval()


@pytest.fixture
def prompts(tokenizer):
    return tokenizer(PROMPTS, return_tensors="pt", padding=True)


def constraint(grammar, inputs):
    return LogitsProcessorList([SupportTurnLogitsProcessor(grammar, inputs["input_ids"].shape[1])])


def check_turn(tokenizer, generated_ids, strategies=STRATEGIES):
    """Assert that `generated_ids` are four lines with valid labels, and return the response."""
    text = tokenizer.decode(generated_ids, skip_special_tokens=True)
    for line, labels in zip(LINES[:3], [EMOTIONS, EMOTIONS, strategies], strict=True):
        assert text.startswith(line), text
        text = text.removeprefix(line)
        label, newline, text = text.partition("\n")
        assert label.removeprefix(" ") in labels
        text = newline + text
    assert text.startswith(LINES[3]), text
    return text.removeprefix(LINES[3])


def header_ids(grammar, *labels):
    ids = []
    for field, label in zip(grammar["fields"], labels, strict=True):
        ids += field["prefix"] + dict(field["labels"])[label]
    return ids + grammar["response_prefix"]


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 3.0, "num_return_sequences": 30},
        {"do_sample": True, "temperature": 3.0, "top_k": 3, "top_p": 0.5, "num_return_sequences": 10},
        {"do_sample": False, "num_beams": 4, "num_return_sequences": 4},
        {"do_sample": True, "temperature": 3.0, "num_beams": 4},
        {"do_sample": False, "no_repeat_ngram_size": 2},
        {"do_sample": False, "repetition_penalty": 5.0},
    ],
    ids=["greedy", "sample", "truncated", "beam", "beam sample", "no repeats", "penalty"],
)
def test_every_generation_is_a_valid_turn(model, tokenizer, grammar, prompts, settings):
    torch.manual_seed(1)
    for _ in range(3):
        generated = model.generate(
            **prompts, **settings, max_new_tokens=110, logits_processor=constraint(grammar, prompts)
        )
        assert len(generated) == 3 * settings.get("num_return_sequences", 1)
        for row in generated[:, prompts["input_ids"].shape[1] :]:
            response = check_turn(tokenizer, row).strip()
            assert SupportTurn.parse(tokenizer.decode(row, skip_special_tokens=True)).response == response != ""


def test_sampling_reaches_every_label(model, tokenizer, grammar):
    torch.manual_seed(2)
    prompt = tokenizer(["Hm."], return_tensors="pt")
    generated = model.generate(
        **prompt,
        do_sample=True,
        temperature=50.0,
        num_return_sequences=300,
        max_new_tokens=80,
        logits_processor=constraint(grammar, prompt),
    )
    texts = tokenizer.batch_decode(generated, skip_special_tokens=True)
    for line, labels in zip(LINES[1:3], [EMOTIONS, STRATEGIES], strict=True):
        assert {text.split(line)[1].partition("\n")[0].removeprefix(" ") for text in texts} == set(labels)


def test_labels_may_be_the_beginning_of_others(model, tokenizer, prompts):
    strategies = ["open", "open question", "open questions", "others"]
    grammar = make_grammar(tokenizer, strategies)
    torch.manual_seed(3)
    generated = model.generate(
        **prompts,
        do_sample=True,
        temperature=10.0,
        num_return_sequences=60,
        max_new_tokens=90,
        logits_processor=constraint(grammar, prompts),
    )
    texts = []
    for row in generated[:, prompts["input_ids"].shape[1] :]:
        check_turn(tokenizer, row, strategies)
        texts.append(tokenizer.decode(row))
    for strategy in strategies:
        assert any(f"strategy: {strategy}\n" in text for text in texts)


def test_eos_waits_for_a_visible_token(tokenizer, grammar):
    processor = SupportTurnLogitsProcessor(grammar, prompt_length=2)
    header = header_ids(grammar, "joy", "neutral", "approval")
    blank, word = tokenizer.convert_tokens_to_ids("Ġ"), tokenizer.convert_tokens_to_ids("a")
    eos = tokenizer.eos_token_id

    def scores_after(*response):
        return processor(torch.tensor([[7, 7, *header, *response]]), torch.zeros(1, len(tokenizer)))[0]

    for response in ([], [blank], [blank, blank]):
        scores = scores_after(*response)
        assert scores[eos] == -torch.inf
        assert (scores == -torch.inf).sum() == 1
    for response in ([word], [blank, word], [word, blank]):
        assert torch.equal(scores_after(*response), torch.zeros(len(tokenizer)))


def test_every_eos_is_held_back(tokenizer, grammar):
    processor = SupportTurnLogitsProcessor(grammar | {"eos_token_id": [1, 5]}, prompt_length=0)
    header = header_ids(grammar, "joy", "neutral", "approval")
    scores = processor(torch.tensor([header]), torch.zeros(1, len(tokenizer)))[0]
    assert (scores == -torch.inf).nonzero().flatten().tolist() == [1, 5]


def test_rows_are_independent_and_scores_are_left_alone(tokenizer, grammar):
    header = header_ids(grammar, "sadness", "neutral", "others")
    torch.manual_seed(4)
    steps = [0, 3, len(grammar["fields"][0]["prefix"]), len(header) - 1]
    processor = SupportTurnLogitsProcessor(grammar, prompt_length=3)
    scores = torch.randn(len(steps), len(tokenizer))
    before = scores.clone()
    # Rows at different places of the turn need different lengths, so each is given alone, then beside a finished row.
    for row, step in enumerate(steps):
        alone = processor(torch.tensor([[9, 9, 9, *header[:step]]]), scores[row : row + 1])
        pair = torch.tensor([[9, 9, 9, *header[:step]], [9, 9, 9, *header[:step]]])
        assert torch.equal(processor(pair, scores[[row, row]]), alone.repeat(2, 1))
        assert alone[0, header[step]] > -torch.inf
    assert torch.equal(scores, before)


def test_wrong_prompt_length_is_an_error(model, grammar, prompts):
    processor = SupportTurnLogitsProcessor(grammar, prompts["input_ids"].shape[1] - 2)
    with pytest.raises(ValueError, match="prompt_length"):
        model.generate(**prompts, max_new_tokens=5, logits_processor=LogitsProcessorList([processor]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"response_prefix": []}, "has no tokens"),
        ({"response_prefix": [11, 12]}, "ambiguous"),
        ({"labels": [["a", [10]], ["b", [10]]]}, "same token ids"),
    ],
)
def test_bad_grammar_is_an_error(change, message):
    labels = change.pop("labels", [["a", [10]], ["ab", [10, 11]]])
    grammar = {
        "fields": [{"name": "strategy", "prefix": [3], "labels": labels}],
        "response_prefix": [12],
        "eos_token_id": 1,
    }
    with pytest.raises(ValueError, match=message):
        SupportTurnLogitsProcessor(grammar | change, 0)


def full_sequence_log_prob(model, prefix, continuation):
    """Log-probability of `continuation` after `prefix`, by one pass without cache or padding."""
    with torch.no_grad():
        logits = model(torch.tensor([prefix + continuation]), use_cache=False).logits[0]
    log_probs = logits.float().log_softmax(-1)[len(prefix) - 1 : -1]
    return log_probs[torch.arange(len(continuation)), torch.tensor(continuation)].sum()


def test_probabilities_equal_full_sequence_scoring(model, tokenizer, grammar, prompts):
    predicted = model.predict_labels(**prompts)
    closing = [field["prefix"][0] for field in grammar["fields"][1:]] + [grammar["response_prefix"][0]]
    for row, prompt in enumerate(PROMPTS):
        prefix = tokenizer(prompt).input_ids
        for field, close in zip(grammar["fields"], closing, strict=True):
            prefix = prefix + field["prefix"]
            labels = [ids for _, ids in field["labels"]]
            expected = torch.stack([full_sequence_log_prob(model, prefix, [*ids, close]) for ids in labels])
            expected = expected.softmax(-1)
            torch.testing.assert_close(predicted[field["name"]][row], expected, atol=1e-5, rtol=1e-4)
            prefix = prefix + labels[expected.argmax()]


def test_probabilities_sum_to_one_and_follow_the_grammar(model, grammar, prompts):
    predicted = model.predict_labels(**prompts)
    assert {name: tuple(p.shape) for name, p in predicted.items()} == {
        "client_emotion": (3, 7),
        "therapist_emotion": (3, 7),
        "strategy": (3, 10),
    }
    assert model.label_names == {
        "client_emotion": EMOTIONS,
        "therapist_emotion": EMOTIONS,
        "strategy": STRATEGIES,
    }
    for probabilities in predicted.values():
        assert probabilities.dtype == torch.float32
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(3))


def test_batched_equals_single(model, tokenizer, prompts):
    batched = model.predict_labels(**prompts)
    for row, prompt in enumerate(PROMPTS):
        single = model.predict_labels(**tokenizer([prompt], return_tensors="pt"))
        for name, probabilities in single.items():
            torch.testing.assert_close(batched[name][row : row + 1], probabilities, atol=1e-5, rtol=1e-4)


def test_a_label_that_begins_another_is_scored_closed(model, tokenizer, prompts):
    grammar = make_grammar(tokenizer, ["open", "open question"])
    field = grammar["fields"][2]
    model.config.turn_grammar = {**grammar, "fields": [field]}
    try:
        predicted = model.predict_labels(**prompts)["strategy"]
    finally:
        model.config.turn_grammar = make_grammar(tokenizer)
    prefix = tokenizer(PROMPTS[0]).input_ids + field["prefix"]
    log_probs = [
        full_sequence_log_prob(model, prefix, [*ids, grammar["response_prefix"][0]]) for _, ids in field["labels"]
    ]
    torch.testing.assert_close(predicted[0], torch.stack(log_probs).softmax(-1), atol=1e-5, rtol=1e-4)


def test_label_order_survives_a_saved_config(model, tmp_path):
    model.config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["turn_grammar"]
    assert [name for name, _ in saved["fields"][2]["labels"]] == STRATEGIES


def test_generation_goes_on_from_an_opened_turn(model, tokenizer, grammar):
    """The response equals the one of a generation that reads prompt and header anew, and the cache is really used."""
    for prompt in PROMPTS:
        inputs = tokenizer([prompt], return_tensors="pt")
        opening = model.open_turn(**inputs)
        best = [opening.probabilities[name][0].argmax() for name in FIELDS]
        names = [model.label_names[name][index] for name, index in zip(FIELDS, best, strict=True)]
        header = header_ids(grammar, *names)
        prompt_length = inputs["input_ids"].shape[1]
        assert opening.input_ids[0].tolist() == inputs["input_ids"][0].tolist() + header
        assert prompt_length < opening.past_key_values.get_seq_length() < opening.input_ids.shape[1]

        anew = model.generate(
            opening.input_ids, do_sample=False, max_new_tokens=12, logits_processor=constraint(grammar, inputs)
        )
        continued = model.generate(
            input_ids=opening.input_ids,
            attention_mask=opening.attention_mask,
            past_key_values=opening.past_key_values,
            do_sample=False,
            max_new_tokens=12,
            logits_processor=constraint(grammar, inputs),
        )
        assert torch.equal(continued, anew)
        check_turn(tokenizer, continued[0, prompt_length:])


def test_opened_turns_go_on_in_a_batch(model, tokenizer, grammar, prompts):
    """Rows with labels of different lengths have masked fillers; each goes on as it would alone."""
    opening = model.open_turn(**prompts)
    length = opening.input_ids.shape[1]
    assert not opening.attention_mask[:, prompts["input_ids"].shape[1] :].all(), "no fillers: nothing is tested"
    settings = {"do_sample": False, "max_new_tokens": 12, "logits_processor": constraint(grammar, prompts)}
    continued = model.generate(
        input_ids=opening.input_ids,
        attention_mask=opening.attention_mask,
        past_key_values=opening.past_key_values,
        **settings,
    )
    headers = []
    for row, prompt in enumerate(PROMPTS):
        single = model.open_turn(**tokenizer([prompt], return_tensors="pt"))
        headers.append(single.input_ids.shape[1])
        alone = model.generate(
            single.input_ids,
            do_sample=False,
            max_new_tokens=12,
            logits_processor=constraint(grammar, tokenizer([prompt], return_tensors="pt")),
        )[0, single.input_ids.shape[1] :].tolist()
        assert continued[row, length:].tolist()[: len(alone)] == alone
        assert check_turn(tokenizer, continued[row, prompts["input_ids"].shape[1] :]).strip()
    assert (opening.attention_mask.sum(-1) == torch.tensor(headers)).all()


def test_prompts_padded_on_the_right_are_an_error(model, tokenizer):
    tokenizer_output = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="right")
    with pytest.raises(ValueError, match=r"\[0, 2\].*padding_side='left'"):
        model.predict_labels(**tokenizer_output)


def test_a_missing_grammar_is_an_error(tokenizer, prompts, model):
    config = Qwen2Config.from_dict({k: v for k, v in model.config.to_dict().items() if k != "turn_grammar"})
    with pytest.raises(ValueError, match=r"processor\.turn_grammar\(\)"):
        LabellingQwen2(config).predict_labels(**prompts)


def test_different_prompts_give_different_probabilities(model, prompts):
    predicted = model.predict_labels(**prompts)["client_emotion"]
    for one, other in itertools.combinations(predicted, 2):
        assert not torch.allclose(one, other, atol=1e-3)


@pytest.fixture(scope="module")
def multimodal():
    """A whole model and prompts with video, sound and history, of which some lack each."""
    torch.set_num_threads(1)
    model, processor = whole_builders.tiny_pair()
    random = np.random.default_rng(0)
    video = {"type": "video", "video": random.integers(0, 256, (8, 40, 40, 3), dtype=np.uint8)}
    audio = {"type": "audio", "audio": random.standard_normal(8000).astype(np.float32)}
    history = {"type": "history", "history": [{"speaker": "client", "text": text} for text in ("My dog died", "Yes")]}
    contents = [[history, video, audio], [], [audio], [history, video]]
    texts = ["Hello", "Only words, of another length", "", "hm"]
    prompts = [
        [{"role": "user", "content": [*blocks, {"type": "text", "text": text}]}]
        for blocks, text in zip(contents, texts, strict=True)
    ]

    def encode(prompts):
        return processor.apply_chat_template(
            prompts,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            padding_side="left",
        )

    return model, processor, prompts, encode


def test_labels_of_a_mixed_multimodal_batch_equal_those_of_its_rows(multimodal):
    model, _, prompts, encode = multimodal
    batched = model.predict_labels(**encode(prompts))
    for row, prompt in enumerate(prompts):
        for name, probabilities in model.predict_labels(**encode([prompt])).items():
            torch.testing.assert_close(batched[name][row : row + 1], probabilities, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("key", ["pixel_values_videos", "input_features", "history_input_ids"])
def test_labels_follow_each_modality(multimodal, key):
    model, _, prompts, encode = multimodal
    inputs = encode(prompts[:1])
    before = model.predict_labels(**inputs)["client_emotion"]
    if key == "history_input_ids":
        inputs[key] = torch.where(inputs[key] == model.config.memory_token_id, inputs[key], 5)
    else:
        inputs[key] = -inputs[key]
    assert not torch.allclose(model.predict_labels(**inputs)["client_emotion"], before, atol=1e-5)


def test_multimodal_turns_are_valid_and_go_on_from_the_cache(multimodal):
    model, processor, prompts, encode = multimodal
    inputs = encode(prompts)
    length = inputs["input_ids"].shape[1]
    torch.manual_seed(5)
    sampled = model.generate(
        **inputs,
        do_sample=True,
        num_return_sequences=10,
        max_new_tokens=90,
        logits_processor=constraint(model.config.turn_grammar, inputs),
    )
    for text in processor.tokenizer.batch_decode(sampled[:, length:], skip_special_tokens=True):
        assert SupportTurn.parse(text).missing == ()

    opening = model.open_turn(**inputs)
    ready = {"input_ids": opening.input_ids, "attention_mask": opening.attention_mask}
    settings = {"do_sample": False, "max_new_tokens": 12}
    anew = model.generate(
        **{**inputs, **ready}, **settings, logits_processor=constraint(model.config.turn_grammar, inputs)
    )
    continued = model.generate(
        **ready,
        past_key_values=opening.past_key_values,
        **settings,
        logits_processor=constraint(model.config.turn_grammar, inputs),
    )
    assert torch.equal(continued, anew)


@pytest.mark.parametrize("settings", [{"num_beams": 3, "num_return_sequences": 2}, {"num_return_sequences": 2}])
def test_beams_and_several_responses_go_on_from_an_opened_turn(multimodal, settings):
    model, _, prompts, encode = multimodal
    inputs = encode(prompts)
    opening = model.open_turn(**inputs)
    ready = {"input_ids": opening.input_ids, "attention_mask": opening.attention_mask}
    settings = {
        **settings,
        "do_sample": "num_beams" not in settings,
        "max_new_tokens": 6,
        "logits_processor": constraint(model.config.turn_grammar, inputs),
    }
    torch.manual_seed(0)
    anew = model.generate(**{**inputs, **ready}, **settings)
    for _ in range(2):  # the opening is not used up
        torch.manual_seed(0)
        continued = model.generate(**ready, past_key_values=opening.past_key_values, **settings)
        assert torch.equal(continued, anew)


def test_labels_keep_their_order_in_a_saved_model(multimodal, tmp_path):
    model, _, prompts, encode = multimodal
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    for whole in (model, loaded):
        assert whole.label_names == {
            "client_emotion": EMOTIONS,
            "therapist_emotion": EMOTIONS,
            "strategy": STRATEGIES,
        }
    inputs = encode(prompts)
    for name, expected in model.predict_labels(**inputs).items():
        torch.testing.assert_close(loaded.predict_labels(**inputs)[name], expected, atol=1e-5, rtol=1e-3)
    settings = {"do_sample": False, "max_new_tokens": 60}
    before, after = (
        whole.generate(**inputs, **settings, logits_processor=constraint(whole.config.turn_grammar, inputs))
        for whole in (model, loaded)
    )
    assert torch.equal(after, before)
