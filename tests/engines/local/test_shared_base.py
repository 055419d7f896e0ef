"""A judge on the base of a policy that trains: what it says, and that the policy never notices."""

from __future__ import annotations

import copy
import json
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

from mrjudge_reward.cache import ReplyCache
from mrjudge_reward.engines.local.engine import TransformersEngine
from mrjudge_reward.engines.local.shared_base import SharedBaseEngine
from mrjudge_reward.errors import ConfigError, EngineError
from mrjudge_reward.judge import Judge
from mrjudge_reward.messages import as_messages
from mrjudge_reward.prompting.formats import Choice
from mrjudge_reward.types import Request, Sampling
from tests.support.trl_setup import tiny_policy

TEXTS = ["What a film!", "I have seen better films, and not only a few of them.", "It is about a dog."]
READS = [Request(as_messages(text), prefill="Sentiment:", labels=(" negative", " positive")) for text in TEXTS]
WRITES = [Request(as_messages(text), sampling=Sampling(0.9, 1.0, 8), seed=3) for text in TEXTS]
VERBS = [("label_logprobs", READS), ("generate", WRITES)]
IDS = torch.arange(1, 25).reshape(2, 12)  # (B, T)


def randomise(model: Any, seed: int) -> Any:
    """An adapter as after training: B starts at zero, and then judges as the base does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    return model


def save_adapter(base: Any, folder: Path, **config: Any) -> str:
    settings = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
    randomise(get_peft_model(base, LoraConfig(**settings)), 7).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny_path(smol_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_policy(smol_tokenizer).save_pretrained(folder)
    smol_tokenizer.save_pretrained(folder)
    return str(folder)


def load(path: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


@pytest.fixture(scope="module")
def tiny_adapter(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_adapter(load(tiny_path), tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def smol_adapter(smol_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_adapter(load(smol_path), tmp_path_factory.mktemp("adapter"), r=16)


@pytest.fixture
def policy(tiny_path: str) -> Any:
    """In the middle of training: one module in eval mode, one parameter of the adapter frozen, gradients there."""
    torch.manual_seed(1)
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
    model = randomise(get_peft_model(load(tiny_path), config), 1).train()
    model.base_model.model.model.layers[1].mlp.eval()
    next(p for name, p in model.named_parameters() if "lora_A" in name).requires_grad_(False)
    model(input_ids=IDS, labels=IDS).loss.backward()
    return model


def logits(model: Any) -> torch.Tensor:
    """What the model says as it stands, dropout included."""
    with torch.random.fork_rng([]), torch.no_grad():
        torch.default_generator.manual_seed(5)
        return model(input_ids=IDS).logits.clone()


def state(model: Any) -> dict[str, Any]:
    """Everything that a visit could leave behind, in values that compare exactly."""
    seen: dict[str, Any] = {"random": torch.get_rng_state().tolist()}
    for name, module in model.named_modules():
        seen[name, "training"] = module.training
        for attribute in ("_active_adapter", "_disable_adapters", "merged_adapters", "active_adapter"):
            if attribute in vars(module):
                seen[name, attribute] = copy.copy(vars(module)[attribute])
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        seen[name] = (parameter.requires_grad, id(parameter), None if gradient is None else gradient.tolist())
    seen["weights"] = {name: weight.clone() for name, weight in model.state_dict().items()}
    seen["known"] = list(model.peft_config)
    seen["prepare"] = "prepare_inputs_for_generation" in vars(model.base_model)
    seen["generation"] = model.generation_config.to_dict()
    seen["logits"] = logits(model)
    return seen


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    weights, others = before.pop("weights"), after.pop("weights")
    first, second = before.pop("logits"), after.pop("logits")
    assert before == after
    assert weights.keys() == others.keys()
    return torch.equal(first, second) and all(torch.equal(weights[name], others[name]) for name in weights)


# -- what the judge says ------------------------------------------------------------------------------------------------


def reads(engine: Any) -> list[tuple[float, ...]]:
    return [reply.label_logprobs for reply in engine.label_logprobs(READS)]


def close(ones: list[tuple[float, ...]], others: list[tuple[float, ...]], tolerance: float = 1e-4) -> bool:
    """Equal but for the last digits, which depend on where in memory the weights lie."""
    pairs = [pair for one, other in zip(ones, others, strict=True) for pair in zip(one, other, strict=True)]
    return max(abs(one - other) for one, other in pairs) < tolerance


def test_verdicts_equal_those_of_the_same_adapter_on_a_model_of_its_own(
    smol_path: str, smol_adapter: str, smol_engine: TransformersEngine
):
    policy = get_peft_model(load(smol_path), LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    randomise(policy, 1).train()
    own = sum(parameter.numel() for parameter in policy.parameters())
    shared = SharedBaseEngine(policy, smol_adapter)
    alone = TransformersEngine(smol_path, adapter=smol_adapter, device="cpu", dtype="float32")
    assert close(reads(shared), reads(alone))
    assert shared.generate(WRITES) == alone.generate(WRITES)
    base = SharedBaseEngine(policy)
    assert close(reads(base), reads(smol_engine))
    assert base.generate(WRITES) == smol_engine.generate(WRITES)
    assert not close(reads(shared), reads(base), 0.1), "the adapter says something of its own"

    separate = sum(parameter.numel() for parameter in alone._model.parameters())
    held = sum(len(file) // 4 for file in [(Path(smol_adapter) / "adapter_model.safetensors").read_bytes()])
    assert shared.extra_parameters == separate - sum(p.numel() for p in smol_engine._model.parameters()) == 4_884_480
    assert abs(shared.extra_parameters - held) < 50_000, "nothing but what the adapter's file holds"
    assert base.extra_parameters == 0
    assert own == sum(parameter.numel() for parameter in policy.parameters()), "parameters are counted once"
    timings = []
    for engine in (shared, alone):
        start = time.perf_counter()
        engine.label_logprobs(READS)
        timings.append(time.perf_counter() - start)
    print(
        f"policy {own:,} parameters, judge {shared.extra_parameters:,} more ({shared.extra_parameters / own:.1%}), "
        f"separately {separate:,}; {timings[0]:.2f} s shared, {timings[1]:.2f} s separate"
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 5e-2)])
def test_the_judges_adapter_may_reach_layers_that_the_policys_does_not(
    policy: Any, tiny_path: str, tiny_adapter: str, dtype: str, tolerance: float
):
    policy.base_model.model.to(getattr(torch, dtype))
    before = logits(policy)
    engine = SharedBaseEngine(policy, tiny_adapter)
    alone = TransformersEngine(tiny_path, adapter=tiny_adapter, device="cpu", dtype=dtype)
    assert close(reads(engine), reads(alone), tolerance)
    assert torch.equal(before, logits(policy))
    assert dtype in engine.identity


def test_what_else_the_policy_trains_does_not_reach_the_judge(smol_tokenizer: Any, tiny_path: str, tiny_adapter: str):
    model = get_peft_model(load(tiny_path), LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"]))
    engine, base = SharedBaseEngine(model, tiny_adapter), SharedBaseEngine(model)
    spoken = reads(engine), reads(base)
    randomise(model, 2)
    with torch.no_grad():
        model.base_model.model.model.norm.modules_to_save["default"].weight.mul_(2)
    before = state(model)
    assert (reads(engine), reads(base)) == spoken
    assert same(before, state(model))
    assert not engine.weights_may_change


def test_policies_adapters_that_are_switched_off_stay_off(policy: Any, tiny_path: str, tiny_adapter: str):
    engine = SharedBaseEngine(policy, tiny_adapter)
    spoken = reads(engine)
    with policy.disable_adapter():
        before = state(policy)
        assert reads(engine) == spoken
        assert same(before, state(policy))


def test_gradient_checkpointing_and_a_cache_that_is_off_change_no_verdict(policy: Any, tiny_adapter: str):
    engine = SharedBaseEngine(policy, tiny_adapter)
    spoken = engine.generate(WRITES), reads(engine)
    policy.enable_input_require_grads()
    policy.gradient_checkpointing_enable()
    policy.generation_config.use_cache = False
    before = state(policy)
    assert (engine.generate(WRITES), reads(engine)) == spoken
    assert same(before, state(policy))
    policy(input_ids=IDS, labels=IDS).loss.backward()


# -- what the policy notices ----------------------------------------------------------------------------------------------


class Broken:
    """A model whose second layer raises, or does not."""

    def __init__(self, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: BaseException | None = None
        self.adapters: set[tuple[str, ...]] = set()
        layer = policy.base_model.model.model.layers[1]
        projection = layer.self_attn.q_proj
        forward = layer.forward

        def watched(*args: Any, **more: Any) -> Any:
            if not projection.disable_adapters:
                self.adapters.add(tuple(projection.active_adapters))
            assert not torch.is_grad_enabled()
            assert not any(module.training for module in policy.modules())
            if self.error is not None:
                raise self.error
            return forward(*args, **more)

        self.use = lambda: monkeypatch.setattr(layer, "forward", watched)


@pytest.mark.parametrize(("verb", "requests"), VERBS)
@pytest.mark.parametrize("with_adapter", [True, False], ids=["adapter", "base"])
@pytest.mark.parametrize("error", [None, RuntimeError("broken"), KeyboardInterrupt()], ids=repr)
def test_the_policy_is_the_same_before_and_after(
    policy: Any,
    tiny_adapter: str,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    requests: list[Request],
    with_adapter: bool,
    error: BaseException | None,
):
    optimiser = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-3)
    optimiser.step()
    engine = SharedBaseEngine(policy, tiny_adapter if with_adapter else None)
    before, steps = state(policy), copy.deepcopy(optimiser.state_dict())
    broken = Broken(policy, monkeypatch)
    broken.error = error
    broken.use()
    if error is None:
        getattr(engine, verb)(requests)
    else:
        with pytest.raises(type(error)):
            getattr(engine, verb)(requests)
    monkeypatch.undo()
    assert same(before, state(policy))
    assert broken.adapters == ({("judge",)} if with_adapter else set())
    after = optimiser.state_dict()
    assert steps["param_groups"] == after["param_groups"]
    for index, moments in steps["state"].items():
        assert all(torch.equal(moments[name], after["state"][index][name]) for name in moments)


def test_making_and_closing_an_engine_leaves_the_policy_alone(policy: Any, tiny_adapter: str):
    layers = [(name, type(module)) for name, module in policy.named_modules()]
    before = state(policy)
    engine = SharedBaseEngine(policy, tiny_adapter)
    assert same(state(policy), before)
    engine.label_logprobs(READS)
    assert layers == [(name, type(module)) for name, module in policy.named_modules()]
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        engine.label_logprobs(READS)


def test_two_judges_on_one_base_do_not_interleave(policy: Any, tiny_adapter: str):
    engines = [SharedBaseEngine(policy, tiny_adapter), SharedBaseEngine(policy), SharedBaseEngine(policy, tiny_adapter)]
    expected = [reads(engine) for engine in engines]
    before = state(policy)
    spoken: dict[int, list[Any]] = {index: [] for index in range(3)}

    def judge(index: int) -> None:
        for _ in range(5):
            spoken[index].append(reads(engines[index]))

    threads = [threading.Thread(target=judge, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert spoken == {index: [expected[index]] * 5 for index in range(3)}
    assert same(before, state(policy))


# -- caches ---------------------------------------------------------------------------------------------------------------


def test_replies_may_be_kept_while_the_base_is_frozen(policy: Any, tiny_path: str, tiny_adapter: str, tmp_path: Path):
    engine = SharedBaseEngine(policy, tiny_adapter)
    assert not engine.weights_may_change
    assert tiny_path in engine.identity
    assert tiny_adapter in engine.identity
    Judge(engine, Choice(), cache=ReplyCache(tmp_path / "cache"))
    assert SharedBaseEngine(policy, tiny_adapter).identity == engine.identity
    assert SharedBaseEngine(policy).identity != engine.identity
    randomise(policy, 5)  # the policy trains
    assert SharedBaseEngine(policy, tiny_adapter).identity == engine.identity
    with torch.no_grad():
        policy.base_model.model.model.norm.weight.mul_(1.01)  # another base under the same name
    assert SharedBaseEngine(policy, tiny_adapter).identity != engine.identity


def test_with_a_base_that_trains_too_they_may_not(policy: Any, tiny_adapter: str, tmp_path: Path):
    policy.base_model.model.model.norm.weight.requires_grad_(True)
    engine = SharedBaseEngine(policy, tiny_adapter)
    assert engine.weights_may_change
    with pytest.raises(ConfigError, match="weights may change"):
        Judge(engine, Choice(), cache=ReplyCache(tmp_path / "cache"))


# -- refusals -------------------------------------------------------------------------------------------------------------


def test_models_that_cannot_be_shared_are_refused(policy: Any, tiny_path: str, tiny_adapter: str):
    with pytest.raises(EngineError, match=r"got LlamaForCausalLM.*peft_config.*unwrap_model"):
        SharedBaseEngine(load(tiny_path), tiny_adapter)
    with pytest.raises(EngineError, match=r"got DataParallel.*unwrap_model"):
        SharedBaseEngine(torch.nn.DataParallel(policy), tiny_adapter)
    virtual = get_peft_model(load(tiny_path), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(EngineError, match="virtual tokens"):
        SharedBaseEngine(virtual)


def test_a_merged_policy_is_refused_also_after_the_engine_was_made(policy: Any, tiny_adapter: str):
    engine = SharedBaseEngine(policy, tiny_adapter)
    policy.merge_adapter()
    for judging in (lambda: SharedBaseEngine(policy), lambda: engine.label_logprobs(READS)):
        with pytest.raises(EngineError, match=r"'default' is merged.*unmerge_adapter"):
            judging()
    policy.unmerge_adapter()
    engine.label_logprobs(READS)


@pytest.mark.parametrize(
    ("mark", "message"), [("ds_id", "ZeRO-3.*ZeRO-2"), ("placements", "spread over devices")]
)  # fmt: skip
def test_sharded_parameters_are_refused(policy: Any, tiny_adapter: str, mark: str, message: str):
    engine = SharedBaseEngine(policy, tiny_adapter)
    setattr(policy.base_model.model.model.norm.weight, mark, 0)
    for judging in (lambda: SharedBaseEngine(policy), lambda: engine.label_logprobs(READS)):
        with pytest.raises(EngineError, match=message):
            judging()


def test_fsdp_and_offloaded_parameters_are_refused(policy: Any):
    layer = policy.base_model.model.model.layers[0]
    layer._is_fsdp_managed_module = True
    with pytest.raises(EngineError, match=r"FSDP shards this model.*DDP"):
        SharedBaseEngine(policy)
    layer._is_fsdp_managed_module = False
    layer.mlp.to("meta")
    with pytest.raises(EngineError, match="offloaded"):
        SharedBaseEngine(policy)


def test_a_name_that_is_taken_is_refused(policy: Any, tiny_adapter: str):
    with pytest.raises(EngineError, match=r"'default' already.*another name"):
        SharedBaseEngine(policy, tiny_adapter, name="default")
    engine = SharedBaseEngine(policy, tiny_adapter)
    policy.add_adapter("judge", LoraConfig(r=2, target_modules=["q_proj"]))
    before = state(policy)
    with pytest.raises(EngineError, match="'judge' already"):
        engine.label_logprobs(READS)
    assert same(before, state(policy))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules_to_save": ["norm"]}, r"\(modules_to_save\).*TransformersEngine"),
        ({"bias": "lora_only"}, r"\(bias\)"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights=pissa"),
    ],
)
def test_adapters_that_need_another_base_are_refused(
    policy: Any, tiny_adapter: str, tmp_path: Path, settings: dict[str, Any], message: str
):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in Path(tiny_adapter).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    before = state(policy)
    with pytest.raises(EngineError, match=message):
        SharedBaseEngine(policy, str(folder))
    assert same(before, state(policy))


def test_adapters_that_cannot_be_loaded_are_named_and_leave_nothing(
    policy: Any, tiny_adapter: str, smol_adapter: str, tmp_path: Path
):
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "adapter_config.json").write_bytes((Path(tiny_adapter) / "adapter_config.json").read_bytes())
    (torn / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    layers = [name for name, _ in policy.named_modules()]
    for folder in (str(tmp_path / "none"), smol_adapter, str(torn)):
        before = state(policy)
        with pytest.raises(EngineError, match=folder):
            SharedBaseEngine(policy, folder)
        assert layers == [name for name, _ in policy.named_modules()]
        assert same(before, state(policy))


def test_an_engine_on_a_live_model_cannot_be_pickled(policy: Any):
    with pytest.raises(EngineError, match="cannot be pickled"):
        pickle.dumps(SharedBaseEngine(policy))


def test_a_policy_saved_after_judging_loads_as_if_there_had_been_no_judge(
    policy: Any, tiny_path: str, tiny_adapter: str, tmp_path: Path
):
    SharedBaseEngine(policy, tiny_adapter).label_logprobs(READS)
    policy.save_pretrained(tmp_path / "saved")
    assert not [path for path in (tmp_path / "saved").iterdir() if path.is_dir()]
    again = PeftModel.from_pretrained(load(tiny_path), tmp_path / "saved")
    policy.eval()
    assert torch.equal(logits(policy), logits(again))
