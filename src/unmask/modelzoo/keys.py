"""What becomes of each key in the flat YAML files of the MindSpore model zoo's MAE: one table, `TABLE`.

Where its code did not do what the key says (it never passed norm_pixel_loss on, ignored layer_decay, trained its
fine-tuning with lr 0), the key does here what it says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from unmask.data.sources import files
from unmask.environment import launched
from unmask.errors import ConfigError

Command = Literal["pretrain", "finetune", "evaluate"]
GROUPS = ("context", "parallel", "model_config")
"""Sections of the files; they only sort the keys, so that `--device_target CPU` reaches `context.device_target`."""
SAME = {"dataset_path": "data_path"}
"""Two names of one key: the fine-tuning of the model zoo calls its training images differently."""
MEANT = {"checkpoint_path": "use_ckpt"}
"""What the README of the model zoo says in place of a key."""


@dataclass(frozen=True)
class Entry:
    spelled: str
    value: Any
    origin: str


@dataclass(frozen=True)
class Flat:
    """All keys of a file and its command line: the value of one may depend on another."""

    entries: Mapping[str, Entry]
    command: Command
    stem: str

    def get(self, name: str, default: Any = None) -> Any:
        value = self.entries[name].value if name in self.entries else None
        return default if value in (None, "") else value

    def on(self, name: str, default: bool = False) -> bool:
        """A switch, written True, "True", 1 and so on."""
        value = self.get(name, default)
        known = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
        if known is None:
            raise self._error(name, f"must be True or False, not {value!r}")
        return known

    def number(self, name: str, default: float) -> float:
        value = self.get(name, default)
        try:
            return float(value)  # YAML 1.1 reads 1e-4 as text
        except (TypeError, ValueError):
            raise self._error(name, f"must be a number, not {value!r}") from None

    def _error(self, name: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.entries[name].origin}: {self.entries[name].spelled}: {problem}")

    @property
    def listed(self) -> str | None:
        """The list of training images as data.train names it. It and its paths are relative to data_path."""
        folder, name = str(self.get("data_path", "")).rstrip("/"), self.get("img_ids")
        if self.command != "pretrain" or not folder or name is None:
            return None
        path = str(name) if files.is_remote(str(name)) else os.path.join(folder, str(name))  # noqa: PTH118 (or a URL)
        return path if path.rpartition("/")[0] == folder else f"{path}#root={folder}"

    @property
    def modelarts(self) -> bool:
        return self.on("enable_modelarts") and self.command != "evaluate"

    def of_platform(self, name: str) -> str | None:
        """A key that counts on ModelArts only."""
        value = self.get(name)
        return str(value) if self.modelarts and value is not None else None

    @property
    def save_dir(self) -> str:
        return str(self.get("save_dir", "output"))

    @property
    def folder(self) -> str | None:
        """Where a run works that ModelArts' keys keep in an object store; None: as any that is kept there."""
        here = self.of_platform("output_path") or self.save_dir
        return None if self.of_platform("train_url") is None or files.is_remote(here) else _run_in(here, self)

    @property
    def target(self) -> str:
        return str(self.get("device_target", "")).upper()

    @property
    def engine(self) -> str:
        default = "mindspore" if find_spec("mindspore") is not None and self.target != "GPU" else "torch"
        return self.get("engine", default)

    @property
    def engine_reason(self) -> str:
        if self.engine == "mindspore":
            return "which these files were written for; --engine torch takes PyTorch"
        return "MindSpore here has no GPU" if self.target == "GPU" else "MindSpore is not installed"

    @property
    def processes(self) -> int:
        """How many processes work together."""
        return launched()[1] if self.on("use_parallel") else 1

    @property
    def global_batch(self) -> Any:
        batch, copies = self.get("batch_size"), 1 if self.command == "evaluate" else self.processes
        return self.get("train.batch_size", batch * copies if isinstance(batch, int) else batch)


Outcome = dict[str, Any] | str | tuple[dict[str, Any], str]
"""Settings of ours, the words that say why there are none, or both: settings, and what differs from the model zoo."""
Rule = Callable[[Any, Flat], Outcome]
"""Turns the value of a key into its outcome. Raises ValueError for a value that cannot be taken.

The docstring, up to an empty line, is what docs/model-zoo.md says of the key."""


