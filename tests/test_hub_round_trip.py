"""What is pushed to the Hub comes back exact, to processes with and without this package."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import hub_stub
import media_files
import pytest
import torch
import whole_builders
from safetensors.torch import load_file

REPO = f"{hub_stub.USER}/multimood-tiny"

PUSH = """
import sys
sys.path.insert(0, {tests!r})
import whole_builders
for part in whole_builders.tiny_pair():
    part.push_to_hub({repo!r})
"""

# Answers a clip with history and keeps the tensors that the test compares.
ANSWER = """
import sys
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers import AutoModelForMultimodalLM, AutoProcessor
{prepare}
torch.set_num_threads(1)
processor = AutoProcessor.from_pretrained({source!r}, trust_remote_code={remote})
conversation = [{{"role": "user", "content": [
    {{"type": "history", "history": [{{"speaker": "client", "text": "My sister is called Ruth."}}]}},
    {{"type": "video", "video": {clip!r}}},
    {{"type": "audio", "audio": {clip!r}}},
    {{"type": "text", "text": "I did not sleep."}},
]}}]
inputs = processor.apply_chat_template(
    [conversation], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
)
tensors = dict(inputs)
config = AutoConfig.from_pretrained({source!r}, trust_remote_code={remote})
assert config.model_type == "multimood"
with torch.no_grad():
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        model = auto.from_pretrained({source!r}, trust_remote_code={remote}).eval()
        outputs = model(**inputs)
        tensors[auto.__name__] = outputs.last_hidden_state if auto is AutoModel else outputs.logits
tensors["generated"] = model.generate(**inputs, max_new_tokens=8, do_sample=False)
save_file({{name: tensor.contiguous() for name, tensor in tensors.items()}}, {out!r})
"""
WITHOUT_PACKAGE = """
import importlib.util
assert importlib.util.find_spec("multimood") is None
"""


def run(script: str, *options: str, **variables: str) -> None:
    result = subprocess.run(
        [sys.executable, *options, "-c", script],
        env={**os.environ, **variables},
        cwd=Path(sysconfig.get_paths()["purelib"]).parent,  # not the checkout: its folder could pass for the package
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return media_files.write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture(scope="module")
def local(clip, tmp_path_factory):
    """Tensors of the same answer from a local folder, by this package."""
    folder = tmp_path_factory.mktemp("local")
    whole_builders.save_tiny(folder / "checkpoint")
    out = str(folder / "local.safetensors")
    run(ANSWER.format(prepare="import multimood", source=str(folder / "checkpoint"), remote=False, clip=clip, out=out))
    return load_file(out)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with the model and its processor pushed."""
    with hub_stub.running_hub() as endpoint:
        variables = hub_stub.client_environment(endpoint, tmp_path_factory.mktemp("pusher"))
        run(PUSH.format(tests=str(Path(__file__).parent), repo=REPO), **variables)
        yield endpoint


@pytest.mark.parametrize("installed", [True, False], ids=["with the package", "as remote code"])
def test_push_and_pull_are_exact(hub, local, clip, tmp_path, installed):
    out = str(tmp_path / "pulled.safetensors")
    variables = hub_stub.client_environment(hub, tmp_path / "home")
    if installed:
        script = ANSWER.format(prepare="import multimood", source=REPO, remote=False, clip=clip, out=out)
        run(script, **variables)
    else:
        # Without the `site` module there are no editable installs, and libraries are found by PYTHONPATH alone.
        script = ANSWER.format(prepare=WITHOUT_PACKAGE, source=REPO, remote=True, clip=clip, out=out)
        run(script, "-S", **variables, PYTHONPATH=sysconfig.get_paths()["purelib"])
    pulled = load_file(out)
    assert pulled.keys() == local.keys()
    assert {"pixel_values_videos", "input_features", "history_input_ids", "AutoModel", "generated"} <= pulled.keys()
    for name, tensor in pulled.items():
        assert torch.equal(tensor, local[name]), name
