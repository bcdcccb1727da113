"""A folder with a tiny random Llama and a tokenizer of its own, as commands load them."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from minference_ext.evaluation.words import compound_words

from tests.tiny_llama import tiny

VOCABULARY = 2048
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TEXT = (
    "The special magic values are hidden in the following text. Question: Answer: the most common "
    "words in the list, the number of the document, VAR ABCDE = 12345. grass grows on the hill"
)


def tokenizer() -> Any:
    """Byte-level BPE: any text is encoded, and decoding gives it back."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    words = " ".join(f"{i}. {word}" for i, word in enumerate(compound_words(900, Random(0))))
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [_TEXT, words], vocab_size=VOCABULARY, min_frequency=1, special_tokens=["<s>", "</s>"]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>"
    )


def save(folder: Path, *, chat: bool = False) -> Path:
    """Writes model and tokenizer into `folder`."""
    from transformers import GenerationConfig

    model = tiny("sdpa", vocab_size=VOCABULARY, max_position_embeddings=8192)
    model.generation_config = GenerationConfig(eos_token_id=1, repetition_penalty=1.5)
    model.save_pretrained(folder)
    saved = tokenizer()
    if chat:
        saved.chat_template = CHAT_TEMPLATE
    saved.save_pretrained(folder)
    return folder
