"""What a training config takes on GPUs: memory of each and time of a step, with the formulas. Calculated, not measured.

    python -m recipes.judge.cost recipes/judge/rl_7b.yaml --gpus 8 --gpu-memory 80
    python -m recipes.judge.cost recipes/judge/sft_7b.yaml --zero 3 --set lora=null        # all weights, under ZeRO-3

The model is built on torch's meta device from its config, so parameters are counted, not looked up; LoRA's are counted by
PEFT. A model or adapter of an earlier stage is taken from the config in the same folder that writes it.

Sources of the formulas: weights, gradients and optimiser are those of DeepSpeed's ``estimate_zero2_model_states_mem_needs``
and its like for ZeRO-3. Activations under checkpointing keep the input of each layer, and one layer's own while it is
recomputed (arXiv 2205.05198, section 5). A forward pass takes 2 FLOPs for each parameter and token (arXiv 2001.08361,
section 2.1) and attention's, a backward pass twice that, half of it for the weights, which LoRA leaves out. Decoding is
bound by reading weights and cache from memory.

Left out: a vision tower's activations (its weights count as if every token passed them), fragmentation, communication, and
that the longest reply of a batch is waited for.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrjudge_reward.engines.embedded import embedded_adapter_path, embedded_model_path
from mrjudge_reward.engines.engine_config import EMBEDDED
from mrjudge_reward.engines.memory import WORKING_BYTES, built_empty, cache_numbers
from mrjudge_reward.errors import ConfigError, MRJudgeError
from recipes.common.config import read_config

GB = 1e9
MAX_LENGTH = 1024
"""Tokens of an example of SFT where a config names none; TRL's."""


@dataclass(frozen=True)
class Machine:
    """GPUs and how well they are used.

    Attributes:
        gpus: how many.
        memory: bytes of each.
        flops: of each in bfloat16, dense, a second; 989e12 is an H100's.
        bandwidth: bytes of its memory a second.
        utilisation: share of the FLOPs that training reaches.
        bandwidth_utilisation: share of the bandwidth that decoding reaches.
        zero: stage of DeepSpeed's ZeRO; 0 for DDP.
    """

    gpus: int = 8
    memory: float = 80 * GB
    flops: float = 989e12
    bandwidth: float = 3.35e12
    utilisation: float = 0.4
    bandwidth_utilisation: float = 0.6
    zero: int = 0


@dataclass(frozen=True)
class Sizes:
    """A model's numbers.

    Attributes:
        parameters, trained, embedding, largest: how many there are, are trained, only embed, and stand in the largest layer.
        layers, hidden, inner: of the text model: its layers, their width, and that of their feed-forward part.
        cache: bytes that a token leaves in the cache.
    """

    parameters: int
    trained: int
    embedding: int
    largest: int
    layers: int
    hidden: int
    inner: int
    cache: int


@dataclass(frozen=True)
class Line:
    """A quantity, how it is made, and its value, in bytes or seconds."""

    what: str
    formula: str
    value: float


# -- what is trained ----------------------------------------------------------------------------------------------------


