"""Reading a verl config without starting anything: composed by verl's own loader, or a resolved dump."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mrjudge_reward.errors import ConfigError

_NEEDED = (
    "actor_rollout_ref.actor",
    "actor_rollout_ref.rollout.name",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.val_kwargs.n",
    "algorithm.adv_estimator",
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "reward.num_workers",
    "reward.custom_reward_function",
    "reward.reward_manager.source",
    "reward.reward_model.enable",
    "reward.reward_model.rollout.response_length",
    "trainer.nnodes",
    "trainer.n_gpus_per_node",
    "trainer.v1.trainer_mode",
)
"""What every config of verl's has; without one of these it is a piece of a config, or another verl's."""


def load_verl_config(source: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose a config as verl does, or read a dump; plain containers, interpolations resolved.

    Raises:
        ConfigError: if that fails.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = Path(source).resolve()
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from error
    if not isinstance(written, Mapping):
        raise ConfigError(f"{source} must hold a config (key: value); got {type(written).__name__}")
    try:
        if "defaults" in written:
            if path.suffix != ".yaml":
                raise ConfigError(f"{source}: hydra composes only files that end in .yaml")
            with initialize_config_dir(str(path.parent), version_base=None):
                composed = compose(path.stem, overrides=list(overrides))
        else:
            odd = [override for override in overrides if override.startswith("~") or "=" not in override]
            if odd:
                raise ConfigError(f"a dump takes KEY=VALUE; got {', '.join(odd)}")
            changes = OmegaConf.from_dotlist([override.lstrip("+") for override in overrides])
            composed = OmegaConf.merge(OmegaConf.create(dict(written)), changes)
        missing = [key for key in _NEEDED if OmegaConf.select(composed, key) is None]
        config: Any = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from error
    if missing:
        raise ConfigError(
            f"{source} is no whole verl config ({', '.join(missing)} missing): begin it with "
            "'hydra: {searchpath: [pkg://verl.trainer.config]}' and 'defaults: [ppo_trainer, _self_]'"
        )
    return {str(key): value for key, value in config.items()}
