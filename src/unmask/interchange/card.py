"""The card of a model on the hub: metadata in YAML, then what a person wants to know, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from unmask.environment import versions
from unmask.interchange.hub import HubName
from unmask.interchange.stored_model import StoredModel

_PLACES = {"": ("output", "init"), "data": ("train", "val"), "evaluate": ("train", "val")}
"""Settings, by section, that name places. Only those that anyone can open are published."""
_PUBLIC = ("hf://", "bundled:")
_SHOWN = 50
"""How many class names are listed."""
_LIBRARIES = {"facebook": "pytorch", "mindspore-zoo": "mindspore"}
"""What the hub calls the library of a format, where that is not the name of the format."""
_LICENCE = "# license: fill in, such as apache-2.0 or cc-by-nc-4.0; that of the images and of the base model counts too"
_PAPERS = {
    "mae": (
        "He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Dollár, Piotr and Girshick, Ross",
        "Masked Autoencoders Are Scalable Vision Learners",
        "2111.06377",
    ),
    "cross_mae": (
        "Fu, Letian and Lian, Long and Wang, Renhao and Shi, Baifeng and Wang, Xudong and Yala, Adam and "
        "Darrell, Trevor and Efros, Alexei A. and Goldberg, Ken",
        "Rethinking Patch Dependence for Masked Autoencoders",
        "2401.14391",
    ),
    "hog_mae": (
        "Wei, Chen and Fan, Haoqi and Xie, Saining and Wu, Chao-Yuan and Yuille, Alan and Feichtenhofer, Christoph",
        "Masked Feature Prediction for Self-Supervised Visual Pre-Training",
        "2112.09133",
    ),
    "lejepa": (
        "Balestriero, Randall and LeCun, Yann",
        "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics",
        "2511.08544",
    ),
}
"""Authors, title and number at arXiv."""
_CITED = {"mae_lejepa": ("mae", "lejepa")}
"""The papers of objectives that have several; the others have the one of their name, or none."""


@dataclass(frozen=True)
class Origin:
    """What is known of how a model came about."""

    base: str | None = None
    """OWNER/NAME of the model on the hub that it was made from."""
    step: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Of the training images: images, fingerprint."""
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    """Measured by the run, at that step."""


def card(model: StoredModel, origin: Origin, place: HubName, format: str, folder: Path) -> str:
    """The text of README.md for a model in `format`, whose files are in `folder` and will be at `place`."""
    config = _publishable(model.config) if model.config else {}
    parts = [
        _metadata(model, origin, format, config),
        f"# {place.repo.partition('/')[2]}",
        _summary(model),
        "## How to load it",
        _block(
            "import unmask  # pip install 'unmask[torch,hub]'\n"
            f'model = unmask.load("{place}")\n'
            f'{"classes = model.predict" if model.kind == "classifier" else "features = model.embed"}("photos")'
        ),
        _block(_with_their_tool(place, format, folder)),
    ]
    if data := _data(model, origin, config):
        parts += ["## Data", data]
    if origin.figures:
        at = "" if origin.step is None else f" at step {origin.step}"
        rows = [f"| {name} | {value:.4g} |" for name, value in origin.figures.items()]
        parts += ["## Figures", f"Measured by the run{at}.", "\n".join(["| | value |", "|---|---|", *rows])]
    if config:
        parts += ["## Recipe", _block(_yaml(config), "yaml")]
    return "\n\n".join([*parts, "## Citation", _block(_citations(model), "bibtex")]) + "\n"


