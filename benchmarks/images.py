"""What it saves to load and process an image once that every comparison of a group shows.

    python benchmarks/images.py                    # half a minute on two cores
    python benchmarks/images.py --comparisons 4    # a look

A group of eight judged in all pairs shows its prompt's image 28 times. Measured is all that happens to it before the model
runs: reading the file, decoding, scaling down to the bound, and LLaVA's processor (CLIP, 336 x 336, 576 tokens), whose pixel
values a batch holds until it has been judged. *Shared* is what ``Judge`` and the transformers engine do; *not shared* does
the same for each comparison anew. Each way runs in a process of its own; memory is the growth of its largest resident size.
The model itself is left out: it takes as long either way.
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

from mrjudge_reward.embedded import embedded_model_path
from mrjudge_reward.engines.vision import ImageReader
from mrjudge_reward.images import Album
from mrjudge_reward.types import Failure

WAYS = ("shared", "not shared")


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
        assert not isinstance(prompt, Failure), prompt
        held.append(prompt)
    seconds = time.perf_counter() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB on Linux
    return {"milliseconds": 1000 * seconds / comparisons, "mebibytes": grown / 1024, "tokens": len(held[0])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=28)
    parser.add_argument("--megapixels", type=float, default=3, help="of the image, a JPEG of 4:3")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measure(given.way, given.path, given.comparisons)))
        return
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        height = int((given.megapixels * 1e6 / (4 / 3)) ** 0.5)
        photo = Image.effect_noise((height * 4 // 3, height), 60).convert("RGB")
        photo.save(path, quality=90)
        photo.resize((64, 48)).save(path.with_suffix(".small.png"))
        rows = {}
        for way in WAYS:
            asked = ["--way", way, "--path", str(path), "--comparisons", str(given.comparisons)]
            done = subprocess.run([sys.executable, __file__, *asked], capture_output=True, text=True, check=True)
            rows[way] = json.loads(done.stdout.splitlines()[-1])
    print(f"an image of {given.megapixels:g} megapixels in {given.comparisons} comparisons")
    print(f"{'':12} {'ms a comparison':>16} {'memory, MiB':>12}")
    for way, row in rows.items():
        print(f"{way:12} {row['milliseconds']:16.2f} {row['mebibytes']:12.1f}")
    ratio = rows["shared"]["milliseconds"] / rows["not shared"]["milliseconds"]
    print(f"ratio of the times {ratio:.3f} (1/{given.comparisons} is {1 / given.comparisons:.3f})")


if __name__ == "__main__":
    main()
