"""The files of a checkpoint of the original MultiMood code: what tensors they hold, and reading them one by one."""

import json
import math
import pickle
import struct
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # the first kind that is there
CONFIGS = ("config.json", "reference_config.json")
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
NON_LORA = "non_lora_trainables.bin"
SHOWN = 20  # names in a message
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet; `key` is its name there."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Adapter:
    """`weight + scale · B @ A` (LoRA; Hu et al., 2021, arXiv:2106.09685)."""

    A: StoredTensor
    B: StoredTensor
    scale: float


@dataclass
class OriginalCheckpoint:
    """
    Everything but the weights' values.

    Attributes:
        settings (`dict`): the original's `config.json`.
        beats (`dict`): settings of the audio tower, where a file has them.
        dims (`dict`): sizes that follow from nothing else, where a file has them.
        tensors (`dict[str, StoredTensor]`): by the original's names.
        replaced (`dict[str, str]`): tensors of a base model that a later file replaces, and which.
        adapters (`dict[str, Adapter]`): by the name of the weight that they change.
        folders (`list[Path]`): where further files (tokenizer, generation settings) may lie, the most special first.
    """

    settings: dict[str, Any]
    beats: dict[str, Any]
    dims: dict[str, Any]
    tensors: dict[str, StoredTensor]
    replaced: dict[str, str] = field(default_factory=dict)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)


def open_checkpoint(folder: Path, base: Path | None = None) -> OriginalCheckpoint:
    """
    Reads settings and headers of a checkpoint.

    Args:
        folder (`Path`): a whole model, in shards or not, safetensors or `.bin`; or LoRA adapters with
            `non_lora_trainables.bin`.
        base (`Path`, *optional*): for adapters, the folder of the model that they were trained on.

    Raises:
        ValueError: a file is missing, cut off, no file of tensors, or of a kind that is not understood.
    """
    adapter_files = [folder / name for name in ADAPTERS if (folder / name).is_file()]
    if not adapter_files:
        return OriginalCheckpoint(*_settings(folder), _index(_weight_files(folder)), folders=[folder])
    if base is None:
        raise ValueError(f"{folder} holds LoRA adapters: give the folder or Hub id of the model they were trained on")
    own = next((place for place in (folder, base) if any((place / name).is_file() for name in CONFIGS)), base)
    checkpoint = OriginalCheckpoint(*_settings(own), _index(_weight_files(base)), folders=[folder, base])
    overrides = [(NON_LORA, _index([folder / NON_LORA]))] if (folder / NON_LORA).is_file() else []
    checkpoint.adapters, saved_whole = _adapters(adapter_files[0])
    for file, tensors in [*overrides, (adapter_files[0].name, saved_whole)]:
        for name, tensor in _without_wrapper(tensors).items():
            if name in checkpoint.tensors:
                checkpoint.replaced[name] = file
            checkpoint.tensors[name] = tensor
    if lost := sorted(checkpoint.adapters.keys() - checkpoint.tensors.keys()):
        raise ValueError(f"{adapter_files[0]} changes weights that {base} has not: {listed(lost)}")
    for name, adapter in checkpoint.adapters.items():
        weight, made = checkpoint.tensors[name].shape, (adapter.B.shape[0], adapter.A.shape[-1])
        if len(adapter.A.shape) != 2 or adapter.A.shape[0] != adapter.B.shape[-1] or weight != made:
            raise ValueError(
                f"the LoRA adapter of {name} has A {adapter.A.shape} and B {adapter.B.shape}, the weight {weight}: "
                "they do not fit; is this the base model that it was trained on?"
            )
    return checkpoint


def _settings(folder: Path) -> tuple[dict, dict, dict]:
    """(config, settings of BEATs, further sizes)"""
    file = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"{folder} has no config.json: give the folder of a checkpoint")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if "model_type" not in content and isinstance(content.get("config"), dict):  # written with the audio tower's
        return content["config"], content.get("beats") or {}, content.get("dims") or {}
    return content, {}, {}


def _weight_files(folder: Path) -> list[Path]:
    for pattern in WEIGHTS:
        files = sorted(folder.glob(pattern))
        indices = sorted(folder.glob(pattern + ".index.json"))
        if indices:
            named = set(json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values())
            if lost := sorted(name for name in named if not (folder / name).is_file()):
                raise ValueError(f"{indices[0]} names files that are not there: {listed(lost)}")
            return [folder / name for name in sorted(named)]
        if files:
            return files
    raise ValueError(f"{folder} has no weights: neither {WEIGHTS[0]} nor {WEIGHTS[1]}")


