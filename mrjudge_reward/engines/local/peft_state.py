"""What a PEFT model is while it trains: read it, check it, put it back, and let a second adapter visit.

``PeftModel.set_adapter`` and ``disable_adapter_layers`` (peft ``tuners/tuners_utils.py``) also turn ``requires_grad`` of
every adapter on or off. ``kept`` puts all of it back, so that a visit leaves no trace.

An adapter that stays on the model leaves one: ``PeftModel.save_pretrained`` writes it into a folder of its own inside
each checkpoint, and a trainer that finds such a folder resumes from it and not from the policy's own weights
(transformers ``trainer.py``, ``_load_from_checkpoint``). A ``Visitor`` is therefore on the model only while it judges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

from mrjudge_reward.errors import EngineError, require

_ABSENT: Any = object()

_INITS = ("gaussian", "orthogonal", "eva")
"""Named initialisations of LoRA that leave the base's weights alone; others, as PiSSA, subtract the adapter from them."""


def _adapter_layers(model: Any) -> list[Any]:
    tuners = require("peft.tuners.tuners_utils", extra="peft")
    wrappers = require("peft.utils.other", extra="peft")
    kinds = (tuners.BaseTunerLayer, wrappers.AuxiliaryTrainingWrapper)
    return [module for module in model.modules() if isinstance(module, kinds)]


def _containers(layer: Any, names: tuple[str, ...]) -> Iterator[Any]:
    for name in names:
        try:
            container = attrgetter(name)(layer)  # some names are dotted
        except AttributeError:
            continue
        if hasattr(container, "keys"):
            yield container


def check_usable(model: Any) -> None:
    """Refuse a model on which a second adapter cannot judge. Whether a backward pass is under way cannot be seen.

    Raises:
        EngineError: if it is no PEFT model, holds virtual tokens instead of layers, is merged, sharded or offloaded.
    """
    peft = require("peft", extra="peft")
    if not isinstance(model, peft.PeftModel):
        raise EngineError(
            f"the judge shares the base of a PEFT model; got {type(model).__name__}. Train with peft_config=..., and "
            "pass the model unwrapped: trainer.accelerator.unwrap_model(trainer.model)"
        )
    if any(config.is_prompt_learning or config.is_adaption_prompt for config in model.peft_config.values()):
        raise EngineError("an adapter of virtual tokens (prompt learning) cannot share its base; train a LoRA")
    for layer in _adapter_layers(model):
        if layer.merged_adapters:
            raise EngineError(
                f"the adapter {layer.merged_adapters[0]!r} is merged into the base, so there is no base to judge with; "
                "call model.unmerge_adapter() first"
            )
    instead = "judge with an engine of its own (TransformersEngine, or a server)"
    for module in model.modules():
        if getattr(module, "_is_fsdp_managed_module", False) or type(module).__name__.startswith(("FSDP", "FullyShar")):
            raise EngineError(f"FSDP shards this model, so one rank alone cannot run it: {instead}, or train with DDP")
    for parameter in model.parameters():
        if hasattr(parameter, "ds_id"):
            raise EngineError(f"DeepSpeed ZeRO-3 shards this model: {instead}, or train with ZeRO-2")
        if hasattr(parameter, "placements"):  # a DTensor
            raise EngineError(f"this model's parameters are spread over devices (DTensor): {instead}")
        if parameter.is_meta:
            raise EngineError(f"parts of this model are offloaded (meta device): {instead}")


def own_parameters(model: Any, adapter: str | None) -> list[Any]:
    """Parameters that take part when ``adapter`` (None: no adapter) is active: all but those of other adapters."""
    others = {
        id(parameter)
        for layer in _adapter_layers(model)
        for container in _containers(layer, layer.adapter_layer_names)
        for key, entry in container.items()
        if key != adapter
        for parameter in (entry.parameters() if hasattr(entry, "parameters") else [entry])
    }
    return [parameter for parameter in model.parameters() if id(parameter) not in others]


def _finish(restore: Callable[[], None]) -> None:
    try:
        restore()
    except BaseException:  # interrupted a second time: finish first
        restore()
        raise


