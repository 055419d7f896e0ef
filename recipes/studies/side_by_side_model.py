"""K LoRA adapters on one frozen model, side by side: each block of a batch's rows goes through its own.

The adapters are rows of one matrix, so that stacking, splitting and differentiating them is one operation each.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mrjudge_reward.errors import ConfigError

from .side_by_side_rows import Rows

WEIGHTS = "adapter_model.safetensors"


class SideBySide(torch.nn.Module):  # type: ignore[misc]
    """A linear layer with K adapters; row block k of a batch goes through adapter k.

    Attributes:
        a, b: the adapters of the coming pass, (K, r, in) and (K, out, r).
    """

    def __init__(self, base: Any, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.a: Any = None
        self.b: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(K·B, T, in) to (K·B, T, out)."""
        count = self.a.shape[0]
        out = self.base(x)
        down = torch.bmm(x.reshape(count, -1, x.shape[-1]), self.a.transpose(1, 2))  # (K, B·T, r)
        both = torch.baddbmm(out.reshape(count, -1, out.shape[-1]), down, self.b.transpose(1, 2), alpha=self.scale)
        return both.view(out.shape)


@dataclass
class Base:
    """A frozen model with places for K adapters, which are rows of one (K, N) matrix.

    Attributes:
        model: the causal language model.
        layers: names and layers that have adapters.
        shapes: of the parts of an adapter in a row, A and B of each layer in turn.
        config: PEFT's, as it is saved beside each adapter.
    """

    model: Any
    layers: dict[str, SideBySide]
    shapes: list[tuple[int, int]]
    config: Any

    @classmethod
    def of(cls, model: Any, lora: Mapping[str, Any]) -> Base:
        """Take a model; PEFT finds the layers that the settings mean."""
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer

        config = LoraConfig(task_type="CAUSAL_LM", **lora)
        found = get_peft_model(model, config).get_base_model()
        layers: dict[str, SideBySide] = {}
        shapes: list[tuple[int, int]] = []
        for name, layer in [(n, m) for n, m in found.named_modules() if isinstance(m, LoraLayer)]:
            base = layer.get_base_layer()
            placed = SideBySide(base, layer.scaling["default"])
            parent, _, last = name.rpartition(".")
            setattr(found.get_submodule(parent), last, placed)
            layers[name] = placed
            shapes += [(config.r, base.in_features), (base.out_features, config.r)]
        if not layers:
            raise ConfigError("lora names no layer of the model")
        found.requires_grad_(False)
        return cls(found.eval(), layers, shapes, config)

    def place(self, adapters_KN: torch.Tensor) -> None:
        """Let the coming passes use these adapters."""
        parts = adapters_KN.to(self.model.dtype).split([rows * columns for rows, columns in self.shapes], dim=1)
        views = [part.view(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]
        for layer, a, b in zip(self.layers.values(), views[::2], views[1::2], strict=True):
            layer.a, layer.b = a, b

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Last hidden states; rows end in padding, which nothing before it sees."""
        states: torch.Tensor = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        return states

    def fresh(self, seed: int) -> torch.Tensor:
        """A new adapter, drawn as PEFT draws it: A uniform as for a linear layer, B zero."""
        draw = torch.Generator().manual_seed(seed)
        parts = []
        for place, (rows, columns) in enumerate(self.shapes):
            bound = 0.0 if place % 2 else 1 / math.sqrt(columns)
            parts.append((torch.rand(rows * columns, generator=draw) * 2 - 1) * bound)
        return torch.cat(parts)

    def load(self, folder: Path) -> torch.Tensor:
        """An adapter from PEFT's files."""
        from safetensors.torch import load_file

        weights = load_file(folder / WEIGHTS)
        return torch.cat([weights[name].float().flatten() for name in self.names()])

    def save(self, adapter_N: torch.Tensor, folder: Path) -> None:
        """Write an adapter as PEFT does; the weights last, so that they are there only when all is."""
        from safetensors.torch import save_file

        parts = adapter_N.detach().cpu().split([rows * columns for rows, columns in self.shapes])
        named = {n: p.view(s).clone() for n, p, s in zip(self.names(), parts, self.shapes, strict=True)}
        config = replace(self.config, inference_mode=True)
        config.save_pretrained(folder)
        save_file(named, folder / "adapter_model.part", metadata={"format": "pt"})
        os.replace(folder / "adapter_model.part", folder / WEIGHTS)

    def names(self) -> list[str]:
        """Of the parts of an adapter, in PEFT's files."""
        return [f"base_model.model.{name}.lora_{part}.weight" for name in self.layers for part in "AB"]


@torch.no_grad()  # type: ignore[untyped-decorator]
def logprobs(base: Base, adapters_KN: torch.Tensor, rows: Rows, device: str, tokens_at_once: int) -> np.ndarray:
    """Log-probabilities of each row's labels, in any spelling, for each of K adapters: (K, rows, labels)."""
    count = len(adapters_KN)
    base.place(adapters_KN)
    tokens, _, places = rows.verdicts(range(len(rows)))
    labels = int(places.max()) + 1
    values = np.full((count, len(rows), labels), np.nan, dtype=np.float32)
    order = np.argsort(-rows.lengths, kind="stable")
    done = 0
    while done < len(order):
        width = int(rows.lengths[order[done]])
        part = order[done : done + max(1, tokens_at_once // (width * count))]
        ids = torch.from_numpy(rows.padded(list(part), width)).to(device)
        last = torch.as_tensor(rows.lengths[part] - 1, device=device)
        states = base.hidden(ids.repeat(count, 1)).view(count, len(part), width, -1)
        states = states[:, torch.arange(len(part), device=device), last]  # (K, P, D)
        said = base.model.get_output_embeddings()(states).float().log_softmax(-1)  # (K, P, V)
        wanted = torch.as_tensor(tokens[part], device=device).expand(count, -1, -1)
        seen = said.gather(-1, wanted.clamp(min=0))
        meant = torch.as_tensor(places[part], device=device)
        for label in range(labels):
            mine = meant == label  # (P, M)
            together = seen.masked_fill(~mine, -math.inf).logsumexp(-1).masked_fill(~mine.any(-1), math.nan)
            values[:, part, label] = together.cpu().numpy()
        done += len(part)
    return values
