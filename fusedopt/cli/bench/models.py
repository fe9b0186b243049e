"""The parameter shapes of published models, as tables: what `bench` gives the optimizers in place of equal pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

Shape = tuple[int, ...]
HOW_TO_WRITE = "write it with json.dump({n: list(p.shape) for n, p in model.named_parameters()}, file)"
Table = dict[str, Shape]  # a row for each parameter, in the order in which the reference implementation registers them


@dataclass(frozen=True)
class Model:
    """A published model's parameters: those before the repeated blocks, those of each block, those after."""

    name: str  # as on the command line
    title: str
    source: str  # of the shapes, and the code whose names and order they have
    before: Table = field(repr=False)
    blocks: tuple[tuple[str, Table], ...] = field(repr=False)  # of each block: what its names begin with, its rows
    after: Table = field(repr=False)

    @property
    def layers(self) -> int:
        """How many blocks there are: residual blocks, transformer layers."""
        return len(self.blocks)

    def shapes(self, layers: int | None = None) -> list[tuple[str, Shape]]:
        """Names and shapes; with `layers`, in [1, self.layers], of a slice: the first blocks, and all that is not one.

        A slice of a convolutional network keeps the head of the whole one, which is wider than its last block.
        """
        if layers is not None and not 1 <= layers <= self.layers:
            raise ValueError(f"{self.name}: layers must be in [1, {self.layers}], got {layers}.")
        return _shapes([("", self.before), *self.blocks[:layers], ("", self.after)])

    def block_shapes(self, layers: int) -> list[tuple[str, Shape]]:
        """The same of the first blocks alone: a language model's vocabulary can be larger than memory."""
        return _shapes(self.blocks[:layers])


def _shapes(parts: Iterable[tuple[str, Table]]) -> list[tuple[str, Shape]]:
    return [(start + name, shape) for start, rows in parts for name, shape in rows.items()]


