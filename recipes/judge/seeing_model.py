"""A judge that sees, from packages alone: LLaVA's architecture over SmolLM2-135M and an ImageNet encoder.

    python -m recipes.judge.seeing_model --out runs/seeing-model                     # 49 tokens an image
    python -m recipes.judge.seeing_model --out runs/seeing-model --grid 1 --captions runs/captioned-images/captions.jsonl \\
      --captions runs/clip-art/captions.jsonl --without food vehicles flags    # one token, and a connector that has begun
    python -m recipes.judge.seeing_model --merge runs/seeing-sft --base runs/seeing-model --out runs/seeing-judge

====================  ================================================================================================
text side             the embedded SmolLM2-135M-Instruct with its weights (``engines.embedded``), and one more token,
                      ``<image>``; or a larger SmolLM2 (``--text FOLDER``), or another model that reads ChatML
vision side           EfficientNet-Lite0 (``vision_tower``); never trained
connector             LLaVA's own, two layers (arXiv 2310.03744, section 3.3). **Untrained**: until it is, the judge sees
                      noise; with ``--captions`` fitted to the words of captions and class names (``connector_start``)
processor             LLaVA's; an image is squeezed to 224 x 224 pixels, so that nothing of it is cut off
chat template         SmolLM2's, an image in its place in the turn
====================  ================================================================================================

``--merge`` puts what ``train_sft.py`` trained (LoRA and connector) into the weights, so that another training can start
from there.

transformers must know the tower before it can load the folder: the recipes call :func:`make_known`; in code of your own
``import recipes.judge.vision_tower`` first.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mrjudge_reward.engines.embedded import embedded_model_path
from mrjudge_reward.errors import InputError
from recipes.data.captions import read_captions

IMAGE = "<image>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_known(model: str) -> None:
    """Import the vision tower if the model in this folder has it; any other model needs nothing."""
    config = Path(model) / "config.json"
    if config.is_file():
        vision = json.loads(config.read_text(encoding="utf-8")).get("vision_config") or {}
        if vision.get("model_type") == "efficientnet_lite0":
            from . import vision_tower  # noqa: F401


def seeing_processor(tokenizer: Any, grid: int) -> Any:
    """What makes tokens and pixel values of a chat."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.processing_llava import LlavaProcessor

    from .vision_tower import DEVIATION, MEAN, SIDE

    square = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(
        size=square, do_center_crop=False, crop_size=square, image_mean=list(MEAN), image_std=list(DEVIATION)
    )
    return LlavaProcessor(
        images, tokenizer, patch_size=SIDE // grid, vision_feature_select_strategy="full", image_token=IMAGE,
        num_additional_image_tokens=0, chat_template=TEMPLATE,
    )  # fmt: skip


def seeing_model(text: str = "embedded", grid: int = 7, seed: int = 0) -> tuple[Any, Any]:
    """Model, in float32, and processor.

    Args:
        text: folder or hub name of the text side, or ``"embedded"``.
        grid: an image takes this number squared of tokens; 1 to 7.
        seed: of the connector's weights.

    Raises:
        ConfigError: if there is no such grid.
        MissingPackageError: if the text model's or the encoder's package is not installed.
    """
    import torch
    import transformers

    from . import vision_tower

    path = str(embedded_model_path()) if text == "embedded" else text
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    tokenizer.chat_template = TEMPLATE  # where texts alone are trained on, no processor is asked
    writer = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    # Its output is tied to its input: a row of zeros would give the new token a logit of 0, which may be the largest.
    writer.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        rows = writer.get_input_embeddings().weight
        rows[-1] = rows[:-1].mean(dim=0)
    torch.manual_seed(seed)
    config = transformers.LlavaConfig(
        vision_config=vision_tower.EfficientNetLiteConfig(grid=grid), text_config=writer.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE), image_seq_length=grid * grid,
        vision_feature_select_strategy="full", vision_feature_layer=-1,
        tie_word_embeddings=writer.config.tie_word_embeddings,
    )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(writer.model.state_dict())
    model.lm_head.load_state_dict(writer.lm_head.state_dict())
    model.model.vision_tower.load_state_dict(vision_tower.pretrained(grid).state_dict())
    model.tie_weights()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    return model.eval(), seeing_processor(tokenizer, grid)


def merged(base: str, adapter: str) -> tuple[Any, Any]:
    """The model of a folder with an adapter put into its weights, and its processor.

    Raises:
        InputError: if there is no such model or adapter.
    """
    import torch
    import transformers
    from peft import PeftModel

    make_known(base)
    try:
        model = transformers.LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
        whole = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        return whole, transformers.AutoProcessor.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise InputError(f"{adapter} cannot be put on {base}: {error}") from error


def main() -> None:
    """Build or merge, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--text", default="embedded", help="folder or hub name of the text side")
    parser.add_argument("--grid", type=int, default=7, help="an image takes its square of tokens")
    parser.add_argument("--seed", type=int, default=0, help="of the connector")
    parser.add_argument(
        "--captions", action="append", default=[], metavar="FILE", help="start the connector from these"
    )
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="CATEGORY", help="of the captions, that are held out"
    )
    parser.add_argument("--merge", metavar="ADAPTER", help="put this adapter into --base instead of building")
    parser.add_argument("--base", help="folder that the adapter belongs to")
    args = parser.parse_args()
    if (args.merge is None) != (args.base is None):
        parser.error("--merge and --base belong together")
    if args.merge is not None and args.captions:
        parser.error("--captions start a new model's connector; --merge brings a trained one")
    parts = seeing_model(args.text, args.grid, args.seed) if args.merge is None else merged(args.base, args.merge)
    if args.captions:
        from . import connector_start

        rows = [row for file in args.captions for row in read_captions(file, without=args.without)]
        rows = connector_start.learned_from(rows)
        share = connector_start.start(*parts, rows, seed=args.seed)
        print(f"{len(rows)} pictures; nearer to their own caption than to another's in {share:.3f} of pairs")
    for part in parts:
        part.save_pretrained(args.out)
    print(f"saved to {args.out}")


if __name__ == "__main__":
    main()
