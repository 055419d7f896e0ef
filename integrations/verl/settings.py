"""The ``mrjudge`` section of a verl config, validated: what the reward manager, its judge actor and the doctor read.

.. code-block:: yaml

    mrjudge:
      judge: judge.yaml        # or the fields of JudgeConfig in place; {} is the embedded model
      deadline_s: 1800
    reward:
      reward_manager:
        source: importlib
        name: JudgeRewardManager
        module: {path: pkg://mrjudge_reward.integrations.verl}

The section stands at the top of the config, beside ``reward``, because verl checks the keys of its own sections. On the
command line it is ``+mrjudge.judge=judge.yaml``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from mrjudge_reward.completions import View
from mrjudge_reward.engines.engine_config import EMBEDDED
from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.monitoring.canaries import BUILT_IN, Canaries, load_canaries
from mrjudge_reward.prompting.rendering import check_places
from mrjudge_reward.scoring.rewards import RewardShape, check_anchors
from mrjudge_reward.settings import Settings

SECTION = "mrjudge"

ABSENT = "mrjudge_absent"
"""Field of a row that stands for a rollout that will not come."""

VALIDATION = "mrjudge_validation"
"""Field of a row that says whether it is of a validation; see ``agent_loop``."""

CARRIED = "mrjudge"
"""Key of a prompt's first message under which ``agent_loop`` writes fields that verl's colocated path does not pass."""

COMPLETION = "mrjudge_completion"
"""Field of a row that tells what a session did, message by message; see ``transcripts``."""

VALIDATION_SPLITS = frozenset({"test", "val", "valid", "validation", "dev", "eval"})
"""Values of ``extra_info.split`` that mark a validation row."""

ACTOR = "mrjudge_judge_"
"""What the names of judge actors begin with."""

Positive = Annotated[float, Field(gt=0)]
GroupSize = Annotated[int, Field(ge=1)]
Weight = float | dict[str, float]


class CanarySettings(Settings):
    """The canaries of a verl run; see ``mrjudge_reward.monitoring.canaries.Canaries``."""

    where: ClassVar[str] = f"section {SECTION}.canaries"

    every: Annotated[int, Field(ge=1)]
    """Groups judged between two measurements, e.g. 50 x ``train_batch_size`` for every 50 steps."""
    limit: Annotated[float, Field(ge=0, le=1)] = 0.3
    """As in ``Canaries``."""
    floor: Annotated[float, Field(ge=0, le=1)] | None = None
    """As in ``Canaries``."""
    stop: bool = False
    """As in ``Canaries``."""
    path: str | None = None
    """JSON lines of one's own, besides those built in; read where the actor of the run is."""

    def build(self) -> Canaries:
        """The canaries."""
        own = load_canaries(self.path) if self.path is not None else ()
        return Canaries(self.every, self.limit, self.floor, self.stop, (*BUILT_IN, *own))