def meaning(key: str) -> str:
    """What becomes of a key, in a line for people."""
    return " ".join(str(TABLE[key].__doc__).partition("\n\n")[0].split())


def _to(key: str) -> Rule:
    def rule(value: Any, _: Flat) -> Outcome:
        return {key: value}

    rule.__doc__ = f"`{key}`"
    return rule


def _nothing(reason: str) -> Rule:
    def rule(_value: Any, _flat: Flat) -> Outcome:
        return f"without meaning here: {reason}"

    rule.__doc__ = f"nothing: {reason}"
    return rule


def _use_ckpt(value: Any, flat: Flat) -> Outcome:
    """`init`; while pretraining the weights alone: optimizer and schedule begin anew"""
    if flat.command == "pretrain":
        return {"init": value}, "weights alone: optimizer and schedule begin anew; the run itself goes on without it"
    return {"init": value}


def _dropout(value: Any, flat: Flat) -> Outcome:
    """`model.drop_path` of a classifier: whole branches of the later blocks are dropped, not single values"""
    if flat.command == "pretrain":
        return "without meaning here: MAE trains without"
    return {"model.drop_path": value}, "whole branches of the later blocks are dropped, not single values"


def _data_path(value: Any, flat: Flat) -> Outcome:
    """`data.train`; `dataset_path` is another name of it"""
    return {"data.train": flat.listed or value}


def _img_ids(_: Any, flat: Flat) -> Outcome:
    """`data.train`: a JSON list of paths; it and they are relative to `data_path`. Left empty: all of `data_path`"""
    if flat.command != "pretrain":
        return "without meaning here: class folders are read whole"
    if flat.listed is None:
        raise ValueError("needs data_path, to which its paths are relative")
    path = flat.listed.partition("#root=")[0]
    brought = flat.of_platform("data_url") is not None  # is there only when the data are
    if "data.train" not in flat.entries and not brought and not files.exists(path):
        raise ValueError(f"there is no {path}; give a JSON list of paths, or --img_ids= to take all of data_path")
    return {"data.train": flat.listed}


def _layer_decay(value: Any, flat: Flat) -> Outcome:
    """`optimizer.layer_decay`, where there are weights to start from"""
    # The model zoo grouped its parameters by layer only when it had weights to load.
    if flat.get("use_ckpt") is None and flat.get("init") is None:
        return "without meaning here: from scratch no layer is pretrained; --optimizer.layer_decay sets it all the same"
    return {"optimizer.layer_decay": value}


def _start_learning_rate(_: Any, flat: Flat) -> Outcome:
    """`optimizer.base_lr`: despite its name the top of the warmup, not scaled by the batch; 0 leaves it to `base_lr`

    The model zoo's fine-tuning took 0 as it stands and trained with it.
    """
    peak = flat.number("start_learning_rate", 0)
    if not peak:
        return "base_lr x global batch / 256 is the peak"
    if not isinstance(flat.global_batch, int):
        raise ValueError("needs batch_size, to be turned into optimizer.base_lr")
    return {"optimizer.base_lr": peak * 256 / flat.global_batch}


def _base_lr(value: Any, flat: Flat) -> Outcome:
    """`optimizer.base_lr`, unless `start_learning_rate` is set"""
    if flat.number("start_learning_rate", 0):
        return "without meaning here: start_learning_rate is the peak"
    return {"optimizer.base_lr": value}


def _switched(switch: str, name: str, key: str, default: float) -> Rule:
    """Both of a pair like use_ema and ema_decay."""

    def rule(_: Any, flat: Flat) -> Outcome:
        return {key: flat.get(name, default) if flat.on(switch) else None}

    rule.__doc__ = f"`{key}`: `{name}` where `{switch}` is on"
    return rule


def _loss_scale(_: Any, flat: Flat) -> Outcome:
    """`train.loss_scale`: dynamic, or the number in `loss_scale`"""
    dynamic = flat.on("use_dynamic_loss_scale")
    return {"train.loss_scale": "dynamic" if dynamic else flat.number("loss_scale", 1024)}


