"""What `configure`, `record_plans`, `chunk_mlp` and the original's entry point set on a model, and
how the name "minference" gets registered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import minference_ext
import minference_ext.transformers as integration
import pytest
import torch
from minference_ext import HeadPattern, MInference, ModelPatterns
from minference_ext.methods import parse
from minference_ext.transformers.settings import settings_of
from transformers import (
    AttentionInterface,
    BartConfig,
    BartForConditionalGeneration,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
)

from tests import reference
from tests.tiny_llama import (
    HEADS,
    KV_HEADS,
    LAYERS,
    TOLERANCE,
    largest_difference,
    logits,
    tiny,
    tokens,
)

ROW = [
    HeadPattern.a_shape(9, 40),
    HeadPattern.vertical_slash(33, 110),
    HeadPattern.dense(),
    HeadPattern.tri_shape(0, 64, 20),
]
NARROW = HeadPattern.a_shape(0, 1)  # every query attends itself alone


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def run_python(program: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- configure and record_plans ------------------------------------------------------------------


def test_settings_belong_to_one_model(tmp_path: Path) -> None:
    first, second, ids = tiny(), tiny("minference"), tokens(1, 100)
    dense = logits(first, ids)
    integration.configure(first, HeadPattern.a_shape(0, 1))
    assert largest_difference(logits(first, ids), dense) > 100 * TOLERANCE
    assert largest_difference(logits(second, ids), dense) < TOLERANCE  # the default falls back
    first.save_pretrained(tmp_path)
    assert "minference" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("patterns", "sentence"),
    [
        ([ROW], r"1 layers with 4 heads; .* 2 layers with 4 each"),
        ([ROW, ROW[:3]], r"layer 1"),
        (HeadPattern.block_index(), r"layer 0, head 0, kind: found .*block_index"),
        ([[("dense",)] * HEADS] * LAYERS, r"layer 0, head 0: found \('dense',\)"),
    ],
)
def test_configure_checks_patterns(patterns: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        integration.configure(tiny(), patterns)


def test_configure_needs_attention_layers() -> None:
    with pytest.raises(ValueError, match=r"Linear has no module with layer_idx"):
        integration.configure(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


def test_options_reach_the_kernel() -> None:
    model, ids = tiny(), tokens(1, 300)
    found = []
    for options in ({}, {"mode": "exact"}, {"estimate_every": 64}):
        integration.configure(
            model, HeadPattern.vertical_slash(40, 110), dense_fallback=False, **options
        )
        found.append(logits(model, ids))
    assert largest_difference(found[0], found[1]) > TOLERANCE
    assert largest_difference(found[0], found[2]) > TOLERANCE


def test_record_plans() -> None:
    model = tiny()
    integration.configure(model, HeadPattern.a_shape(3, 20))
    with integration.record_plans(model) as plans:
        logits(model, tokens(2, 300))
        logits(model, tokens(2, 10))  # dense: no plan
    assert [plan.layer_idx for plan in plans] == [0, 1]
    attended = int(reference.a_shape_mask(300, 300, 3, 20).sum())
    for plan in plans:
        assert plan.stats.attended_pairs.tolist() == [[attended] * HEADS] * 2
    logits(model, tokens(2, 300))
    assert len(plans) == LAYERS


def test_patterns_come_from_anywhere(tmp_path: Path) -> None:
    rows = [ROW, [NARROW] * HEADS]
    patterns = ModelPatterns(rows)
    path = tmp_path / "patterns.json"
    patterns.save(path)
    found = []
    for source in (rows, patterns, path, str(path)):
        model = tiny()
        integration.configure(model, source)
        found.append(logits(model, tokens(1, 200)))
    assert all(torch.equal(found[0], other) for other in found[1:])
    with pytest.raises(FileNotFoundError, match=r"no_such_file"):
        integration.configure(tiny(), tmp_path / "no_such_file.json")


def test_starting_layer() -> None:
    model, ids = tiny(), tokens(1, 200)
    dense = logits(model, ids)
    integration.configure(model, NARROW, starting_layer=LAYERS)
    assert largest_difference(logits(model, ids), dense) < TOLERANCE
    integration.configure(model, NARROW, starting_layer=1)
    found = logits(model, ids)
    integration.configure(model, [[HeadPattern.dense()] * HEADS, [NARROW] * HEADS])
    assert torch.equal(found, logits(model, ids))
    assert largest_difference(found, dense) > 100 * TOLERANCE
    with pytest.raises(ValueError, match=r"starting_layer is 3; it must be 0\.\.2"):
        integration.configure(model, NARROW, starting_layer=LAYERS + 1)


def test_min_length_runs_pytorchs_attention() -> None:
    model, ids = tiny(), tokens(2, 100)
    mask = torch.ones(2, 100, dtype=torch.long)
    mask[1, :20] = 0
    dense = logits(model, ids, mask)
    for min_length, num_sparse in ((101, 0), (100, LAYERS)):
        integration.configure(model, NARROW, min_length=min_length)
        with integration.record_plans(model) as plans:
            found = logits(model, ids, mask)
        assert len(plans) == num_sparse
        assert (largest_difference(found, dense, mask) < TOLERANCE) == (num_sparse == 0)
    with pytest.raises(ValueError, match=r"min_length is -1; it must be a whole number >= 0"):
        integration.configure(model, NARROW, min_length=-1)


def test_min_length_keeps_the_sliding_window() -> None:
    model = tiny()
    module = model.model.layers[0].self_attn
    q = torch.randn(2, HEADS, 100, 32)
    k, v = torch.randn(2, 2, KV_HEADS, 100, 32)
    for mask in (None, torch.arange(100) >= torch.tensor([[0], [20]])):
        integration.configure(model, NARROW)
        expected, _ = integration.attention(module, q, k, v, mask, sliding_window=30)
        integration.configure(model, NARROW, min_length=101)
        found, _ = integration.attention(module, q, k, v, mask, sliding_window=30)
        valid = torch.ones(2, 100, dtype=torch.bool) if mask is None else mask
        assert largest_difference(found, expected, valid) < TOLERANCE


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"mode": "foo"}, r"mode is 'foo'; it must be one of cover, exact, reference"),
        ({"estimate_every": -64}, r"estimate_every is -64; it must be a whole number >= 0"),
        ({"estimate_every": 100}, r"estimate_every is 100; it must be a multiple of 64"),
        ({"min_length": "5"}, r"min_length is '5'; it must be a whole number >= 0"),
    ],
)
def test_configure_checks_options(option: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        integration.configure(tiny(), NARROW, **option)


def test_configure_refuses_models_it_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"DataParallel is not a model of Transformers"):
        integration.configure(torch.nn.DataParallel(tiny()))  # type: ignore[arg-type]
    sizes: dict[str, Any] = {
        "d_model": 16,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "vocab_size": 20,
    }
    bart = BartForConditionalGeneration(BartConfig(encoder_layers=1, decoder_layers=2, **sizes))
    with pytest.raises(ValueError, match=r"is an encoder-decoder"):
        integration.configure(bart)


def test_configure_leaves_the_vision_part() -> None:
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=tiny().config,
            vision_config=CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=32,
                projection_dim=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=224,
                patch_size=14,
            ),
            image_token_index=5,
        )
    ).eval()
    integration.configure(model, NARROW)
    assert model.config.text_config._attn_implementation == "minference"
    assert model.config.vision_config._attn_implementation != "minference"
    ids = tokens(1, 300)
    ids[0, :256] = 5  # 16 x 16 patches
    found = model(input_ids=ids, pixel_values=torch.randn(1, 3, 224, 224)).logits
    assert found.isfinite().all()


def test_record_plans_nests() -> None:
    model = tiny()
    integration.configure(model, NARROW)
    with integration.record_plans(model) as outer:
        with integration.record_plans(model) as inner:
            logits(model, tokens(1, 100))
        logits(model, tokens(1, 100))
    logits(model, tokens(1, 100))
    assert len(outer) == len(inner) == LAYERS


# ---- MLP in pieces -------------------------------------------------------------------------------


def test_chunk_mlp() -> None:
    model, ids = tiny(), tokens(2, 150)
    expected = logits(model, ids)
    seen: list[int] = []
    mlp: Any = model.model.layers[0].mlp
    mlp.gate_proj.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    assert integration.chunk_mlp(model, 64) == LAYERS
    assert largest_difference(logits(model, ids), expected) < TOLERANCE
    assert seen == [64, 64, 22]
    seen.clear()
    integration.chunk_mlp(model, 100)
    logits(model, ids)
    logits(model, ids[:, :100])
    assert seen == [100, 50, 100]
    seen.clear()
    integration.chunk_mlp(model, None)
    assert torch.equal(logits(model, ids), expected)
    assert seen == [150]
    with pytest.raises(ValueError, match=r"tokens is 0; it must be >= 1, or None"):
        integration.chunk_mlp(model, 0)


def test_chunk_mlp_with_gradients_and_without_a_batch_axis() -> None:
    model = tiny()
    mlp: Any = model.model.layers[0].mlp
    hidden = torch.randn(150, 64)
    expected = mlp(hidden)
    integration.chunk_mlp(model, 64)
    assert largest_difference(mlp(hidden), expected) < TOLERANCE
    with torch.enable_grad():
        found = mlp(hidden.requires_grad_())
        assert largest_difference(found, expected) < TOLERANCE
        found.sum().backward()
    assert hidden.grad is not None


def test_chunk_mlp_compiles() -> None:
    torch._dynamo.reset()
    model, ids = tiny("minference", num_hidden_layers=1), tokens(1, 150)
    expected = logits(model, ids)
    integration.chunk_mlp(model, 64)
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert largest_difference(logits(compiled, ids), expected) < TOLERANCE


def test_chunk_mlp_leaves_mixtures_of_experts_alone() -> None:
    config = MixtralConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    with pytest.raises(ValueError, match=r"MixtralForCausalLM has no layer with an mlp\.down_proj"):
        integration.chunk_mlp(MixtralForCausalLM(config))


# ---- The original's entry point ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attn_type", "arguments", "row"),
    [
        ("a_shape", {}, [HeadPattern.a_shape(128, 3968)] * 2),
        ("a_shape", {"n_init": 3, "n_local": 70}, [HeadPattern.a_shape(3, 70)] * 2),
        ("tri_shape", {"n_last": 7}, [HeadPattern.tri_shape(128, 3968, 7)] * 2),
        ("tri_mix", {}, [HeadPattern.dense()] * 2),
        (
            "tri_mix",
            {"starting_layer": 0, "last_n": 5},
            [HeadPattern.tri_shape(8, 512, 5)] * 2,
        ),
        (
            "tri_mix",
            {"starting_layer": 1, "n_local": 64},
            [HeadPattern.dense(), HeadPattern.tri_shape(8, 64, 128)],
        ),
        ("minference_with_dense", {}, [HeadPattern.dense()] * 2),
    ],
)
def test_original_entry_point(
    attn_type: str, arguments: dict[str, int], row: list[HeadPattern]
) -> None:
    ids = tokens(1, 300)
    expected = tiny()
    integration.configure(expected, [[pattern] * HEADS for pattern in row])
    model = tiny()
    patched = MInference(attn_type, "any/model", attn_kwargs=arguments)(model)
    assert patched is model
    assert torch.equal(logits(model, ids), logits(expected, ids))


@pytest.mark.parametrize(
    ("attn_type", "arguments", "method"),
    [
        ("static", {}, "static(1000,6096)"),
        ("dilated1", {}, "streaming_llm_dilated(1024,8192,2)"),
        ("dilated2", {}, "streaming_llm_strided(1024,2048,4096,2)"),
        ("inf_llm", {}, "infllm(128,4096,16,128,512,4)"),
        (
            "inf_llm",
            {"n_init": 64, "n_local": 64, "topk": 1, "block_size": 64, "exc_block_size": 128},
            "infllm(64,64,1,64,128,4)",
        ),
        ("flexprefill", {}, "flexprefill(0.9,0.1,None,None,128)"),
        (
            "flexprefill",
            {"gamma": 0.5, "tau": 0.2, "min_budget": 64, "max_budget": 128, "block_size": 64},
            "flexprefill(0.5,0.2,64,128,64)",
        ),
        ("xattention", {}, "xattention(stride=8,threshold=0.9,block_size=128)"),
        ("xattention", {"stride": 16, "threshold": 0.5, "norm": 2.0}, "xattention(16,0.5,norm=2)"),
    ],
)
def test_original_entry_point_of_methods(
    attn_type: str, arguments: dict[str, Any], method: str
) -> None:
    ids = tokens(1, 300)
    expected = tiny()
    integration.configure(expected, parse(method), starting_layer=1)
    model = MInference(attn_type, starting_layer=1, attn_kwargs=arguments)(tiny())
    for layer, other in zip(model.model.layers, expected.model.layers, strict=True):
        of_layer, of_other = (settings_of(m.self_attn).methods for m in (layer, other))
        assert [str(m) for m in of_layer] == [str(m) for m in of_other]
    assert torch.equal(logits(model, ids), logits(expected, ids))


def test_original_entry_point_gives_each_model_a_memory() -> None:
    entry = MInference("static")
    methods = [settings_of(entry(tiny()).model.layers[0].self_attn).methods for _ in range(2)]
    assert methods[0] != methods[1]


def test_original_entry_point_with_a_pattern_file(tmp_path: Path) -> None:
    path, ids = tmp_path / "best_pattern.json", tokens(1, 300)
    ModelPatterns([[NARROW] * HEADS] * LAYERS).save(path, format="upstream")
    expected = tiny()
    integration.configure(expected, NARROW, starting_layer=1)
    model = MInference("minference", config_path=str(path), starting_layer=1)(tiny())
    assert torch.equal(logits(model, ids), logits(expected, ids))
    mixed = MInference(
        "tri_mix_minference", config_path=path, attn_kwargs={"starting_layer": 1}
    ).patch_model(tiny())
    integration.configure(
        expected, [[NARROW] * HEADS, [HeadPattern.tri_shape(8, 512, 128)] * HEADS]
    )
    assert torch.equal(logits(mixed, ids), logits(expected, ids))


def test_original_entry_point_refuses_another_models_file(tmp_path: Path) -> None:
    path = tmp_path / "five_layers.json"
    ModelPatterns.uniform(NARROW, 5, HEADS).save(path)
    for attn_type, sizes in (("minference", {}), ("tri_mix_minference", {"starting_layer": 1})):
        with pytest.raises(ValueError, match=r"5 layers .* needs 2 layers"):
            MInference(attn_type, config_path=path, attn_kwargs=sizes)(tiny())
    with pytest.raises(ValueError, match=r"starting_layer is -1; it must be >= 0"):
        MInference("tri_mix", attn_kwargs={"starting_layer": -1})(tiny())


def test_original_entry_point_hf_leaves_the_model() -> None:
    assert MInference("hf")(tiny("sdpa")).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (
            {"attn_type": "vllm_a_shape"},
            NotImplementedError,
            r"attn_type is 'vllm_a_shape'; supported are",
        ),
        ({"attn_type": "minferense"}, ValueError, r"attn_type is 'minferense'; supported are"),
        ({"attn_type": "hf", "kv_type": "snapkv"}, NotImplementedError, r"kv_type is 'snapkv'"),
        ({"attn_type": "hf", "kv_cache_cpu": True}, NotImplementedError, r"kv_cache_cpu"),
        (
            {"attn_type": "hf", "is_search": True},
            NotImplementedError,
            r"is_search is True; `minference search` finds the patterns of a model",
        ),
        (
            {"attn_type": "inf_llm", "attn_kwargs": {"max_cached_block": 32}},
            ValueError,
            r"has max_cached_block; inf_llm takes n_init, n_local, topk, block_size, exc_block",
        ),
        (
            {"attn_type": "inf_llm", "attn_kwargs": {"n_local": 100}},
            ValueError,
            r"infllm, n_local: found 100; it must be a multiple of 64",
        ),
        (
            {"attn_type": "xattention", "attn_kwargs": {"chunk_size": 2048}},
            ValueError,
            r"has chunk_size; xattention takes stride, norm, threshold, block_size",
        ),
        (
            {"attn_type": "dilated1", "attn_kwargs": {"n_init": 4}},
            ValueError,
            r"has n_init; dilated1 takes none",
        ),
        ({}, ValueError, r"minference needs model_name or config_path"),
        (
            {"attn_type": "a_shape", "attn_kwargs": {"tau": 1}},
            ValueError,
            r"has tau; a_shape takes",
        ),
        ({"model_name": "nobody/nothing"}, FileNotFoundError, r"nobody/nothing"),
    ],
)
def test_original_entry_point_refuses(
    arguments: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        MInference(**arguments)


# ---- Registration --------------------------------------------------------------------------------


def test_the_package_does_not_import_transformers() -> None:
    program = "import sys, minference_ext; print('transformers' in sys.modules)"
    assert run_python(program) == "False"


BUILD = """
config = transformers.LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8,
                                  num_hidden_layers=1, num_attention_heads=1)
