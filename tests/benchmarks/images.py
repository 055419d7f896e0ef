"""What it saves to load, process and encode an image once that every comparison of a group shows.

    python -m tests.benchmarks.images                    # minutes on two cores
    python -m tests.benchmarks.images --comparisons 4    # a look
    python -m tests.benchmarks.images --comparisons 6 --quick    # seconds, for a smoke test: a model of two layers

A group of eight judged in all pairs shows its prompt's image 28 times.

*Up to the model*: reading the file, decoding, scaling down to the bound, and the processor of LLaVA (336 x 336, 576 tokens),
whose pixel values a batch holds until it has been judged. *Shared* is what ``Judge`` and the transformers engine do; *not
shared* does the same for each comparison anew.

*Judged*: verdicts are read by a LLaVA of SmolLM2-135M and a CLIP tower of 12 layers (random weights: it is about time), once
with what a batch begins with computed once, image included, and once with every prompt computed whole.

Each way runs in a process of its own; memory is the growth of its largest resident size.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mrjudge_reward.engines.embedded import embedded_model_path
from mrjudge_reward.engines.local import reading
from mrjudge_reward.engines.local.engine import TransformersEngine
from mrjudge_reward.engines.local.vision import ImageReader
from mrjudge_reward.images import Album
from mrjudge_reward.messages import ImagePart, Message, TextPart
from mrjudge_reward.types import EngineFailure, Reply, Request

WAYS = ("shared", "not shared")
STAGES = ("up to the model", "judged")


def llava_processor() -> Any:
    from transformers import AutoTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.processing_llava import LlavaProcessor

    tokenizer = AutoTokenizer.from_pretrained(str(embedded_model_path()))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    return LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", image_token="<image>",
        num_additional_image_tokens=1,
    )  # fmt: skip


def measure(way: str, path: str, comparisons: int) -> dict[str, float]:
    processor = llava_processor()
    album, reader = Album(), ImageReader(processor)
    warm = ImageReader(processor)
    warm.seen(Album().picture(Path(path).with_suffix(".small.png")))  # imports, and buffers of libraries
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    held = []
    for _ in range(comparisons):
        if way == "not shared":
            album, reader = Album(), ImageReader(processor)
        prompt = reader.prompt([1, reader.token_id, 2], [album.picture(path)])
        assert not isinstance(prompt, EngineFailure), prompt
        held.append(prompt)
    seconds = time.perf_counter() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB on Linux
    return {"milliseconds": 1000 * seconds / comparisons, "mebibytes": grown / 1024, "tokens": len(held[0])}


def llava_model(layers: int | None) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    text = transformers.AutoConfig.from_pretrained(str(embedded_model_path()))
    tower = transformers.CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=layers or 12,
        num_attention_heads=12,
        image_size=336,
        patch_size=14,
    )
    processor = llava_processor()
    text.vocab_size = len(processor.tokenizer)
    text.num_hidden_layers = layers or text.num_hidden_layers
    processor.chat_template = (
        "{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    config = transformers.LlavaConfig(
        vision_config=tower, text_config=text, image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>")
    )
    return transformers.LlavaForConditionalGeneration(config).eval(), processor


def judge(way: str, path: str, comparisons: int, layers: int | None) -> dict[str, float]:
    model, processor = llava_model(layers)
    engine = TransformersEngine(model, tokenizer=processor)
    if way == "not shared":
        reading.WORTHWHILE = sys.maxsize
    ask = "Which description fits the picture better? A: {} B: {} Answer: "
    album = Album()
    requests = [
        Request(
            (Message("user", (ImagePart(album.picture(path)), TextPart(ask.format("a tree " * (n % 7), "a sheep")))),),
            labels=("A", "B"),
        )
        for n in range(comparisons)
    ]
    engine.label_logprobs(requests[:1])
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    replies = engine.label_logprobs(requests)
    seconds = time.perf_counter() - started
    assert all(isinstance(reply, Reply) for reply in replies), replies
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"milliseconds": 1000 * seconds / comparisons, "mebibytes": grown / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=28)
    parser.add_argument("--megapixels", type=float, default=3, help="of the image, a JPEG of 4:3")
    parser.add_argument("--quick", action="store_true", help="a model of two layers, to see that it runs")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        if given.stage == STAGES[0]:
            row = measure(given.way, given.path, given.comparisons)
        else:
            row = judge(given.way, given.path, given.comparisons, 2 if given.quick else None)
        print(json.dumps(row))
        return
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        height = int((given.megapixels * 1e6 / (4 / 3)) ** 0.5)
        photo = Image.effect_noise((height * 4 // 3, height), 60).convert("RGB")
        photo.save(path, quality=90)
        photo.resize((64, 48)).save(path.with_suffix(".small.png"))
        print(
            f"an image of {given.megapixels:g} megapixels in {given.comparisons} comparisons (1/{given.comparisons} is ",
            end="",
        )
        print(f"{1 / given.comparisons:.3f})\n{'':16} {'':12} {'ms a comparison':>16} {'memory, MiB':>12}")
        for stage in STAGES:
            times = []
            for way in WAYS:
                asked = ["--stage", stage, "--way", way, "--path", str(path), "--comparisons", str(given.comparisons)]
                asked += ["--quick"] if given.quick else []
                done = subprocess.run(
                    [sys.executable, "-m", "tests.benchmarks.images", *asked],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                row = json.loads(done.stdout.splitlines()[-1])
                times.append(row["milliseconds"])
                print(f"{stage:16} {way:12} {row['milliseconds']:16.2f} {row['mebibytes']:12.1f}", flush=True)
            print(f"{stage:16} ratio of the times {times[0] / times[1]:.3f}", flush=True)


if __name__ == "__main__":
    main()
