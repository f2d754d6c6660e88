"""The words of a completion, in whichever of TRL's two forms it comes."""


def completion_text(completion: str | list[dict]) -> str:
    """Text of a completion: a plain string, or conversational messages `[{"role", "content"}]`.

    Raises:
        TypeError: if the completion is neither.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list) and completion and isinstance(completion[-1].get("content"), str):
        return completion[-1]["content"]
    raise TypeError(f"A completion is a string or messages whose last content is a string, got {completion!r}.")
