"""The MAE that MindSpore's model zoo had until 2023 (official/cv/MAE), and its copy in the MindSpore course.

Their blocks are those of mindspore.nn.transformer: attention.projection, output.mapping and output.projection are
stored (in, out); dense1, dense2 and dense3 (query, key and value) as ours, (out, in). What else is different, read off
their code, since no checkpoint of theirs was published:
- The class token is never saved: a constant, drawn anew at each start. Read as zeros; written into the position
  embedding of the class token, which computes the same here. Their code adds its own constant to it.
- The mask token that is saved is not the one they compute with, another constant.
- Patch i has row i of the decoder's position table, which has one row more than patches; the class token has none.
  The last row is written as zeros.
- The predicted pixels are ordered channel, row, column; ours row, column, channel.
- The decoder blocks hold a cross attention and the classifiers a `norm` that are not used (assumed is their default
  global_pool=True): left out.
- GELU is the tanh approximation, which changes less than the rounding of float16, in which the blocks compute.
- The zoo's PatchEmbed has a LayerNorm, encoder.patch_embed.norm, which is `model.patch_norm`; the course's has none.
- No file tells an epsilon. That of the blocks' norms and of a classifier's is 1e-5 (EPS), that of the patch norm, of an
  autoencoder's `encoder.norm` and of `decoder_norm` 1e-6. Ours is one for all: 1e-5 is taken. The patch norm computes
  the same nevertheless, because nothing else sees how large its input is: the projection takes up the difference. The
  last norms see tokens of a variance around 1, of which 1e-5 is nothing.
- `_ema_weights` is not an average: it is doubled at every step. Never read.
"""

from __future__ import annotations

import logging
import math
import re

import numpy as np
from numpy.typing import NDArray

from unmask.engines.base import Tensors
from unmask.errors import CheckpointError
from unmask.files import cause
from unmask.interchange.naming import Naming, listed, unfitting

log = logging.getLogger("unmask")

_NAMING = Naming(
    outside={
        "pos_embed": "encoder.encoder_pos_embedding",
        "patch_embed.proj": "encoder.patch_embed.projection",
        "patch_embed.norm": "encoder.patch_embed.norm",
        "norm": "encoder.norm",
        "fc_norm": "encoder.fc_norm",
        "head": "head",
        "decoder_embed": "enc_to_dec",
        "mask_token": "mask_token",
        "decoder_pos_embed": "decoder_pos_embedding.embedding_table",
        "decoder_norm": "decoder_norm",
        "decoder_pred": "to_pixels",
    },
    stacks={"blocks": "encoder.encoder.blocks", "decoder_blocks": "decoder.blocks"},
    in_block={
        "norm1": "layernorm1",
        "norm2": "layernorm2",
        "attn.proj": "attention.projection",
        "mlp.fc1": "output.mapping",
        "mlp.fc2": "output.projection",
    },
    qkv=("attention.dense1", "attention.dense2", "attention.dense3"),
)
EPS = 1e-5
_EPS_OF_PATCH_NORM = 1e-6
_UNUSED = re.compile(r"decoder\.blocks\.[0-9]+\.cross_attention(_layernorm)?\..*")
_IN_OUT = re.compile(r".*\.(attn\.proj|mlp\.fc[12])\.weight")


def is_from_zoo(tensors: Tensors) -> bool:
    return any(name.startswith("encoder.") for name in tensors)


def from_zoo(source: str, tensors: Tensors, norm_eps: float) -> Tensors:
    """Our weights, for a model with this epsilon, from theirs, whose gamma and beta are already named weight and bias.

    Raises CheckpointError naming everything that our model does not have.
    """
    unused = [name for name in tensors if _UNUSED.fullmatch(name)]
    if "head.weight" in tensors and "encoder.fc_norm.weight" in tensors:
        unused += [name for name in tensors if name in ("encoder.norm.weight", "encoder.norm.bias")]
    if unused:
        log.warning("%s: %s, which its network does not use, is left out", source, listed(unused))
    used = {name: tensor for name, tensor in tensors.items() if name not in unused}
    weights = _NAMING.ours(source, used)
    try:
        return _computing_the_same(weights, norm_eps)
    except (ValueError, LookupError) as error:
        raise unfitting(source, {name: t for name, t in weights.items() if "blocks" not in name}) from error


