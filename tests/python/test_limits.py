"""Files made to use up memory or time are refused before they do, by the name of what is too large."""

import base64
import json
import struct

import numpy as np
import pytest
import tiny
from conftest import refused
from stepladder import InvalidArgumentError, ModelFormatError, UnsupportedError, convert
from stepladder.files.gguf_file import GgufFile
from stepladder.text.tokenizer import Text
from stepladder.text.vocabulary import MAX_TEXT
from test_convert import field, header, string, tensor

FLOAT, UINT8, INT32, STRING, INT64 = 6, 0, 5, 8, 11


def array(kind, count, data=b""):
    return struct.pack("<IQ", kind, count) + data


# The beginning of a file, how long it is (zeros follow), and words of the refusal.
HUGE_HEADERS = {
    "200 M floats": (field(b"a.floats", 9, array(FLOAT, 200_000_000)), 800 << 20, "a.floats", "200000000"),
    "200 M bytes": (field(b"a.bytes", 9, array(UINT8, 200_000_000)), 200 << 20, "a.bytes", "200000000"),
    "2 M numbers": (field(b"a.n", 9, array(INT64, 2_000_000)), 16 << 20, "a.n", "2000000"),
    "200 M strings": (field(b"a.strings", 9, array(STRING, 200_000_000)), 1600 << 20, "a.strings", "200000000"),
    "2 M strings": (field(b"a.strings", 9, array(STRING, 2_000_000)), 16 << 20, "a.strings", "2000000"),
    "a string of 500 MB": (field(b"a.s", 8, struct.pack("<Q", 500 << 20)), 501 << 20, "a.s", str(500 << 20)),
    "a string of 2 MB": (field(b"a.s", 8, struct.pack("<Q", 2 << 20)), 3 << 20, "a.s", str(2 << 20)),
    "a template of 500 MB": (
        field(b"tokenizer.chat_template", 8, struct.pack("<Q", 500 << 20)), 501 << 20, "tokenizer.chat_template"),
    "a token of 500 MB": (
        field(b"tokenizer.ggml.tokens", 9, array(STRING, 1, struct.pack("<Q", 500 << 20))), 501 << 20,
        "tokenizer.ggml.tokens"),
    "a token of 100 KB": (
        field(b"tokenizer.ggml.tokens", 9, array(STRING, 1, struct.pack("<Q", 100_000))), 1 << 20,
        "tokenizer.ggml.tokens", "100000"),
    "a key of 500 MB": (struct.pack("<Q", 500 << 20), 501 << 20, "key 0"),
    "a key of 2 KB": (struct.pack("<Q", 2000), 1 << 20, "key 0", "2000"),
}  # fmt: skip


def sparse(path, start, size):
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(max(size, len(start)))


@pytest.mark.parametrize("case", HUGE_HEADERS)
def test_headers_without_measure_are_refused_by_field(tmp_path, case):
    start, size, *words = HUGE_HEADERS[case]
    sparse(tmp_path / "m.gguf", header(3, 0, 1) + start, size)
    with refused(ModelFormatError, "m.gguf", *words):
        convert(tmp_path / "m.gguf", tmp_path / "out")


def test_a_tensor_name_without_measure_is_refused(tmp_path):
    sparse(tmp_path / "m.gguf", header(3, 1) + struct.pack("<Q", 500 << 20), 501 << 20)
    with refused(ModelFormatError, "name of tensor 0", str(500 << 20)):
        convert(tmp_path / "m.gguf", tmp_path / "out")


@pytest.mark.parametrize("size", [1 << 17, 1 << 40, 2**64 - 1])
@pytest.mark.parametrize("data", [b"", b"ab", b"\xff\xfe"])
def test_a_bad_entry_of_an_array_is_named(tmp_path, data, size):
    start = string(b"ok") + (
        string(data) if data == b"\xff\xfe" else struct.pack("<Q", size) + data
    )
    content = field(b"a.strings", 9, array(STRING, 3, start + bytes(16)))
    (tmp_path / "m.gguf").write_bytes(header(3, 0, 1) + content)
    what = "UTF-8" if data == b"\xff\xfe" else str(size)
    with refused(ModelFormatError, "a.strings", "entry 1", what):
        convert(tmp_path / "m.gguf", tmp_path / "out")


