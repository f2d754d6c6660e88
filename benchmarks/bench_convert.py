"""How much memory it takes to convert a checkpoint of the released one's size.

The checkpoint is simulated: the shapes, the number of tensors and the shards of a 7B model in bfloat16, all zeros, in
sparse files. `multimood convert` runs as a process of its own, and its resident memory is sampled: what it holds itself,
and with the pages of the shard that is mapped, which the system may take back.

    python benchmarks/bench_convert.py --folder /where/there/is/room    # for the output, 18 GB
"""

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import reporting
import torch
from transformers import MambaConfig, Qwen2Config, SiglipVisionConfig

from multimood.modeling_multimood.configuration_beats import BeatsConfig
from multimood.modeling_multimood.configuration_multimood import MultiMoodConfig
from multimood.modeling_multimood.convert_original import original_names
from multimood.modeling_multimood.modeling_multimood import MultiMoodForConditionalGeneration

SHARD_SIZE = 5 * 10**9  # bytes, as transformers wrote them when the weights were released
ALLOWANCE = 2 * 10**9  # bytes beside the largest shard
INTERVAL = 0.02  # seconds between samples


def released_config() -> MultiMoodConfig:
    """Qwen2 7B, SigLIP so400m/14-384, BEATs and Mamba 370M (MultiMood, arXiv 2511.10011)."""
    return MultiMoodConfig(
        text_config=Qwen2Config(
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            vocab_size=152064,
            rope_theta=1e6,
        ),
        vision_config=SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
            vision_use_head=False,
        ),
        audio_config=BeatsConfig(),
        history_config=MambaConfig(hidden_size=1024, num_hidden_layers=48, vocab_size=151651),
        video_token_id=151651,
        audio_token_id=151652,
        history_token_id=151653,
        memory_token_id=151650,
    )


def write_sparse(folder: Path, config: MultiMoodConfig) -> dict[str, int]:
    """The checkpoint in the original's layout; returns the size of each shard in bytes."""
    with torch.device("meta"):
        shapes = MultiMoodForConditionalGeneration(config).state_dict()
    names = original_names(config)
    shards: list[dict[str, list[int]]] = [{}]
    filled = 0
    for name, tensor in shapes.items():
        ours, theirs = next((ours, theirs) for ours, theirs in names.items() if name.startswith(ours))
        size = 2 * tensor.numel()
        if filled + size > SHARD_SIZE:
            shards.append({})
            filled = 0
        shards[-1][theirs + name[len(ours) :]] = list(tensor.shape)
        filled += size
    sizes, weight_map = {}, {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, position = {}, 0
        for name, shape in shard.items():
            end = position + 2 * torch.Size(shape).numel()
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
            position = end
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with (folder / file).open("wb") as stream:
            stream.write(struct.pack("<Q", len(encoded)) + encoded)
            stream.truncate(8 + len(encoded) + position)
        sizes[file] = position
        weight_map |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    text = {
        name: value for name, value in config.text_config.to_dict().items() if isinstance(value, int | float | bool)
    }
    settings = {
        **text,
        "rope_theta": 1e6,
        "model_type": "videollama2_qwen2",
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "mm_projector_type": "stc_connector_v35",
        "mm_vision_select_layer": -2,
        "mem_token_id": config.memory_token_id,
        "num_frames": 8,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return sizes


def resident(pid: int) -> tuple[int, int]:
    """(all resident memory, that which is the process's own) in bytes."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return tuple(int(fields.get(name, "0 kB").split()[0]) * 1024 for name in ("VmRSS", "RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the files go meanwhile (default: the system's)")
    args = parser.parse_args()
    config = released_config()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        original, out = Path(name) / "original", Path(name) / "out"
        original.mkdir()
        sizes = write_sparse(original, config)
        print(
            f"{sum(sizes.values()) / 1e9:.1f} GB in {len(sizes)} shards, the largest {max(sizes.values()) / 1e9:.2f} GB"
        )
        start, total, own = time.perf_counter(), 0, 0
        command = [sys.executable, "-m", "multimood.cli", "convert", str(original), str(out)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            try:
                now, now_own = resident(process.pid)
            except (FileNotFoundError, ProcessLookupError):
                break
            total, own = max(total, now), max(own, now_own)
            time.sleep(INTERVAL)
        if process.wait():
            raise SystemExit(f"multimood convert failed with status {process.returncode}")
        seconds = time.perf_counter() - start
        written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        files = len(list(out.glob("*.safetensors")))
    limit = max(sizes.values()) + ALLOWANCE
    print(
        f"peak {total / 1e9:.2f} GB, of which its own {own / 1e9:.2f} GB; limit {limit / 1e9:.2f} GB; {seconds:.0f} s"
    )
    results = {
        "source_bytes": sum(sizes.values()),
        "source_shards": len(sizes),
        "largest_shard_bytes": max(sizes.values()),
        "written_bytes": written,
        "written_files": files,
        "peak_resident_bytes": total,
        "peak_own_bytes": own,
        "limit_bytes": limit,
        "seconds": seconds,
    }
    path = reporting.write("convert", results, interval=INTERVAL)
    print(f"wrote benchmarks/results/{path.name}")
    print(f"ratio convert_peak_over_limit {total / limit:.2f}")


if __name__ == "__main__":
    main()
