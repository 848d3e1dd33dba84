"""The engine's logits agree with the numpy model, in every family, format and instruction set."""

import json

import numpy as np
import pytest
import reference
import stepladder
import tiny
from stepladder.files.compressed_tensors import packed_words

PROMPT = [1, *np.random.default_rng(5).integers(3, 260, 40).tolist()]

FAMILIES = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 64},
    "llama tied": {"tie_word_embeddings": True},
    "llama one kv head": {"num_key_value_heads": 1},
    "llama3": {"rope_scaling": tiny.ROPE["llama3"]},
    "llama linear": {"rope_scaling": tiny.ROPE["linear"]},
    "llama yarn": {"rope_scaling": tiny.ROPE["yarn"]},
    "llama f16": {"dtype": "F16"},
    "qwen3 f16": {"dtype": "F16"},
}
FORMATS = {
    "w8a16": {},
    "w8a8": {},
    "w4a16": {},
    "w4a16 group 64": {"group": 64},
    "w4a16 group 128": {"group": 128},
    "mxfp4": {},
    "w4a16 head w8a16": {"head": "w8a16"},
    "mxfp4 head mxfp4": {"head": "mxfp4"},
}


def family_dir(tmp_path, name):
    family = name.split()[0].replace("llama3", "llama")
    return tiny.write_model(tmp_path / "model", family, seed=len(name), **FAMILIES[name])


def agree(directory, **options):
    """Every greedy token's logit is the reference's, up to what 16-bit steps cost; every choice that
    is not the reference's is a near-tie."""
    with stepladder.load(directory, threads=1, **options) as model:
        answer = model.generate(PROMPT, max_tokens=24, ignore_eos=True, logprobs=5)
        # Rows of the head beyond the tokenizer's ids are padding, and never chosen.
        real = slice(model.info.vocab)
    assert model.info.vocab < tiny.config()["vocab_size"]
    tokens, rows = PROMPT + answer.tokens, slice(len(PROMPT) - 1, -1)
    exact = reference.Model(directory).logits(tokens)[rows, real]
    rounded = reference.Model(directory, rounded=True).logits(tokens)[rows, real]
    # Where the roundings are is each engine's choice, so its errors are other ones of this size.
    bound = 2 * np.abs(rounded - exact).max()
    assert bound < 0.4 * exact.std(), "the bound is too loose to tell anything"
    rows = np.arange(len(answer.tokens))
    assert np.abs(exact[rows, answer.tokens] - answer.logits).max() < bound
    assert (exact.max(axis=1) - exact[rows, answer.tokens]).max() < 2 * bound
    assert len(set(answer.tokens)) > 3
    top = np.log(np.exp(exact - exact.max(1, keepdims=True)).sum(1)) + exact.max(1)
    for row, entry in enumerate(answer.logprobs):
        assert len(entry.top) == 5
        for token, logprob in [*entry.top, (entry.token, entry.logprob)]:
            assert abs(exact[row, token] - top[row] - logprob) < 2 * bound


@pytest.mark.parametrize("name", FAMILIES)
def test_families(tmp_path, name):
    agree(family_dir(tmp_path, name))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_formats(tmp_path, family, name):
    tiny.write_model(tmp_path / "model", family, seed=7)
    stepladder.quantize(tmp_path / "model", tmp_path / "out", name.split()[0], **FORMATS[name])
    agree(tmp_path / "out")


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_int8_weights_in_groups(tmp_path, family):
    """The layout of llm-compressor's W8A16 preset, which no cast of the engine's writes."""
    tiny.write_model(tmp_path, family, seed=6)
    config = json.loads((tmp_path / "config.json").read_text())
    out = {}
    for name, value in tiny.tensors(config, 6).items():
        if not name.endswith("_proj.weight"):
            out[name] = value
            continue
        groups = value.reshape(value.shape[0], -1, 32)
        scale = np.abs(groups).max(-1, keepdims=True) / 127
        codes = np.rint(groups / scale).astype(np.int8).reshape(value.shape)
        stem = name.removesuffix("weight")
        out[stem + "weight_packed"] = packed_words(codes, 8)
        out[stem + "weight_scale"] = scale[..., 0].astype(np.float32)
        out[stem + "weight_shape"] = np.array(value.shape, np.int64)
    tiny.write_tensors(tmp_path, out)
    weights = {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": 32,
    }
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert stepladder.inspect(tmp_path).levels[0].format == "w8a16"
    agree(tmp_path)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("name", ["bf16", "w8a16", "w8a8", "w4a16", "mxfp4"])
def test_instruction_sets(tmp_path, isa, name):
    directory = tiny.write_model(tmp_path / "model", seed=9)
    if name != "bf16":
        stepladder.quantize(directory, tmp_path / "out", name)
        directory = tmp_path / "out"
    try:
        agree(directory, isa=isa)
    except stepladder.UnsupportedError as error:
        pytest.skip(f"this machine has no {isa}: {error}")


def test_a_tied_head_can_be_stored_in_fewer_bits(tmp_path):
    tiny.write_model(tmp_path / "model", tie_word_embeddings=True)
    stepladder.quantize(tmp_path / "model", tmp_path / "out", "w8a16", head="w8a16")
    info = stepladder.inspect(tmp_path / "out")
    assert (info.levels[0].format, info.levels[0].head) == ("w8a16", "w8a16")
    agree(tmp_path / "out")


def write_tied_with_a_head(directory):
    """A tied model beside which another head is stored."""
    tiny.write_model(directory, seed=3)
    config = json.loads((directory / "config.json").read_text()) | {"tie_word_embeddings": True}
    (directory / "config.json").write_text(json.dumps(config))


def test_a_head_stored_beside_a_tied_one_is_used_where_it_differs(tmp_path):
    write_tied_with_a_head(tmp_path)
    agree(tmp_path)
    with stepladder.load(tmp_path, threads=1) as model:
        for info in (model.info, stepladder.inspect(tmp_path)):
            assert any("lm_head.weight is stored and differs" in note for note in info.notes)


@pytest.mark.parametrize("stored", ["head alone", "equal head"])
def test_a_tied_model_may_store_its_table_under_either_name(tmp_path, stored):
    model = tiny.write_model(tmp_path / "model", tie_word_embeddings=True)
    with stepladder.load(model, threads=1) as loaded:
        expected = loaded.generate(PROMPT, max_tokens=8)
    values = tiny.tensors(tiny.config(tie_word_embeddings=True))
    values["lm_head.weight"] = values["model.embed_tokens.weight"]
    if stored == "head alone":
        del values["model.embed_tokens.weight"]
    tiny.write_tensors(model, values)
    with stepladder.load(model, threads=1) as loaded:
        answer = loaded.generate(PROMPT, max_tokens=8)
        assert not loaded.info.notes
    assert (answer.tokens, answer.logits) == (expected.tokens, expected.logits)
    stepladder.quantize(model, tmp_path / "out", "w8a16", head="int8")
    agree(tmp_path / "out")


@pytest.mark.parametrize("head", [None, "int8"])
def test_quantizing_takes_the_head_that_is_used(tmp_path, head):
    (tmp_path / "model").mkdir()
    write_tied_with_a_head(tmp_path / "model")
    stepladder.quantize(tmp_path / "model", tmp_path / "out", "w8a16", head=head)
    assert not stepladder.inspect(tmp_path / "out").notes
    agree(tmp_path / "out")
