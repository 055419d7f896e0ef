"""Strings that a judge's tokenizer turns into special tokens, wherever they come from: what outside text must not hold.

A tokenizer at hand tells its own. Behind a server it is out of reach, and many servers take special tokens in user text
for what they are. So there the name of the model says the family; of a name that says nothing all families count, but only
with tokens that are nothing else: ``<|im_end|>`` and ``[INST]``, not ``<s>`` (struck-out text in HTML), ``[IMG]`` or
``<mask>``. Sources: the tokenizer configs of the families.

>>> of_model("Qwen/Qwen3-8B") <= of_model("my-judge")
False
>>> [token in of_model(name) for token in ("<s>", "[INST]") for name in ("mistral-small", "Qwen/Qwen3-8B", "my-judge")]
[True, False, False, True, False, True]
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias

Reserved: TypeAlias = frozenset[str | re.Pattern[str]]
"""Strings, each as it stands, and patterns, which begin with ``<`` or ``[``. A full-width bar counts as ``|``."""

_IN_BARS = re.compile(r"<\|[^\s|<>]{1,60}\|>")


def _in_bars(names: str) -> re.Pattern[str]:
    return re.compile(rf"<\|(?:{names})\|>")


_CHATML = {"<|im_start|>", "<|im_end|>", "<|endoftext|>"}  # what fine-tunes of all families add
_SENTENCE = {"<s>", "</s>", "<unk>"}
_MISTRAL = {
    "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[MODEL_SETTINGS]", "[/MODEL_SETTINGS]", "[IMG_BREAK]", "[IMG_END]",
    "[BEGIN_AUDIO]",
}  # fmt: skip
_LLAMA2 = {"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"}
_GEMMA = {"<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"} | {
    token
    for name in ("turn", "channel", "tool", "tool_call", "tool_response", "image", "audio", "video")
    for token in (f"<|{name}>", f"<{name}|>")
}
_GLM = {"[gMASK]", "[sMASK]", "<sop>", "<eop>"}
_COHERE = {"<BOS_TOKEN>", "<EOS_TOKEN>"}
_EXAONE = {"[|system|]", "[|user|]", "[|assistant|]", "[|tool|]", "[|endofturn|]"}
_SEED = {"<seed:bos>", "<seed:eos>", "<seed:tool_call>", "</seed:tool_call>"}
_MINIMAX = {"]~b]", "]~!b[", "[e~[", "<beginning_of_sentence>", "<end_of_sentence>"}
_BAICHUAN = {"<reserved_106>", "<reserved_107>"}
_NEMOTRON = {"<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>"}

_UNMISTAKABLE = {  # what is in bars is left to the pattern
    *_MISTRAL, *_LLAMA2, *_GEMMA, *_GLM, *_COHERE, *_EXAONE, *_SEED, *_MINIMAX, *_BAICHUAN, *_NEMOTRON,
}  # fmt: skip
ANY_FAMILY: Reserved = frozenset({_IN_BARS, *_UNMISTAKABLE})
"""Of a judge about which nothing is known."""

_LLAMA3 = _in_bars(
    r"(?:begin|end)_of_text|(?:start|end)_header_id|header_(?:start|end)|eot(?:_id)?|eom(?:_id)?|python_(?:tag|start|end)"
    r"|image|patch|finetune_\w+|reserved_\w+|(?:vision|text)_\w*reserved\w*"
)
_FAMILIES: dict[str, tuple[str | re.Pattern[str], ...]] = {
    r"qwen|qwq": (
        _in_bars(r"(?:object_ref|box|quad|vision|audio)_\w+|(?:image|video)_pad|fim_\w+|repo_name|file_sep|AUDIO"),
    ),
    r"llama-?[12](?!\d)|vicuna|alpaca|tulu-2": (*_SENTENCE, *_LLAMA2),
    r"llama-?[34](?!\d)|tulu-3": (_LLAMA3,),
    r"mi[sx]tral|magistral|ministral|codestral|devstral|pixtral|voxtral|zephyr|prometheus": (
        *_SENTENCE, *_MISTRAL,
        "[IMG]", "[AUDIO]", "[TOOL_CONTENT]", "[ARGS]", "[CALL_ID]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    ),
    r"gemma": (*_GEMMA, "<pad>", "<unk>", "<mask>", "<image_soft_token>", "<audio_soft_token>"),
    r"phi-?[3-9]": (
        _in_bars(r"system|user|assistant|end|/?tool\w*|placeholder\d*|im_sep|fim_\w+|dummy_\d+|endofprompt"),
    ),
    r"glm": (*_GLM, _in_bars(r"system|user|assistant|observation|(?:begin|end)_of_\w+|code_\w+")),
    r"gpt-oss": (_in_bars(r"start|end|message|channel|constrain|return|call|startoftext|endofprompt|reserved_\d+"),),
    r"command-?[ar]|aya|cohere": (*_COHERE, _IN_BARS),
    r"exaone": (*_EXAONE,),
    r"seed-oss": (*_SEED,),
    r"minimax": (*_MINIMAX,),
    r"baichuan": (*_BAICHUAN,),
    r"nemotron": (*_NEMOTRON, *_SENTENCE),
    r"kimi": (_IN_BARS, "[BOS]", "[EOS]", "[EOT]", "[PAD]"),
    r"internvl": (_IN_BARS, "<img>", "</img>", "<IMG_CONTEXT>", "<image>"),
    r"deepseek|internlm|granite|smollm|olmo|minicpm|falcon|hunyuan|ernie|apertus|(?:^|[/_-])yi-": (_IN_BARS,),
    r"llava": ("<image>",),
}  # fmt: skip


def of_tokenizer(tokenizer: Any) -> Reserved:
    """Of a tokenizer of transformers: its special tokens, and what else of its own stands in bars.

    Other added tokens are ordinary words to it, such as ``<table>`` and ``<b>`` of Gemma's.
    """
    return frozenset(
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or re.fullmatch(r"<[|｜].*[|｜]>", token.content)
    )


def of_model(name: str) -> Reserved:
    """Of a model behind a server, by its name; a fine-tune may name several families."""
    known = [tokens for family, tokens in _FAMILIES.items() if re.search(family, name, re.IGNORECASE)]
    return frozenset().union(_CHATML, *known) if known else ANY_FAMILY
