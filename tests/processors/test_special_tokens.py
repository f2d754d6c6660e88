import pytest
from processor_builders import tiny_tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from multimood.processors.prompt_text import PLACEHOLDERS
from multimood.processors.special_tokens import MEMORY_TOKEN, history_tokenizer_with_tokens, text_tokenizer_with_tokens

LLAMA_LIKE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n\n{{ m.content }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n\n{% endif %}"
)


def templated():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    tokenizer.add_tokens(["<|start|>", "<|eot|>"], special_tokens=True)
    tokenizer.chat_template = LLAMA_LIKE
    return tokenizer


def test_placeholders_are_one_token_each():
    tokenizer = text_tokenizer_with_tokens(tiny_tokenizer())
    for token in PLACEHOLDERS.values():
        assert len(tokenizer(f"{token}{token}", add_special_tokens=False)["input_ids"]) == 2


def test_a_tokenizer_without_template_gets_chatml():
    tokenizer = text_tokenizer_with_tokens(tiny_tokenizer())
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|><|im_start|>assistant\n"
    assert tokenizer.eos_token == "<|im_end|>"


def test_a_tokenizers_own_template_stays_and_tells_the_end_of_turn():
    tokenizer = text_tokenizer_with_tokens(templated())
    assert tokenizer.chat_template == LLAMA_LIKE
    assert tokenizer.eos_token == "<|eot|>"
    assert "<|im_end|>" not in tokenizer.get_vocab()


@pytest.mark.parametrize("make", [text_tokenizer_with_tokens, history_tokenizer_with_tokens])
def test_the_given_tokenizer_is_not_changed(make):
    given = tiny_tokenizer()
    before = len(given)
    assert len(make(given)) > before
    assert len(given) == before
    assert given.chat_template is None


def test_padding_exists_and_is_not_the_end_of_turn():
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer = text_tokenizer_with_tokens(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="?"))
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer(["? ?", "?"], padding=True)["attention_mask"][1][-1] == 0


def test_history_tokenizer_gets_memory_last():
    tokenizer = history_tokenizer_with_tokens(tiny_tokenizer())
    assert tokenizer.convert_tokens_to_ids(MEMORY_TOKEN) == len(tokenizer) - 1
    bare = tiny_tokenizer()
    bare.pad_token = None
    assert len(history_tokenizer_with_tokens(bare)) == len(bare) + 1  # no other token is added


def test_tokenizers_load_from_a_folder(tmp_path):
    templated().save_pretrained(tmp_path)
    assert text_tokenizer_with_tokens(tmp_path).eos_token == "<|eot|>"
    assert MEMORY_TOKEN in history_tokenizer_with_tokens(str(tmp_path)).get_vocab()
