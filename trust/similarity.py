"""How close replies are to reference replies, in [0, 1]: late interaction, and the paper's mix with BGE-M3.

Late interaction (ColBERT; Khattab and Zaharia 2020): every token's vector looks for its nearest in the other text, and the
mean of what they find is the score. Here it is taken in both directions, so that the order of the texts means nothing.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch

REFERENCES_KEPT = 1024  # encoded references that are kept for the next call


class _Similarity:
    """Encodes texts in batches, and each reference once for as long as it is among the last ones used."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self._references: OrderedDict[str, object] = OrderedDict()

    def __call__(self, replies: Sequence[str], references: Sequence[str]) -> list[float]:
        """The similarity of each reply to its reference.

        Args:
            replies (`Sequence[str]`): a blank one is like nothing: 0.
            references (`Sequence[str]`): one a reply.

        Returns:
            `list[float]`: in [0, 1].

        Raises:
            ValueError: not as many references as replies, or a blank reference.
        """
        if len(replies) != len(references):
            raise ValueError(f"There are {len(replies)} replies and {len(references)} references; give one a reply.")
        if blank := [number for number, text in enumerate(references) if not text.strip()]:
            raise ValueError(f"The references {blank[:10]} are blank; leave those replies out.")
        wanted = list(dict.fromkeys(references))
        known = {text: self._references[text] for text in wanted if text in self._references}
        missing = [text for text in wanted if text not in known]
        written = [reply for reply in dict.fromkeys(replies) if reply.strip()]
        encoded = self._encode(missing + written)
        known.update(zip(missing, encoded, strict=False))
        found = dict(zip(written, encoded[len(missing) :], strict=True))
        for text in wanted:
            self._references[text] = known[text]
            self._references.move_to_end(text)
        while len(self._references) > REFERENCES_KEPT:
            self._references.popitem(last=False)
        pairs = [(found[a], known[b]) for a, b in zip(replies, references, strict=True) if a.strip()]
        scores = iter(self._scores(pairs) if pairs else ())
        return [next(scores) if reply.strip() else 0.0 for reply in replies]

    def _encode(self, texts: list[str]) -> list:
        raise NotImplementedError

    def _scores(self, pairs: list[tuple]) -> list[float]:
        raise NotImplementedError


