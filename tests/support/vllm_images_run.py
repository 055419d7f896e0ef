"""A process with torchvision: a small Qwen2.5-VL judges images in vLLM, behind a
server of vLLM's, and under transformers. Prints what each said."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import transformers

from mrjudge_reward.engines.local.engine import TransformersEngine
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.messages import ImagePart, Message, TextPart
from mrjudge_reward.types import EngineFailure, Group, Reply, Request

from .vision_setup import picture, qwen25, saved


def asked(*images: Any) -> Request:
    content = (*map(ImagePart, images), TextPart("Which is better?"))
    return Request((Message("user", content),), prefill="<answer>", labels=("A", "B"))


def told(replies: Sequence[Reply | EngineFailure]) -> list[Any]:
    return [
        reply.label_logprobs if isinstance(reply, Reply) else f"{reply.reason}: {reply.detail}" for reply in replies
    ]


def main(smol_path: str) -> None:
    model, blind = qwen25(smol_path)
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(**{"patch_size": 14, "size": blind.image_processor.size}),
        blind.tokenizer,
        transformers.Qwen2VLVideoProcessor(),
        chat_template=blind.chat_template,
    )
    # 56 x 56 needs no scaling, which each library does in its own way.
    requests = [asked(picture("red", (56, 56))), asked(picture("blue", (84, 56))), asked(), asked(b"no image")]
    question = [{"type": "image", "image": picture("green", (56, 56))}, {"type": "text", "text": "What is it?"}]
    group = Group.of([{"role": "user", "content": question}], ["a square", "a circle", "nothing"])
    said: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        saved((model, processor), folder)  # type: ignore[arg-type]
        settings = {"model": folder, "min_label_mass": 0.0, "verdict": "read", "schedule": "all_pairs"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of vLLM's import
            judge = JudgeConfig(
                **settings, engine="vllm", dtype="float32", context_tokens=1024,
                engine_kwargs={"enforce_eager": True, "block_size": 32, "skip_mm_profiling": True},
            ).build()  # fmt: skip
        for name, engine in (("vllm", judge.engine), ("transformers", TransformersEngine(folder, device="cpu"))):
            said[name] = told(engine.label_logprobs(requests))
        (judgement,) = judge.judge([group])
        said["scores"] = judgement.scores_G
        said["verdicts"] = [str(item.verdict.outcome)[:200] for item in judgement.played]
        judge.close()
        # Over HTTP, through the engine for OpenAI-compatible servers.
        served = JudgeConfig(
            **settings, engine="vllm_server", dtype="float32", context_tokens=1024,
            engine_kwargs={"enforce_eager": True, "block_size": 32, "skip_mm_profiling": True},
        ).build_engine()  # fmt: skip
        said["server"] = told(served.label_logprobs(requests))
        served.close()
    print("SAID " + json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1])