def _loss_name(value: Any, _: Flat) -> Outcome:
    """says which smoothing counts; the loss is cross entropy"""
    losses = ("soft_ce", "ce_smooth", "ce_smooth_mixup")
    if value not in losses:
        raise ValueError(f"must be one of {', '.join(losses)}, not {value!r}")
    return f"cross entropy, smoothed by {'label_smoothing' if value == 'soft_ce' else 'label_smooth_factor'}"


def _label_smoothing(value: Any, flat: Flat) -> Outcome:
    """`augment.label_smoothing`, with `loss_name: soft_ce`"""
    if flat.get("loss_name", "soft_ce") != "soft_ce":
        return f"without meaning here: loss_name={flat.get('loss_name')} is smoothed by label_smooth_factor"
    return {"augment.label_smoothing": value}


def _label_smooth_factor(_: Any, flat: Flat) -> Outcome:
    """`augment.label_smoothing`, with another `loss_name`, where `use_label_smooth` is on"""
    if flat.get("loss_name", "soft_ce") == "soft_ce":
        return "without meaning here: loss_name=soft_ce is smoothed by label_smoothing"
    return {"augment.label_smoothing": flat.get("label_smooth_factor", 0.0) if flat.on("use_label_smooth") else 0.0}


def _mode(value: Any, flat: Flat) -> Outcome:
    """`train.compile`; PyTorch runs eagerly unless `--train.compile True`"""
    graph = {"GRAPH_MODE": True, "0": True, "PYNATIVE_MODE": False, "1": False}.get(str(value).upper())
    if graph is None:
        raise ValueError(f"must be GRAPH_MODE or PYNATIVE_MODE, not {value!r}")
    if graph and flat.engine == "torch":
        return "without meaning here: PyTorch runs eagerly unless --train.compile True"
    return {"train.compile": graph}


def _device(_: Any, flat: Flat) -> Outcome:
    """`device`, and `train.precision`: fp32 on a CPU, else fp16"""
    if not flat.target:
        return "without meaning here: device_target is not set"
    kinds = {"CPU": "cpu", "GPU": "cuda", "ASCEND": "npu" if flat.engine == "torch" else "ascend"}
    if flat.target not in kinds:
        raise ValueError(f"must be Ascend, GPU or CPU, not {flat.get('device_target')!r}")
    device = kinds[flat.target]
    card = os.environ.get("ASCEND_DEVICE_ID") or os.environ.get("DEVICE_ID")
    if flat.target != "CPU" and flat.processes == 1:  # else the launcher gives each process its own
        device += f":{flat.get('device_id', 0)}"
    elif flat.target == "ASCEND" and card and "RANK_TABLE_FILE" in os.environ and "MS_ROLE" not in os.environ:
        device += f":{card}"  # no launcher: a process for each card, which it is told
    # The model zoo computed its Transformer blocks in fp16; on a CPU that is slower and gains nothing.
    return {"device": device, "train.precision": "fp32" if flat.target == "CPU" else "fp16"}


def _use_parallel(_: Any, flat: Flat) -> Outcome:
    """False: one process works, whatever was started"""
    if not flat.on("use_parallel"):
        return "one process"
    if flat.processes == 1:
        return "one process: neither msrun nor torchrun started it"
    return f"{flat.processes} processes with batch_size images each"


def _batch_size(_: Any, flat: Flat) -> Outcome:
    """`train.batch_size`, after multiplication by the number of processes"""
    return {"train.batch_size": flat.global_batch}


def _crop_min(value: Any, _: Flat) -> Outcome:
    """`data.crop_scale`"""
    return {"data.crop_scale": [value, 1.0]}


def _interpolation(value: Any, _: Flat) -> Outcome:
    """`data.interpolation`; AREA is box, PILCUBIC bicubic, ANTIALIAS lanczos"""
    name = str(value).lower()
    same = {"linear": "bilinear", "cubic": "bicubic", "pilcubic": "bicubic", "area": "box", "antialias": "lanczos"}
    return {"data.interpolation": same.get(name, name)}


def _per_step_size(value: Any, flat: Flat) -> Outcome:
    """`train.log_every`; evaluations and checkpoints count whole epochs, not epochs of so many steps"""
    if not value:
        return "whole epochs, looked at every train.log_every steps"
    if flat.command == "evaluate":
        return "without meaning here: all images are evaluated"
    return {"train.log_every": value}, f"evaluations and checkpoints count whole epochs, not of {value} steps"


