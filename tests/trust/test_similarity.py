"""Similarity: its bounds, its symmetry, its batches, and what it costs."""

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast, XLMRobertaConfig, XLMRobertaModel

from multimood.trust.similarity import BgeM3Similarity, LateInteraction, symmetric_maxsim

WORDS = "the a i you feel sad happy alone very house quiet sister cry it sounds and lonely hard is to . , ?".split()
TEXTS = [
    "it sounds lonely .",
    "you feel sad and alone in the quiet house",
    "happy",
    "is it hard to cry ?",
    "the sister is happy , the house is quiet",
]
OTHERS = [
    "it sounds hard .",
    "the house is quiet and you feel sad",
    "you cry",
    "is it hard to cry ?",
    "a very sad house",
]


def save_encoder(folder, model, config):
    folder.mkdir(exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizerFast(vocab={word: number for number, word in enumerate(vocabulary)}).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model(config(vocab_size=len(vocabulary), pad_token_id=0, initializer_range=0.3, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder"), BertModel, BertConfig)


@pytest.fixture(scope="module")
def bge_m3(tmp_path_factory):
    """The layout of BAAI/bge-m3, tiny and random."""
    folder = save_encoder(tmp_path_factory.mktemp("bge"), XLMRobertaModel, XLMRobertaConfig)
    torch.manual_seed(1)
    for name, width in (("sparse_linear", 1), ("colbert_linear", 32)):
        torch.save(torch.nn.Linear(32, width).state_dict(), folder / f"{name}.pt")
    return folder


@pytest.fixture(scope="module", params=["late interaction", "bge m3"])
def build(request, encoder, bge_m3):
    """Makes a new similarity each time: what it has encoded is its own."""
    if request.param == "bge m3":
        return lambda **settings: BgeM3Similarity(bge_m3, device="cpu", **settings)
    return lambda **settings: LateInteraction(encoder, **settings)


def test_in_bounds_symmetric_and_one_for_the_same_text(build):
    similarity = build()
    there, back = similarity(TEXTS, OTHERS), similarity(OTHERS, TEXTS)
    assert there == pytest.approx(back, abs=1e-5)
    assert all(0 <= score <= 1 for score in there)
    assert similarity(TEXTS, TEXTS) == pytest.approx([1.0] * len(TEXTS), abs=1e-5)
    assert there[3] == pytest.approx(1, abs=1e-5)
    assert max(there[i] for i in (0, 1, 2, 4)) < 1 - 1e-4


def test_batched_equals_alone(build):
    together = build(batch_size=2)(TEXTS, OTHERS)
    alone = [build()([text], [other])[0] for text, other in zip(TEXTS, OTHERS, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)


def test_each_reference_is_encoded_once(build, monkeypatch):
    similarity, encoded = build(), []
    encode = similarity._encode
    monkeypatch.setattr(similarity, "_encode", lambda texts: encoded.extend(texts) or encode(texts))
    similarity(["sad", "happy", "sad", "hard"], [TEXTS[0]] * 3 + [TEXTS[1]])
    assert sorted(encoded) == sorted([TEXTS[0], TEXTS[1], "sad", "happy", "hard"])
    encoded.clear()
    similarity(["quiet"], [TEXTS[1]])
    assert encoded == ["quiet"]


def test_only_so_many_references_are_kept(build, monkeypatch):
    monkeypatch.setattr("multimood.trust.similarity.REFERENCES_KEPT", 2)
    similarity = build()
    similarity(TEXTS, OTHERS)
    assert list(similarity._references) == OTHERS[-2:]


def test_blank_replies_are_like_nothing_and_blank_references_are_refused(build):
    similarity = build()
    assert similarity(["", "sad", " \n"], ["sad", "sad", "happy"]) == [0.0, pytest.approx(1.0, abs=1e-5), 0.0]
    assert similarity([""], ["sad"]) == [0.0]
    assert similarity([], []) == []
    with pytest.raises(ValueError, match=r"references \[1\] are blank"):
        similarity(["sad", "sad"], ["sad", " "])
    with pytest.raises(ValueError, match="2 replies and 1 references"):
        similarity(["sad", "sad"], ["sad"])


def test_maxsim_is_the_mean_of_what_tokens_find_in_both_directions():
    torch.manual_seed(0)
    pairs = [
        tuple(torch.nn.functional.normalize(torch.randn(count, 8), dim=-1) for count in counts)
        for counts in ((3, 5), (1, 7), (6, 2))
    ]
    expected = []
    for a, b in pairs:
        found = [[sum(x * y for x, y in zip(u, v, strict=True)) for v in b.tolist()] for u in a.tolist()]
        there = sum(max(row) for row in found) / len(a)
        back = sum(max(column) for column in zip(*found, strict=True)) / len(b)
        expected.append(min(max((there + back) / 2, 0), 1))
    assert symmetric_maxsim(pairs).tolist() == pytest.approx(expected, abs=1e-6)
    opposite = torch.eye(1, 4)
    assert symmetric_maxsim([(opposite, -opposite)]).tolist() == [0.0]


def test_a_plain_encoder_gets_no_random_projection(encoder):
    scores = [LateInteraction(encoder)(TEXTS, OTHERS) for _ in range(2)]
    assert scores[0] == scores[1]
    assert not any(type(module).__name__ == "Dense" for module in LateInteraction(encoder).model)


def test_a_saved_late_interaction_model_is_taken_as_it_is(tmp_path, encoder):
    from sentence_transformers import MultiVectorEncoder

    torch.manual_seed(3)
    model = MultiVectorEncoder(str(encoder))  # its projection is random here, and saved
    model.save_pretrained(str(tmp_path))
    assert LateInteraction(tmp_path)(TEXTS, OTHERS) == pytest.approx(LateInteraction(model)(TEXTS, OTHERS), abs=1e-5)
    assert any(type(module).__name__ == "Dense" for module in LateInteraction(tmp_path).model)


def test_the_papers_mix_is_one_to_three_tenths_to_one(bge_m3):
    similarity = BgeM3Similarity(bge_m3, device="cpu")
    first, second = similarity._encode([TEXTS[1], OTHERS[1]])
    dense = max(float(first[0] @ second[0]), 0.0)
    shared = first[1].keys() & second[1].keys()
    norms = [sum(weight**2 for weight in row[1].values()) ** 0.5 for row in (first, second)]
    sparse = sum(first[1][token] * second[1][token] for token in shared) / (norms[0] * norms[1])
    colbert = float(symmetric_maxsim([(first[2], second[2])])[0])
    assert shared
    assert len({round(part, 4) for part in (dense, sparse, colbert)}) == 3
    mixed = similarity([TEXTS[1]], [OTHERS[1]])[0]
    assert mixed == pytest.approx((dense + 0.3 * sparse + colbert) / 2.3, abs=1e-5)


def test_lexical_weights_leave_special_tokens_out(bge_m3):
    similarity = BgeM3Similarity(bge_m3, device="cpu")
    (_, lexical, vectors), _ = similarity._encode([TEXTS[0], TEXTS[1]])
    assert set(lexical) <= set(similarity.tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"])
    assert vectors.shape == (len(similarity.tokenizer(TEXTS[0])["input_ids"]) - 1, 32)