def values_of(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A config, with model and LoRA of the stage that it goes on from.

    Raises:
        ConfigError: if it is no config of training, or goes on from an adapter that is not there and that no config beside
            it writes.
    """
    values = {"model": EMBEDDED, **read_config(str(path), overrides)}
    for other in sorted(path.parent.glob("*.yaml")):
        earlier = read_config(str(other)) if other != path else {}
        out = earlier.get("training", {}).get("output_dir", "")
        if out and out == values.get("adapter"):
            values = {**values, "adapter": None, "lora": earlier.get("lora")}
        if out and out == values.get("model"):
            values = {**values, "model": earlier.get("model")}
    if not isinstance(values.get("training"), Mapping):
        raise ConfigError(f"{path} holds no training")
    if values.get("adapter") is not None:
        from peft import PeftConfig

        folder = str(embedded_adapter_path()) if values["adapter"] == EMBEDDED else values["adapter"]
        try:
            values["lora"] = lora = PeftConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise ConfigError(f"no adapter at {values['adapter']}, and no config beside {path} writes it") from error
        lora.inference_mode, lora.base_model_name_or_path = False, None  # trained on, whatever the model is called here
    return values


def sizes_of(model: str, lora: Any = None) -> Sizes:
    """Count a model and what of it is trained, without its weights.

    Args:
        model: hub name or path; its config is all that is read.
        lora: fields of PEFT's ``LoraConfig``, or one; None where all weights are trained.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(embedded_model_path()) if model == EMBEDDED else model)
    text = config.get_text_config()
    with torch.device("meta"):
        empty = built_empty(config)
        parameters = sum(parameter.numel() for parameter in empty.parameters())
        embedding = empty.get_input_embeddings().weight
        tied = empty.get_output_embeddings() is not None and empty.get_output_embeddings().weight is embedding
        largest = max(
            sum(parameter.numel() for parameter in module.parameters(recurse=False)) for module in empty.modules()
        )
        trained = parameters
        if lora is not None:
            adapter = LoraConfig(task_type="CAUSAL_LM", **lora) if isinstance(lora, Mapping) else lora
            trained, _ = get_peft_model(empty, adapter).get_nb_trainable_parameters()
    return Sizes(
        parameters, trained, 0 if tied else embedding.numel(), largest, text.num_hidden_layers, text.hidden_size,
        text.intermediate_size, 2 * cache_numbers(text),
    )  # fmt: skip


def check_counted(training: Mapping[str, Any]) -> None:
    """Raise ConfigError for a setting that changes what training takes, and is not counted."""
    counted = {"vllm_mode": "colocate", "vllm_tensor_parallel_size": 1, "num_iterations": 1, "fp16": False}
    settings = {name: training.get(name) for name in counted}
    for name in ("dtype", "torch_dtype"):
        settings[f"model_init_kwargs.{name}"] = (training.get("model_init_kwargs") or {}).get(name)
    if training.get("max_length", MAX_LENGTH) is None:
        raise ConfigError("training.max_length: null is no bound that could be counted with; name a number")
    for name, value in settings.items():
        only = counted.get(name, "bfloat16")
        if value is not None and value != only:
            raise ConfigError(f"training.{name}: what {only} takes can be calculated, and nothing else; got {value}")


# -- memory -------------------------------------------------------------------------------------------------------------


def model_states(sizes: Sizes, machine: Machine) -> list[Line]:
    """Weights, gradients and optimiser on each GPU, weights in bfloat16 and Adam in float32, as DeepSpeed estimates them."""
    p, t, n = sizes.parameters, sizes.trained, machine.gpus
    if machine.zero == 3:
        return [
            Line("weights", "2 P / N", 2 * p / n),
            Line("gradients", "4 T / N", 4 * t / n),
            Line("optimiser and master weights", "12 T / N", 12 * t / n),
            Line("the layer that is gathered", "4 L", 4 * sizes.largest),
        ]
    if machine.zero == 2:
        return [
            Line("weights", "2 P", 2 * p),
            Line("gradients", "6 T / N", 6 * t / n),
            Line("optimiser and master weights", "12 T / N", 12 * t / n),
        ]
    if t < p:  # PEFT keeps adapters in float32
        return [
            Line("weights", "2 P + 4 T", 2 * p + 4 * t),
            Line("gradients", "4 T", 4 * t),
            Line("optimiser", "8 T", 8 * t),
        ]
    return [  # all of it in the precision of the weights
        Line("weights", "2 P", 2 * p),
        Line("gradients", "2 T", 2 * t),
        Line("optimiser", "4 T", 4 * t),
    ]


def layer_bytes(sizes: Sizes) -> int:
    """Bytes that a layer keeps of each token for its backward pass, in bfloat16: some eleven numbers of its width (inputs,
    norms in float32, queries, keys, values, what attention gives), and gate, its activation, up and their product."""
    return 2 * (11 * sizes.hidden + 4 * sizes.inner)


def activations(sizes: Sizes, tokens: int, checkpointing: bool) -> list[Line]:
    """What a micro-batch keeps for its backward pass."""
    one = layer_bytes(sizes)
    if not checkpointing:
        return [Line("activations", "A layers s", one * sizes.layers * tokens)]
    return [
        Line("activations: inputs of layers", "2 h layers s", 2 * sizes.hidden * sizes.layers * tokens),
        Line("activations: the layer that is recomputed", "A s", one * tokens),
    ]


def memory(
    values: Mapping[str, Any], sizes: Sizes, machine: Machine, prompt_tokens: int
) -> tuple[list[Line], list[Line]]:
    """Memory of each GPU while it learns, and while it samples (nothing for SFT)."""
    training = values["training"]
    if "max_completion_length" in training:
        longest = int(training.get("vllm_max_model_length") or prompt_tokens + training["max_completion_length"])
    else:
        longest = int(training.get("max_length", MAX_LENGTH))
    tokens = int(training.get("per_device_train_batch_size", 8)) * longest
    resident = model_states(sizes, machine)
    if training.get("beta") and sizes.trained == sizes.parameters:
        shared = machine.gpus if machine.zero == 3 else 1
        resident.append(
            Line("reference model of the KL", "2 P / N" if shared > 1 else "2 P", 2 * sizes.parameters / shared)
        )
    working = Line("CUDA, allocator", "1 GiB", WORKING_BYTES)
    learning = [*resident, *activations(sizes, tokens, training.get("gradient_checkpointing", True)), working]
    if not training.get("use_vllm"):
        return learning, []
    share = float(training.get("vllm_gpu_memory_utilization", 0.3)) * machine.memory
    weights = 2 * sizes.parameters
    sampling = [
        *resident,
        Line("vLLM: weights", "2 P", weights),
        Line("vLLM: working", "1 GiB", WORKING_BYTES),
        Line("vLLM: cache", "u M - the two above", share - weights - WORKING_BYTES),
        working,
    ]
    if not training.get("vllm_enable_sleep_mode"):
        learning.append(Line("vLLM, awake", "u M", share))
    return learning, sampling


# -- time ---------------------------------------------------------------------------------------------------------------


def forward_flops(sizes: Sizes, tokens: int) -> float:
    """FLOPs of a token's forward pass in a sequence of so many tokens; half of them stand before it on average."""
    return 2 * (sizes.parameters - sizes.embedding) + 2 * sizes.layers * sizes.hidden * tokens


def times(
    values: Mapping[str, Any], sizes: Sizes, machine: Machine, prompt_tokens: int, reply_tokens: int, cache_bytes: float
) -> list[Line]:
    """Seconds of an optimiser step."""
    training = values["training"]
    rows = int(training.get("per_device_train_batch_size", 8)) * int(training.get("gradient_accumulation_steps", 1))
    length = prompt_tokens + reply_tokens
    speed = machine.flops * machine.utilisation
    one = rows * length * forward_flops(sizes, length) / speed
    again = 1 if training.get("gradient_checkpointing", True) else 0
    backward = 2 if sizes.trained == sizes.parameters else 1
    found = [Line("forward, recomputed, backward", f"{1 + again + backward} n F", (1 + again + backward) * one)]
    if "max_completion_length" not in training:
        return found
    found.append(Line("forward for the old policy", "n F", one))
    if training.get("beta"):
        found.append(Line("forward for the KL", "n F", one))
    if training.get("use_vllm"):
        steps = int(training.get("steps_per_generation") or training.get("gradient_accumulation_steps", 1))
        sampled = steps * int(training.get("per_device_train_batch_size", 8))
        waves = -(-sampled // max(1, int(cache_bytes / (sizes.cache * length))))
        bytes_read = waves * 2 * sizes.parameters + sampled * sizes.cache * (prompt_tokens + reply_tokens / 2)
        decoding = reply_tokens * bytes_read / (machine.bandwidth * machine.bandwidth_utilisation) * rows / sampled
        formula = (
            f"r (2 P w + b C (p + r / 2)) / B, w = {waves} waves of b = {sampled} replies, {sampled / rows:g} steps"
        )
        found.append(Line("decoding", formula, decoding))
    return found


# -- the table ----------------------------------------------------------------------------------------------------------


def table(title: str, lines: Sequence[Line], unit: float, name: str) -> str:
    """Lines and their sum."""
    head = [f"| {title} | formula | {name} |", "|---|---|---|"]
    body = [f"| {line.what} | {line.formula} | {line.value / unit:.1f} |" for line in lines]
    return "\n".join([*head, *body, f"| **together** | | **{sum(line.value for line in lines) / unit:.1f}** |"])


def report(values: Mapping[str, Any], machine: Machine, prompt_tokens: int, reply_tokens: int | None) -> str:
    """All of it as Markdown.

    Raises:
        ConfigError: for a setting that changes what it takes, and is not counted.
    """
    training = values["training"]
    check_counted(training)
    sizes = sizes_of(values["model"], values.get("lora"))
    cap = training.get("max_completion_length", training.get("max_length", MAX_LENGTH))
    replies = cap // 4 if reply_tokens is None else reply_tokens
    learning, sampling = memory(values, sizes, machine, prompt_tokens)
    cache = next((line.value for line in sampling if line.what == "vLLM: cache"), 0.0)
    peak = max(sum(line.value for line in lines) for lines in (learning, sampling))
    spent = times(values, sizes, machine, prompt_tokens, replies, cache)
    seconds, steps = sum(line.value for line in spent), training.get("max_steps")
    zero = f"ZeRO-{machine.zero}" if machine.zero else "DDP"
    said = [
        f"Calculated, not measured: {values['model']}, {machine.gpus} GPUs of {machine.memory / GB:.0f} GB, {zero}.",
        f"P = {sizes.parameters:,} parameters, T = {sizes.trained:,} of them trained, L = {sizes.largest:,} in the "
        f"largest layer, N = {machine.gpus}, h = {sizes.hidden}, {sizes.layers} layers, A = {layer_bytes(sizes):,} bytes a "
        f"layer and token, C = {sizes.cache:,} bytes of cache a token, s = tokens of a micro-batch at its longest.",
        table("while it learns, of each GPU", learning, GB, "GB"),
    ]
    if sampling:
        said.append(table("while it samples, of each GPU", sampling, GB, "GB"))
        if cache > 0:
            said.append(f"The cache holds {int(cache / sizes.cache):,} tokens.")
    elif "max_completion_length" in training:
        said.append("Sampling is not counted, neither its memory nor its time: it is without vLLM.")
    fits = peak <= machine.memory and (not sampling or cache > 0)
    said.append(f"At most {peak / GB:.1f} of {machine.memory / GB:.0f} GB: it {'fits' if fits else 'does NOT fit'}.")
    said.append(table("an optimiser step", spent, 1.0, "s"))
    said.append(
        f"n = tokens of a step on a GPU, p = {prompt_tokens} of a prompt and r = {replies} of a reply on average; "
        f"F = 2 (P - embedding) + 2 h layers (p + r) FLOPs, at {machine.utilisation:.0%} of {machine.flops / 1e12:.0f} "
        f"TFLOPs; B = {machine.bandwidth_utilisation:.0%} of {machine.bandwidth / 1e12:.2f} TB/s."
    )
    if steps and steps > 0:
        said.append(f"{steps} steps: {steps * seconds / 3600:.1f} hours, without measuring on dev.")
    return "\n\n".join(said)


def main() -> None:
    """Read the config and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--gpu-memory", type=float, default=80, metavar="GB")
    parser.add_argument("--zero", type=int, choices=(0, 2, 3), default=0, help="stage of ZeRO; 0 is DDP")
    parser.add_argument("--prompt-tokens", type=int, default=1024, help="of a prompt on average, its pictures included")
    parser.add_argument("--reply-tokens", type=int, help="of a reply on average; a quarter of the cap without")
    parser.add_argument("--tflops", type=float, default=989, help="of a GPU in bfloat16, dense")
    parser.add_argument("--bandwidth", type=float, default=3.35, metavar="TB/S")
    parser.add_argument("--utilisation", type=float, default=0.4)
    args = parser.parse_args()
    machine = Machine(
        args.gpus, args.gpu_memory * GB, args.tflops * 1e12, args.bandwidth * 1e12, args.utilisation, zero=args.zero
    )
    try:
        print(report(values_of(args.config, args.overrides), machine, args.prompt_tokens, args.reply_tokens))
    except (MRJudgeError, OSError) as error:
        raise SystemExit(f"cost: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    main()
