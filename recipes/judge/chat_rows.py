"""What both trainers are shown: chats and their pictures in TRL's layout, and the processor that makes tokens of them.

A row holds ``prompt`` (and ``completion``), and where its chat shows images, ``images``, of which TRL's trainers make pixel
values, and in ``item`` what it is of. What cannot be shown is refused here, before any training, by the name of its item.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mrjudge_reward.engines.local.vision import load_processor
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.images import load_picture, opened
from mrjudge_reward.messages import Message, TextPart
from mrjudge_reward.prompting.sanitizing import Sanitizer
from mrjudge_reward.special_tokens import of_tokenizer

Row = dict[str, Any]
_CHATS = ("prompt", "completion")
_NOT_LEARNED = ("task", "item")
_OF_A_PROCESSOR = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")


def guard_of(tokenizer: Any, max_text_tokens: int) -> Sanitizer:
    """What outside texts pass through, as in scoring."""
    reserved = of_tokenizer(tokenizer)
    return Sanitizer(lambda text: len(tokenizer.encode(text, add_special_tokens=False)), max_text_tokens, reserved)


def shown(turns: Sequence[Message], name: str) -> tuple[list[Row], list[Row]]:
    """A chat in TRL's layout, and the images that stand in it, as an image column of the datasets library takes them.

    Args:
        turns: the chat.
        name: what it is of, for the error.

    Raises:
        InputError: if an image is none.
    """
    try:
        images = [load_picture(part.image) for turn in turns for part in turn.images]
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    if not images:
        return [{"role": turn.role, "content": turn.text} for turn in turns], []
    chat = [
        {
            "role": turn.role,
            # Both keys in every part, or the datasets library would put the one that is missing in as null.
            "content": [
                {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image", "text": ""}
                for part in turn.content
            ],
        }
        for turn in turns
    ]
    return chat, [{"bytes": image.data, "path": None} for image in images]


def alike(rows: Sequence[Row]) -> list[Row]:
    """Rows of one layout: all with lists of parts and of images if any row shows one, else all without."""
    if not any(row.get("images") for row in rows):
        return [{name: value for name, value in row.items() if name not in ("images", "item")} for row in rows]

    def listed(turns: Sequence[Row]) -> list[Row]:
        return [
            turn
            if isinstance(turn["content"], list)
            else turn | {"content": [{"type": "text", "text": turn["content"]}]}
            for turn in turns
        ]

    return [
        row | {"images": row.get("images", []), **{name: listed(row[name]) for name in _CHATS if name in row}}
        for row in rows
    ]


def data_set(rows: Sequence[Row]) -> Any:
    """Rows of one layout as the trainer takes them; pictures stay encoded until their batch is made."""
    import datasets

    made = datasets.Dataset.from_list([{name: row[name] for name in row if name not in _NOT_LEARNED} for row in rows])
    return made.cast_column("images", datasets.List(datasets.Image())) if "images" in rows[0] else made


def processing_class(model: str, tokenizer: Any, rows: Sequence[Row]) -> Any:
    """The tokenizer, or the processor where rows show images.

    Raises:
        InputError: if the model has no processor for images.
    """
    pictured = next((row for row in rows if row.get("images")), None)
    if pictured is None:
        return tokenizer
    processor, why = load_processor(model)
    if processor is None:
        raise InputError(f"the tasks show images, and {why}; the first is of {pictured['item']}")
    processor.tokenizer.padding_side = tokenizer.padding_side
    return processor


def check_modalities(rows: Sequence[Row]) -> None:
    """Raise ConfigError where ranks share out weights and some rows show images while others do not.

    A rank whose batch shows none would not run the vision tower, and the others would wait for its part of it for ever.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    shared_out = is_deepspeed_zero3_enabled() or os.environ.get("ACCELERATE_USE_FSDP") == "true"
    pictured = sum(bool(row.get("images")) for row in rows)
    if shared_out and 0 < pictured < len(rows):
        raise ConfigError(
            f"{pictured} of {len(rows)} examples show images, and under ZeRO-3 or FSDP all must or none: train on the "
            "others apart, or under DDP or ZeRO-2"
        )


def save_processor(model: str, tokenizer: Any, folder: Path) -> None:
    """Put what makes tokens and pixel values beside the weights; without it a vision-language model could not be loaded."""
    from transformers.utils import cached_file

    processor, _ = load_processor(model)
    (tokenizer if processor is None else processor).save_pretrained(folder)
    if processor is not None:
        return
    # Of a model without one there are none of these; one that cannot be loaded here, for want of torchvision, is kept.
    for name in _OF_A_PROCESSOR:
        if (found := cached_file(model, name, _raise_exceptions_for_missing_entries=False)) is not None:
            shutil.copy(found, folder)


# -- what is too long ---------------------------------------------------------------------------------------------------


def lengths(rows: Sequence[Row], processing: Any) -> list[int]:
    """Tokens of each row's chat, those of its images and of its completion included.

    Args:
        rows: with chats, or texts to which no template is put.
        processing: tokenizer or processor.
    """
    tokenizer = getattr(processing, "tokenizer", processing)
    more: dict[tuple[tuple[int, int], ...], int] = {}  # tokens that images of these sizes add to the text
    found = []
    for row in rows:
        text = row["prompt"]
        if not isinstance(text, str):
            chat = [turn for name in _CHATS for turn in row.get(name, ())]
            text = processing.apply_chat_template(chat, tokenize=False, add_generation_prompt="completion" not in row)
        length = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        pictures = [load_picture(image["bytes"]) for image in row.get("images", ())]
        if pictures:
            sizes = tuple((picture.width, picture.height) for picture in pictures)
            if sizes not in more:
                seen = processing(text=[text], images=[list(map(opened, pictures))])
                more[sizes] = len(seen["input_ids"][0]) - length
            length += more[sizes]
        found.append(length)
    return found


def fitting(
    rows: Sequence[Row], processing: Any, bound: int | None, twins: Callable[[Row, Row], bool] | None = None
) -> list[Row]:
    """Rows that are no longer than a bound; how many are not is printed.

    Args:
        rows: all of them.
        processing: tokenizer or processor.
        bound: most tokens of a row; None for no bound.
        twins: where rows stand in twos, whether two of them stay or go together. Others go alone; the one that is left
            gets the next such row for a neighbour, and the last of an odd number goes too.

    Raises:
        InputError: if none is left.
    """
    if bound is None:
        return list(rows)
    sizes = lengths(rows, processing)
    fits = [size <= bound for size in sizes]
    kept = [row for row, fit in zip(rows, fits, strict=True) if fit] if twins is None else _in_twos(rows, fits, twins)
    if not kept:
        raise InputError(f"all {len(rows)} examples are longer than {bound} tokens; the shortest has {min(sizes)}")
    if len(kept) < len(rows):
        said = f"{len(rows) - len(kept)} of {len(rows)} examples are left out, being longer than {bound} tokens"
        print(f"{said}; the longest has {max(sizes)}")
    return kept


def _in_twos(rows: Sequence[Row], fits: Sequence[bool], twins: Callable[[Row, Row], bool]) -> list[Row]:
    kept: list[Row] = []
    alone: list[Row] = []
    for at in range(0, len(rows), 2):
        two, fit = rows[at : at + 2], fits[at : at + 2]
        if twins(*two):
            kept += two if all(fit) else []
            continue
        alone += [row for row, one in zip(two, fit, strict=True) if one]
        if len(alone) > 1:
            kept += alone[:2]
            del alone[:2]
    return kept