def _index(files: Sequence[Path]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in _safetensors_header(file) if file.suffix == ".safetensors" else _pickle_header(file):
            if tensor.key in tensors:
                raise ValueError(f"{tensor.key} is both in {tensors[tensor.key].file} and in {file}: remove one")
            tensors[tensor.key] = tensor
    return tensors


def _safetensors_header(file: Path) -> list[StoredTensor]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise ValueError(f"{file} is cut off within its header: copy or download it again")
        try:
            header = json.loads(stream.read(length))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} is no safetensors file: {error}") from error
    header.pop("__metadata__", None)
    if short := sorted(key for key, entry in header.items() if 8 + length + entry["data_offsets"][1] > size):
        raise ValueError(f"{file} is cut off: these tensors are not whole: {listed(short)}; copy or download it again")
    if strange := sorted(key for key, entry in header.items() if entry["dtype"] not in DTYPES):
        raise ValueError(f"{file} has tensors of types that are not understood: {listed(strange)}")
    return [StoredTensor(file, key, tuple(entry["shape"]), DTYPES[entry["dtype"]]) for key, entry in header.items()]


def _pickle_header(file: Path) -> list[StoredTensor]:
    entries = _load_pickle(file)
    if strange := sorted(str(key) for key, value in entries.items() if not isinstance(value, torch.Tensor)):
        raise ValueError(f"{file} holds other things than tensors: {listed(strange)}")
    return [StoredTensor(file, key, tuple(value.shape), value.dtype) for key, value in entries.items()]


def _load_pickle(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of `torch.save`, mapped into memory where its format allows; nothing in it is executed."""
    options = {"map_location": "cpu", "weights_only": True}
    try:
        try:
            entries = torch.load(file, mmap=True, **options)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            entries = torch.load(file, **options)  # written before torch 1.6
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} is refused: it would run code, or hold other things than tensors. Get the weights as safetensors. "
            f"({_first_line(error)})"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{file} is damaged or cut off, copy or download it again ({_first_line(error)})") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{file} holds a {type(entries).__name__}, not tensors by name")
    return entries


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _adapters(file: Path) -> tuple[dict[str, Adapter], dict[str, StoredTensor]]:
    """(adapters by the name of their weight, tensors that were trained whole)"""
    place = file.parent / "adapter_config.json"
    if not place.is_file():
        raise ValueError(f"{place} is missing: it says how much the adapters weigh")
    config = json.loads(place.read_text(encoding="utf-8"))
    if config.get("peft_type", "LORA") != "LORA" or config.get("use_dora") or config.get("fan_in_fan_out"):
        raise ValueError(f"{place}: only plain LoRA is understood; merge the adapter with PEFT")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ValueError(f"{place}: ranks differ between layers; merge the adapter with PEFT")
    rank, alpha = config["r"], config["lora_alpha"]
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    halves: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    whole = {}
    for name, tensor in _without_wrapper(_index([file])).items():
        path = name.replace(".default.", ".").split(".")
        if path[-2:-1] in (["lora_A"], ["lora_B"]) and path[-1] == "weight":
            halves[".".join([*path[:-2], "weight"])][path[-2]] = tensor
        elif "lora_" in name:
            raise ValueError(f"{file}: {name} is of a kind that is not understood; merge the adapter with PEFT")
        else:
            whole[name] = tensor
    if single := sorted(name for name, half in halves.items() if len(half) < 2):
        raise ValueError(f"{file} has only one of lora_A and lora_B for {listed(single)}")
    return {name: Adapter(half["lora_A"], half["lora_B"], scale) for name, half in halves.items()}, whole


def _without_wrapper(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Names as they were before PEFT wrapped the model."""
    tensors = {name.removeprefix("base_model."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("model.model.") for name in tensors):
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    return tensors


class TensorReader:
    """Reads stored tensors; keeps the file of the last one open, since neighbours come from the same."""

    def __init__(self):
        self._file: Path | None = None
        self._open: Any = None

    def __call__(self, tensor: StoredTensor) -> torch.Tensor:
        """The tensor, in memory of its own."""
        if tensor.file != self._file:
            self._open = None  # before the next is opened
            is_pickle = tensor.file.suffix != ".safetensors"
            self._open = _load_pickle(tensor.file) if is_pickle else safe_open(tensor.file, framework="pt")
            self._file = tensor.file
        if isinstance(self._open, dict):  # mapped, and perhaps a part of another's memory
            return self._open[tensor.key].clone(memory_format=torch.contiguous_format)
        return self._open.get_tensor(tensor.key)


def listed(names: Sequence[str]) -> str:
    """Names for a message, with the number of those left out."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


__all__ = ["Adapter", "OriginalCheckpoint", "StoredTensor", "TensorReader", "listed", "open_checkpoint"]