def _parallel_mode(value: Any, flat: Flat) -> Outcome:
    """must be DATA_PARALLEL where `use_parallel` is on"""
    if flat.on("use_parallel") and str(value).upper() != "DATA_PARALLEL":
        raise ValueError(f"must be DATA_PARALLEL, not {value!r}: each process holds the whole model")
    return f"without meaning here: {_SPLIT}"


def _gradients_mean(_: Any, flat: Flat) -> Outcome:
    """must be True where `use_parallel` is on"""
    if flat.on("use_parallel") and not flat.on("gradients_mean"):
        raise ValueError("must be True: gradients are averaged, never summed")
    return f"without meaning here: {_SPLIT}"


def _output(_: Any, flat: Flat) -> Outcome:
    """`output`, the run folder: `save_dir/prefix`"""
    return {"output": _run_in(flat.of_platform("train_url") or flat.of_platform("output_path") or flat.save_dir, flat)}


def _run_in(folder: str, flat: Flat) -> str:
    name = str(flat.get("prefix", flat.stem))
    return f"{folder.rstrip('/')}/{name}" if files.is_remote(folder) else str(Path(folder) / name)


def _enable_modelarts(_: Any, flat: Flat) -> Outcome:
    """whether the next five count; data and results otherwise stay where `data_path` and `save_dir` say"""
    return "ModelArts: data_url is brought to data_path, results go to train_url" if flat.modelarts else "off"


def _data_url(_: Any, flat: Flat) -> Outcome:
    """brought to `data_path` by the first process of each machine"""
    if flat.modelarts and flat.get("data_path") is None:
        raise ValueError("needs data_path, to which it is brought")
    return _of_modelarts("brought to data_path", flat)


def _checkpoint_url(_: Any, flat: Flat) -> Outcome:
    """brought to `load_path`, where `use_ckpt` names the file"""
    if flat.modelarts and flat.get("load_path") is None:
        raise ValueError("needs load_path, to which it is brought")
    return _of_modelarts("brought to load_path", flat)


def _load_path(_: Any, flat: Flat) -> Outcome:
    """where `checkpoint_url` is brought to"""
    return _of_modelarts("where checkpoint_url is brought to", flat)


def _train_url(value: Any, flat: Flat) -> Outcome:
    """`output`: the run is sent to `train_url/prefix` at each checkpoint and at its end, and goes on from there"""
    if not flat.modelarts:
        return _of_modelarts("", flat)
    if not files.is_remote(str(value)):
        raise ValueError(f"must be a URL, such as obs://BUCKET/PATH, not {value!r}")
    return _output(value, flat)


def _output_path(value: Any, flat: Flat) -> Outcome:
    """the folder here in which the run works, in place of `save_dir`"""
    if not flat.modelarts:
        return _of_modelarts("", flat)
    return "the run works there" if flat.of_platform("train_url") else _output(value, flat)


def _of_modelarts(words: str, flat: Flat) -> str:
    off = NOT_TRAINED if flat.command == "evaluate" else "without meaning here: enable_modelarts is off"
    return words if flat.modelarts else off


NOT_TRAINED = "without meaning here: evaluating trains nothing"
_COMPILER = "MindSpore's own switch; unmask sets what it needs"
_SPLIT = "the gradients of all processes are averaged, each holds the whole model"
_PLATFORM = "an argument of ModelArts, whose environment says the same"

