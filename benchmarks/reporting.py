"""Where benchmarks leave what they found, and on what they found it."""

import json
import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "transformers", "av", "numpy")


def host() -> dict[str, str | int]:
    """The machine: "kind" names the file of a result, the rest says more."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "kind": accelerator.lower().replace(" ", "-") if accelerator else f"cpu{cores}",
        "cores": cores,
        "architecture": platform.machine(),
        "system": platform.system(),
    }


def write(name: str, results: dict, **settings) -> Path:
    """Write `benchmarks/results/<name>-<host kind>.json`: results, settings (such as the seed), machine and versions.

    Returns:
        `Path`: the file, replaced where it was there.
    """
    machine = host()
    versions = {"python": platform.python_version(), **{library: version(library) for library in LIBRARIES}}
    content = {
        "name": name,
        "date": date.today().isoformat(),
        "host": machine,
        "versions": versions,
        "settings": settings,
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{machine['kind']}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
