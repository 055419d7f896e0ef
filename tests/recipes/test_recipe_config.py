"""Recipe configs: what is written is what is meant, and an override that makes no sense is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.errors import ConfigError
from recipes.common.config import read_config


@pytest.fixture
def read(tmp_path: Path) -> Any:
    file = tmp_path / "config.yaml"

    def of(text: str, *overrides: str) -> dict[str, Any]:
        file.write_text(text)
        return read_config(str(file), overrides)

    return of


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("5e-4", 5e-4), ("1.0e-4", 1e-4), ("-2E3", -2000.0), (".5e1", 5.0), ("3", 3), ("0.5", 0.5), ("no", "no"),
        ("on", "on"), ("true", True), ("False", False), ("'5e-4'", "5e-4"), ("e5", "e5"), ("[A, B]", ["A", "B"]),
    ],
)  # fmt: skip
def test_numbers_and_words_are_read_as_they_look(read: Any, written: str, meant: Any):
    for found in (read(f"a: {written}"), read("b: 1", f"a={written}")):
        assert found["a"] == meant
        assert type(found["a"]) is type(meant)


def test_null_takes_a_setting_out(read: Any):
    assert read("a: {b: 1, c: 2}", "a.b=null", "x=null") == {"a": {"c": 2}}


@pytest.mark.parametrize(("text", "overrides"), [("[1]", []), ("a: {", []), ("a: 1", ["a"]), ("a: 1", ["a.b=2"])])
def test_what_holds_no_settings_is_refused(read: Any, text: str, overrides: list[str]):
    with pytest.raises(ConfigError):
        read(text, *overrides)