model = transformers.LlamaForCausalLM._from_config(config, attn_implementation="minference")
print(model.config._attn_implementation)
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import minference_ext, transformers",
        "import transformers, minference_ext",
        "import transformers.modeling_utils, minference_ext",
        "import minference_ext.transformers, transformers",
    ],
)
def test_the_name_is_registered_with_any_order_of_imports(imports: str) -> None:
    assert run_python(imports + BUILD) == "minference"


def test_looking_for_transformers_does_not_register_or_give_up() -> None:
    probe = "import importlib.util, sys, minference_ext\n"
    probe += "importlib.util.find_spec('transformers.modeling_utils')\n"
    probe += "assert 'minference_ext.transformers' not in sys.modules\n"
    assert run_python(probe + "import transformers" + BUILD) == "minference"


def test_other_import_hooks_are_asked() -> None:
    program = """
import sys

class Spy:
    seen = []
    def find_spec(self, name, path, target=None):
        self.seen.append(name)

sys.meta_path.insert(0, Spy())
import minference_ext, transformers.modeling_utils
module = transformers.modeling_utils
print(module.__name__ in Spy.seen, type(module.__loader__).__name__)
"""
    assert run_python(program) == "True SourceFileLoader"


def test_a_transformers_that_is_too_old_only_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    # None makes the import fail.
    monkeypatch.setitem(sys.modules, "minference_ext.transformers", None)
    with pytest.warns(UserWarning, match=r'attn_implementation="minference" is not available'):
        minference_ext._register.register_when_imported()
    assert "minference" in AttentionInterface._global_mapping
