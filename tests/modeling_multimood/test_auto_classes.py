"""The AutoClasses, both ways: by the installed package, and by the code that lies beside the weights."""

import json
import os
import subprocess
import sys

import pytest
import torch
from model_builders import MIXED_ROWS, tiny_batch, tiny_model
from processor_builders import tiny_processor
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
)

import multimood

GENERATIVE = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)


@pytest.fixture(scope="module")
def model():
    return tiny_model(audio="beats")  # a tower that transformers does not know by itself


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A checkpoint, and inputs with the logits that the model gives for them."""
    path = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(path)
    batch = tiny_batch(model, MIXED_ROWS)
    with torch.no_grad():
        save_file({**batch, "logits": model(**batch).logits}, path / "expected.safetensors")
    return path


def run(script: str, **environment: str) -> str:
    """The output of a fresh Python, without the network."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", **environment}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd="/")
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_installed_package_is_found_by_every_auto_class(folder):
    assert type(AutoConfig.from_pretrained(folder)) is multimood.MultiMoodConfig
    assert type(AutoModel.from_pretrained(folder)) is multimood.MultiMoodModel
    for auto_class in GENERATIVE:
        assert type(auto_class.from_pretrained(folder)) is multimood.MultiMoodForConditionalGeneration


def test_the_installed_package_goes_before_the_code_beside_the_weights(folder, tmp_path):
    """Code of a folder must not run where the package is there, even if the caller would allow it."""
    for file in folder.iterdir():
        text = "raise RuntimeError('remote code ran')" if file.suffix == ".py" else None
        (tmp_path / file.name).write_bytes(text.encode() if text else file.read_bytes())
    for auto_class in (AutoConfig, AutoModel, *GENERATIVE):
        assert type(auto_class.from_pretrained(tmp_path, trust_remote_code=True)).__module__.startswith("multimood.")


def test_auto_model_takes_the_trunk_of_the_whole_model(folder, model):
    trunk = AutoModel.from_pretrained(folder)
    state = trunk.state_dict()
    assert state.keys() == model.model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.model.state_dict().items())


def test_import_is_light_and_registers_whatever_comes_first(folder):
    """A package that imported torch at once would make `multimood --help` slow."""
    script = f"""
import sys
import multimood
heavy = [name for name in ("torch", "transformers", "numpy", "av") if name in sys.modules]
from transformers import GenerationMixin, AutoModelForCausalLM, AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
model = AutoModelForCausalLM.from_pretrained({str(folder)!r})
print(heavy, type(model).__module__, PROCESSOR_MAPPING[type(model.config)].__name__)
print([type(finder).__name__ for finder in sys.meta_path if type(finder).__module__ == "multimood"])
"""
    assert run(script).splitlines() == ["[] multimood.modeling_multimood.modeling_multimood MultiMoodProcessor", "[]"]


@pytest.mark.parametrize(
    "first",
    [
        "import transformers.models.auto.modeling_auto, transformers.models.auto.processing_auto, multimood",
        "import multimood.modeling_multimood.conversation_memory",
    ],
)
def test_registration_does_not_depend_on_what_is_imported_first(first, folder):
    script = f"""
{first}
from transformers import AutoModel, AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
model = AutoModel.from_pretrained({str(folder)!r})
print(type(model).__name__, type(model.config) in PROCESSOR_MAPPING)
"""
    assert run(script).split() == ["MultiMoodModel", "True"]


def test_the_root_under_another_name_registers_nothing():
    """pytest runs a checkout's `__init__.py` as a package of the folder's name; its classes would be other classes."""
    script = """
import importlib.util, sys
import multimood
finders = list(sys.meta_path)
spec = importlib.util.spec_from_file_location("checkout", multimood.__file__)
sys.modules["checkout"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["checkout"])
same = sys.meta_path == finders
import transformers.models.auto.modeling_auto
print(same, [name for name in sys.modules if name.startswith("checkout.")])
"""
    assert run(script).split() == ["True", "[]"]


def test_every_export_is_there():
    assert set(multimood.__all__) <= set(dir(multimood))
    for name in multimood.__all__:
        assert getattr(multimood, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        _ = multimood.Nonsense


WITHOUT_PACKAGE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "multimood":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize("remote", [False, True])
def test_a_saved_processor_is_found_with_and_without_the_package(tmp_path, remote):
    """Of BEATs: transformers knows its feature extractor as little as the processor."""
    processor = tiny_processor(audio="beats")
    processor.save_pretrained(tmp_path / "processor")
    sound = torch.linspace(-0.5, 0.5, 8000)
    expected = processor(text="<|audio|>", audio=[sound], return_tensors="pt")
    save_file(dict(expected), tmp_path / "expected.safetensors")
    script = f"""
{WITHOUT_PACKAGE if remote else "import multimood"}
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

processor = AutoProcessor.from_pretrained({str(tmp_path / "processor")!r}, trust_remote_code={remote})
processor.save_pretrained({str(tmp_path / "copy")!r})
again = AutoProcessor.from_pretrained({str(tmp_path / "copy")!r}, trust_remote_code={remote})
expected = load_file({str(tmp_path / "expected.safetensors")!r})
for each in (processor, again):
    batch = each(text="<|audio|>", audio=[torch.linspace(-0.5, 0.5, 8000)], return_tensors="pt")
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())
    print(type(each).__name__, type(each).__module__.startswith("multimood."))
"""
    output = run(script, HF_HOME=str(tmp_path / "home"), HF_MODULES_CACHE=str(tmp_path / "modules"))
    assert output.split() == ["MultiMoodProcessor", str(not remote)] * 2


def test_the_code_beside_the_weights_works_without_the_package(folder, tmp_path):
    script = f"""
{WITHOUT_PACKAGE}
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM
)

folder, copy = {str(folder)!r}, {str(tmp_path / "copy")!r}
batch = load_file(folder + "/expected.safetensors")
expected = batch.pop("logits")
names = [type(a.from_pretrained(folder, trust_remote_code=True)).__name__ for a in (AutoConfig, AutoModel)]
for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    names.append(type(model).__name__)
with torch.no_grad():
    torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-5)
model.save_pretrained(copy)  # the code travels on
again = AutoModelForCausalLM.from_pretrained(copy, trust_remote_code=True)
with torch.no_grad():
    torch.testing.assert_close(again(**batch).logits, expected, atol=1e-5, rtol=1e-5)
memory = model.new_memory()
memory.append(batch["history_input_ids"][:1, :3])
print(*names, any(name.split(".")[0] == "multimood" for name in sys.modules))
"""
    output = run(script, HF_HOME=str(tmp_path / "home"), HF_MODULES_CACHE=str(tmp_path / "modules"))
    generative = "MultiMoodForConditionalGeneration"
    assert output.split() == ["MultiMoodConfig", "MultiMoodModel", generative, generative, generative, "False"]


def test_the_map_of_auto_classes_always_means_the_code_that_was_saved(folder, model, tmp_path):
    saved = json.loads((folder / "config.json").read_text())["auto_map"]
    for reference in saved.values():
        module, name = reference.split(".")
        if module != "processing_multimood":  # saved by the processor
            assert name in (folder / f"{module}.py").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    loaded.config.auto_map = {"AutoConfig": "someone/else--configuration.Config"}  # as the Hub's cache marks them
    loaded.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == saved
