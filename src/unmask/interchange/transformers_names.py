"""What transformers calls the tensors of our model, in version 4, which 5 translates, and in 5.

In a model with a head or decoder the names of the encoder begin with a prefix; here they do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unmask.engines.base import Tensors
from unmask.errors import CheckpointError
from unmask.interchange.naming import Naming

_OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "head": "classifier",
}
_QKV = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
_VIT = Naming(
    outside={
        **_OUTSIDE,
        "decoder_embed": "decoder.decoder_embed",
        "mask_token": "decoder.mask_token",
        "decoder_pos_embed": "decoder.decoder_pos_embed",
        "decoder_norm": "decoder.decoder_norm",
        "decoder_pred": "decoder.decoder_pred",
    },
    stacks={"blocks": "encoder.layer", "decoder_blocks": "decoder.decoder_layers"},
    in_block={
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
    qkv=_QKV,
)
_DINOV2 = Naming(
    outside=_OUTSIDE,
    stacks={"blocks": "encoder.layer"},
    in_block={
        "norm1": "norm1",
        "norm2": "norm2",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "ls1": "layer_scale1",
        "ls2": "layer_scale2",
    },
    qkv=_QKV,
)
_NEWER = (  # what version 5 calls it: what 4 does
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)
_NEWER_VIT = (
    *_NEWER,
    (r"^layers\.", "encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),  # 5.23 writes this by mistake
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_GATED = ((r"\.mlp\.weights_in\.", ".mlp.fc1."), (r"\.mlp\.weights_out\.", ".mlp.fc2."))
_NEWER_DINOV2 = (
    *_NEWER,
    *_GATED,
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"\.(layer_scale[12])\.lambda1$", r".\1.gamma"),
)
_GATE = re.compile(r"(.*\.mlp)\.gate_proj\.(weight|bias)")
"""Version 5 has the halves of weights_in apart; the other is up_proj."""
_LEFT_OUT = re.compile(r"pooler\.dense\.(weight|bias)|embeddings\.mask_token")


@dataclass(frozen=True)
class Family:
    """Models of one `model_type`: what they can be, and what their tensors are called."""

    architectures: Mapping[str, str]
    """By `kind` of a StoredModel."""
    prefix: str

    @property
    def dinov2(self) -> bool:
        return self.prefix != "vit."

    def ours(self, source: str, tensors: Tensors) -> tuple[Tensors, list[str]]:
        """Our weights, and the names of what is left out, because only a pretraining of another kind or no read-out of
        ours needs it: pooler, mask token of the encoder.

        Raises CheckpointError naming everything that our model does not have.
        """
        found: Tensors = {}
        left_out: list[str] = []
        for theirs, tensor in tensors.items():
            name = theirs.removeprefix(self.prefix)
            if _LEFT_OUT.fullmatch(name):
                left_out += [theirs] if tensor.any() else []  # one of zeros was never trained
                continue
            for pattern, replacement in _NEWER_DINOV2 if self.dinov2 else _NEWER_VIT:
                name = re.sub(pattern, replacement, name)
            if name in found:
                raise CheckpointError(f"{source} has {name} twice, once as {theirs}")
            found[name] = tensor
        if self.dinov2:
            found = _joined(source, found)
        return (_DINOV2 if self.dinov2 else _VIT).ours(source, found), left_out

    def theirs(self, weights: Tensors, *, gated: bool, prefixed: bool) -> Tensors:
        """Our weights under the names of version 4. Raises CheckpointError naming those that have no place."""
        named: Tensors = {}
        for name, tensor in (_DINOV2 if self.dinov2 else _VIT).theirs(weights).items():
            if self.dinov2:
                name = re.sub(r"\.gamma$", ".lambda1", name)
                name = name.replace(".mlp.fc1.", ".mlp.weights_in.") if gated else name
                name = name.replace(".mlp.fc2.", ".mlp.weights_out.") if gated else name
            outside = name.startswith(("classifier.", "decoder."))
            named[f"{self.prefix}{name}" if prefixed and not outside else name] = tensor
        return named


FAMILIES = {
    "vit": Family({"classifier": "ViTForImageClassification", "encoder": "ViTModel"}, "vit."),
    "vit_mae": Family({"autoencoder": "ViTMAEForPreTraining", "encoder": "ViTMAEModel"}, "vit."),
    "dinov2": Family({"classifier": "Dinov2ForImageClassification", "encoder": "Dinov2Model"}, "dinov2."),
    "dinov2_with_registers": Family(
        {"classifier": "Dinov2WithRegistersForImageClassification", "encoder": "Dinov2WithRegistersModel"},
        "dinov2_with_registers.",
    ),
}


def _joined(source: str, tensors: Tensors) -> Tensors:
    """Gate and value of a SwiGLU as one matrix."""
    joined: Tensors = {}
    for name, tensor in tensors.items():
        match = _GATE.fullmatch(name)
        value = tensors.get(name.replace(".gate_proj.", ".up_proj.")) if match else None
        if match and value is not None and tensor.ndim and tensor.shape == value.shape:
            whole = f"{match[1]}.fc1.{match[2]}"
            if whole in tensors:
                raise CheckpointError(f"{source} has {whole} twice, once as {name}")
            joined[whole] = np.concatenate([tensor, value])
        elif not (name.endswith((".up_proj.weight", ".up_proj.bias")) and name.replace(".up_", ".gate_") in tensors):
            joined[name] = tensor
    return joined