TABLE: Mapping[str, Rule] = {
    # model
    "encoder_layers": _to("model.depth"),
    "encoder_num_heads": _to("model.heads"),
    "encoder_dim": _to("model.width"),
    "decoder_layers": _to("model.decoder_depth"),
    "decoder_num_heads": _to("model.decoder_heads"),
    "decoder_dim": _to("model.decoder_width"),
    "mlp_ratio": _to("model.mlp_ratio"),
    "masking_ratio": _to("objective.mask_ratio"),
    "norm_pixel_loss": _to("objective.norm_pix_loss"),  # read by the model zoo, but never handed to its model
    "patch_size": _to("model.patch_size"),
    "image_size": _to("model.image_size"),
    "num_classes": _to("model.num_classes"),
    "dropout": _dropout,
    # images
    "data_path": _data_path,
    "img_ids": _img_ids,
    "eval_path": _to("data.val"),
    "num_workers": _to("data.workers"),
    "interpolation": _interpolation,
    "crop_min": _crop_min,
    "auto_augment": _to("augment.policy"),
    "color_jitter": _to("augment.color_jitter"),
    "mixup": _to("augment.mixup"),
    "cutmix": _to("augment.cutmix"),
    "mixup_prob": _to("augment.mix_prob"),
    "switch_prob": _to("augment.mix_switch_prob"),
    "re_prop": _to("augment.erase_prob"),
    "re_mode": _to("augment.erase_mode"),
    "re_count": _to("augment.erase_count"),
    "dataset_name": _nothing("the class folders say what the classes are"),
    "eval_engine": _nothing("evaluation is the same for every data set"),
    # training
    "epoch": _to("train.epochs"),
    "batch_size": _batch_size,
    "use_ckpt": _use_ckpt,
    "sink_mode": _nothing("results stay on the device until the loop reads them, every train.log_every steps"),
    "per_step_size": _per_step_size,
    "cb_size": _nothing("the loss of every step is logged"),
    "eval_interval": _to("train.eval_every"),
    "eval_offset": _nothing("evaluations count from the first epoch, and the last is always evaluated"),
    "save_ckpt_epochs": _to("train.checkpoint_every"),
    "save_dir": _output,
    "prefix": _output,
    "label_smoothing": _label_smoothing,
    "use_label_smooth": _label_smooth_factor,
    "label_smooth_factor": _label_smooth_factor,
    "loss_name": _loss_name,
    "use_dynamic_loss_scale": _loss_scale,
    "loss_scale": _loss_scale,
    "use_ema": _switched("use_ema", "ema_decay", "train.ema_decay", 0.9999),
    "ema_decay": _switched("use_ema", "ema_decay", "train.ema_decay", 0.9999),
    # optimizer
    "use_global_norm": _switched("use_global_norm", "clip_gn_value", "optimizer.clip_grad", 1.0),
    "clip_gn_value": _switched("use_global_norm", "clip_gn_value", "optimizer.clip_grad", 1.0),
    "beta1": _to("optimizer.beta1"),
    "beta2": _to("optimizer.beta2"),
    "weight_decay": _to("optimizer.weight_decay"),
    "layer_decay": _layer_decay,
    "base_lr": _base_lr,
    "start_learning_rate": _start_learning_rate,
    "end_learning_rate": _to("optimizer.min_lr"),
    "warmup_epochs": _to("optimizer.warmup_epochs"),
    "learning_rate": _nothing("base_lr or start_learning_rate says it"),
    # device and processes
    "seed": _to("seed"),
    "mode": _mode,
    "device_target": _device,
    "device_id": _device,
    "use_parallel": _use_parallel,
    **dict.fromkeys(("max_call_depth", "save_graphs", "save_graphs_path", "enable_graph_kernel"), _nothing(_COMPILER)),
    **dict.fromkeys(("max_device_memory", "enable_reduce_precision", "runtime_num_threads"), _nothing(_COMPILER)),
    **dict.fromkeys(("enable_compile_cache", "compile_cache_path", "deterministic"), _nothing(_COMPILER)),
    "parallel_mode": _parallel_mode,
    "gradients_mean": _gradients_mean,
    **dict.fromkeys(("device_num", "gradient_fp32_sync"), _nothing(_SPLIT)),
    **dict.fromkeys(("all_reduce_fusion_config", "enable_parallel_optimizer"), _nothing(_SPLIT)),
    # ModelArts
    "enable_modelarts": _enable_modelarts,
    "data_url": _data_url,
    "checkpoint_url": _checkpoint_url,
    "load_path": _load_path,
    "train_url": _train_url,
    "output_path": _output_path,
    **dict.fromkeys(("num_gpus", "init_method", "rank", "world_size"), _nothing(_PLATFORM)),
}
"""Key of the model zoo (without its group) -> what becomes of it."""