@pytest.mark.parametrize(
    "kind, count, size", [(STRING, 1 << 18, 8), (INT64, 1 << 20, 8), (UINT8, 1 << 20, 1)]
)
def test_many_arrays_of_a_fair_size_are_too_much_together(tmp_path, kind, count, size):
    number = 60 if size == 1 else 10
    one = array(kind, count, bytes(count * size))
    with open(tmp_path / "m.gguf", "wb") as file:
        file.write(header(3, 0, number))
        for i in range(number):
            file.write(field(b"field.%d" % i, 9, one))
    with refused(ModelFormatError, "m.gguf", "field."):
        convert(tmp_path / "m.gguf", tmp_path / "out")


def test_many_long_strings_are_too_much_together(tmp_path):
    value = string(bytes(1 << 20))
    (tmp_path / "m.gguf").write_bytes(
        header(3, 0, 80) + b"".join(field(b"field.%d" % i, 8, value) for i in range(80))
    )
    with refused(ModelFormatError, "m.gguf", "field.4"):
        convert(tmp_path / "m.gguf", tmp_path / "out")


def test_the_largest_vocabularies_are_read(tmp_path):
    """A quarter of a million tokens with scores, types and half a million merges."""
    tokens, merges = 1 << 18, 1 << 19
    names = b"".join(string(b"token%d" % i) for i in range(tokens))
    pairs = b"".join(string(b"tok en%d" % i) for i in range(merges))
    scores, types = np.arange(tokens, dtype="<f4"), np.ones(tokens, "<i4")
    data = header(3, 1, 4)
    data += field(b"tokenizer.ggml.tokens", 9, array(STRING, tokens, names))
    data += field(b"tokenizer.ggml.merges", 9, array(STRING, merges, pairs))
    data += field(b"tokenizer.ggml.scores", 9, array(FLOAT, tokens, scores.tobytes()))
    data += field(b"tokenizer.ggml.token_type", 9, array(INT32, tokens, types.tobytes()))
    data += tensor()
    (tmp_path / "m.gguf").write_bytes(data + bytes(200))
    with GgufFile(tmp_path / "m.gguf") as file:
        assert file.fields["tokenizer.ggml.tokens"][-1] == f"token{tokens - 1}"
        assert file.fields["tokenizer.ggml.scores"][-1] == tokens - 1
        assert len(file.fields["tokenizer.ggml.merges"]) == merges and list(file.tensors) == ["x"]


def replace(content, pattern="a", kind="String"):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*parts):
    return {"type": "Sequence", "normalizers": list(parts)}


def charsmap(*texts):
    blob = struct.pack("<I", 4) + bytes(4) + b"\0".join(texts) + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(blob).decode()}


def model(**changes):
    return {"model": tiny.tokenizer_json()["model"] | changes}


BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}


def pre(*parts):
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(parts)}}


def template(single):
    return {"post_processor": {"type": "TemplateProcessing", "single": single}}


