"""One process of two that train a model whose parameters `fully_shard` spread over them; run by torchrun.

The first has every medium in its batch, the second words alone. Gradients must be those of the whole model on one process.
"""

import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import model_builders
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def batch_of(model, rank: int) -> dict[str, torch.Tensor]:
    rows = model_builders.MIXED_ROWS if rank == 0 else [model_builders.MIXED_ROWS[1]]
    batch = model_builders.tiny_batch(model, rows)
    return {**batch, "labels": batch["input_ids"]}


def check(freeze: tuple[str, ...]) -> None:
    rank, processes = dist.get_rank(), dist.get_world_size()
    whole = model_builders.tiny_model()
    whole.freeze(*freeze)
    model = copy.deepcopy(whole)
    mesh = init_device_mesh("cpu", (processes,))
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)

    sum(whole(**batch_of(whole, other)).loss / processes for other in range(processes)).backward()
    loss = model(**batch_of(whole, rank)).loss
    assert loss.item() == whole(**batch_of(whole, rank)).loss.item()
    loss.backward()
    expected = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for name, parameter in model.named_parameters():
        gradient = None if parameter.grad is None else parameter.grad.full_tensor()
        if expected[name] is None:
            assert gradient is None or not gradient.any(), name
        else:
            torch.testing.assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")
    with torch.no_grad():  # validation, too
        model.eval()(**batch_of(whole, rank))
    learned = sum(gradient is not None for gradient in expected.values())
    print(f"process {rank} of {processes}: {learned} gradients are those of the whole model", flush=True)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    check(freeze=())
    check(freeze=("vision", "audio", "compressor"))
    dist.destroy_process_group()
