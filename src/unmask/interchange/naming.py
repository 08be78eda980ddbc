"""How another tool names the tensors of our model, whose attention has three matrices there where ours has one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unmask.engines.base import Tensors
from unmask.errors import CheckpointError

_INDEX = r"(0|[1-9][0-9]{0,3})"
_KINDS = ("", ".weight", ".bias", ".gamma")
_WITHOUT_MODULE = ("cls_token", "reg_token", "mask_token", "pos_embed", "decoder_pos_embed")


@dataclass(frozen=True)
class Naming:
    """Tables from our modules to theirs; `.weight` and `.bias` are the same in both."""

    outside: Mapping[str, str]
    """Modules outside the blocks, and parameters without module, such as cls_token."""
    stacks: Mapping[str, str]
    """Stacks of blocks."""
    in_block: Mapping[str, str]
    """Modules of a block, all but attn.qkv."""
    qkv: Sequence[str]
    """Their modules for the query, key and value rows of attn.qkv."""

    def theirs(self, weights: Tensors) -> Tensors:
        """`weights` under their names. Raises CheckpointError naming everything they have no place for."""
        inside = _inside(self.stacks)
        renamed: Tensors = {}
        unknown: list[str] = []
        for name, tensor in weights.items():
            module, kind = _split(name, self.outside)
            match = inside.fullmatch(module)
            block = f"{self.stacks[match[1]]}.{match[2]}" if match else ""
            if match and match[3] == "attn.qkv" and tensor.ndim and len(tensor) % 3 == 0:
                thirds = zip(self.qkv, np.split(tensor, 3), strict=True)
                renamed |= {f"{block}.{part}{kind}": third for part, third in thirds}
            elif match and match[3] in self.in_block:
                renamed[f"{block}.{self.in_block[match[3]]}{kind}"] = tensor
            elif module in self.outside:
                renamed[self.outside[module] + kind] = tensor
            else:
                unknown.append(name)
        if unknown:
            raise CheckpointError(f"the format has no place for {listed(unknown)}")
        return renamed

    def ours(self, source: str, tensors: Tensors) -> Tensors:
        """`tensors` under our names. Raises CheckpointError naming everything that our model does not have."""
        inside = _inside(self.stacks.values())
        stacks, outside, in_block = (_turned(table) for table in (self.stacks, self.outside, self.in_block))
        weights: Tensors = {}
        qkv: dict[str, dict[str, Any]] = {}
        unknown: list[str] = []
        for name, tensor in tensors.items():
            module, kind = _split(name, outside)
            match = inside.fullmatch(module)
            block = f"{stacks[match[1]]}.{match[2]}" if match else ""
            if kind not in _KINDS or (outside.get(module) in _WITHOUT_MODULE) != (kind == ""):
                unknown.append(name)
            elif match and match[3] in self.qkv:
                qkv.setdefault(f"{block}.attn.qkv{kind}", {})[match[3]] = tensor
            elif match and match[3] in in_block:
                weights[f"{block}.{in_block[match[3]]}{kind}"] = tensor
            elif module in outside:
                weights[outside[module] + kind] = tensor
            else:
                unknown.append(name)
        for name, parts in qkv.items():
            if len(parts) == 3 and len(shapes := {part.shape for part in parts.values()}) == 1 and () not in shapes:
                weights[name] = np.concatenate([parts[part] for part in self.qkv])
            else:
                unknown.append(f"an incomplete {name}")
        if unknown:
            raise misplaced(source, unknown)
        return weights


_LOOKS_LIKE = [
    (r"lora_[AB]|lora_(up|down|embedding)|adapter", "a model with LoRA or adapters, which are to be merged first"),
    (r"weight_scale|\.SCB$|qweight|qzeros|absmax|zero_point|_packed_params", "a quantised model"),
    (r"rope|inv_freq|storage_tokens|freqs_cis", "DINOv3 or another ViT with rotary positions"),
    (r"q_norm|k_norm", "a ViT with QK norm"),
    (r"relative_position|rel_pos|attn\.(q_bias|v_bias)", "BEiT, Swin or another model with relative positions"),
    (r"dist_token|head_dist|distillation", "a distilled DeiT"),
    (r"(visual|vision_model)\.|resblocks|text_model|logit_scale|token_embedding", "CLIP or OpenCLIP"),
    (r"attn_pool|probe|MAPHead", "SigLIP or another ViT with attention pooling"),
    (r"layers\.\d+\.(blocks|downsample)", "Swin"),
    (r"layers?\.\d+\.(ln1|ffn)|bbox_head|decode_head", "a model of mmpretrain or another OpenMMLab project"),
    (r"stages\.\d+|dwconv|grn", "ConvNeXt"),
    (r"layer[1-4]\.\d+|bn1|conv1|running_mean|num_batches_tracked", "a ResNet or another model with BatchNorm"),
    (
        r"(embeddings|encoder\.layer|layernorm_before)",
        "a transformers model, which is read as a folder with config.json",
    ),
    (r"embeds\.", "NaFlexViT"),
    (r"local_cls|token_embed|cpe|pos_block", "a ViT with convolutions"),
    (r"gamma_[0-9]|ls[0-9]\.", "a ViT with another layer scale, such as CaiT"),
    (r"attns?\.\d+\.|ffns?\.\d+\.", "a ViT with parallel blocks"),
    (r"mlp\.norm|attn\.norm|inner_attn_ln|ffn_layernorm", "a ViT with sub-layer norms, such as BEiT-3 or EVA-02"),
    (r"mlp\.w[0-9]|fc1_[gx]|\.w12", "a ViT with another gated MLP"),
    (r"predictor|projector|prototypes|momentum|queue", "a self-supervised training of another kind"),
    (r"decoder", "an autoencoder with another decoder"),
    (r"pre_logits", "a ViT with a representation layer before its head"),
]
"""Part of a tensor's name, and the kind of model that has it; the first that is found counts."""


def misplaced(source: str, names: Iterable[str]) -> CheckpointError:
    """The error for tensors that have no place in our model: which they are, and what kind of model they look like."""
    names = sorted(names)
    kind = next((kind for part, kind in _LOOKS_LIKE if any(re.search(part, name) for name in names)), None)
    like = f"; it looks like {kind}" if kind else ""
    return CheckpointError(f"{source} has tensors that our model does not have: {listed(names)}{like}")


def unfitting(source: str, tensors: Tensors) -> CheckpointError:
    """The error for tensors of which some has a shape that does not go with the others'."""
    return CheckpointError(
        f"{source} has tensors that do not fit together: "
        + ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(tensors.items()))
    )


def listed(names: Iterable[str]) -> str:
    """The names in one line that can still be read."""
    first, rest = sorted(names)[:20], len(list(names)) - 20
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")


def _inside(stacks: Iterable[str]) -> re.Pattern[str]:
    return re.compile(rf"({'|'.join(map(re.escape, stacks))})\.{_INDEX}\.(.+)")


def _turned(table: Mapping[str, str]) -> dict[str, str]:
    return {value: key for key, value in table.items()}


def _split(name: str, whole: Mapping[str, str]) -> tuple[str, str]:
    """A module and `.weight` or `.bias`; a parameter without module, such as cls_token, is whole."""
    if name in whole:
        return name, ""
    module, _, kind = name.rpartition(".")
    return module, f".{kind}"
