"""``docs/configuration.md`` from the settings themselves.

python -m tests.support.configuration_page > docs/configuration.md
"""

from __future__ import annotations

import sys
from typing import Any

from mrjudge_reward import config
from mrjudge_reward.engines import engine_config
from mrjudge_reward.integrations.verl.settings import CanarySettings, VerlSettings
from mrjudge_reward.settings import Settings

HEAD = """# Configuration

This page is made from the settings, by `python -m tests.support.configuration_page`.

A judge has one set of settings. They are the same as keywords of `JudgeConfig` and `Judge`, as lines of a `judge.yaml`, as
`--set KEY=VALUE` of `mrjudge`, and under `mrjudge.judge` in a verl config. They stand here in sections and are given flat.

```yaml
# judge.yaml
model: Qwen/Qwen3-8B
base_url: http://127.0.0.1:8000/v1
verdict: logprobs
schedule: ring
```

A setting that would do nothing for the chosen engine or mode is refused by name. The third column says where a setting
holds. `format`, `schedule` and `rating` also take an object, see [customize.md](customize.md).
"""

TITLES = ("Prompt", "Rubric", "Verdict", "Schedule", "Rating", "Safety", "Engine")


def holds_for(name: str) -> str:
    if name in engine_config.ONLY:
        return ", ".join(f"`{engine}`" for engine in engine_config.ONLY[name])
    return config.ONLY[name][1] if name in config.ONLY else ""


def shown(value: Any) -> str:
    return "" if value is None else f"`{value!r}`" if value == "" else f"`{value}`"


def table(section: type[Settings], holds: bool = True) -> str:
    lines = ["| setting | default | holds for | what |", "|---|---|---|---|"]
    for name in section.__annotations__:
        if name not in section.model_fields:
            continue
        field = section.model_fields[name]
        default = "required" if field.is_required() else shown(field.get_default(call_default_factory=True))
        said = " ".join((field.description or "").split()).replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{name}` | {default} | {holds_for(name) if holds else ''} | {said} |")
    return "\n".join(lines)


def page() -> str:
    parts = [HEAD]
    for title, section in zip(TITLES, config.SECTIONS, strict=True):
        about = (section.__doc__ or "").splitlines()[0]
        parts.append(f"## {title}\n\n{about}\n\n{table(section)}\n")
    parts.append(f"## verl\n\nThe section `mrjudge` of a verl config.\n\n{table(VerlSettings, holds=False)}\n")
    parts.append(f"### Canaries\n\n`mrjudge.canaries`.\n\n{table(CanarySettings, holds=False)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
