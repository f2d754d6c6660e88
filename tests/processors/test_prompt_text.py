import pytest
from processor_builders import tiny_tokenizer

from multimood.processors.prompt_text import Sources, expand, flatten, neutralise, render
from multimood.processors.special_tokens import text_tokenizer_with_tokens


@pytest.fixture(scope="module")
def tokenizer():
    return text_tokenizer_with_tokens(tiny_tokenizer())


@pytest.mark.parametrize("token", ["<|video|>", "<|audio|>", "<|history|>", "<|im_start|>", "<|im_end|>", "<|pad|>"])
def test_special_tokens_that_are_typed_become_words(tokenizer, token):
    text = neutralise(f"I typed {token}{token}!", tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.convert_tokens_to_ids(token) not in ids
    assert text.replace("\u200b", "") == f"I typed {token}{token}!"


@pytest.mark.parametrize(
    "text", ["", "plain", "😀👨‍👩‍👧 é", "שלום עולם", "مرحبا", "a < b | c > d <|", "<|vid<|video|eo|>"]
)
def test_other_text_stays(tokenizer, text):
    assert neutralise(text, tokenizer) == text
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_breaking_a_token_makes_no_other(tokenizer):
    ids = tokenizer(neutralise("<|vid<|video|>eo|>", tokenizer), add_special_tokens=False)["input_ids"]
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_flatten_puts_placeholders_and_collects_sources(tokenizer):
    sources = Sources()
    messages = [
        {"role": "system", "content": "Help.", "name": None},
        {
            "role": "user",
            "content": [
                {"type": "history", "history": [{"speaker": "client", "text": "a"}], "slots": None, "text": None},
                {"type": "video", "video": ["1.mp4", "2.mp4"], "audio": None},
                {"type": "audio", "audio": "1.mp4"},
                {"type": "text", "text": "Hi <|audio|>"},
                {"type": "video", "video": "3.mp4"},
            ],
        },
        {"role": "assistant", "content": None},
    ]
    assert flatten(messages, tokenizer, sources) == [
        {"role": "system", "content": "Help."},
        {"role": "user", "content": "<|history|><|video|><|audio|>Hi <\u200b|audio|><|video|>"},
        {"role": "assistant", "content": ""},
    ]
    assert sources == Sources([["1.mp4", "2.mp4"], "3.mp4"], ["1.mp4"], [[{"speaker": "client", "text": "a"}]])


def test_a_special_token_typed_over_two_blocks_becomes_words(tokenizer):
    blocks = [{"type": "text", "text": text} for text in ("<|vid", "", "eo|>")]
    sources = Sources()
    (message,) = flatten([{"role": "user", "content": blocks}], tokenizer, sources)
    assert message["content"] == "<\u200b|video|>"
    assert sources == Sources([], [], [None])


def test_flatten_takes_slots(tokenizer):
    sources = Sources()
    flatten([{"role": "user", "content": [{"type": "history", "slots": 3}]}], tokenizer, sources)
    flatten([{"role": "user", "content": "no history"}], tokenizer, sources)
    assert sources.history == [3, None]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([{"type": "image", "image": "a.png"}], "'image'"),
        ([{"type": "video", "path": "a.mp4"}], "'path'"),
        ([{"type": "text"}], "'text'"),
        ([{"text": "hello"}], "hello"),
        ([{"type": "history", "slots": 1}, {"type": "history", "slots": 2}], "two history blocks"),
    ],
)
def test_unusable_blocks_are_shown(tokenizer, blocks, message):
    with pytest.raises(ValueError, match=message):
        flatten([{"role": "user", "content": blocks}], tokenizer, Sources())


def test_render_gives_a_refused_system_message_to_the_user(tokenizer):
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    messages = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Hi"}]
    assert render([messages], tokenizer, chat_template=template) == ["[user]Help.\nHi"]


def test_render_shows_other_errors_of_a_template(tokenizer):
    with pytest.raises(Exception, match="never"):
        render([[{"role": "user", "content": "Hi"}]], tokenizer, chat_template="{{ raise_exception('never') }}")


def test_thinking_is_off_unless_asked_for(tokenizer):
    template = "{% if enable_thinking is defined and not enable_thinking %}[no]{% endif %}{{ messages[0].content }}"
    messages = [[{"role": "user", "content": "Hi"}]]
    assert render(messages, tokenizer, chat_template=template) == ["[no]Hi"]
    assert render(messages, tokenizer, chat_template=template, enable_thinking=True) == ["Hi"]


def test_expand_repeats_placeholders_in_order():
    text = ["<|history|>a<|video|>b<|audio|><|video|>", "c", "<|history|><|audio|>", "<|history|>d"]
    counts = {"video": [2, 0], "audio": [1, 3]}
    history = [[{}, {}], None, 1, []]
    assert expand(text, counts, history) == [
        "<|history|><|history|>a<|video|><|video|>b<|audio|>",
        "c",
        "<|history|><|audio|><|audio|><|audio|>",
        "d",
    ]


@pytest.mark.parametrize(
    ("text", "counts", "history", "message"),
    [
        (["<|video|>"], {"video": []}, [None], r"1 <\|video\|> in the prompts, but 0 video sources"),
        (["x"], {"audio": [3]}, [None], r"0 <\|audio\|> in the prompts, but 1 audio sources"),
        (["<|history|>"], {}, [None], r"1 <\|history\|> in a prompt, but no history"),
        (["x"], {}, [[{}]], r"0 <\|history\|> in a prompt, but one history"),
        (["x", "y"], {}, [None], "2 prompts, but history for 1"),
    ],
)
def test_expand_counts(text, counts, history, message):
    with pytest.raises(ValueError, match=message):
        expand(text, counts, history)
