"""The repository root is the package `multimood`: a folder's path on disk is its import path."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
FOLDERS = (
    "modeling_multimood",
    "processors",
    "trust",
    "datasets_scripts",
    "training",
    "training.trainers",
    "training.rewards",
    "evaluation",
    "spaces_demo",
)

EXTRAS = {
    "train": [
        "trl>=1.16",
        "peft>=0.21",
        "accelerate>=1.15",
        "datasets>=5.2",
        "tensorboard>=2.20",
        "scikit-learn>=1.7",
    ],
    "eval": ["evaluate>=0.4.6", "datasets>=5.2", "sentence-transformers>=6.2", "openai>=3.0", "diskcache>=5.6"],
    "space": ["gradio>=6.30"],
    "gpu": ["torchaudio>=2.11", "bitsandbytes>=0.48", "deepspeed>=0.19"],
    "bench": ["decord>=0.6", "opencv-python-headless>=5.0"],  # what bench_media.py compares itself with
    "dev": ["pytest>=9", "pytest-xdist>=3.8", "ruff>=0.17", "playwright>=1.60"],
}

setup(
    name="multimood",
    version="0.1.0",
    description="Multimodal emotional support that people can trust, native to the Hugging Face ecosystem",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    package_dir={"multimood": "."},
    packages=["multimood", *(f"multimood.{folder}" for folder in FOLDERS)],
    # The tiny checkpoint is the command's default model, so an installed package has it too.
    package_data={
        "multimood": [
            "assets/multimood-tiny/*",
            "assets/multimood-tiny/*/*",
            "training/recipes/*",
            "training/accelerate_configs/*",
            "trust/*.yaml",
            "trust/*.safetensors",
        ]
    },
    install_requires=[
        "torch>=2.9",
        "transformers>=5.23",
        "huggingface-hub>=2.4",
        "av>=16",
        "numpy>=2.0",
        "pillow>=11",
        "pyyaml>=6.0",
        "safetensors>=0.6",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["multimood=multimood.cli:main"]},
)