def to_zoo(weights: Tensors, norm_eps: float) -> Tensors:
    """Their weights, but for gamma and beta, from ours, of a model with this epsilon.

    Raises CheckpointError if the format has no place for some.
    """
    try:
        return _NAMING.theirs(_computing_the_same_there(weights, norm_eps))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; try --to mindspore") from error
    except (ValueError, LookupError) as error:
        raise CheckpointError(f"the model has tensors that do not fit together: {cause(error)}") from error


def _computing_the_same(theirs: Tensors, norm_eps: float) -> Tensors:
    weights = _under_patch_norm(_transposed(theirs), math.sqrt(norm_eps / _EPS_OF_PATCH_NORM))
    if "pos_embed" in weights:
        weights["cls_token"] = np.zeros_like(weights["pos_embed"][:, :1])
    if "mask_token" in weights:
        weights["mask_token"] = weights["mask_token"].reshape(1, 1, -1)
    if (table := weights.get("decoder_pos_embed")) is not None:
        weights["decoder_pos_embed"] = np.concatenate([np.zeros_like(table[:1]), table[:-1]])[None]
    for name in weights.keys() & {"decoder_pred.weight", "decoder_pred.bias"}:
        _, C, p, q = weights["patch_embed.proj.weight"].shape
        weights[name] = _reordered(weights[name], (C, p, q), (1, 2, 0))
    return weights


def _computing_the_same_there(ours: Tensors, norm_eps: float) -> Tensors:
    weights = _under_patch_norm(_transposed(ours), math.sqrt(_EPS_OF_PATCH_NORM / norm_eps))
    if "patch_embed.proj.weight" not in weights:
        raise CheckpointError("the format has no place for model.patch_stem")
    if "cls_token" not in weights:
        raise CheckpointError("the format has no place for model.cls_token=false")
    first, rest = np.split(weights["pos_embed"], [1], axis=1)
    weights["pos_embed"] = np.concatenate([first + weights.pop("cls_token"), rest], axis=1)
    if "mask_token" in weights:
        weights["mask_token"] = weights["mask_token"].reshape(-1)
    if (table := weights.get("decoder_pos_embed")) is not None:
        if table[0, 0].any():
            raise CheckpointError("the format has no place for a decoder position embedding of the class token")
        weights["decoder_pos_embed"] = np.concatenate([table[0, 1:], table[0, :1]])
    for name in weights.keys() & {"decoder_pred.weight", "decoder_pred.bias"}:
        _, C, p, q = weights["patch_embed.proj.weight"].shape
        weights[name] = _reordered(weights[name], (p, q, C), (2, 0, 1))
    return weights


def _transposed(weights: Tensors) -> Tensors:
    return {
        name: np.ascontiguousarray(tensor.T) if _IN_OUT.fullmatch(name) else tensor for name, tensor in weights.items()
    }


def _under_patch_norm(weights: Tensors, factor: float) -> Tensors:
    """The patch projection times `factor` where a norm follows, which so computes what it did with another epsilon."""
    if "patch_embed.norm.weight" not in weights:
        return weights
    projection = weights.keys() & {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    return weights | {name: weights[name] * np.float32(factor) for name in projection}


def _reordered(
    rows: NDArray[np.generic], sizes: tuple[int, int, int], order: tuple[int, int, int]
) -> NDArray[np.generic]:
    """The rows of a matrix, or the elements of a vector, numbered along other axes."""
    return rows.reshape(*sizes, -1).transpose(*order, 3).reshape(rows.shape)