HUGE_TOKENIZERS = {
    "a replacement of a million": ({"normalizer": replace("x" * 10**6)}, "Replace", "1000000"),
    "a replacement of 300": ({"normalizer": replace("x" * 300)}, "Replace", "content", "300"),
    "a replacement of 10 MB": ({"normalizer": replace("x" * 10**7)}, "tokenizer.json", "text of more"),
    "by a regular expression": ({"normalizer": replace("x" * 10**6, "a", "Regex")}, "Replace", "1000000"),
    "in a sequence of sequences": ({"normalizer": sequence(sequence(replace("x" * 10**6)))}, "Replace", "1000000"),
    "a prefix": ({"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}}, "Prepend", "1000000"),
    "a table": ({"normalizer": charsmap(b"x" * 10**6)}, "precompiled_charsmap", "1000000"),
    "a broken table": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!"}}, "precompiled_charsmap"),
    "a content that is no text": ({"normalizer": replace(5)}, "Replace", "content"),
    "a normalizer that is no object": ({"normalizer": [1]}, "normalizer"),
    "a sequence of nothing": ({"normalizer": {"type": "Sequence"}}, "Sequence"),
    "ten thousand normalizers": ({"normalizer": sequence(*[{"type": "NFC"}] * 10_000)}, "32 normalizers"),
    "a normalizer whose type is no text": ({"normalizer": {"type": ["NFC"]}}, "normalizer", "type"),
    "sequences of nothing": ({"normalizer": sequence(*[sequence(sequence())] * 32)}, "32 normalizers"),
    "thirty thousand pretokenizers": (pre(*[{"type": "Punctuation", "behavior": "Isolated"}] * 30_000), "16 pretokenizers"),
    "bytes of bytes": (pre(BYTES, BYTES), "2 ByteLevel"),
    "bytes of bytes, nested": (pre(BYTES, pre(BYTES)["pre_tokenizer"]), "2 ByteLevel"),
    "a pretokenizer whose type is no text": (pre({"type": {}}), "pretokenizer", "type"),
    "pretokenizers that are no list": ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": 5}}, "pretokenizers"),
    "a post-processor that is no object": ({"post_processor": "x"}, "processor", "x"),
    "a list of post-processors": ({"post_processor": []}, "processor"),
    "processors that are no list": ({"post_processor": {"type": "Sequence", "processors": 5}}, "processors"),
    "a processor that is a list": ({"post_processor": {"type": "Sequence", "processors": [[]]}}, "processor"),
    "a template of numbers": (template([5]), "single"),
    "a template that is an object": (template({"a": 1}), "single"),
    "a special token that is a list": (template([{"SpecialToken": [1]}]), "single"),
    "a special token that is a text": (template([{"SpecialToken": "x"}]), "single"),
    "a special token with a number": (template([{"SpecialToken": {"id": 5}}]), "single"),
    "a decoder whose type is a list": ({"decoder": {"type": ["ByteLevel"]}}, "tokenizer.json"),
    "a subword prefix": (model(continuing_subword_prefix="x" * 10**6), "continuing_subword_prefix"),
    "a word suffix": (model(end_of_word_suffix="x" * 10**6), "end_of_word_suffix"),
}  # fmt: skip


@pytest.mark.parametrize("case", HUGE_TOKENIZERS)
def test_normalizers_without_measure_are_refused(tmp_path, case):
    changes, *words = HUGE_TOKENIZERS[case]
    tiny.write_tokenizer(tmp_path, tiny.tokenizer_json(**changes))
    with refused(ModelFormatError, "tokenizer.json", *words):
        Text(tmp_path)


def test_an_unknown_normalizer_is_refused_by_name(tmp_path):
    tiny.write_tokenizer(tmp_path, tiny.tokenizer_json(normalizer={"type": "Explode"}))
    with refused(UnsupportedError, "tokenizer.json", "Explode"):
        Text(tmp_path)


BERT = {  # fmt: skip
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": True,
}
GROWING = {
    "a replacement": (replace("x" * 200), 200),
    "of several characters": (replace("x" * 200, "abcd"), 50),
    "by a regular expression": (replace("x" * 199, "a|", "Regex"), 200),
    "one after the other": (sequence(*[replace("x" * 10, "x")] * 4), 10_000),
    "thirty doublings": (sequence(*[replace("xx", "x")] * 30), 2**30),
    "decomposition": ({"type": "NFKD"}, 18),
    "decomposition twice": (
        sequence({"type": "NFKD"}, {"type": "NFKC"}, {"type": "Lowercase"}),
        18,
    ),
    "decomposition of what was put in": (
        sequence(
            replace("\ufdfa"), {"type": "NFKD"}, replace("\ufdfa", "\u0644"), {"type": "NFKD"}
        ),
        18**2,
    ),
    "spaces around ideographs, twice": (sequence(*[BERT] * 2), 144),
    "bytes": ({"type": "ByteLevel"}, 4),
}


@pytest.mark.parametrize("case", GROWING)
def test_texts_that_would_grow_too_large_are_refused(tmp_path, case):
    normalizer, factor = GROWING[case]
    tiny.write_tokenizer(tmp_path, tiny.tokenizer_json(normalizer=normalizer))
    text = Text(tmp_path)
    with refused(InvalidArgumentError, "tokenizer.json", "normalizer", str(factor)):
        text.encode("x" * (MAX_TEXT // factor + 1))
    if factor <= 10_000:
        assert text.encode("a" * 100)


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        {"type": "NFC"},
        sequence({"type": "Prepend", "prepend": "▁"}, replace("▁", " ")),
        sequence(charsmap(b"x", b"yz"), replace(" ", " {2,}", "Regex")),
        sequence({"type": "Nmt"}, {"type": "NFKC"}, {"type": "Strip", "strip_left": True, "strip_right": True}),
    ],
    ids=lambda v: v["type"] if v else "none",
)  # fmt: skip
def test_ordinary_normalizers_leave_room_for_long_prompts(tmp_path, normalizer):
    from stepladder.text.growth import growth

    assert 100_000 * growth(normalizer, tmp_path) <= MAX_TEXT


def with_table(directory, table):
    """A SentencePiece model whose normalizer has a table of replacements."""
    from stepladder.files.gguf_tokenizer import _field, _number

    tiny.write_gguf(directory / "m.gguf", tokenizer="llama")
    convert(directory / "m.gguf", directory / "out")
    path = directory / "out/tokenizer.model"
    # A later field of a message is merged into the one before.
    path.write_bytes(path.read_bytes() + _field(3, _number(3, 0) + _field(2, table)))
    return directory / "out"


def test_a_sentencepiece_table_without_measure_is_refused(tmp_path):
    table = struct.pack("<I", 4) + bytes(4) + b"x" * 10**6 + b"\0"
    directory = with_table(tmp_path, table)
    with refused(ModelFormatError, "tokenizer.model", "precompiled_charsmap", "1000000"):
        Text(directory)


def test_a_sentencepiece_table_bounds_the_text(tmp_path):
    """The table of a real model: NFKC, whose longest replacement makes 18 characters of one."""
    from sentencepiece import SentencePieceTrainer

    with open(tmp_path / "tokenizer.model", "wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(["the cat and the other one"] * 20), model_writer=file, vocab_size=30,
            hard_vocab_limit=False, normalization_rule_name="nmt_nfkc", minloglevel=2)  # fmt: skip
    text = Text(tmp_path)
    assert text.decode(text.encode("the cat")) == "the cat"
    factor = text._core._growth
    assert 18 <= factor <= 100
    with refused(InvalidArgumentError, "tokenizer.model", f"{factor} times"):
        text.encode("x" * (MAX_TEXT // factor + 1))


@pytest.mark.parametrize("part", ['[[],"",[]]', '{"":{}}', '""', '[{"a":[]}]'])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_lists_of_millions_are_refused_before_they_are_made(tmp_path, name, part):
    tiny.write_tokenizer(tmp_path)
    size = {"tokenizer.json": 24 << 20, "tokenizer_config.json": 3 << 20}[name]
    count = size // (len(part) + 1)
    (tmp_path / name).write_text("[" + ",".join([part] * count) + "]")
    with refused(ModelFormatError, name, "entries"):
        Text(tmp_path)


def test_a_config_of_many_megabytes_is_refused(tmp_path):
    tiny.write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(["x" * 1000] * 10_000))
    with refused(ModelFormatError, "tokenizer_config.json", "bytes"):
        Text(tmp_path)


def test_what_stands_in_texts_counts_as_no_entry(tmp_path):
    from stepladder.base.json_file import read_json

    value = {"a": "[" * 900, "b\\": ',"\\', "c": ["\\\\", '"{' * 90], "d": 1}
    (tmp_path / "m.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "m.json", entries=6) == value
    with refused(ModelFormatError, "m.json", "5 entries"):
        read_json(tmp_path / "m.json", entries=5)


def test_a_vocabulary_without_measure_is_refused(tmp_path):
    vocabulary = {f"t{i}": i for i in range(600_000)}
    tiny.write_tokenizer(tmp_path, tiny.tokenizer_json(**model(vocab=vocabulary, merges=[])))
    with refused(ModelFormatError, "tokenizer.json", "tokens", str(1 << 19), mebibytes=256):
        Text(tmp_path)


def with_specials(directory, contents):
    tree = tiny.tokenizer_json()
    for i, content in enumerate(contents):
        id = len(tiny.vocabulary()) + i
        tree["added_tokens"].append(dict(tree["added_tokens"][0], id=id, content=content))
    tiny.write_tokenizer(directory, tree)
    return directory


def test_a_special_token_without_measure_is_refused(tmp_path):
    with refused(ModelFormatError, "special token", "20000 characters", "512"):
        Text(with_specials(tmp_path, ["<" + "x" * 19_998 + ">"]))


def test_long_special_tokens_take_little_memory_in_a_chat(tmp_path):
    names = [f"<|{i:03}" + "ab" * 250 + "|>" for i in range(400)]
    text = Text(with_specials(tmp_path, names))
    content = [names[3][:-1], names[3][1:], names[3], "ab" * 100, "b|>"]
    # The last refuses, so that what the others took is measured.
    with refused(InvalidArgumentError, "no message", seconds=20):
        for each in content:
            ids = text.encode_chat([{"role": "user", "content": each}])
            assert not any(i >= len(tiny.vocabulary()) for i in ids)
            assert each in text.decode(ids)
        text.encode_chat([], continue_final_message=True)
