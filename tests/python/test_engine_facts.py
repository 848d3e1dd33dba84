"""What Python asks of the engine instead of knowing it: formats, words of levels, hashes, reasons."""

import struct
from types import SimpleNamespace

import numpy as np
import pytest
import stepladder
from stepladder import _core
from stepladder.cli.options import command_parser
from stepladder.files import compressed_tensors
from stepladder.files.compressed_tensors import LAYOUTS, layout_of


def test_every_format_that_is_cast_to_codes_can_be_stored():
    formats = {f.name: f for f in _core.formats()}
    assert {"dense", "w8a16", "w8a8", "w4a16", "mxfp4"} <= formats.keys()
    assert LAYOUTS.keys() == {n for n, f in formats.items() if f.castable and f.scale}
    for name, layout in LAYOUTS.items():
        format = formats[name]
        codes, scales, group = _core.cast(name, np.ones((2, 256), np.float32))
        assert (group, layout.grouped) == (format.group, group > 0)
        assert layout.codes.pack(codes).shape == (2, layout.codes.columns(256))
        assert scales.shape == (2, 256 // group if group else 1)
        assert bool(layout.inputs) == (format.acts[0] == "a8")


@pytest.mark.parametrize(
    "format, tensor, layout, strategy, inputs",
    [
        ({"code": "i4", "scale": "f32", "group": 0, "acts": ["a8"]}, "weight_packed", "pack-quantized", "channel", True),
        ({"code": "i4", "scale": "f16", "group": 64, "acts": ["a16"]}, "weight_packed", "pack-quantized", "group", False),
        ({"code": "i8", "scale": "bf16", "group": 128, "acts": ["a16", "a8"]}, "weight_packed", "pack-quantized", "group", False),
    ],
)  # fmt: skip
def test_a_format_that_comes_later_is_stored_by_its_types(format, tensor, layout, strategy, inputs):
    found = layout_of(SimpleNamespace(name="new", alias="", castable=True, **format))
    config = found.config(["Linear"], format["group"])
    assert (found.codes.tensor, config["format"]) == (tensor, layout)
    assert config["weights"]["strategy"] == strategy
    assert config["weights"]["group_size"] == (format["group"] or None)
    assert (config["input_activations"] is not None) == inputs


@pytest.mark.parametrize(
    "change",
    [{"castable": False}, {"code": "f64"}, {"scale": ""}, {"code": "e2m1"}, {"scale": "e8m0"}],
)
def test_a_format_without_a_layout_is_not_offered(change):
    format = {"castable": True, "code": "i8", "scale": "f32", "group": 0, "acts": ["a16"]}
    assert layout_of(SimpleNamespace(**format)) is not None
    assert layout_of(SimpleNamespace(**format | change)) is None


def test_help_and_quantize_name_what_there_is(capsys, monkeypatch, tiny_dir, tmp_path):
    monkeypatch.setitem(LAYOUTS, "w5a16", LAYOUTS["w8a16"])
    monkeypatch.setitem(compressed_tensors.ALIASES, "int5", "w5a16")
    with pytest.raises(SystemExit):
        command_parser(dict.fromkeys(("generate", "chat", "inspect", "convert", "quantize", "verify", "bench"))).parse_args(
            ["quantize", "--help"]
        )  # fmt: skip
    told = " ".join(capsys.readouterr().out.split())
    assert "w8a16 (int8)" in told and "or w5a16 (int5)" in told
    with pytest.raises(stepladder.InvalidArgumentError, match="w5a16.*int5"):
        stepladder.quantize(tiny_dir, tmp_path / "out", "w3")


def test_alias_and_name_are_one_format(tiny_dir):
    answers = []
    for name in ("int8", "w8a16"):
        with stepladder.load(tiny_dir, draft=f"cast:{name}:tokens=4", threads=1) as model:
            assert model.info.levels[1].format == "w8a16"
            answers.append(model.generate([3, 4, 5], max_tokens=30).stats.levels[0].accepted)
    assert answers[0] == answers[1]


def test_an_answer_hash_is_fnv_1a_of_tokens_and_logits():
    tokens, logits = [3, 49151, 0], [1.5, -0.0, 3e38]
    want = 0xCBF29CE484222325
    for byte in b"".join(struct.pack("<if", *pair) for pair in zip(tokens, logits)):
        want = (want ^ byte) * 0x100000001B3 % 2**64
    whole, parts = _core.AnswerHash(), _core.AnswerHash()
    whole.add(tokens, logits)
    for token, logit in zip(tokens, logits):
        parts.add([token], [logit])
    assert str(whole) == str(parts) == f"{want:016x}"
    with pytest.raises(stepladder.InvalidArgumentError):
        whole.add([1, 2], [0.5])


def test_levels_and_reasons_have_the_engines_words():
    from stepladder.model.levels import _words

    assert sorted(_words()) == ["cast", "eagle", "lookup", "model", "switch"]
    assert all(word in _core.draft_forms() for word in _words())
    for form in ("lookup", "cast:int8", "switch:a8", "model:/x"):
        assert _core.draft_to_string(_core.parse_draft(form)) == form
    assert [f.name for f in _core.Finish] == ["none", "stop", "length", "cancelled", "error"]