class VerlSettings(Settings):
    """How groups are collected inside verl, and by whom they are judged.

    Raises:
        ConfigError: for an unknown setting (naming the nearest known one) or a bad value.
    """

    where: ClassVar[str] = f"section {SECTION}"

    judge: dict[str, Any] | str = Field(default_factory=dict)
    """Fields of ``JudgeConfig``, or the path of a YAML file that holds them. Where verl runs a generative reward model
    (``reward.reward_model.enable``), ``model`` and ``base_url`` are its own and need not be given."""
    factory: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None
    """``module:function``, called with the ``JudgeConfig`` for a ready ``Judge``; for engines and formats of one's own."""
    deadline_s: Positive = 1800.0
    """Seconds from a group's first arrival after which those present are judged and flagged as partial. It must cover the
    slowest rollout of a group, not only the judging."""
    judge_deadline_s: Positive = 3600.0
    """Seconds that the judging itself may take before the waiting rows fail with an error."""
    settle_s: Positive = 0.5
    """Where verl gives samples no identity within their group: how long a group that seems full is held open if it holds
    identical completions, which may be copies made by padding."""
    as_it_arrives: bool = True
    """Ask a group's first comparisons as soon as their members are there."""
    kept_bytes: Annotated[int, Field(ge=0)] = 2**29
    """Of texts and images of judged groups that the judge's actor remembers for members that come late. Groups whose members
    are all judged stay for a resumed sample; the oldest are forgotten."""
    group_size: GroupSize | None = None
    """Completions per prompt; None for ``rollout.n``."""
    validation_group_size: GroupSize | None = None
    """Completions per prompt in validation; None for ``rollout.val_kwargs.n``."""
    thinking: Literal["strip", "opened", "keep"] = "strip"
    """What becomes of the policy's own reasoning, as in ``JudgeReward``."""
    view: View = "transcript"
    """What of a completion is judged, as in ``JudgeReward``. Sessions of several turns need ``GroupAgentLoopManager``."""
    reference_field: str | None = None
    """Where a row keeps reference answers, e.g. ``reward_model.ground_truth``: text, a number, or a list of these. verl's
    colocated path needs ``GroupAgentLoopManager`` to pass it."""
    rubric_field: str | None = None
    """Where a row keeps criteria, e.g. ``extra_info.rubric``; see ``reference_field``."""
    anchor_field: str | None = None
    """Where a row keeps answers that are judged along with its group, such as references or an earlier policy's: rewards are
    then relative to theirs, 0 is as good. A group without any abstains. See ``reference_field``."""
    judge_weight: Weight = 1.0
    """Weight of the judge's reward: a number, or one per ``data_source`` with ``default`` for the others. Rows of weight 0
    are not judged."""
    rule_weight: Weight = 0.0
    """Weight of verl's own ``compute_score`` beside it, in the same form. At 0 it is not called."""
    rule_info: list[str] | None = None
    """Keys of what ``compute_score`` returns beside its score that rows carry too, None where it was not asked or does not
    tell; left out for all. Where ``rule_weight`` is 0 for some, V0 and colocated rewards carry only what is named here."""
    actor_options: dict[str, Any] = Field(default_factory=dict)
    """Ray options of the actor in which a run is judged, e.g. ``{num_gpus: 0.2}`` for a judge that runs inside it."""
    log_dir: str | None = None
    """Folder for the run's log, for ``mrjudge report``; on the machine of that actor, or shared."""
    canaries: dict[str, Any] | None = None
    """Fields of ``CanarySettings``; None for none."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> VerlSettings:
        """Read the section of a verl config that was turned into plain containers.

        Group sizes that it leaves open are those of the rollout.
        """
        section = config.get(SECTION) or {}
        if not isinstance(section, Mapping):
            raise ConfigError(f"section {SECTION} must hold settings (key: value); got {type(section).__name__}")
        rollout = config["actor_rollout_ref"]["rollout"]
        sizes = {"group_size": rollout["n"], "validation_group_size": rollout["val_kwargs"]["n"]}
        given = {str(key): value for key, value in section.items() if value is not None}
        settings = cls(**{**sizes, **given})
        if settings.rule_info and not settings.rule_weight:
            raise ConfigError(
                f"{cls.where}: rule_info does nothing while rule_weight is 0: give compute_score a weight"
            )
        if settings.canaries is not None:
            CanarySettings(**settings.canaries)  # before anything runs
        return settings

    def weights(self, data_source: str | None) -> tuple[float, float]:
        """Of the judge and of ``compute_score``, for a row of this source.

        Raises:
            ConfigError: if weights are given per source and this one has none, or both are 0: such a row would get a reward
                that nobody gave.
        """
        judge = _weight(self.judge_weight, data_source, "judge_weight")
        rule = _weight(self.rule_weight, data_source, "rule_weight")
        if not judge and not rule:
            raise ConfigError(
                f"judge_weight and rule_weight are both 0 for the data_source {data_source!r}, so that nothing rewards its "
                "rows: give one of them a weight, or leave the rows out"
            )
        return judge, rule

    def unruled(self) -> bool:
        """Whether ``compute_score`` may not be asked about some rows."""
        return isinstance(self.rule_weight, dict) and not all(self.rule_weight.values())

    def not_passed(self, config: Mapping[str, Any]) -> list[str]:
        """Settings that need fields of a row which this run's rewards do not get: verl's colocated path in V1 passes prompts
        and responses alone, unless ``agent_loop`` has the prompts carry the rest."""
        agent = config["actor_rollout_ref"]["rollout"].get("agent") or {}
        carried = str(agent.get("agent_loop_manager_class") or "").startswith(
            "mrjudge_reward.integrations.verl.agent_loop."
        )
        if carried or not is_colocated(config) or not config["trainer"].get("use_v1", True):
            return []
        weights = [name for name in ("judge_weight", "rule_weight") if isinstance(getattr(self, name), dict)]
        rule = ["rule_weight"] if self.rule_weight and "rule_weight" not in weights else []
        fields = ("reference_field", "rubric_field", "anchor_field")
        return [name for name in fields if getattr(self, name)] + weights + rule

    @staticmethod
    def tells_no_turns(config: Mapping[str, Any]) -> bool:
        """Whether this run has sessions of several turns, and nothing that says which of their tokens the policy wrote."""
        rollout = config["actor_rollout_ref"]["rollout"]
        agent, turns = rollout.get("agent") or {}, rollout.get("multi_turn") or {}
        several = any(turns.get(name) for name in ("enable", "tool_config_path", "function_tool_path"))
        return not agent.get("agent_loop_manager_class") and (
            several or agent.get("default_agent_loop") == "tool_agent"
        )

    def judge_config(self, served: Mapping[str, Any] | None = None) -> JudgeConfig:
        """The judge's own settings.

        Args:
            served: what verl's own reward model is: ``model``, ``base_url``, ``context_tokens``. Settings that are
                given stand; a judge that names no model is this one.

        Raises:
            ConfigError: for an unknown setting or a bad value, or if the judge's wording has no place for the reference or
                rubric of a row, or anchors would do nothing.
        """
        given = JudgeConfig.load_values(self.judge) if isinstance(self.judge, str) else dict(self.judge)
        if served and given.get("model", EMBEDDED) == EMBEDDED and "base_url" not in given:
            own = {key: value for key, value in given.items() if key != "model"}
            given = {"api_key_env": "", **served, **own}  # verl's own server wants no key, and speaks plain http
        config = JudgeConfig(**given)
        self.check_anchors(config.reward_shape)
        if self.factory is None:
            check_places(
                config.judge_format,
                reference=self.reference_field and f"reference_field={self.reference_field!r}",
                rubric=self.rubric_field and f"rubric_field={self.rubric_field!r}",
            )
        return config

    def check_anchors(self, shape: RewardShape) -> None:
        """See ``scoring.rewards.check_anchors``."""
        check_anchors(f"anchor_field={self.anchor_field!r}", self.anchor_field, self.reference_field, shape)

    def watched(self) -> Canaries | None:
        """The canaries, if any.

        Raises:
            ConfigError: for an unknown setting or a bad value.
            InputError: if their file cannot be read.
        """
        return CanarySettings(**self.canaries).build() if self.canaries is not None else None

    def check_context(self, served: Mapping[str, Any] | None) -> None:
        """Whether the model that verl serves has room for candidates, before anything runs.

        Raises:
            ConfigError: if its context leaves none beside the template and the judge's reply.
        """
        if served is None or self.factory is not None:
            return
        config = self.judge_config(served).model_copy(update={"cache": None})
        engine = ScriptedEngine(lambda _: "")
        engine.context_tokens = config.context_tokens or engine.context_tokens
        config.build(engine).check_room()

    def actor_name(self, served: Mapping[str, Any] | None = None) -> str:
        """Name under which all reward workers of a run find the same judge actor; other settings, another actor."""
        mark = hashlib.blake2b(repr((self.model_dump(), sorted((served or {}).items()))).encode(), digest_size=6)
        return f"{ACTOR}{mark.hexdigest()}"


def _weight(given: Weight, data_source: str | None, name: str) -> float:
    if not isinstance(given, dict):
        return given
    value = given.get(str(data_source), given.get("default"))
    if value is None:
        raise ConfigError(
            f"{name} has no weight for the data_source {data_source!r}: it knows {', '.join(sorted(given))}; add it, or "
            "'default' for all others"
        )
    return value


def is_colocated(config: Mapping[str, Any]) -> bool:
    """Whether verl scores the whole batch at once, after the rollouts, on a reward model that shares their devices."""
    model = config["reward"]["reward_model"]
    return bool(model["enable"]) and not model["enable_resource_pool"]


def served_judge(config: Mapping[str, Any], router_address: str | None) -> dict[str, Any] | None:
    """The generative reward model that verl serves, as settings of a judge; None where it serves none."""
    model = config["reward"]["reward_model"]
    if not model["enable"] or router_address is None:
        return None
    rollout = model["rollout"]
    context = rollout["max_model_len"] or rollout["prompt_length"] + rollout["response_length"]
    return {"model": model["model_path"], "base_url": f"http://{router_address}/v1", "context_tokens": int(context)}
