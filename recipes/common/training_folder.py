"""The folder of a training: of one run alone, which goes on where it was interrupted and is not trained again once finished.

``recipe.unfinished.json`` holds the settings of a run from its beginning; it is ``recipe.json`` once the run is finished. A
folder with checkpoints or a finished run of other settings is refused. More steps or epochs are other settings: the schedule
of the learning rate depends on them. What a run only reads, such as a file of examples, is compared by name, not by content.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol

from mrjudge_reward.errors import ConfigError

from .resumable import differences, write_text

ASIDE = frozenset({
    # what is logged and kept
    "output_dir", "log_dir", "run_name", "report_to", "project", "trackio_bucket_id", "trackio_space_id",
    "trackio_static_space_id", "disable_tqdm", "log_level", "log_level_replica", "log_on_each_node", "logging_dir",
    "logging_first_step", "logging_nan_inf_filter", "logging_steps", "logging_strategy", "log_completions",
    "log_completions_hub_repo", "log_multimodal", "log_unique_prompts", "num_completions_to_print", "push_to_hub",
    "hub_always_push", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_token",
    "include_num_input_tokens_seen", "skip_memory_metrics", "save_total_limit", "save_on_each_node", "enable_jit_checkpoint",
    # how the trainer's machine is used
    "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
    "dataset_num_proc", "ddp_timeout", "gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_empty_cache_steps",
    "vllm_gpu_memory_utilization", "vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout",
    "vllm_group_port",
    # where the judge is, and how it is asked
    "api_key_env", "base_url", "extra_headers", "insecure_http", "max_concurrency", "deadline_s", "outage_wait_s", "device",
    "batch_size", "batch_tokens", "cache", "turn_wait_s", "gpu_memory_utilization", "tensor_parallel_size", "colocated",
    "sleep_level", "max_failed_fraction", "failure_window",
})  # fmt: skip
"""Settings that do not decide what is trained, wherever in a recipe they stand, its tasks aside."""
SAVING = frozenset({"save_steps", "save_strategy", "save_only_model"})
"""Nor do these, unless the best checkpoint is kept: it is chosen among those that are saved."""


class Trains(Protocol):
    """A recipe of a training."""

    training: dict[str, Any]

    def model_dump_json(self, *, indent: int | None = None) -> str:
        """All of its settings."""
        ...


class TrainingFolder:
    """The ``training.output_dir`` of a recipe. Ranks look at it by themselves; the first alone writes.

    Attributes:
        path: of the folder.
        finished: whether this run is there, in whole.
        checkpoint: folder to go on from; None at the beginning.

    Raises:
        ConfigError: if checkpoints or a finished run of other settings are there, naming what differs.
    """

    def __init__(self, recipe: Trains) -> None:
        from transformers.trainer_utils import get_last_checkpoint

        self.path = Path(str(recipe.training.get("output_dir", "trainer_output")))  # as transformers has it
        self._recipe, self._begun, self._done = recipe, self.path / "recipe.unfinished.json", self.path / "recipe.json"
        self.finished = self._done.is_file()
        self.checkpoint: str | None = get_last_checkpoint(str(self.path)) if self.path.is_dir() else None
        if self.finished or self.checkpoint is not None:
            self._agree(self._done if self.finished else self._begun)
        if self.finished and os.environ.get("RANK", "0") == "0":
            print(f"{self.path} holds this run, and it is finished: nothing is trained")

    def _agree(self, beside: Path) -> None:
        otherwise = "name another training.output_dir, or remove this folder"
        try:
            before = json.loads(beside.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"{self.path} has checkpoints of a run whose settings are unknown ({beside.name} is missing); {otherwise}"
            ) from None
        except ValueError as error:
            raise ConfigError(f"{beside} is no JSON: {error}; {otherwise}") from error
        if changed := differences(_deciding(before), _deciding(json.loads(self._recipe.model_dump_json()))):
            raise ConfigError(
                f"{self.path} holds a run with other settings (changed: {', '.join(changed)}), which is neither gone on "
                f"with nor overwritten; {otherwise}"
            )

    def train(self, trainer: Any) -> None:
        """Train to the end, from the checkpoint if there is one."""
        if trainer.is_world_process_zero():
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self._begun, self._recipe.model_dump_json(indent=2))
        if self.checkpoint is not None:
            state = json.loads((Path(self.checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
            if state["global_step"] >= state["max_steps"]:  # transformers would train one step more
                trainer.args.max_steps, trainer.args.num_train_epochs = -1, 0
        trainer.train(resume_from_checkpoint=self.checkpoint)

    def finish(self) -> None:
        """The run is finished, its last file written; for one rank to call."""
        os.replace(self._begun, self._done)


def _deciding(recipe: dict[str, Any]) -> dict[str, Any]:
    chooses = recipe.get("training", {}).get("eval_strategy", "no") != "no"
    aside = ASIDE if chooses else ASIDE | SAVING

    def kept(value: Any) -> Any:
        return (
            {name: kept(one) for name, one in value.items() if name not in aside} if isinstance(value, dict) else value
        )

    return {name: part if name == "tasks" else kept(part) for name, part in recipe.items()}
