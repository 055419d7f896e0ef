"""A judge on the policy's own base, for TRL: ``JudgeReward`` with a ``SharedBaseEngine``.

::

    reward = SharedBaseJudgeReward(JudgeConfig(model="Qwen/Qwen3-0.6B"), adapter="judge-lora", num_generations=8)
    trainer = GRPOTrainer(model=..., peft_config=LoraConfig(...), reward_funcs=reward, ...)
    reward.attach(trainer)
    trainer.train()

The trainer makes the PEFT model, so the judge can only be built after it: that is what ``attach`` does, before training
and with every complaint up front. Each rank attaches to its own copy of the model; nothing is gathered. Memory: the base
is counted once, the judge adds its adapter. Checkpoints hold the policy alone.
"""

from __future__ import annotations

from typing import Any

from mrjudge_reward.engines.local.shared_base import SharedBaseEngine
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.judge import Judge, JudgeConfig

from .reward import JudgeReward


class SharedBaseJudgeReward(JudgeReward):
    """``JudgeReward`` whose judge is a LoRA on the policy's own frozen base, or that base itself.

    Args:
        judge: a config. Its ``model`` loads nothing, and decides the ``auto`` settings as for any judge; left out, it is
            the policy's base.
        adapter: folder of the judge's LoRA; None for the config's, and without any the base itself judges.
        adapter_name: of the judge's adapter on the model while it judges.
        tokenizer: name, path or tokenizer; None for the base's own, or the trainer's where the base has no name.
        num_generations, settings: see ``JudgeReward``.

    Raises:
        ConfigError: if the config names a server, an engine, a device or a dtype, or another adapter than ``adapter``.
    """

    def __init__(
        self,
        judge: JudgeConfig | None = None,
        *,
        adapter: str | None = None,
        adapter_name: str = "judge",
        tokenizer: Any = None,
        num_generations: int,
        **settings: Any,
    ) -> None:
        config = judge if judge is not None else JudgeConfig()
        if not isinstance(config, JudgeConfig):
            raise ConfigError(
                f"the judge is built on the trainer's model: give a JudgeConfig, not {type(judge).__name__}"
            )
        for name in ("base_url", "device", "dtype"):
            if getattr(config, name) is not None:
                raise ConfigError(
                    f"{name} does not go with a judge on the policy's base: it runs where the policy does"
                )
        if config.engine not in ("auto", "transformers"):
            raise ConfigError(f"engine {config.engine!r} loads a model of its own; leave engine out")
        if adapter is not None and config.adapter not in (None, adapter):
            raise ConfigError(f"two adapters for one judge: {adapter!r} here, {config.adapter!r} in the config")
        if adapter is not None:
            config = JudgeConfig(
                **{**{name: getattr(config, name) for name in config.model_fields_set}, "adapter": adapter}
            )
        super().__init__(config, num_generations=num_generations, **settings)
        self.adapter = config.adapter_path()
        self.adapter_name = adapter_name
        self._tokenizer = tokenizer
        self._built: JudgeConfig = config

    @property
    def judge(self) -> Judge:
        """The judge, once attached."""
        if self._judge is None:
            raise ConfigError(
                f"{self.__name__} has no model to judge with: call reward.attach(trainer) before training"
            )
        return self._judge

    def attach(self, trainer: Any) -> SharedBaseJudgeReward:
        """Build the judge on the trainer's model; a second time on the same model does nothing.

        Raises:
            EngineError: if the model or the adapter cannot be used so (see ``SharedBaseEngine``).
        """
        model = trainer.accelerator.unwrap_model(trainer.model)
        if self._judge is not None and getattr(self._judge.engine, "_model", None) is model:
            return self
        base = getattr(model, "name_or_path", "")
        config = self._built
        engine = SharedBaseEngine(
            model,
            self.adapter,
            name=self.adapter_name,
            tokenizer=self._tokenizer or (None if base else trainer.processing_class),
            batch_size=config.batch_size,
            batch_tokens=config.batch_tokens,
            chat_template_kwargs=config.chat_template_kwargs or None,
        )
        if "model" not in config.model_fields_set and not config.trained:
            # What "auto" means is decided by the base, not by the embedded model.
            config = config.model_copy(update={"model": base or "the policy's base"})
        self._judge = config.build(engine)
        return self
