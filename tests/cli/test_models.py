"""The tables of model shapes: the published numbers of tensors and parameters, and slices."""

from __future__ import annotations

import pytest

from fusedopt.cli.bench.models import MODELS, Model, from_file, olmoe, parameters

PUBLISHED = {  # tensors, parameters
    # torchvision documents ResNet50_Weights and ViT_B_16_Weights with these num_params.
    "resnet-50": (161, 25_557_032),
    "vit-b": (152, 86_567_656),
    # transformers: GPT2LMHeadModel of openai-community/gpt2 and gpt2-xl; the tied head counts once.
    "gpt2": (148, 124_439_808),
    "gpt2-xl": (580, 1_557_611_200),
    # The model card of meta-llama/Meta-Llama-3-8B says 8.03 B; its model.safetensors.index.json lists the tensors.
    "llama-3-8b": (291, 8_030_261_248),
}
MODEL = pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_the_published_tensors_and_parameters(name):
    shapes = MODELS[name].shapes()
    assert (len(shapes), parameters(shapes)) == PUBLISHED[name]


def test_the_mixture_of_experts_is_olmoe_in_small():
    # OlmoeForCausalLM of allenai/OLMoE-1B-7B-0924: 6.92 B, of which 16 x 64 x 3 matrices are experts.
    published = olmoe("olmoe", "OLMoE-1B-7B", "", layers=16, d_model=2_048, d_expert=1_024)
    assert (len(published.shapes()), parameters(published.shapes())) == (3_219, 6_919_161_856)
    small = MODELS["moe"]
    assert [name for name, _ in small.shapes(16)] == [name for name, _ in published.shapes()]
    sixteenth = [
        tuple(side if side in (64, 50_304) else side // 16 for side in shape) for _, shape in published.shapes()
    ]
    assert [shape for _, shape in small.shapes(16)] == sixteenth


def test_the_mixture_of_experts_has_ten_thousand_small_tensors():
    shapes = MODELS["moe"].shapes()
    experts = [shape for name, shape in shapes if ".experts." in name]
    assert (len(shapes), len(experts), parameters(shapes)) == (10_053, 9_600, 95_233_152)
    assert {parameters([("", shape)]) for shape in experts} == {8_192}


@MODEL
def test_names_are_unique_and_no_shape_is_empty(model: Model):
    shapes = model.shapes()
    assert len({name for name, _ in shapes}) == len(shapes)
    assert all(shape and min(shape) > 0 for _, shape in shapes)


@MODEL
def test_all_layers_are_the_whole_model(model: Model):
    assert model.shapes(model.layers) == model.shapes()


@MODEL
def test_a_slice_has_the_first_layers_and_what_is_around_them(model: Model):
    whole, sliced = model.shapes(), model.shapes(layers=2)
    in_blocks = [model.before, *(rows for _, rows in model.blocks[:2])]
    first = sum(map(len, in_blocks))
    assert sliced == whole[:first] + whole[-len(model.after) :]
    assert len(sliced) < len(whole)


def test_a_slice_of_gpt2_has_as_many_parameters_as_gpt2_of_that_depth():
    # 12 d^2 + 13 d a layer of width d; embeddings of 50,257 tokens and 1,024 places; the last norm.
    d = 768
    assert parameters(MODELS["gpt2"].shapes(layers=2)) == 2 * (12 * d**2 + 13 * d) + (50_257 + 1_024) * d + 2 * d


@MODEL
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_slice_beyond_the_model_is_an_error(model: Model, beyond: int):
    layers = model.layers + 1 if beyond == 1 else beyond
    with pytest.raises(ValueError) as error:
        model.shapes(layers=layers)
    assert str(error.value) == f"{model.name}: layers must be in [1, {model.layers}], got {layers}."


@pytest.mark.parametrize(
    ("name", "layers"),
    [("resnet-50", 16), ("gpt2", 12), ("gpt2-xl", 48), ("llama-3-8b", 32), ("vit-b", 12), ("moe", 50)],
)
def test_the_number_of_layers(name: str, layers: int):
    assert MODELS[name].layers == layers


def test_a_model_of_ones_own_comes_from_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"embedding": [10, 4], "bias": [4], "scale": []}')
    model = from_file(path)
    assert (model.name, model.layers) == ("mine", 1)
    assert model.shapes() == [("embedding", (10, 4)), ("bias", (4,)), ("scale", ())]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("no json", "cannot be read as JSON"),
        ("[1, 2]", "has no shapes by name; write it with json.dump"),
        ("{}", "has no shapes by name"),
        ('{"a": [1], "b": [0]}', "'b' must have a list of lengths from 1, got \\[0\\]"),
        ('{"a": 3}', "'a' must have a list of lengths"),
        ('{"a": [true]}', "'a' must have a list of lengths"),
    ],
)
def test_a_file_with_something_else_is_refused(text, what, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^--model {path}: {what}"):
        from_file(path)
