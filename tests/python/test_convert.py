"""GGUF files become model directories, or are refused with a reason; nothing is left half-done."""

import json
import os
import struct

import gguf
import numpy as np
import pytest
import reference
import stepladder
import tiny
from conftest import refused
from stepladder import FileError, InvalidArgumentError, ModelFormatError, UnsupportedError, convert
from stepladder.files.convert import to_bf16
from stepladder.files.gguf_tokenizer import _PRE
from stepladder.text.tokenizer import Text
from stepladder.text.vocabulary import byte_alphabet
from tokenizers import Tokenizer


def stored(directory):
    weights = reference.Weights(directory)
    return {name: weights.raw(name) for name in weights._raw}


def rounded(value):
    return (to_bf16(value).astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_family_comes_back(tmp_path, family, tied):
    values = tiny.write_gguf(tmp_path / "m.gguf", family, tie_word_embeddings=tied)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    out = stored(tmp_path / "out")
    assert set(out) == set(values)
    for name, value in values.items():
        assert np.array_equal(out[name], rounded(value)), name
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (
        config.items()
        >= {
            k: v
            for k, v in tiny.config(family, tie_word_embeddings=tied).items()
            if k not in ("bos_token_id", "eos_token_id")
        }.items()
    )
    assert stepladder.inspect(tmp_path / "out").architecture == tiny.FAMILIES[family]


def test_what_comes_back_runs(tmp_path):
    tiny.write_model(tmp_path / "hf", "qwen2", seed=3)
    tiny.write_gguf(tmp_path / "m.gguf", "qwen2", seed=3)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    results = []
    for name in ("hf", "out"):
        with stepladder.load(tmp_path / name, threads=1) as model:
            results.append(model.generate("the cat", max_tokens=12, ignore_eos=True))
    assert results[0].tokens == results[1].tokens and results[0].logits == results[1].logits


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_block_formats_are_dequantized(tmp_path, kind):
    values = tiny.write_gguf(tmp_path / "m.gguf", kind=kind)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    qtype = gguf.GGMLQuantizationType[kind]
    out = stored(tmp_path / "out")
    for name, value in values.items():
        if value.ndim == 2:
            value = gguf.quants.dequantize(gguf.quants.quantize(value, qtype), qtype)
        assert np.array_equal(out[name], rounded(value)), name


def test_every_block_format_of_ggml_can_be_read(tmp_path):
    """Random blocks of each type: what the gguf package dequantizes arrives, row by row."""
    from stepladder.files.gguf_file import GgufFile

    rng = np.random.default_rng(0)
    readable = []
    for qtype, (block, size) in gguf.GGML_QUANT_SIZES.items():
        raw = rng.integers(0, 256, (3, 256 // block * size), np.uint8)
        try:
            with np.errstate(all="ignore"):
                expected = gguf.quants.dequantize(raw, qtype)
        except NotImplementedError:
            continue
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
        writer.add_tensor("x", raw, raw_dtype=qtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with np.errstate(all="ignore"), GgufFile(tmp_path / "m.gguf") as file:
            got = np.concatenate(list(file.rows("x")))
        np.testing.assert_array_equal(got.ravel(), expected.astype(np.float32).ravel())
        readable.append(qtype.name)
    assert {"Q4_K", "Q5_K", "Q6_K", "Q2_K", "Q3_K", "IQ4_XS", "Q4_0", "Q8_0", "F16"} <= set(
        readable
    )


@pytest.mark.parametrize("scaling", ["linear", "yarn", "llama3"])
def test_rope_scaling_comes_along(tmp_path, scaling):
    tiny.write_gguf(tmp_path / "m.gguf", scaling=scaling)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    found = json.loads((tmp_path / "out/config.json").read_text())["rope_scaling"]
    wanted = tiny.ROPE[scaling] | (
        {"original_max_position_embeddings": 8192} if scaling == "llama3" else {}
    )
    assert found == wanted
    stepladder.inspect(tmp_path / "out")


SCALED = {
    "a factor without a type": {"rope.scaling.factor": 2.0},
    "the older name": {"rope.scale_linear": 2.0},
    "both names": {"rope.scale_linear": 2.0, "rope.scaling.factor": 2.0},
    "a type": {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
}


@pytest.mark.parametrize("case", SCALED)
def test_a_stretch_of_positions_is_linear_whatever_names_it(tmp_path, case):
    tiny.write_gguf(tmp_path / "m.gguf", fields={f"llama.{k}": v for k, v in SCALED[case].items()})
    convert(tmp_path / "m.gguf", tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_the_stretch_of_attention_is_yarns_times_the_files(tmp_path):
    fields = {"llama.rope.scaling.attn_factor": 1.5, "llama.rope.scaling.yarn_ext_factor": 1.0}
    tiny.write_gguf(tmp_path / "m.gguf", scaling="yarn", fields=fields)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    scaling = json.loads((tmp_path / "out/config.json").read_text())["rope_scaling"]
    assert scaling["attention_factor"] == pytest.approx(1.5 * (1 + 0.1 * np.log(4.0)))


NEUTRAL = {
    "logit_scale": 1.0, "attn_logit_softcapping": 0.0, "attention.clamp_kqv": 0.0, "attention.causal": True,
    "attention.scale": 32**-0.5, "expert_count": 0, "use_parallel_residual": False, "residual_scale": 1.0,
    "rope.scaling.yarn_ext_factor": -1.0, "rope.scaling.yarn_log_multiplier": 0.0, "rope.scaling.factor": 1.0,
    "tensor_data_layout": "Meta AI original pth", "rope.dimension_sections": [0, 0], "rope.scaling.finetuned": True,
}  # fmt: skip
OTHER_MATH = {
    "logit_scale": 0.25, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "attention.clamp_kqv": 8.0,
    "attention.scale": 0.125, "attention.causal": False, "attention.max_alibi_bias": 8.0, "expert_count": 8,
    "rope.scaling.yarn_ext_factor": 0.5, "rope.scaling.yarn_log_multiplier": 0.1, "rope.scaling.attn_factor": 1.5,
    "residual_scale": 0.22, "embedding_scale": 12.0, "rope.freq_base_swa": 1e4, "rope.dimension_sections": [8, 8],
    "use_parallel_residual": True, "swin_norm": True, "key.of.tomorrow": 3, "word.of.tomorrow": "x",
}  # fmt: skip


def test_keys_that_change_nothing_are_no_obstacle(tmp_path):
    fields = {f"llama.{k}": v for k, v in NEUTRAL.items()} | {"general.name": "x", "other.key": 5}
    tiny.write_gguf(tmp_path / "m.gguf", fields=fields)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert "rope_scaling" not in config


@pytest.mark.parametrize("key", OTHER_MATH)
def test_keys_that_change_the_arithmetic_are_refused_by_name(tmp_path, key):
    tiny.write_gguf(tmp_path / "m.gguf", fields={f"llama.{key}": OTHER_MATH[key]})
    with refused(UnsupportedError, "m.gguf", f"llama.{key}"):
        convert(tmp_path / "m.gguf", tmp_path / "out")


OTHER_FIELDS = {
    "rope.scaling.factor and": {"llama.rope.scaling.factor": 2.0, "llama.rope.scale_linear": 4.0},
    "split.count": {"split.count": 3},
    "precompiled_charsmap": {"tokenizer.ggml.precompiled_charsmap": [1, 2, 3]},
    "remove_extra_whitespaces": {"tokenizer.ggml.remove_extra_whitespaces": True},
    "rope_freqs.weight and": {"llama.rope.scaling.factor": 2.0},
}


@pytest.mark.parametrize("case", OTHER_FIELDS)
def test_fields_that_contradict_or_are_not_converted_are_refused(tmp_path, case):
    scaling = "llama3" if "rope_freqs" in case else None
    tiny.write_gguf(tmp_path / "m.gguf", scaling=scaling, fields=OTHER_FIELDS[case])
    word = "parts of a model" if case == "split.count" else case
    with refused((UnsupportedError, ModelFormatError), "m.gguf", word):
        convert(tmp_path / "m.gguf", tmp_path / "out")


def test_f16_output_and_its_limit(tmp_path):
    values = tiny.write_gguf(tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "out", dtype="f16")
    out = stored(tmp_path / "out")
    assert all(np.array_equal(out[n], v.astype(np.float16)) for n, v in values.items())
    assert stepladder.inspect(tmp_path / "out").levels[0].format == "f16"
    tiny.write_gguf(tmp_path / "big.gguf", rms_norm_eps=1e-5, hidden_size=128, seed=1)
    data = bytearray((tmp_path / "big.gguf").read_bytes())
    data[-4:] = struct.pack("<f", 1e6)
    (tmp_path / "big.gguf").write_bytes(data)
    with refused(ModelFormatError, "big.gguf", "lm_head" if False else "output.weight", "bf16"):
        convert(tmp_path / "big.gguf", tmp_path / "none", dtype="f16")
    assert not (tmp_path / "none").exists()


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    tiny.write_gguf(tmp_path / "m.gguf")
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    data[-4:] = struct.pack("<f", float("nan"))
    (tmp_path / "m.gguf").write_bytes(data)
    with refused(ModelFormatError, "m.gguf", "output.weight", "finite"):
        convert(tmp_path / "m.gguf", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_the_tokenizer_and_template_come_along(tmp_path):
    tiny.write_gguf(tmp_path / "m.gguf", pre="gpt-2")
    convert(tmp_path / "m.gguf", tmp_path / "out")
    text = Text(tmp_path / "out")
    tiny.write_tokenizer(tmp_path)
    original = Text(tmp_path)
    for sample in ("the other one", "it's 123", "é🙂", "<|im_end|>"):
        assert text.encode(sample) == original.encode(sample)
    assert text.encode_chat([{"role": "user", "content": "the"}]) == original.encode_chat(
        [{"role": "user", "content": "the"}]
    )
    assert stepladder.inspect(tmp_path / "out").end_tokens == [0, 2]


def test_a_sentencepiece_vocabulary_becomes_a_model_that_merges_by_score(tmp_path):
    tiny.write_gguf(tmp_path / "m.gguf", tokenizer="llama")
    convert(tmp_path / "m.gguf", tmp_path / "out")
    text = Text(tmp_path / "out")
    assert [text.token_bytes(i) for i in text.encode("the cat")] == [b"<s>", b" the", b" cat"]


@pytest.mark.parametrize("pre", ["unheard-of", "chatglm-bpe"])
def test_an_unknown_pre_tokenizer_is_refused_by_name(tmp_path, pre):
    tiny.write_gguf(tmp_path / "m.gguf", pre=pre)
    with refused(UnsupportedError, "m.gguf", pre):
        convert(tmp_path / "m.gguf", tmp_path / "out")


@pytest.mark.parametrize("pre", [*_PRE, None])
def test_every_known_pre_tokenizer_loads_and_round_trips(tmp_path, pre):
    tiny.write_gguf(tmp_path / "m.gguf", pre=pre)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    text = Text(tmp_path / "out")
    sample = "It's 12345 o'clock,\r\n\n  the THE déjà 你好 🙂\t x"
    assert text.decode(text.encode(sample, special=False)) == sample


CUTS = {
    "gpt-2": "Hi| 12345|!?|\n", "smollm": "Hi| |1|2|3|4|5|!?|\n", "llama-bpe": "Hi| |123|45|!?\n",
    "falcon3": "Hi| |123|45|!?\n", "pixtral": "Hi| |123|45|!?\n", "smaug-bpe": "Hi| |123|45|!?\n",
    "qwen2": "Hi| |1|2|3|4|5|!?\n", "default": "Hi| |123|45|!?|\n", "deepseek-llm": "Hi| |12345|!?|\n",
    "deepseek-coder": "Hi| |1|2|3|4|5|!?|\n",
}  # fmt: skip


@pytest.mark.parametrize("pre", CUTS)
def test_text_is_cut_before_merging_as_the_file_says(tmp_path, pre):
    """Worked out by hand from the published expressions."""
    tiny.write_gguf(tmp_path / "m.gguf", pre=pre)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    cutter = Tokenizer.from_file(str(tmp_path / "out/tokenizer.json")).pre_tokenizer
    alphabet = byte_alphabet()
    words = [bytes(map(alphabet.get, w)) for w, _ in cutter.pre_tokenize_str("Hi 12345!?\n")]
    assert "|".join(w.decode() for w in words) == CUTS[pre]


@pytest.mark.parametrize("pre", _PRE)
def test_bos_is_put_first_where_the_kind_of_file_wants_one_and_says_nothing(tmp_path, pre):
    tiny.write_gguf(tmp_path / "m.gguf", pre=pre, fields={"tokenizer.ggml.add_bos_token": None})
    convert(tmp_path / "m.gguf", tmp_path / "out")
    wants = pre in ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken")
    assert (Text(tmp_path / "out").encode("the")[0] == 1) == wants


def ends_of(tmp_path, types=None, **fields):
    fields = {f"tokenizer.ggml.{k}": v for k, v in fields.items()}
    if types:
        fields["tokenizer.ggml.token_type"] = types + [1] * (len(tiny.vocabulary()) - len(types))
    tiny.write_gguf(tmp_path / "m.gguf", fields=fields)
    convert(tmp_path / "m.gguf", tmp_path / "out", force=True)
    end = json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"]
    return {end} if isinstance(end, int) else set(end)


def test_every_token_that_ends_a_turn_is_an_end(tmp_path):
    assert ends_of(tmp_path) == {0, 2}  # eos <|im_end|>, and the control token <|endoftext|>
    assert ends_of(tmp_path, eot_token_id=5) == {0, 2, 5}
    assert ends_of(tmp_path, eom_token_id=6) == {0, 2, 6}
    # A token that is called an end by its text alone, and is an ordinary one, is none.
    assert ends_of(tmp_path, [1, 3, 3]) == {2}
    assert stepladder.inspect(tmp_path / "out").end_tokens == [2]


def test_named_templates_come_along(tmp_path):
    tools = "{{ tools | length }}"
    tiny.write_gguf(tmp_path / "m.gguf", fields={"tokenizer.chat_template.tool_use": tools})
    convert(tmp_path / "m.gguf", tmp_path / "out")
    text = Text(tmp_path / "out")
    messages = [{"role": "user", "content": "the"}]
    assert text.render(messages, tools=[{}, {}]) == "2"
    assert text.render(messages).startswith("<|im_start|>user")
    tiny.write_gguf(tmp_path / "b.gguf", fields={"tokenizer.chat_template.tool_use": 5})
    with refused(ModelFormatError, "tool_use"):
        convert(tmp_path / "b.gguf", tmp_path / "bad")


def header(version=3, tensors=0, entries=0, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, tensors, entries)


def string(text):
    return struct.pack("<Q", len(text)) + text


def field(key, kind, value):
    return string(key) + struct.pack("<I", kind) + value


def tensor(name=b"x", dims=(4, 4), kind=0, offset=0, rank=None):
    rank = len(dims) if rank is None else rank
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", rank, *dims, kind, offset)


def nested(depth):
    return struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQI", 4, 1, 0)


BAD_FILES = {
    "empty": (b"", ModelFormatError, "magic"),
    "not GGUF": (b"GGML" + bytes(100), ModelFormatError, "GGUF"),
    "cut in the counts": (header()[:10], ModelFormatError, "counts"),
    "version 0": (header(0), UnsupportedError, "version 0"),
    "version 1": (header(1), UnsupportedError, "version 1"),
    "version 99": (header(99), UnsupportedError, "version 99"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), UnsupportedError, "big-endian"),
    "2^64 - 1 tensors": (header(3, 2**64 - 1), ModelFormatError, "tensors"),
    "2^64 - 1 fields": (header(3, 0, 2**64 - 1), ModelFormatError, "fields"),
    "key longer than the file": (header(3, 0, 1) + struct.pack("<Q", 2**40), ModelFormatError, "key 0"),
    "key of 2^64 - 1": (header(3, 0, 1) + struct.pack("<Q", 2**64 - 1) + b"x" * 50, ModelFormatError, "key 0"),
    "empty key": (header(3, 0, 1) + field(b"", 4, bytes(4)), ModelFormatError, "key 0"),
    "key not UTF-8": (header(3, 0, 1) + field(b"\xff\xfe", 4, bytes(4)), ModelFormatError, "UTF-8"),
    "key twice": (header(3, 0, 2) + field(b"a", 4, bytes(4)) * 2, ModelFormatError, "twice"),
    "unknown type": (header(3, 0, 1) + field(b"a", 77, bytes(4)), ModelFormatError, "type 77"),
    "string longer than the file": (
        header(3, 0, 1) + field(b"a.b", 8, struct.pack("<Q", 2**31) + b"abc"), ModelFormatError, "a.b"),
    "array longer than the file": (
        header(3, 0, 1) + field(b"a.b", 9, struct.pack("<IQ", 4, 2**62)), ModelFormatError, "a.b"),
    "array of 2^60 strings": (
        header(3, 0, 1) + field(b"a.b", 9, struct.pack("<IQ", 8, 2**60)), ModelFormatError, "a.b"),
    "array in array": (header(3, 0, 1) + field(b"a.b", 9, nested(1)), ModelFormatError, "nest"),
    "arrays a million deep": (header(3, 0, 1) + field(b"a.b", 9, nested(10**6)), ModelFormatError, "nest"),
    "array of unknown type": (
        header(3, 0, 1) + field(b"a.b", 9, struct.pack("<IQ", 55, 1)), ModelFormatError, "type 55"),
    "alignment 13": (header(3, 0, 1) + field(b"general.alignment", 4, struct.pack("<I", 13)), ModelFormatError, "13"),
    "alignment 0": (header(3, 0, 1) + field(b"general.alignment", 4, bytes(4)), ModelFormatError, "alignment"),
    "alignment a string": (header(3, 0, 1) + field(b"general.alignment", 8, string(b"32")), ModelFormatError, "alignment"),
    "tensor of rank 0": (header(3, 1) + tensor(dims=()), ModelFormatError, "dimensions"),
    "tensor of rank 9": (header(3, 1) + tensor(dims=(1,) * 9), ModelFormatError, "dimensions"),
    "tensor of rank 2^31": (header(3, 1) + tensor(rank=2**31), ModelFormatError, "dimensions"),
    "tensor without name": (header(3, 1) + tensor(b""), ModelFormatError, "name"),
    "tensor with an endless name": (header(3, 1) + tensor(b"x" * 2000), ModelFormatError, "name"),
    "tensor of size 0": (header(3, 1) + tensor(dims=(0, 4)), ModelFormatError, "tensor x"),
    "tensor sizes that overflow": (header(3, 1) + tensor(dims=(2**40, 2**40)), ModelFormatError, "tensor x"),
    "tensor sizes that wrap to 0": (header(3, 1) + tensor(dims=(2**32, 2**32)), ModelFormatError, "tensor x"),
    "tensor of unknown type": (header(3, 1) + tensor(kind=999), ModelFormatError, "type 999"),
    "tensor that splits a block": (header(3, 1) + tensor(dims=(33, 2), kind=8), ModelFormatError, "blocks of 32"),
    "tensor beyond the file": (header(3, 1) + tensor(dims=(1024, 1024)), ModelFormatError, "past the end"),
    "tensor offset beyond the file": (header(3, 1) + tensor(offset=2**50), ModelFormatError, "past the end"),
    "tensor offset that wraps": (header(3, 1) + tensor(offset=2**64 - 32), ModelFormatError, "past the end"),
    "tensor offset misaligned": (header(3, 1) + tensor(offset=7) + bytes(200), ModelFormatError, "offset 7"),
    "tensor twice": (header(3, 2) + tensor() + tensor(offset=64) + bytes(300), ModelFormatError, "twice"),
    "tensors that overlap": (
        header(3, 2) + tensor() + tensor(b"y", offset=32) + bytes(300), ModelFormatError, "overlap"),
    "no architecture": (header(), ModelFormatError, "general.architecture"),
    "unknown architecture": (
        header(3, 0, 1) + field(b"general.architecture", 8, string(b"mamba")), UnsupportedError, "mamba"),
    "architecture a number": (
        header(3, 0, 1) + field(b"general.architecture", 4, bytes(4)), ModelFormatError, "general.architecture"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_malformed_files_are_refused(tmp_path, case):
    content, error, word = BAD_FILES[case]
    (tmp_path / "bad.gguf").write_bytes(content)
    with refused(error, "bad.gguf", word):
        convert(tmp_path / "bad.gguf", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.gguf"]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.6, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path, share):
    tiny.write_gguf(tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[: int(len(data) * share)])
    with refused(ModelFormatError, "m.gguf"):
        convert(tmp_path / "m.gguf", tmp_path / "out")


def fields(**changes):
    """A GGUF of a vocabulary alone, with some of its fields changed."""
    tokens = tiny.vocabulary()
    base = {
        "general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": tiny.MERGES, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip
    return base | {f"tokenizer.ggml.{k}": v for k, v in changes.items()}


TOKENS = tiny.vocabulary()
BAD_VOCABULARIES = {
    "too few types": ({"token_type": [1] * 5}, ModelFormatError, "token_type"),
    "too many scores": ({"scores": [0.0] * 999}, ModelFormatError, "scores"),
    "scores not finite": ({"scores": [float("nan")] * len(TOKENS)}, ModelFormatError, "scores"),
    "no tokens": ({"tokens": []}, ModelFormatError, "tokens"),
    "tokens are numbers": ({"tokens": [1, 2, 3]}, ModelFormatError, "tokens"),
    "a token twice": ({"tokens": [*TOKENS[:-1], TOKENS[5]]}, ModelFormatError, "two ids"),
    "eos outside": ({"eos_token_id": 10**6}, ModelFormatError, "eos_token_id"),
    "bos negative": ({"bos_token_id": -1}, ModelFormatError, "bos_token_id"),
    "bos a string": ({"bos_token_id": "1"}, ModelFormatError, "bos_token_id"),
    "no merges": ({"merges": None}, ModelFormatError, "merges"),
    "merge of three": ({"merges": ["a b c"]}, ModelFormatError, "merges[0]"),
    "merge of unknown tokens": ({"merges": ["q zzz"]}, ModelFormatError, "merges[0]"),
    "merges are numbers": ({"merges": [1]}, ModelFormatError, "merges[0]"),
    "unknown model": ({"model": "rwkv"}, UnsupportedError, "rwkv"),
    "half the bytes": (
        {"model": "llama", "token_type": [6] * 5 + [2] + [1] * (len(TOKENS) - 6)}, ModelFormatError, "byte"),
    "no unknown token": ({"model": "llama"}, ModelFormatError, "unknown"),
}  # fmt: skip


class Fields:
    path = "vocab.gguf"

    def __init__(self, values):
        self.fields = {k: v for k, v in values.items() if v is not None}


@pytest.mark.parametrize("case", BAD_VOCABULARIES)
def test_malformed_vocabularies_are_refused(tmp_path, case):
    from stepladder.files.gguf_tokenizer import Vocabulary

    changes, error, word = BAD_VOCABULARIES[case]
    with refused(error, "vocab.gguf", word):
        Vocabulary(Fields(fields(**changes))).write(tmp_path)


BAD_MODELS = {
    "unknown tensor": (lambda w: w.add_tensor("blk.0.ffn_gate_exps.weight", np.zeros((4, 4), np.float32)),
                       UnsupportedError, "ffn_gate_exps"),
    "layer beyond the count": (lambda w: w.add_tensor("blk.9.attn_norm.weight", np.zeros(128, np.float32)),
                               UnsupportedError, "blk.9"),
    "a layer in other digits": (lambda w: w.add_tensor("blk.²١.attn_norm.weight", np.zeros(128, np.float32)),
                                UnsupportedError, "blk.²"),
    "a layer in Arabic digits": (lambda w: w.add_tensor("blk.١.attn_norm.weight", np.zeros(128, np.float32)),
                                 UnsupportedError, "blk."),
    "a layer of many digits": (lambda w: w.add_tensor(f"blk.{'1' * 800}.x.weight", np.zeros(128, np.float32)),
                               UnsupportedError, "blk.1"),
    "rope factors of another shape": (
        lambda w: w.add_tensor("rope_freqs.weight", np.zeros((4, 4), np.float32)), ModelFormatError, "rope_freqs"),
    "a bias too many": (lambda w: w.add_tensor("blk.0.attn_q.bias", np.zeros(128, np.float32)),
                        ModelFormatError, "bias"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MODELS)
def test_tensors_that_do_not_belong_are_refused(tmp_path, monkeypatch, case):
    add, error, word = BAD_MODELS[case]
    finish = gguf.GGUFWriter.write_header_to_file

    def with_more(writer, *args):
        add(writer)
        finish(writer, *args)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_more)
    tiny.write_gguf(tmp_path / "m.gguf")
    with refused(error, "m.gguf", word):
        convert(tmp_path / "m.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_tensor_and_a_wrong_shape_are_named(tmp_path, monkeypatch):
    add = tiny._add_tensor
    monkeypatch.setattr(
        tiny,
        "_add_tensor",
        lambda w, n, v, k: None if n == "blk.1.ffn_up.weight" else add(w, n, v, k),
    )
    tiny.write_gguf(tmp_path / "m.gguf")
    with refused(ModelFormatError, "m.gguf", "model.layers.1.mlp.up_proj.weight"):
        convert(tmp_path / "m.gguf", tmp_path / "out")
    monkeypatch.setattr(
        tiny,
        "_add_tensor",
        lambda w, n, v, k: add(w, n, v[:-2] if n == "blk.1.ffn_up.weight" else v, k),
    )
    tiny.write_gguf(tmp_path / "n.gguf")
    with refused(ModelFormatError, "n.gguf", "blk.1.ffn_up.weight", "shape"):
        convert(tmp_path / "n.gguf", tmp_path / "out")


def test_an_output_that_is_there_is_kept(tmp_path):
    tiny.write_gguf(tmp_path / "m.gguf")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("x")
    with refused(FileError, "out", "--force"):
        convert(tmp_path / "m.gguf", tmp_path / "out")
    with refused(FileError, "out", "config.json"):
        convert(tmp_path / "m.gguf", tmp_path / "out", force=True)
    assert (tmp_path / "out/precious").read_text() == "x"
    convert(tmp_path / "m.gguf", tmp_path / "model")
    (tmp_path / "model/LICENSE").write_text("x")
    convert(tmp_path / "m.gguf", tmp_path / "model", force=True)
    assert not (tmp_path / "model/LICENSE").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "model", "out"]


def test_an_empty_directory_may_be_filled(tmp_path):
    tiny.write_gguf(tmp_path / "m.gguf")
    (tmp_path / "out").mkdir()
    convert(tmp_path / "m.gguf", tmp_path / "out")
    assert (tmp_path / "out/config.json").is_file()


def test_missing_files_and_wrong_options(tmp_path):
    with refused(FileError, "none.gguf"):
        convert(tmp_path / "none.gguf", tmp_path / "out")
    with refused(InvalidArgumentError, "dtype"):
        convert(tmp_path / "none.gguf", tmp_path / "out", dtype="int8")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    import errno

    from stepladder.files.output import SafetensorsWriter

    tiny.write_gguf(tmp_path / "m.gguf")
    write = SafetensorsWriter.write

    def full(writer, name, data):
        if "layers.1" in name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(writer, name, data)

    monkeypatch.setattr(SafetensorsWriter, "write", full)
    with refused(FileError, "out", "No space left"):
        convert(tmp_path / "m.gguf", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_shards_and_their_index(tmp_path, monkeypatch):
    import stepladder.files.output as output

    values = tiny.write_gguf(tmp_path / "m.gguf")
    monkeypatch.setattr(output.SafetensorsWriter.__init__, "__defaults__", (100_000,))
    convert(tmp_path / "m.gguf", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    assert set(stored(tmp_path / "out")) == set(values)
    with stepladder.load(tmp_path / "out", threads=1) as model:
        assert model.generate([5, 6, 7], max_tokens=3, ignore_eos=True).finish_reason == "length"


def test_the_real_model_answers(real_dir):
    with stepladder.load(real_dir, draft="lookup", context=512) as model:
        answer = model.generate(
            [{"role": "user", "content": "What is the capital of France?"}], max_tokens=20
        )
    assert "Paris" in answer.text
