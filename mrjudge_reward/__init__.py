"""Reasoning judges as pairwise and listwise rewards for RL fine-tuning.

A judge model looks at several responses to one prompt and says which is best. This package turns such verdicts into
rewards: it decides who meets whom (``scoring.schedules``), asks and parses (``prompting.formats``), fits scores to the
games (``scoring.ratings``) and hands them to a trainer (``integrations``). Importing it loads no deep-learning framework.

>>> from mrjudge_reward import Choice, Judge, ScriptedEngine
>>> longer_is_better = ScriptedEngine.by_utility(len)
>>> Judge(longer_is_better, Choice()).rank("Greet me.", ["Hi", "Good morning to you"]).best
1
"""

from .cache import ReplyCache
from .engines.contract import Engine
from .engines.scripted import ScriptedEngine
from .errors import (
    ConfigError,
    EngineError,
    InputError,
    JudgeDriftedError,
    JudgeUnreliableError,
    MissingPackageError,
    MRJudgeError,
)
from .judge import Judge, JudgeConfig
from .messages import ImagePart, Message, TextPart, final_answer
from .prompting.formats import SENTIMENT, Choice, Format, PairScores, Ranking, Score
from .reranker import Reranker
from .scoring.alarms import FailureAlarm
from .scoring.ratings import Rating
from .scoring.rewards import RewardShape, reward_group
from .scoring.schedules import Schedule
from .scoring.stats import JudgeStats
from .types import (
    Comparison,
    EngineFailure,
    Grades,
    Group,
    GroupReward,
    JudgedComparison,
    Judgement,
    NoVerdict,
    Preference,
    RankOrder,
    Reply,
    Request,
    Sampling,
    Tie,
    Usage,
    Verdict,
)

__version__ = "0.1.0"

__all__ = [
    "SENTIMENT",
    "Choice",
    "Comparison",
    "ConfigError",
    "Engine",
    "EngineError",
    "EngineFailure",
    "FailureAlarm",
    "Format",
    "Grades",
    "Group",
    "GroupReward",
    "ImagePart",
    "InputError",
    "Judge",
    "JudgeConfig",
    "JudgeDriftedError",
    "JudgeStats",
    "JudgeUnreliableError",
    "JudgedComparison",
    "Judgement",
    "MRJudgeError",
    "Message",
    "MissingPackageError",
    "NoVerdict",
    "PairScores",
    "Preference",
    "RankOrder",
    "Ranking",
    "Rating",
    "Reply",
    "ReplyCache",
    "Request",
    "Reranker",
    "RewardShape",
    "Sampling",
    "Schedule",
    "Score",
    "ScriptedEngine",
    "TextPart",
    "Tie",
    "Usage",
    "Verdict",
    "final_answer",
    "reward_group",
]