@contextmanager
def kept(model: Any) -> Iterator[None]:
    """Whatever happens inside, also an interrupt: which adapters are active, disabled or known, and what has gradients."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    watched = [(layer, name) for layer in _adapter_layers(model) for name in ("_active_adapter", "_disable_adapters")]
    watched += [(model, "active_adapter"), (model, "_adapters_disabled"), (model.base_model, "active_adapter")]
    # PeftModel.generate patches it, and after an interrupt leaves it patched.
    watched += [(model.base_model, "prepare_inputs_for_generation"), (model.generation_config, "use_cache")]
    values = [(owner, name, vars(owner).get(name, _ABSENT)) for owner, name in watched]
    configs = dict(model.peft_config)

    def restore() -> None:
        for owner, name, value in values:
            if value is _ABSENT:
                vars(owner).pop(name, None)
            else:
                vars(owner)[name] = value
        for parameter, flag in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
        for name in model.peft_config.keys() - configs.keys():
            del model.peft_config[name]

    try:
        yield
    finally:
        _finish(restore)


class Visitor:
    """A LoRA adapter that is on a live PEFT model only inside ``present()``.

    Args:
        model: a PEFT model; it comes out as it went in, its random state included.
        folder: of the adapter.
        name: under which the adapter visits.

    Attributes:
        parameters: how many numbers it holds.

    Raises:
        EngineError: if the name is taken, or the adapter cannot be loaded, is no LoRA, brings more than LoRA weights, or
            does not fit the model.
    """

    def __init__(self, model: Any, folder: str, name: str) -> None:
        self.model, self.name = model, name
        self._check_free()
        self._check_config(folder)
        modes = [(module, module.training) for module in model.modules()]
        self._entries: list[tuple[Any, Any]] = []  # what stands in a layer's containers under the adapter's name
        self._layers: list[tuple[Any, str, Any, Any]] = []  # parent, attribute, its layer with and without the adapter
        try:
            with kept(model):
                self._load(folder, {id(module) for module, _ in modes})
        except EngineError:
            raise
        except Exception as error:  # whatever PEFT and safetensors raise
            raise EngineError(f"the adapter {folder!r} cannot be loaded: {error}") from error
        finally:
            for module, training in modes:  # load_adapter calls eval()
                module.training = training
        self.parameters = sum(weight.numel() for weight in self._weights())

    def _load(self, folder: str, known: set[int]) -> None:
        torch = require("torch", extra="transformers")
        device = torch.device(self.model.device)
        try:
            # New LoRA weights are drawn before they are read.
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                loaded = self.model.load_adapter(folder, self.name, is_trainable=False, torch_device=str(device))
            lost = [*loaded.missing_keys, *loaded.unexpected_keys]
            if lost:
                raise EngineError(f"the adapter {folder!r} does not fit this model: {len(lost)} keys, e.g. {lost[0]}")
            self._config = self.model.peft_config[self.name]
        finally:
            self._take_off(known)

    def _check_free(self) -> None:
        if self.name in self.model.peft_config:
            raise EngineError(
                f"the model has an adapter {self.name!r} already (it has {', '.join(self.model.peft_config)}); give the "
                "judge's another name"
            )

    def _check_config(self, folder: str) -> None:
        peft = require("peft", extra="peft")
        try:
            config = peft.PeftConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise EngineError(f"the adapter {folder!r} cannot be loaded: {error}") from error
        if config.peft_type != peft.PeftType.LORA or self.model.peft_type != peft.PeftType.LORA:
            raise EngineError(
                f"the judge's adapter is {config.peft_type} and the policy's {self.model.peft_type}; both must be LORA"
            )
        more = [field for field in ("modules_to_save", "trainable_token_indices") if getattr(config, field, None)]
        more += ["bias"] if config.bias != "none" else []
        if isinstance(config.init_lora_weights, str) and config.init_lora_weights not in _INITS:
            more.append(f"init_lora_weights={config.init_lora_weights}")
        if more:
            raise EngineError(
                f"the adapter {folder!r} changes or copies parts of the base ({', '.join(more)}), which the policy needs "
                "as they are; judge with TransformersEngine(model, adapter=...), or train the adapter without"
            )

    def _weights(self) -> list[Any]:
        entries = [entry for _, entry in self._entries if hasattr(entry, "requires_grad_")]
        return [w for entry in entries for w in (entry.parameters() if hasattr(entry, "parameters") else [entry])]

    def _take_off(self, known: set[int]) -> None:
        for layer in _adapter_layers(self.model):
            for container in _containers(layer, (*layer.adapter_layer_names, *layer.other_param_names)):
                if self.name in container:
                    self._entries.append((container, container[self.name]))
                    del container[self.name]
        for parent in [module for module in self.model.modules() if id(module) in known]:
            for attribute, layer in list(parent.named_children()):
                if id(layer) not in known and hasattr(layer, "base_layer"):  # one that the policy does not adapt
                    plain = layer
                    while id(plain) not in known:
                        plain = plain.base_layer
                    self._layers.append((parent, attribute, layer.eval(), plain))
                    setattr(parent, attribute, plain)

    @contextmanager
    def present(self) -> Iterator[None]:
        """The adapter is on the model, frozen, and the only active one. To be used inside ``kept``.

        Raises:
            EngineError: if another adapter has taken its name since.
        """
        self._check_free()
        try:
            for weight in self._weights():
                if weight.device != self.model.device:  # the model has moved since
                    weight.data = weight.data.to(self.model.device)
            for parent, attribute, layer, _ in self._layers:
                setattr(parent, attribute, layer)
            for container, entry in self._entries:
                container[self.name] = entry
            self.model.peft_config[self.name] = self._config
            self.model.set_adapter(self.name)
            if any(layer.disable_adapters for layer in _adapter_layers(self.model)):
                self.model.base_model.enable_adapter_layers()
            for weight in self._weights():
                weight.requires_grad_(False)
            yield
        finally:
            _finish(self._leave)

    def _leave(self) -> None:
        for container, _ in self._entries:
            if self.name in container:
                del container[self.name]
        for parent, attribute, _, plain in self._layers:
            setattr(parent, attribute, plain)
        self.model.peft_config.pop(self.name, None)
