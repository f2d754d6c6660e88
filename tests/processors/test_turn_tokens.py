import itertools

import pytest
from processor_builders import CORPUS, tiny_processor, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from multimood.processors.special_tokens import text_tokenizer_with_tokens
from multimood.processors.turn import LABELS, SupportTurn
from multimood.processors.turn_tokens import build_turn_grammar


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece-like: a blank is part of the word after it, and the text gets one in front."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<pad>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


TOKENIZERS = {
    "byte level": tiny_tokenizer,
    "small vocabulary": lambda: tiny_tokenizer(300),
    "metaspace": metaspace_tokenizer,
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_parts_add_up_to_every_turn(name):
    processor = tiny_processor(text=TOKENIZERS[name]())
    grammar = processor.turn_grammar()
    prompt = [{"role": "user", "content": "Hello"}]
    (before,) = processor.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True)
    for labels in list(itertools.product(*LABELS.values()))[::37]:
        turn = [{"role": "assistant", "content": SupportTurn(*labels, "Yes.").render()}]
        (whole,) = processor.apply_chat_template([*prompt, *turn], tokenize=True)
        ids = list(before)
        for field, label in zip(grammar["fields"], labels, strict=True):
            ids += field["prefix"] + dict(field["labels"])[label]
        ids += grammar["response_prefix"]
        assert whole[: len(ids)] == ids
        assert whole[len(ids) :].count(grammar["eos_token_id"]) == 1


def test_grammar_has_the_contracts_form():
    grammar = tiny_processor().turn_grammar()
    assert [field["name"] for field in grammar["fields"]] == list(LABELS)
    assert {field["name"]: tuple(dict(field["labels"])) for field in grammar["fields"]} == LABELS
    assert all(ids for field in grammar["fields"] for ids in (field["prefix"], *dict(field["labels"]).values()))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_blank_tokens_show_nothing(name):
    processor = tiny_processor(text=TOKENIZERS[name]())
    tokenizer = processor.tokenizer
    blank = set(processor.turn_grammar()["blank_token_ids"])
    assert blank >= {tokenizer.eos_token_id, tokenizer.pad_token_id, processor.video_token_id}
    assert blank >= set(tokenizer(" ", add_special_tokens=False)["input_ids"])
    assert not blank & set(tokenizer("Yes.", add_special_tokens=False)["input_ids"][-1:])
    assert not tokenizer.decode(sorted(blank), skip_special_tokens=True).strip()


def greedy_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Its words are whole texts, so that it joins whatever often stands together."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [text] * 9, trainers.BpeTrainer(initial_alphabet=alphabet, vocab_size=2000, show_progress=False)
    )
    return text_tokenizer_with_tokens(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>"))


@pytest.mark.parametrize(
    ("text", "opening", "message"),
    [
        (
            "emotion: anger\nTherapist's emotion: anger\nTherapist's",
            "<|im_start|>",
            "in context; use another tokenizer",
        ),
        ("Answer:\nClient's", "Answer:\n", "joins the end of 'Answer:.*change the chat template"),
    ],
)
def test_a_tokenizer_that_joins_parts_is_refused(text, opening, message):
    with pytest.raises(ValueError, match=message):
        build_turn_grammar(greedy_tokenizer(text), opening)


def test_no_end_of_turn():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        build_turn_grammar(tokenizer, "")
