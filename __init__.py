"""MultiMood: multimodal emotional support that people can trust, native to the Hugging Face ecosystem.

`import multimood` is cheap: nothing heavy is imported before it is used, so that the command line answers at once. It
still makes transformers' AutoClasses know the model, whichever is imported first: see `_AutoClassRegistration`.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder

__version__ = "0.1.0"

_EXPORTS = {
    "MultiMoodConfig": "modeling_multimood.configuration_multimood",
    "MultiMoodForConditionalGeneration": "modeling_multimood.modeling_multimood",
    "MultiMoodModel": "modeling_multimood.multimood_model",
    "MultiMoodProcessor": "processors.processing_multimood",
    "SupportSession": "session",
    "SupportTurn": "processors.turn",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


def _register_config() -> None:
    from transformers import AutoConfig

    from .modeling_multimood.configuration_multimood import MultiMoodConfig

    AutoConfig.register("multimood", MultiMoodConfig, exist_ok=True)


def _register_models() -> None:
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    from .modeling_multimood.modeling_multimood import MultiMoodForConditionalGeneration
    from .modeling_multimood.multimood_model import MultiMoodConfig, MultiMoodModel

    AutoModel.register(MultiMoodConfig, MultiMoodModel, exist_ok=True)
    for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        auto_class.register(MultiMoodConfig, MultiMoodForConditionalGeneration, exist_ok=True)


def _register_processor() -> None:
    from transformers import AutoProcessor

    from .modeling_multimood.configuration_multimood import MultiMoodConfig
    from .processors.processing_multimood import MultiMoodProcessor

    AutoProcessor.register(MultiMoodConfig, MultiMoodProcessor, exist_ok=True)


# What to do once a module of transformers has been imported.
_REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.processing_auto": _register_processor,
}


class _AutoClassRegistration(MetaPathFinder):
    """
    Registers MultiMood with an AutoClass when transformers' module of it has been imported, not before: importing it
    here would cost seconds that `multimood --help` has no use for.

    It stands in `sys.meta_path`, leaves finding and running modules to Python's own finders and loaders, and only counts
    how many of transformers' and ours are running just now. It acts when there is none, since registering imports from
    both, and a module that is still running may lack what is imported from it. Then it is done and takes itself away.
    """

    def __init__(self):
        self.running = 0
        self._pending = dict(_REGISTRATIONS)

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if not fullname.startswith(("transformers.", f"{__name__}.")):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _CountedLoader(spec.loader, self)
        return spec

    def register(self) -> None:
        """Registers what can be and is not yet."""
        for name in [name for name in self._pending if name in sys.modules]:
            if (register := self._pending.pop(name, None)) is not None:  # an inner call may have done it
                register()
        if not self._pending and self in sys.meta_path:
            sys.meta_path.remove(self)


class _CountedLoader(Loader):
    """A module's own loader, and a word to the registration when it begins and when it ends."""

    def __init__(self, loader: Loader, registration: _AutoClassRegistration):
        self._loader = loader
        self._registration = registration

    def __getattr__(self, name: str):
        return getattr(self._loader, name)  # e.g. `get_code`, which `python -m` runs

    def create_module(self, spec: ModuleSpec):
        return self._loader.create_module(spec)

    def exec_module(self, module) -> None:
        module.__spec__.loader = module.__loader__ = self._loader  # for who looks for its source or data
        self._registration.running += 1
        try:
            self._loader.exec_module(module)
        finally:
            self._registration.running -= 1
        if not self._registration.running:
            self._registration.register()


if __name__ == "multimood":  # pytest imports the repository's root a second time, by the folder's name
    _registration = _AutoClassRegistration()
    sys.meta_path.insert(0, _registration)
    _registration.register()
