"""A judge that runs here: the probability of "yes" to each item, by any causal language model of transformers."""

import copy
import inspect
import logging
from collections import Counter
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .judge import Judge
from .judge_prompt import Exchange, item_messages
from .rubric import Rubric, Verdict

logger = logging.getLogger(__name__)

_SLOT = "<question>"  # holds the place of the question; quoted data hold no "<"
YES, NO = ("yes", "Yes", "YES", " yes", " Yes"), ("no", "No", "NO", " no", " No")


class LocalJudge(Judge):
    """Answers each item by P("yes") / (P("yes") + P("no")) of the next token.

    What an exchange's questions share is read once, and the questions after it in batches. Models with recurrent layers read it
    with each question.

    Args:
        model (`PreTrainedModel`): a causal language model, on the device it is to run on.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer; a chat template is used where it has one.
        rubric (`Rubric`, *optional*): the English one by default.
        batch_size (`int`): questions read at a time.
        minimum_mass (`float`): least P("yes") + P("no"). Below it the model answered something else, and there is no verdict.

    Raises:
        ValueError: the tokenizer begins "yes" and "no" with the same token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        rubric: Rubric | None = None,
        batch_size: int = 16,
        minimum_mass: float = 0.05,
    ):
        self.name = f"local {model.config.name_or_path or type(model).__name__}"
        self.rubric = rubric or Rubric.load()
        self.failures = Counter()
        self.model, self.tokenizer = model.eval(), tokenizer
        self.batch_size, self.minimum_mass = batch_size, minimum_mass
        yes, no = _first_tokens(tokenizer, YES), _first_tokens(tokenizer, NO)
        if not (yes - no and no - yes):
            raise ValueError(
                f"The tokenizer of {self.name} begins 'yes' and 'no' with the same token; take another model."
            )
        self._yes = torch.tensor(sorted(yes - no), device=model.device)
        self._no = torch.tensor(sorted(no - yes), device=model.device)
        self._keeps_some = "logits_to_keep" in inspect.signature(model.forward).parameters

    @classmethod
    def from_pretrained(cls, name: str, *, rubric: Rubric | None = None, **model_options) -> "LocalJudge":
        """The judge of a model of the Hub or of a folder. `model_options`: e.g. `dtype="auto", device_map="auto"`."""
        model = AutoModelForCausalLM.from_pretrained(name, **model_options)
        return cls(model, AutoTokenizer.from_pretrained(name), rubric=rubric)

    def __repr__(self):
        return f"LocalJudge({self.name!r}, rubric version {self.rubric.version!r})"

    def score(self, exchanges: Sequence[Exchange]) -> list[Verdict | None]:
        return [self._judge(exchange) for exchange in exchanges]

    def _judge(self, exchange: Exchange) -> Verdict | None:
        items = [item for asked in self.rubric.questions(exchange.risk).values() for item in asked]
        prefix, questions = self._encode(exchange, [item.question for item in items])
        longest = len(prefix) + max(map(len, questions))
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and longest > limit:
            return self._without("too_long")
        probabilities, mass = self.probabilities(prefix, questions)
        if not torch.isfinite(probabilities).all():
            return self._without("not_finite")
        if mass.min() < self.minimum_mass:
            return self._without("neither_yes_nor_no")
        answers = {item.id: answer for item, answer in zip(items, probabilities.tolist(), strict=True)}
        return self.rubric.verdict(answers, exchange.risk, self.name)

    @torch.inference_mode()
    def probabilities(self, prefix: list[int], questions: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """P("yes") among yes and no, and P("yes") + P("no"), after the prefix and each question.

        Args:
            prefix (`list[int]`): token ids that all questions follow.
            questions (`list[list[int]]`): token ids.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: both of shape `(questions,)`, float32.
        """
        device = self.model.device
        start = torch.tensor([prefix], device=device)
        shared = self.model(input_ids=start, use_cache=True, **self._keep(torch.tensor([0]))).get("past_key_values")
        # A recurrent state is not taken up right by several tokens at once: Mamba-1 and gated delta nets start anew.
        if not all(hasattr(layer, "batch_repeat_interleave") for layer in getattr(shared, "layers", [None])):
            shared = None
        found = torch.empty(2, len(questions))
        order = sorted(range(len(questions)), key=lambda number: len(questions[number]))  # little padding a batch
        for numbers in (order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)):
            batch = [questions[number] for number in numbers]
            cache = copy.deepcopy(shared)
            if cache is not None:
                cache.batch_repeat_interleave(len(batch))
            else:
                batch = [prefix + question for question in batch]
            logits = self._last_logits(batch, cache, 0 if cache is None else len(prefix))
            probabilities = logits.float().softmax(-1)
            yes, no = probabilities[:, self._yes].sum(-1), probabilities[:, self._no].sum(-1)
            found[:, numbers] = torch.stack([yes / (yes + no), yes + no]).cpu()
        return found[0], found[1]

    def _last_logits(self, batch: list[list[int]], cache, past: int) -> torch.Tensor:
        """Logits `(B, V)` after the last token of each row; padding is on the right, where no token looks."""
        device = self.model.device
        lengths = torch.tensor([len(row) for row in batch])
        ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)  # (B, L)
        for row, tokens in zip(ids, batch, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        mask = torch.arange(past + ids.shape[1]) < (past + lengths)[:, None]  # (B, past + L)
        last, columns = (lengths - 1).unique(return_inverse=True)  # logits of all positions would fill the memory
        output = self.model(
            input_ids=ids.to(device),
            attention_mask=mask.long().to(device),
            past_key_values=cache,
            use_cache=cache is not None,
            **self._keep(last),
        )
        rows = torch.arange(len(batch))
        return output.logits[rows, columns if self._keeps_some else lengths - 1]

    def _keep(self, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits_to_keep": positions.to(self.model.device)} if self._keeps_some else {}

    def _encode(self, exchange: Exchange, questions: list[str]) -> tuple[list[int], list[list[int]]]:
        """Token ids of what all questions share, and of each question with what follows it."""
        content = "\n\n".join(
            message["content"] for message in item_messages(exchange, _SLOT)
        )  # some models take no system
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,  # known to templates of models that would think before "yes"
            )
        else:
            text = f"{content}\nAnswer:"
        shared, end = text.split(f" {_SLOT}")  # words carry the space before them
        prefix = self.tokenizer(shared, add_special_tokens=not self.tokenizer.chat_template)["input_ids"]
        return prefix, [self.tokenizer(f" {q}{end}", add_special_tokens=False)["input_ids"] for q in questions]

    def _without(self, cause: str) -> None:
        self.failures[cause] += 1
        logger.warning("%s: no verdict: %s", self.name, cause)


def _first_tokens(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> set[int]:
    return {tokenizer.encode(word, add_special_tokens=False)[0] for word in words}
