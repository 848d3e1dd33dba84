"""Rebuilds a tokenizer from the vocabulary inside a GGUF file: byte-level BPE as tokenizer.json,
SentencePiece as tokenizer.model; and tokenizer_config.json beside it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..base.arguments import shown
from ..base.errors import ModelFormatError, UnsupportedError
from .gguf_file import GgufFile
from .output import write_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


# Letters that have a case, as DeepSeek's tokenizers list them.
_CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅ"
    "ὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ"
    "Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_CJK = "[一-龥ࠀ-一가-\ud7ff]+"
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


def _split(*patterns: str) -> list[dict[str, Any]]:
    """Text cut at the matches of one pattern after the other."""
    cuts = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
        for p in patterns
    ]
    return [*cuts, _byte_level(False)]


class _Pre(NamedTuple):
    """How text is cut before merging, its normalizer, and, where words of the vocabulary skip the merges,
    that the model also wants a bos token unless it says otherwise."""

    cut: list[dict[str, Any]]
    normalizer: dict[str, Any] | None = None
    whole_words: bool = False


_GPT2 = _Pre([_byte_level(True)])
_DIGITS = _Pre([{"type": "Digits", "individual_digits": True}, _byte_level(True)])
_LLAMA = _Pre(_split(_LLAMA3), whole_words=True)
_QWEN = _Pre(_split(_QWEN2), {"type": "NFC"})
_DEFAULT = _split(r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]")
_DEEPSEEK_LLM = _split(
    "[\r\n]",
    rf"\s?[{_CASED}]+",
    r"\s?[!-/:-~！-／：-～‘-‟" + "\u3000-。]+",
    r"\s+$",
    _CJK,
    r"\p{N}+",
)
_DEEPSEEK_CODER = _split("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")
# By `tokenizer.ggml.pre`; a file that does not say is cut as llama.cpp cuts it then.
_PRE = {
    "default": _Pre(_DEFAULT),
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "olmo": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "llama-bpe": _LLAMA,
    "llama3": _LLAMA,
    "llama-v3": _LLAMA,
    "falcon3": _LLAMA,
    "pixtral": _LLAMA,
    "smaug-bpe": _Pre(_split(_LLAMA3)),
    "dbrx": _Pre(_split(_LLAMA3)),
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "tekken": _Pre(_split(_TEKKEN), whole_words=True),
    "deepseek-llm": _Pre(_DEEPSEEK_LLM),
    "deepseek-coder": _Pre(_DEEPSEEK_CODER),
}
# Control tokens that end a turn or a text wherever they stand, under any id.
_ENDS = frozenset(
    "</s> <|endoftext|> <|end_of_text|> <|im_end|> <|eot_id|> <|eom_id|> <|end|> <|end_of_turn|> <end_of_turn> "
    "<|EOT|> <EOT> <｜end▁of▁sentence｜>".split()
)


class Vocabulary:
    """The vocabulary of a GGUF file, its ids and lengths checked."""

    def __init__(self, file: GgufFile):
        self.path = file.path
        self._fields = file.fields
        self.model = self._get("model", str, required=True)
        self.tokens: list[str] = self._get("tokens", list, required=True)
        self.types: list[int] = self._get("token_type", list) or [NORMAL] * len(self.tokens)
        self.scores: list[float] = self._get("scores", list) or [0.0] * len(self.tokens)
        for name, values in (("token_type", self.types), ("scores", self.scores)):
            if len(values) != len(self.tokens):
                raise self.bad(f"{name} has {len(values)} entries for {len(self.tokens)} tokens")
        if not self.tokens or not all(isinstance(t, str) for t in self.tokens):
            raise self.bad("tokens is not a list of strings")
        if not all(isinstance(t, int) for t in self.types):
            raise self.bad("token_type is not a list of integers")
        if not all(isinstance(s, (int, float)) and s == s and abs(s) < 1e30 for s in self.scores):
            raise self.bad("scores are not finite numbers")
        seen: dict[str, int] = {}
        for i, token in enumerate(self.tokens):
            if seen.setdefault(token, i) != i and self.types[i] != UNUSED:
                raise self.bad(f"token {shown(token)} has the two ids {seen[token]} and {i}")
        self.bos = self.id("bos_token_id")
        self.eos = self.id("eos_token_id")
        self.unknown = self.id("unknown_token_id")
        self.pad = self.id("padding_token_id")
        self.end_of_turn = self.id("eot_token_id")
        self.end_of_message = self.id("eom_token_id")
        self.add_bos = self._get("add_bos_token", bool)
        self.add_eos = bool(self._get("add_eos_token", bool))
        self.add_space_prefix = self._get("add_space_prefix", bool)
        self.chat_template = self._templates()

    def _templates(self) -> str | list[dict[str, str]] | None:
        """The chat template; a list where there are some under names of their own."""
        key = "tokenizer.chat_template"
        default = self._fields.get(key)
        named = {
            name.removeprefix(f"{key}."): value
            for name, value in self._fields.items()
            if name.startswith(f"{key}.")
        }
        for name, value in {"default": default, **named}.items():
            if value is not None and not isinstance(value, str):
                raise ModelFormatError(
                    f"{self.path}: the chat template {shown(name)} is not a text"
                )
        if not named:
            return default
        every = named if default is None else {"default": default, **named}
        return [{"name": name, "template": value} for name, value in every.items()]

    def bad(self, what: str) -> ModelFormatError:
        return ModelFormatError(f"{self.path}: tokenizer.ggml.{what}")

    def _get(self, name: str, kind: type, required: bool = False) -> Any:
        value = self._fields.get(f"tokenizer.ggml.{name}")
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if value is None and not required:
            return None
        if not isinstance(value, kind):
            raise self.bad(f"{name} is missing or not of type {kind.__name__}")
        return value

    def id(self, name: str) -> int | None:
        value = self._get(name, int)
        if value is not None and not 0 <= value < len(self.tokens):
            raise self.bad(f"{name} is {value}, outside the vocabulary of {len(self.tokens)}")
        return value

    def end_tokens(self) -> list[int]:
        """Those that the file names as ends, and control tokens that are ends by their text."""
        named = {self.eos, self.end_of_turn, self.end_of_message} - {None}
        known = {i for i, t in enumerate(self.tokens) if t in _ENDS and self.types[i] == CONTROL}
        return sorted(named | known)

    def write(self, directory: Path) -> None:
        """Writes the tokenizer's files into `directory`."""
        if self.model == "gpt2":
            write_json(directory / "tokenizer.json", self._bpe())
            kind = "PreTrainedTokenizerFast"
            default_bos = self._pre().whole_words
        elif self.model == "llama":
            (directory / "tokenizer.model").write_bytes(self._sentencepiece())
            kind = "LlamaTokenizer"
            default_bos = True
        else:
            raise UnsupportedError(
                f"{self.path}: tokenizer.ggml.model is {shown(self.model)}; gpt2 (byte-level BPE) and llama "
                "(SentencePiece) are converted"
            )
        write_json(directory / "tokenizer_config.json", self._config(kind, default_bos))

    def _added(self) -> list[tuple[int, str, bool]]:
        kinds = (
            (CONTROL, USER_DEFINED) if self.model == "gpt2" else (UNKNOWN, CONTROL, USER_DEFINED)
        )
        named = {
            t
            for t in (
                self.bos,
                self.eos,
                self.unknown,
                self.pad,
                self.end_of_turn,
                self.end_of_message,
            )
            if t is not None
        }
        return [
            (i, t, self.types[i] != USER_DEFINED)
            for i, t in enumerate(self.tokens)
            if self.types[i] in kinds or (self.model == "gpt2" and i in named)
        ]

    def _config(self, kind: str, default_bos: bool) -> dict[str, Any]:
        config: dict[str, Any] = {
            "tokenizer_class": kind,
            "add_bos_token": default_bos if self.add_bos is None else self.add_bos,
            "add_eos_token": self.add_eos,
            "clean_up_tokenization_spaces": False,
            "added_tokens_decoder": {
                str(i): {
                    "content": text,
                    "special": special,
                    "normalized": False,
                    "lstrip": False,
                    "rstrip": False,
                    "single_word": False,
                }
                for i, text, special in self._added()
            },
        }
        named = {
            "bos_token": self.bos,
            "eos_token": self.eos,
            "unk_token": self.unknown,
            "pad_token": self.pad,
        }
        config |= {name: self.tokens[i] for name, i in named.items() if i is not None}
        if self.chat_template:
            config["chat_template"] = self.chat_template
        return config

    def _pre(self) -> _Pre:
        pre = self._get("pre", str) or "default"
        if pre not in _PRE:
            raise UnsupportedError(
                f"{self.path}: tokenizer.ggml.pre is {shown(pre)}; known: {', '.join(sorted(_PRE))}"
            )
        return _PRE[pre]

    def _bpe(self) -> dict[str, Any]:
        cut, normalizer, whole_words = self._pre()
        merges = self._get("merges", list, required=True)
        vocabulary = {t: i for i, t in enumerate(self.tokens)}
        pairs = []
        for i, merge in enumerate(merges):
            parts = merge.split(" ") if isinstance(merge, str) else []
            if len(parts) != 2 or any(p not in vocabulary for p in (*parts, "".join(parts))):
                raise self.bad(
                    f"merges[{i}] is {shown(merge)}: not two tokens of the vocabulary that make a third"
                )
            pairs.append(parts)
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": i,
                    "content": text,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": special,
                }
                for i, text, special in self._added()
            ],
            "normalizer": normalizer,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": cut},
            "post_processor": self._post_processor(),
            "decoder": _byte_level(True),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": whole_words,
                "vocab": vocabulary,
                "merges": pairs,
            },
        }

    def _post_processor(self) -> dict[str, Any]:
        add_bos = self._pre().whole_words if self.add_bos is None else self.add_bos
        if not add_bos or self.bos is None:
            return _byte_level(True) | {"trim_offsets": False}
        bos = self.tokens[self.bos]
        special = {"SpecialToken": {"id": bos, "type_id": 0}}
        single = [special, {"Sequence": {"id": "A", "type_id": 0}}]
        return {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [self.bos], "tokens": [bos]}},
        }

    def _sentencepiece(self) -> bytes:
        """The protobuf that sentencepiece loads: pieces, BPE trainer, identity normalizer."""
        if any(t == BYTE for t in self.types) and sum(t == BYTE for t in self.types) != 256:
            raise self.bad("token_type marks byte tokens, but not all 256")
        out = bytearray()
        for text, score, kind in zip(self.tokens, self.scores, self.types):
            piece = (
                _field(1, text.encode()) + _key(2, 5) + struct.pack("<f", score) + _number(3, kind)
            )
            out += _field(1, piece)
        trainer = _number(3, 2) + _number(4, len(self.tokens))
        trainer += _number(35, int(any(t == BYTE for t in self.types)))
        unknown = self.unknown if self.unknown is not None else self._first(UNKNOWN)
        for number, value in ((40, unknown), (41, self.bos), (42, self.eos), (43, self.pad)):
            trainer += _number(number, -1 if value is None else value)
        prefix = True if self.add_space_prefix is None else self.add_space_prefix
        normalizer = (
            _field(1, b"identity") + _number(3, int(prefix)) + _number(4, 0) + _number(5, 1)
        )
        return bytes(out + _field(2, trainer) + _field(3, normalizer))

    def _first(self, kind: int) -> int:
        if kind not in self.types:
            raise self.bad("token_type marks no unknown token")
        return self.types.index(kind)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _key(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _number(number: int, value: int) -> bytes:
    return _key(number, 0) + _varint(value)


def _field(number: int, data: bytes) -> bytes:
    return _key(number, 2) + _varint(len(data)) + data
