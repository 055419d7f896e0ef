"""Vision-language models of real architectures, shrunk to a few million random weights, with SmolLM2's tokenizer.

Their processors are the real ones, with the image processors that need no torchvision. Qwen's want torchvision for their
half that reads videos alone, so here they come without that half.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.processing_utils import ProcessorMixin

# What a turn looks like in the templates of these families: an image is this much text, in its place.
_TURNS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IMAGES_FIRST = (
    "{% for m in messages %}{{ m['role'] }}: "
    "{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""As LLaVA 1.5 writes it; a content that is no list is dropped."""

_TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip


class _WithoutVideos(ProcessorMixin):  # type: ignore[misc]
    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str) -> None:
        for kind in ("image", "video"):
            setattr(self, f"{kind}_token", f"<|{kind}_pad|>")
            setattr(self, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>"))
        self.vision_start_token_id = tokenizer.convert_tokens_to_ids("<|vision_start|>")
        self.vision_end_token_id = tokenizer.convert_tokens_to_ids("<|vision_end|>")
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class Qwen25Processor(_WithoutVideos, Qwen2_5_VLProcessor):  # type: ignore[misc]
    pass


class Qwen3Processor(_WithoutVideos, Qwen3VLProcessor):  # type: ignore[misc]
    pass


def _tokenizer(path: str, *more: str) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"additional_special_tokens": list(more)})
    return tokenizer


def _ends(tokenizer: Any) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip


def llava(smol: str, template: str = _TURNS.replace("IMAGE", "<image>\n")) -> tuple[Any, Any]:
    """Model and processor; 4 image tokens."""
    tokenizer = _tokenizer(smol, "<image>")
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", image_token="<image>",
        num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=transformers.LlamaConfig(**_TEXT, **_ends(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1, image_seq_length=4,
    )  # fmt: skip
    return _made(transformers.LlavaForConditionalGeneration, config), processor


def idefics3(smol: str) -> tuple[Any, Any]:
    """Model and processor; an image is cut into tiles of 16 tokens, between tags for row and column."""
    tags = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = _tokenizer(smol, "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tags)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=16, chat_template=_TURNS.replace("IMAGE", "<image>"))
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Idefics3Config(
        vision_config={**vision, "image_size": 32, "patch_size": 4, "model_type": "idefics3_vision"},
        text_config=transformers.LlamaConfig(**_TEXT, **_ends(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2,
    )  # fmt: skip
    return _made(transformers.Idefics3ForConditionalGeneration, config), processor


def _qwen(smol: str, patch: int) -> tuple[Any, dict[str, int], Any, str]:
    tokenizer = _tokenizer(smol, "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    images = Qwen2VLImageProcessorPil(
        patch_size=patch, size={"shortest_edge": (4 * patch) ** 2, "longest_edge": (32 * patch) ** 2}
    )
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    ids = {f"{kind}_token_id": tokenizer.convert_tokens_to_ids(token) for kind, token in names.items()}
    for end in ("start", "end"):
        ids[f"vision_{end}_token_id"] = tokenizer.convert_tokens_to_ids(f"<|vision_{end}|>")
    return tokenizer, ids, images, _TURNS.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")


def qwen25(smol: str) -> tuple[Any, Any]:
    """Model and processor; a token for 28 x 28 pixels, positions in three dimensions."""
    tokenizer, ids, images, template = _qwen(smol, 14)
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**_TEXT, **_ends(tokenizer), "rope_parameters": rope, "max_window_layers": 2},
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
        tie_word_embeddings=True, **ids,
    )  # fmt: skip
    model = _made(transformers.Qwen2_5_VLForConditionalGeneration, config)
    return model, Qwen25Processor(images, tokenizer, template)


def qwen3(smol: str) -> tuple[Any, Any]:
    """Model and processor; a token for 32 x 32 pixels, image features also in deeper layers."""
    tokenizer, ids, images, template = _qwen(smol, 16)
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    config = transformers.Qwen3VLConfig(
        text_config={**_TEXT, **_ends(tokenizer), "head_dim": 32, "rope_parameters": rope},
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        },
        tie_word_embeddings=True, **ids,
    )  # fmt: skip
    return _made(transformers.Qwen3VLForConditionalGeneration, config), Qwen3Processor(images, tokenizer, template)


def _made(kind: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = kind(config)
    for parameter in model.parameters():  # so that an image moves the logits of a random model by more than rounding
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


MAKERS = {"llava": llava, "idefics3": idefics3, "qwen2.5-vl": qwen25, "qwen3-vl": qwen3}


def saved(made: tuple[Any, Any], folder: Path) -> str:
    """A folder from which both can be loaded."""
    for part in made:
        part.save_pretrained(folder)
    return str(folder)


def picture(colour: str = "red", size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A square of white on a colour."""
    image = Image.new("RGB", size, colour)
    image.paste("white", (4, 4, size[0] // 2, size[1] // 2))
    return image


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """An image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()