def _publishable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without the names of places that only this machine can open."""
    public = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    for section, keys in _PLACES.items():
        values = public[section] if section else public
        for key in keys:
            if not str(values.get(key)).startswith(_PUBLIC):
                values.pop(key, None)
    return public


def _metadata(model: StoredModel, origin: Origin, format: str, config: Mapping[str, Any]) -> str:
    train = str(config.get("data", {}).get("train"))
    data_sets = ["/".join(train.split("/")[3:5]).partition("@")[0]] if train.startswith("hf://datasets/") else None
    values = {
        "library_name": _LIBRARIES.get(format, format),
        "pipeline_tag": "image-classification" if model.kind == "classifier" else "image-feature-extraction",
        "base_model": origin.base,
        "datasets": data_sets,
        "tags": ["unmask", "vision", *(["masked-autoencoder"] if model.kind == "autoencoder" else [])],
    }
    return f"---\n{_LICENCE}\n{_yaml({key: value for key, value in values.items() if value})}\n---"


def _summary(model: StoredModel) -> str:
    fields = model.model
    (height, width), channels = fields["image_size"], fields["channels"]
    kind = {"classifier": "A classifier", "autoencoder": "A masked autoencoder", "encoder": "An encoder of images"}
    millions = sum(tensor.size for tensor in model.weights.values()) / 1e6
    return (
        f"{kind[model.kind]}: a Vision Transformer of {fields['depth']} blocks and width {fields['width']} on images "
        f"of {width}×{height} pixels and {channels} channel{'s' * (channels > 1)} in patches of "
        f"{fields['patch_size']}, {millions:.3g} M parameters. Trained or converted with unmask {versions()['unmask']}."
    )


def _with_their_tool(place: HubName, format: str, folder: Path) -> str:
    revision = f', revision="{place.revision}"' if place.revision else ""
    file = f'hf_hub_download("{place.repo}", "{place.path}"{revision})'
    if format == "transformers":
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
        lines = [f"from transformers import {kind}", f'model = {kind}.from_pretrained("{place.repo}"{revision})']
        if (folder / "preprocessor_config.json").exists():
            lines[0] = f"from transformers import AutoImageProcessor, {kind}"
            lines.append(f'processor = AutoImageProcessor.from_pretrained("{place.repo}"{revision})')
        return "\n".join(lines)
    if format == "timm":
        name = f"hf-hub:{place.repo}" + (f"@{place.revision}" if place.revision else "")
        return (
            f'import timm\nmodel = timm.create_model("{name}", pretrained=True).eval()\n'
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
        )
    if format == "facebook":
        read = f'import torch\nweights = torch.load({file}, weights_only=True)["model"]'
    else:
        read = f"import mindspore\nweights = mindspore.load_checkpoint({file})"
    return f"from huggingface_hub import hf_hub_download\n{read}"


def _data(model: StoredModel, origin: Origin, config: Mapping[str, Any]) -> str:
    lines: list[str] = []
    if origin.data:
        source = f" from `{config['data']['train']}`" if config.get("data", {}).get("train") else ""
        fingerprint = origin.data["fingerprint"]
        lines.append(f"Trained on {origin.data['images']} images{source} (fingerprint `{fingerprint}`).")
    if (names := model.class_names) and model.kind == "classifier":
        more = " …" if len(names) > _SHOWN else ""
        lines.append(f"{len(names)} classes: {', '.join(names[:_SHOWN])}{more}")
    return "\n\n".join(lines)


def _citations(model: StoredModel) -> str:
    name = model.config["objective"]["name"] if model.config else "mae" if model.kind == "autoencoder" else ""
    entries = [("unmask", "", "unmask: masked-autoencoder pretraining and everything after it", "")]
    entries += [(key, *_PAPERS[key]) for key in _CITED.get(name, (name,)) if key in _PAPERS]
    return "\n".join(
        f"@misc{{{key},\n  title = {{{{{title}}}}},\n"
        + (f"  author = {{{authors}}},\n  eprint = {{{number}}},\n  archivePrefix = {{arXiv}},\n" if number else "")
        + "}"
        for key, authors, title, number in entries
    )


def _yaml(values: Mapping[str, Any]) -> str:
    """With lists of plain values on one line."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=None).rstrip()


def _block(text: str, language: str = "python") -> str:
    return f"```{language}\n{text}\n```"