def from_file(path: Path) -> Model:
    """A model of one's own, from JSON: `{"name": [rows, columns], ...}`, as of `model.named_parameters()`.

    Raises:
        ValueError: It holds something else.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"--model {path}: there is no such file; {HOW_TO_WRITE}.") from None
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"--model {path}: cannot be read as JSON ({error}); {HOW_TO_WRITE}.") from None
    rows = found.items() if isinstance(found, dict) else ()
    for name, shape in rows:
        if not isinstance(shape, list) or not all(type(length) is int and length > 0 for length in shape):
            raise ValueError(f"--model {path}: {name!r} must have a list of lengths from 1, got {shape!r}.")
    if not rows:
        raise ValueError(f"--model {path}: has no shapes by name; {HOW_TO_WRITE}.")
    table = {name: tuple(shape) for name, shape in rows}
    return Model(path.stem, path.stem, str(path), {}, (("", table),), {})


def parameters(shapes: Iterable[tuple[str, Shape]]) -> int:
    """How many elements they have together."""
    return sum(prod(shape) for _, shape in shapes)


def resnet_50() -> Model:
    stages = (64, 3), (128, 4), (256, 6), (512, 3)  # width, number of blocks
    classes = 1_000
    blocks, channels = [], 64
    for stage, (width, depth) in enumerate(stages, start=1):
        for index in range(depth):
            blocks.append((f"layer{stage}.{index}.", _bottleneck(channels, width)))
            channels = 4 * width
    return Model(
        name="resnet-50",
        title="ResNet-50",
        source="He et al. 2015, arXiv:1512.03385, table 1; torchvision/models/resnet.py: resnet50",
        before={
            "conv1.weight": (64, 3, 7, 7),
            "bn1.weight": (64,),
            "bn1.bias": (64,),
        },
        blocks=tuple(blocks),
        after={
            "fc.weight": (classes, channels),
            "fc.bias": (classes,),
        },
    )


def _bottleneck(channels: int, width: int) -> Table:
    """1x1, 3x3, 1x1, and a projection on the shortcut where the number of channels changes."""
    block: Table = {
        "conv1.weight": (width, channels, 1, 1),
        "bn1.weight": (width,),
        "bn1.bias": (width,),
        "conv2.weight": (width, width, 3, 3),
        "bn2.weight": (width,),
        "bn2.bias": (width,),
        "conv3.weight": (4 * width, width, 1, 1),
        "bn3.weight": (4 * width,),
        "bn3.bias": (4 * width,),
    }
    projection: Table = {
        "downsample.0.weight": (4 * width, channels, 1, 1),
        "downsample.1.weight": (4 * width,),
        "downsample.1.bias": (4 * width,),
    }
    return block if channels == 4 * width else block | projection


def gpt2(name: str, title: str, layers: int, d_model: int) -> Model:
    vocabulary, context = 50_257, 1_024
    block: Table = {  # a Conv1D's weight is (inputs, outputs)
        "ln_1.weight": (d_model,),
        "ln_1.bias": (d_model,),
        "attn.c_attn.weight": (d_model, 3 * d_model),
        "attn.c_attn.bias": (3 * d_model,),
        "attn.c_proj.weight": (d_model, d_model),
        "attn.c_proj.bias": (d_model,),
        "ln_2.weight": (d_model,),
        "ln_2.bias": (d_model,),
        "mlp.c_fc.weight": (d_model, 4 * d_model),
        "mlp.c_fc.bias": (4 * d_model,),
        "mlp.c_proj.weight": (4 * d_model, d_model),
        "mlp.c_proj.bias": (d_model,),
    }
    return Model(
        name=name,
        title=title,
        source="Radford et al. 2019, Language models are unsupervised multitask learners, table 2; "
        "transformers/models/gpt2/modeling_gpt2.py: GPT2LMHeadModel, whose head is the token embedding",
        before={
            "transformer.wte.weight": (vocabulary, d_model),
            "transformer.wpe.weight": (context, d_model),
        },
        blocks=tuple((f"transformer.h.{index}.", block) for index in range(layers)),
        after={
            "transformer.ln_f.weight": (d_model,),
            "transformer.ln_f.bias": (d_model,),
        },
    )


def llama_3_8b() -> Model:
    layers, d_model, d_ff, vocabulary = 32, 4_096, 14_336, 128_256
    heads, kv_heads = 32, 8
    d_kv = d_model // heads * kv_heads
    block: Table = {
        "self_attn.q_proj.weight": (d_model, d_model),
        "self_attn.k_proj.weight": (d_kv, d_model),
        "self_attn.v_proj.weight": (d_kv, d_model),
        "self_attn.o_proj.weight": (d_model, d_model),
        "mlp.gate_proj.weight": (d_ff, d_model),
        "mlp.up_proj.weight": (d_ff, d_model),
        "mlp.down_proj.weight": (d_model, d_ff),
        "input_layernorm.weight": (d_model,),
        "post_attention_layernorm.weight": (d_model,),
    }
    return Model(
        name="llama-3-8b",
        title="Llama-3 8B",
        source="Grattafiori et al. 2024, arXiv:2407.21783, table 3; config.json of Meta-Llama-3-8B for the vocabulary; "
        "transformers/models/llama/modeling_llama.py: LlamaForCausalLM",
        before={"model.embed_tokens.weight": (vocabulary, d_model)},
        blocks=tuple((f"model.layers.{index}.", block) for index in range(layers)),
        after={
            "model.norm.weight": (d_model,),
            "lm_head.weight": (vocabulary, d_model),
        },
    )


def vit_b() -> Model:
    layers, d_model, d_mlp, classes = 12, 768, 3_072, 1_000
    image, patch = 224, 16  # pixels
    block: Table = {
        "ln_1.weight": (d_model,),
        "ln_1.bias": (d_model,),
        "self_attention.in_proj_weight": (3 * d_model, d_model),
        "self_attention.in_proj_bias": (3 * d_model,),
        "self_attention.out_proj.weight": (d_model, d_model),
        "self_attention.out_proj.bias": (d_model,),
        "ln_2.weight": (d_model,),
        "ln_2.bias": (d_model,),
        "mlp.0.weight": (d_mlp, d_model),
        "mlp.0.bias": (d_mlp,),
        "mlp.3.weight": (d_model, d_mlp),
        "mlp.3.bias": (d_model,),
    }
    return Model(
        name="vit-b",
        title="ViT-B/16",
        source="Dosovitskiy et al. 2020, arXiv:2010.11929, table 1; "
        "torchvision/models/vision_transformer.py: vit_b_16, which has the head of fine-tuning",
        before={
            "class_token": (1, 1, d_model),
            "conv_proj.weight": (d_model, 3, patch, patch),
            "conv_proj.bias": (d_model,),
            "encoder.pos_embedding": (1, (image // patch) ** 2 + 1, d_model),
        },
        blocks=tuple((f"encoder.layers.encoder_layer_{index}.", block) for index in range(layers)),
        after={
            "encoder.ln.weight": (d_model,),
            "encoder.ln.bias": (d_model,),
            "heads.head.weight": (classes, d_model),
            "heads.head.bias": (classes,),
        },
    )


def olmoe(name: str, title: str, source: str, *, layers: int, d_model: int, d_expert: int) -> Model:
    """A mixture of experts as OLMoE-1B-7B, which has 16 layers, d_model 2,048 and d_expert 1,024."""
    vocabulary, experts = 50_304, 64
    expert: Table = {
        "gate_proj.weight": (d_expert, d_model),
        "up_proj.weight": (d_expert, d_model),
        "down_proj.weight": (d_model, d_expert),
    }
    block: Table = {
        "self_attn.q_proj.weight": (d_model, d_model),
        "self_attn.k_proj.weight": (d_model, d_model),
        "self_attn.v_proj.weight": (d_model, d_model),
        "self_attn.o_proj.weight": (d_model, d_model),
        "self_attn.q_norm.weight": (d_model,),
        "self_attn.k_norm.weight": (d_model,),
        "mlp.gate.weight": (experts, d_model),
        **{f"mlp.experts.{index}.{row}": shape for index in range(experts) for row, shape in expert.items()},
        "input_layernorm.weight": (d_model,),
        "post_attention_layernorm.weight": (d_model,),
    }
    return Model(
        name=name,
        title=title,
        source=source,
        before={"model.embed_tokens.weight": (vocabulary, d_model)},
        blocks=tuple((f"model.layers.{index}.", block) for index in range(layers)),
        after={
            "model.norm.weight": (d_model,),
            "lm_head.weight": (vocabulary, d_model),
        },
    )


# An expert of 128 x 64 is a tensor of 8 Ki elements, and 50 layers of 201 tensors make ten thousand of them.
MOE = olmoe(
    "moe",
    "Mixture of 64 experts, 10,053 small tensors",
    "Published: the layer with its 64 experts and the vocabulary (Muennighoff et al. 2024, arXiv:2409.02060, and "
    "config.json of OLMoE-1B-7B-0924; transformers 4, models/olmoe/modeling_olmoe.py: OlmoeForCausalLM). Chosen: "
    "50 layers in place of 16, and a sixteenth of the widths: d_model 128 for 2,048, d_expert 64 for 1,024",
    layers=50,
    d_model=128,
    d_expert=64,
)

MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        resnet_50(),
        gpt2("gpt2", "GPT-2 124M", layers=12, d_model=768),
        gpt2("gpt2-xl", "GPT-2 XL", layers=48, d_model=1_600),
        llama_3_8b(),
        vit_b(),
        MOE,
    )
}
