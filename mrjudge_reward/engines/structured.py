"""A judge held to verdicts that can be read, by the structured output of what runs it.

======================  ===============================================================================================
``structured_outputs``  vLLM 0.12 and later, also in process: a regular expression
``guided``              older vLLM and servers after it: the field ``guided_regex``
``response_format``     OpenAI's protocol: a JSON schema; what comes back is written out as the verdict it stands for
======================  ===============================================================================================

The judge may reason before: the expression has an optional ``<think>`` section, the schema a field for it. Reasoning is not
bounded in characters, because servers take many seconds to compile that, so a judge may still run into its token cap. Where
a server sets reasoning apart (its reasoning parser), the form holds for what comes after.

>>> print(pattern(VerdictForm("<answer>", "</answer>", ("A", "B"))))
(<think>[\\s\\S]*</think>\\s{0,2})?<answer> ?(A|B) ?</answer>
>>> marked('{"reasoning": "B is wrong.", "answer": "A"}', VerdictForm("<answer>", "</answer>", ("A", "B")))
'<think>B is wrong.</think><answer>A</answer>'
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal, TypeAlias

from mrjudge_reward.types import VerdictForm

StructuredOutput: TypeAlias = Literal["structured_outputs", "guided", "response_format"]

_SPECIAL = re.compile(r"([\\^$.|?*+()\[\]{}])")  # re.escape escapes more, which other engines of expressions refuse

_JSON = re.compile(
    r"(?:\A|</think>)\s*(\{.*)", re.DOTALL
)  # a server's parser may set reasoning apart: it stands before


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text).replace("\n", r"\n")


def pattern(form: VerdictForm) -> str:
    """Regular expression of a whole reply."""
    one = f"{_escaped(form.opening)} ?({'|'.join(map(_escaped, form.answers))}) ?{_escaped(form.closing)}"
    return r"(<think>[\s\S]*</think>\s{0,2})?" + ("" if form.closing else r"\n").join([one] * form.count)


def schema(form: VerdictForm) -> dict[str, Any]:
    """JSON schema of a reply that is turned back by :func:`marked`."""
    answer: dict[str, Any] = {"type": "string", "enum": list(form.answers)}
    if form.count > 1:
        answer = {"type": "array", "items": answer, "minItems": form.count, "maxItems": form.count}
    return {
        "type": "object",
        "properties": {"reasoning": {"type": "string"}, "answer": answer},
        "required": ["reasoning", "answer"],
        "additionalProperties": False,
    }


def marked(text: str, form: VerdictForm) -> str:
    """A JSON reply as the judge would have written it; any other text as it is."""
    found = _JSON.search(text)
    try:
        reply: dict[str, Any] = json.loads(found[1]) if found else {}
    except ValueError:
        return text
    answer = reply.get("answer")
    answers = answer if isinstance(answer, list) else [answer]
    if not all(isinstance(one, str) for one in answers):
        return text
    verdict = ("" if form.closing else "\n").join(f"{form.opening}{one}{form.closing}" for one in answers)
    return f"{text[: found.start(1) if found else 0]}<think>{reply.get('reasoning', '')}</think>{verdict}"


def fields(form: VerdictForm | None, way: StructuredOutput | None) -> dict[str, Any]:
    """Fields of a chat request that hold the judge to a form; none where there is nothing to hold it to."""
    if form is None or way is None:
        return {}
    if way == "structured_outputs":
        return {way: {"regex": pattern(form)}}
    if way == "guided":
        return {"guided_regex": pattern(form)}
    return {way: {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema(form)}}}