class LateInteraction(_Similarity):
    """Similarity by a multi-vector model.

    Args:
        model (`str`, `Path` or `MultiVectorEncoder`): a late-interaction model of the Hub or a folder. A plain encoder is taken
            as well; its own token vectors are compared, without a projection.
        batch_size (`int`): texts and pairs at a time.
    """

    def __init__(self, model, *, batch_size: int = 64):
        super().__init__(batch_size)
        self.model = _multi_vector_encoder(str(model)) if isinstance(model, str | Path) else model

    def _encode(self, texts: list[str]) -> list[torch.Tensor]:
        if not texts:
            return []
        # Both sides as documents: a query's extra tokens would make the order matter.
        return self.model.encode_document(
            texts, batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False
        )

    def _scores(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
        return [score for part in _parts(pairs, self.batch_size) for score in symmetric_maxsim(part).tolist()]


class BgeM3Similarity(_Similarity):
    """The paper's similarity: BGE-M3's dense, sparse and ColBERT scores, mixed 1 : 0.3 : 1 (arXiv 2402.03216).

    Each part is in [0, 1] before it is mixed. The sparse part is the cosine of the lexical weights; the sum of their products
    alone would grow with the length of the texts, and a policy with it.

    Args:
        model (`str` or `Path`): "BAAI/bge-m3", or a folder with its files.
        batch_size (`int`): texts and pairs at a time.
        device (`str`, *optional*): a GPU where there is one by default.
    """

    WEIGHTS = (1.0, 0.3, 1.0)  # dense, sparse, ColBERT
    MAX_TOKENS = 8192

    def __init__(self, model: str | Path = "BAAI/bge-m3", *, batch_size: int = 16, device: str | None = None):
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import cached_file

        super().__init__(batch_size)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.encoder = AutoModel.from_pretrained(model).eval().to(self.device)
        self.heads = {}
        for name in ("sparse_linear", "colbert_linear"):
            weights = torch.load(cached_file(model, f"{name}.pt"), map_location=self.device, weights_only=True)
            self.heads[name] = torch.nn.Linear(
                weights["weight"].shape[1], weights["weight"].shape[0], device=self.device
            )
            self.heads[name].load_state_dict(weights)

    @torch.inference_mode()
    def _encode(self, texts: list[str]) -> list[tuple[torch.Tensor, dict[int, float], torch.Tensor]]:
        return [encoded for part in _parts(texts, self.batch_size) for encoded in self._encode_batch(part)]

    def _encode_batch(self, texts: list[str]) -> list[tuple[torch.Tensor, dict[int, float], torch.Tensor]]:
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=self.MAX_TOKENS, return_tensors="pt")
        hidden = self.encoder(**batch.to(self.device)).last_hidden_state.float()  # (B, L, H)
        weights = self.heads["sparse_linear"](hidden).relu().squeeze(-1)  # (B, L)
        vectors = self.heads["colbert_linear"](hidden[:, 1:])  # (B, L - 1, H): without the first token, the dense one
        dense = torch.nn.functional.normalize(hidden[:, 0], dim=-1)
        special = set(self.tokenizer.all_special_ids)
        rows = []
        for row, mask in enumerate(batch["attention_mask"].bool()):
            lexical = {}
            for token, weight in zip(batch["input_ids"][row][mask].tolist(), weights[row][mask].tolist(), strict=True):
                if token not in special and weight > lexical.get(token, 0.0):
                    lexical[token] = weight
            rows.append((dense[row], lexical, torch.nn.functional.normalize(vectors[row][mask[1:]], dim=-1)))
        return rows

    def _scores(self, pairs: list[tuple]) -> list[float]:
        scores = []
        for part in _parts(pairs, self.batch_size):
            dense = torch.stack([a[0] @ b[0] for a, b in part]).clamp(0, 1)
            sparse = torch.tensor([_lexical_cosine(a[1], b[1]) for a, b in part], device=dense.device)
            colbert = symmetric_maxsim([(a[2], b[2]) for a, b in part])
            # Texts of which neither has a lexical weight cannot be compared by them.
            lexical = torch.tensor([float(bool(a[1] or b[1])) for a, b in part], device=dense.device)
            weights = (self.WEIGHTS[0], self.WEIGHTS[1] * lexical, self.WEIGHTS[2])
            mixed = sum(weight * score for weight, score in zip(weights, (dense, sparse, colbert), strict=True))
            scores += (mixed / sum(weights)).tolist()
        return scores


def symmetric_maxsim(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Mean of both directions' mean MaxSim, in [0, 1].

    Args:
        pairs (`Sequence[tuple[torch.Tensor, torch.Tensor]]`): unit vectors of two texts, (tokens, width) each.

    Returns:
        `torch.Tensor` of shape `(pairs,)`: float32. Texts whose tokens point away from each other are at 0.
    """
    from sentence_transformers.util import mean_maxsim_pairwise

    first, second = [a.float() for a, _ in pairs], [b.float() for _, b in pairs]
    both = mean_maxsim_pairwise(first, second) + mean_maxsim_pairwise(second, first)
    return (both / 2).clamp(0, 1)


def _multi_vector_encoder(name: str):
    from sentence_transformers import MultiVectorEncoder, SentenceTransformer
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    if _is_late_interaction(name):
        return MultiVectorEncoder(name)
    # By name, sentence-transformers would add a projection of random weights to a plain encoder.
    encoder = SentenceTransformer(name)
    modules = [encoder[0], MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    return MultiVectorEncoder(modules=modules, device=str(encoder.device))


def _is_late_interaction(name: str) -> bool:
    """Whether a model's files have a projection of token vectors, or say that it needs none."""
    from sentence_transformers.util import load_file_path
    from transformers import AutoConfig

    modules = load_file_path(name, "modules.json")
    if modules is not None:
        types = [module["type"] for module in json.loads(Path(modules).read_text(encoding="utf-8"))]
        return any(kind.endswith((".Dense", ".MultiVectorMask")) for kind in types)
    architectures = AutoConfig.from_pretrained(name).architectures or []
    return any(architecture == "HF_ColBERT" or architecture.endswith("ForRetrieval") for architecture in architectures)


def _lexical_cosine(first: dict[int, float], second: dict[int, float]) -> float:
    product = sum(weight * second[token] for token, weight in first.items() if token in second)
    norms = sum(w * w for w in first.values()) * sum(w * w for w in second.values())
    return product / norms**0.5 if norms else 0.0


def _parts(content: list, size: int) -> list[list]:
    return [content[i : i + size] for i in range(0, len(content), size)]
