"""The configuration: typed sections that refuse unknown keys.

Each part of the program receives its own section, never the root, except `train.py`, which wires them together.
Recipes in `unmask/recipes` are YAML files of this schema; `load.py` reads them and applies `key=value` overrides.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    model_validator,
)

from unmask import plugins
from unmask.config.policies import parse_policy

_MOST_FOLDERS = 256

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _jitter(value: Any) -> Any:
    return (value, value, value, 0.0) if isinstance(value, int | float) else value


Size = Annotated[tuple[int, int], BeforeValidator(_pair)]
"""Height and width in pixels; a single number stands for a square."""


Jitter = Annotated[tuple[float, float, float, float], BeforeValidator(_jitter)]
"""Brightness, contrast, saturation, hue; a single number stands for the first three."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """What the shapes of the weights follow from: the Vision Transformer, and the decoder or head of an objective."""

    image_size: Size = (224, 224)
    """Height and width in pixels, multiples of patch_size; one number: a square."""
    patch_size: int = Field(default=16, ge=1, le=65536)
    """Side of a patch in pixels."""
    channels: int = Field(default=3, ge=1, le=4096)
    """Of an image: 1 grey, 3 colour, any number of bands."""
    width: int = Field(default=768, ge=4, le=65536)
    """Values in a token of the encoder."""
    depth: int = Field(default=12, ge=1, le=1024)
    """Blocks of the encoder."""
    heads: int = Field(default=12, ge=1, le=1024)
    """Attention heads of a block; they share its width."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Width of the hidden layer of a block, as a multiple of its own."""
    # what public weights need of the encoder; a decoder stays plain
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """swiglu: silu(a) * b of two projections of width * mlp_ratio each (Shazeer 2020; DINOv2 ViT-g)."""
    qkv_bias: bool = True
    """Whether queries, keys and values have a bias."""
    layer_scale: float | None = Field(default=None, gt=0)
    """First value of the factors on both branches of each block (CaiT; 1e-4 in DeiT III, 1e-5 in DINOv2); None: no
    factors."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Epsilon of every LayerNorm."""
    patch_stem: int | None = Field(default=None, ge=8, le=4096)
    """Convolutions that make the tokens, for small sets and small networks (Xiao et al. 2021, arXiv 2106.14881), in
    place of a projection of patches: 3 x 3 with stride 2 to this many values, then pairs of which the first halves the
    image by its maxima, to twice as many values each time; the last, which leaves one place of a patch, to `width`.
    Weights are standardised, and each has a norm over all places after it (Qiao et al. 2019, arXiv 1903.10520); masked
    patches are empty and do not count. None: a projection."""
    patch_norm: bool = False
    """LayerNorm of the patches' tokens before the position embedding (MAE of MindSpore's model zoo)."""
    pre_norm: bool = False
    """LayerNorm of all tokens before the first block (CLIP)."""
    cls_token: bool = True
    """A token of no patch, before all others."""
    register_tokens: int = Field(default=0, ge=0)
    """Tokens after cls, without position, that no read-out looks at (Darcet et al. 2023)."""
    # pretraining
    decoder_width: int = Field(default=512, ge=4)
    """Values in a token of the decoder, which paints what was hidden."""
    decoder_depth: int = Field(default=8, ge=1)
    """Its blocks."""
    decoder_heads: int = Field(default=16, ge=1)
    """Its attention heads."""
    # classification
    num_classes: int | None = Field(default=None, ge=2)
    """None: as many as the training data has classes."""
    pool: Literal["mean", "cls", "mean+cls"] = "mean"
    """What a classifier's head is given: the mean of the patch tokens (before the last norm, which follows as fc_norm),
    the cls token, or both, one after the other."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth of the last block; rises linearly from 0 at the first."""

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def stem_widths(self) -> tuple[int, ...]:
        """Values after each halving of `patch_stem`: the last is a token."""
        if self.patch_stem is None:
            return ()
        return (*(self.patch_stem << i for i in range(self.patch_size.bit_length() - 2)), self.width)

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def prefix_tokens(self) -> int:
        """Tokens before those of the patches: cls and registers."""
        return int(self.cls_token) + self.register_tokens

    @property
    def feature_width(self) -> int:
        """Values that `pool` gives."""
        return self.width * (2 if self.pool == "mean+cls" else 1)

    @property
    def patch_dim(self) -> int:
        """Values in one patch."""
        return self.patch_size**2 * self.channels

    @model_validator(mode="after")
    def _possible(self) -> ModelConfig:
        height, width = self.image_size
        if height < self.patch_size or width < self.patch_size or height % self.patch_size or width % self.patch_size:
            raise ValueError(f"image_size={height}x{width} is not a multiple of patch_size={self.patch_size}")
        if self.patch_stem and (self.patch_size < 4 or self.patch_size & (self.patch_size - 1)):
            raise ValueError(
                f"patch_stem={self.patch_stem} needs a patch_size of 4, 8, 16 or 32, not {self.patch_size}"
            )
        for name in ("", "decoder_"):
            dim, heads = getattr(self, f"{name}width"), getattr(self, f"{name}heads")
            if dim % heads:
                raise ValueError(f"{name}width={dim} is not a multiple of {name}heads={heads}")
            if dim % 4:
                raise ValueError(f"{name}width={dim} is not a multiple of 4, which the 2-D position embedding needs")
        if not self.cls_token and self.pool != "mean":
            raise ValueError(f"pool={self.pool} needs cls_token=true")
        return self


class DataConfig(Section):
    """Where images come from, and how they are read and cropped."""

    train: str | None = None
    """A folder of images (class folders where labels are needed), a list, tars, Parquet, arrays, any of them behind a
    URL, or `bundled:mnist5k/train`: the table in `unmask/data/sources/__init__.py`."""
    val: str | None = None
    """Images that the run is judged by, in any form of `train`; or a share of `train`, such as 10%, not trained on:
    whether an image is in it follows from its name and `seed` alone."""
    val_group: str | None = None
    """A regular expression: images in whose names it finds the same stay together wherever some are set aside, for
    `val` as a share and for what is chosen by cross-validation: `patient(\\d+)`, `^[^/]*/[^/]*` for two folders."""
    unlabelled: str | None = None
    """Images whose labels are not looked at, in any form of `train`, for an objective that trains on such too (`semi`,
    or one with a teacher); None: those of `train`, of which `labels_per_class` has few to be looked at."""
    exclude: str | None = None
    """A text file with the names of images of `train` to do without, one a line: `unmask check` writes such a list."""
    allow_change: bool = False
    """Resume although the images of `train` have changed since; they are counted anew, and the run notes the change."""
    labels_per_class: int | None = Field(default=None, ge=1)
    """Train on a deterministic subset with this many images of each class."""
    dtype: Literal["uint8", "uint16", "float32"] = "uint8"
    """What pixels are kept in from file to device. float32 keeps the values of any file as they are."""
    range: tuple[float, float] | None = None
    """Stored values that become black and white, for images whose values fill a part of what their type holds: 12 bits
    in 16-bit files [0, 4095], a window of CT. What is beyond is cut off, and every kind of file fits every dtype
    (float32: 0..1)."""
    nodata: float | None = None
    """Stored value that stands for no data, in place of what TIFF files say themselves (GDAL_NODATA). Such values, NaN
    and infinity are filled with `mean`, take no part in statistics, and are not asked of a masked autoencoder."""
    frame: int | None = None
    """Which frame of a DICOM file of several, counted from 0, or from the end: -1 is the last. None: all of them are
    the channels, where the run has as many; else such files are refused."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Per channel, of images scaled to 0..1; with dtype=float32, of the values themselves. See `unmask stats`."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation, the same way."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Random resized crop: share of the image's area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop: width over height."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    eval_crop: float = Field(default=224 / 256, gt=0, le=1)
    """Evaluation: the short side is resized to image_size / eval_crop, then the centre is cropped."""
    eval_fit: Literal["crop", "squash"] = "crop"
    """Evaluation of images of other proportions than image_size: crop keeps theirs; squash resizes both sides to
    image_size / eval_crop (with eval_crop=1 transformers' ViTImageProcessor; timm's crop_mode=squash)."""
    interpolation: Literal["bicubic", "bilinear", "lanczos", "box", "nearest"] = "bicubic"
    """As Pillow resizes, antialiased but for nearest; box averages the area of a pixel."""
    workers: int = Field(default=0, ge=0, le=512)
    """Loader processes; 0 loads in threads of the training process. What they make ahead takes at most 1 GiB of shared
    memory (more only where two large images for each do), and each about 50 MB of its own."""
    max_bad_share: float = Field(default=0.001, ge=0, le=1)
    """Stop when more than this share of the images cannot be decoded."""
    max_pixels: int = Field(default=178_956_970, ge=1)
    """An image with more pixels is refused before it is decoded (Pillow's decompression-bomb limit, doubled)."""

    @property
    def val_share(self) -> float | None:
        """Of `train`, where `val` is such; else None."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", self.val or "")
        return float(found[1]) / 100 if found else None

    def without_val(self) -> DataConfig:
        """No images to be judged by, and the same to train on."""
        return self if self.val_share is not None else self.model_copy(update={"val": None})

    @model_validator(mode="after")
    def _possible(self) -> DataConfig:
        if self.val_share is not None and not 0 < self.val_share < 1:
            raise ValueError(f"val={self.val} is not a share between 0% and 100%")
        if self.val_group is not None:
            try:
                re.compile(self.val_group)
            except re.error as error:
                raise ValueError(f"val_group={self.val_group} is no regular expression: {error}") from None
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std has {len(self.std)}")
        if any(s <= 0 for s in self.std):
            raise ValueError("std must be positive")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range={list(self.range)} goes from a lower to a higher value")
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}=[{low}, {high}] is not a range of positive numbers")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale={list(self.crop_scale)} goes beyond the whole image (1.0)")
        return self


class AugmentConfig(Section):
    """How training images and targets are varied, beyond the crop and flip of `data`."""

    policy: str | None = None
    """In timm's notation: rand-m9-mstd0.5-inc1 (RandAugment), original, originalr, v0, v0r (AutoAugment), 3a."""
    color_jitter: Jitter = (0.0, 0.0, 0.0, 0.0)
    """Strength for brightness, contrast, saturation and hue; one number: of the first three."""
    erase_prob: float = Field(default=0.0, ge=0, le=1)
    """Probability that boxes of an image are erased."""
    erase_mode: Literal["const", "rand", "pixel"] = "const"
    """With the mean colour, one random colour a box, or noise."""
    erase_count: int = Field(default=1, ge=1, le=1000)
    """Most boxes in an image; they share the area of one."""
    mixup: float = Field(default=0.0, ge=0)
    """Alpha of the Beta distribution of shares; 0: no mixup."""
    cutmix: float = Field(default=0.0, ge=0)
    """Alpha of the Beta distribution of shares; 0: no cutmix."""
    cutmix_minmax: tuple[float, float] | None = None
    """Cutmix with boxes whose sides are shares of the image's, uniform between these, in place of cutmix."""
    mix_prob: float = Field(default=1.0, ge=0, le=1)
    """Probability of mixing at all."""
    mix_switch_prob: float = Field(default=0.5, ge=0, le=1)
    """Probability of cutmix where both are on."""
    mix_mode: Literal["batch", "pair", "elem"] = "batch"
    """What has one share and box: the batch of a step, two images mixed with one another, or each image."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each target that goes to all classes alike."""
    repeats: int = Field(default=1, ge=1, le=1000)
    """Repeated augmentation: how many times in a row each image is shown, differently augmented."""

    @property
    def cuts(self) -> bool:
        return self.cutmix > 0 or self.cutmix_minmax is not None

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cuts

    @model_validator(mode="after")
    def _possible(self) -> AugmentConfig:
        if self.policy is not None:
            try:
                parse_policy(self.policy)
            except ValueError as error:
                raise ValueError(f"policy={error}") from None
        if min(self.color_jitter) < 0:
            raise ValueError(f"color_jitter={list(self.color_jitter)} must not be negative")
        if self.color_jitter[3] > 0.5:
            raise ValueError(f"color_jitter: a hue of {self.color_jitter[3]} is beyond half the colour circle (0.5)")
        if self.cutmix_minmax is not None and not 0 <= self.cutmix_minmax[0] < self.cutmix_minmax[1] <= 1:
            raise ValueError(f"cutmix_minmax={list(self.cutmix_minmax)} is not a range within 0 to 1")
        return self


class OptimizerConfig(Section):
    """AdamW with decoupled weight decay; biases, norms, tokens and position embeddings are not decayed.

    The objective linear_probe has LARS in its place: base_lr, min_lr, warmup_epochs, weight_decay, and beta1 as its
    momentum.
    """

    base_lr: float = Field(default=1.5e-4, ge=0)
    """Learning rate for a global batch of 256: lr = base_lr x batch_size / 256."""
    min_lr: float = Field(default=0.0, ge=0)
    """Where the cosine ends; absolute, not scaled by the batch."""
    warmup_epochs: float = Field(default=40, ge=0, le=1e7)
    """Epochs in which the learning rate rises from 0."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the gradient's mean."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the mean of the gradient's square."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of that mean."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Share of a weight, times the learning rate, that is taken off it in each update."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """The learning rate of a layer is layer_decay times that of the next (BEiT; MAE appendix A.1)."""
    frozen_blocks: int = Field(default=0, ge=0)
    """This many blocks of the encoder, and the embeddings before them, are not trained."""
    clip_grad: float | None = Field(default=None, gt=0)
    """Largest global norm of the gradient."""


class TrainConfig(Section):
    """How long, in what steps and with what precision, and what is kept of it."""

    epochs: float = Field(default=800, ge=0, le=1e7)
    """0: no update, which is for objective.head=probe."""
    batch_size: int = Field(default=4096, ge=1, le=2**24)
    """Images per update, over all processes and accumulated micro-batches."""
    accumulate: int = Field(default=1, ge=1, le=65536)
    """Micro-batches per update; lowers memory, changes no result but rounding."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """What the network computes in; weights and moments are fp32 always. auto: bf16 or fp16 where the device
    computes it in hardware, else fp32; which it was stands in run.yaml, and a run that goes on keeps it."""
    loss_scale: Literal["dynamic"] | float = "dynamic"
    """fp16 only: dynamic, or a fixed factor."""
    activation_checkpointing: bool = False
    """Keep only what enters each block for the backward pass, and compute the rest again: less memory, a third more
    time. The PyTorch engine alone, like the next two."""
    shard: bool = False
    """Of several processes each keeps a share of every weight, gradient and moment (FSDP2), where else all have all."""
    exchange_dtype: Literal["fp32", "bf16"] = "fp32"
    """What gradients are averaged in over the processes; bf16 halves what travels."""
    compile: bool | None = None
    """Compile the step. None: as is usual for the engine, PyTorch eagerly and MindSpore in graph mode (PyNative mode,
    to debug: false)."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep an exponential moving average of the weights; it is what gets evaluated and exported."""
    ema_warmup: bool = False
    """The decay is at most (1 + t) / (10 + t) after update t, so that the start is forgotten soon."""
    max_skipped: int = Field(default=20, ge=0, le=10**6)
    """Stop after this many updates in a row were skipped for a non-finite gradient."""
    log_every: int = Field(default=20, ge=1, le=10**9)
    """Steps between two looks at the device (one process: 5 seconds at most); every loss is logged all the same."""
    eval_every: float = Field(default=1, gt=0)
    """Epochs between evaluations on data.val."""
    checkpoint_every: float = Field(default=1, gt=0)
    """Epochs between checkpoints."""
    keep: int = Field(default=2, ge=1, le=10**6)
    """Checkpoints kept, beside the best."""
    loggers: tuple[Literal["wandb", "mlflow", "swanlab", "trackio"], ...] = ()
    """Services that get the figures too, beside the files and TensorBoard's in the run folder; docs/logging.md."""
    process_timeout: float = Field(default=600, ge=1, le=86_400)
    """Seconds that one process waits for another, of the run or one that loads images, which is lost then. All end, and
    the same command goes on from the last checkpoint."""

    @model_validator(mode="after")
    def _possible(self) -> TrainConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of accumulate={self.accumulate}")
        if isinstance(self.loss_scale, float) and self.loss_scale <= 0:
            raise ValueError("loss_scale must be positive")
        return self


class EvaluateConfig(Section):
    """Read-outs of the features while pretraining goes on: into the log, the curves, and the choice of the best."""

    every: float | None = Field(default=None, gt=0)
    """Epochs between two of them; None: never."""
    train: str | None = None
    """Labelled images that k-NN and a linear probe learn from, in any form of data.train; None: the effective rank of
    the features alone, which needs no labels."""
    val: str | None = None
    """Labelled images that they are judged by."""


class ObjectiveSection(Section):
    """How the network is trained; each objective of `unmask.objectives` has a section of its own, chosen by `name`."""

    name: str
    """Which objective."""
    task: ClassVar[Literal["pretrain", "finetune"] | None]
    """The command that runs it; None: it is not trained."""
    labelled: ClassVar[bool] = False
    """Whether every training image must have a class."""

    @property
    def takes_several_classes(self) -> bool:
        """Whether an image may be of several classes, or of none."""
        return False

    @property
    def starts_at_probe(self) -> bool:
        """Whether the head begins as the linear probe of what the network starts from."""
        return False

    @property
    def unlabelled_images(self) -> int:
        """How many images without labels come with each training image."""
        return 0

    @property
    def teachers(self) -> tuple[str, ...]:
        """Who tells the classes of images without labels, which are then trained on as those with labels are."""
        return ()

    @property
    def keeps_teacher(self) -> bool:
        """Whether the teacher becomes a part of the network."""
        return False

    def check(self, config: Config) -> None:
        """Raise ValueError where other sections do not go with this objective."""


def _objective(value: Any) -> Any:
    """Settings of an objective as its own section."""
    if isinstance(value, ObjectiveSection):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict):
        raise ValueError("an objective is a name, or keys with `name` among them")
    values = cast("dict[str, Any]", value)
    return objective_section(values.get("name", "mae")).model_validate(values)


def objective_section(name: Any) -> type[ObjectiveSection]:
    """The section of the objective `name`. Raises ValueError if there is no such objective."""
    known = plugins.names(plugins.OBJECTIVES)
    if name not in known:
        raise ValueError(f"name={name!r} is no objective; there are {', '.join(known)}")
    return plugins.find(plugins.OBJECTIVES, name).Section


def _not_too_deep(path: str | None) -> str | None:
    if path is not None and path.count("/") > _MOST_FOLDERS:
        raise ValueError(f"a folder below {path.count('/')} others; name another")
    return path


def _engine(name: str) -> str:
    known = plugins.names(plugins.ENGINES)
    if name not in known:
        raise ValueError(f"{name!r} is no engine; there are {', '.join(known)}")
    return name


class Config(Section):
    """All the settings of a run, checked."""

    objective: Annotated[SerializeAsAny[ObjectiveSection], BeforeValidator(_objective)] = Field(
        default="mae", validate_default=True
    )
    engine: Annotated[str, AfterValidator(_engine)] = "torch"
    """The framework that computes."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, npu, mps …"""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of everything random: order, crops, masks, first weights."""
    output: Annotated[str | None, AfterValidator(_not_too_deep)] = None
    """Run folder; None: runs/<recipe>-<n>. A folder that holds this run already is resumed."""
    init: str | None = None
    """Weights to start from: a run, a checkpoint, or a model of another tool, also hf://OWNER/NAME. Fine-tuning takes
    the encoder; pretraining the decoder too, where it is one of the same shape."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _possible(self) -> Config:
        if len(self.data.mean) != self.model.channels:
            raise ValueError(
                f"data.mean has {len(self.data.mean)} values for model.channels={self.model.channels}; "
                "set data.mean and data.std (`unmask stats FOLDER` computes them)"
            )
        if self.data.dtype != "uint8" or self.model.channels not in (1, 3):
            self._check_augment()
        if self.optimizer.frozen_blocks > self.model.depth:
            raise ValueError(
                f"optimizer.frozen_blocks={self.optimizer.frozen_blocks} of model.depth={self.model.depth}"
            )
        if not self.objective.labelled and (self.augment.mixes or self.augment.erase_prob):
            raise ValueError("augment: mixup, cutmix and erasing are for training with labels; set them to 0")
        if not self.train.epochs and not self.objective.starts_at_probe:
            raise ValueError("train.epochs=0 trains nothing: that is for objective.head=probe, a head without training")
        self.objective.check(self)
        return self

    def _check_augment(self) -> None:
        """Policies and colour jitter are defined on 8-bit grey and colour."""
        for key, on, off in (
            ("policy", self.augment.policy is not None, "null"),
            ("color_jitter", any(self.augment.color_jitter), "0"),
        ):
            if on:
                raise ValueError(
                    f"augment.{key} is for 8-bit images of 1 or 3 channels, not data.dtype={self.data.dtype} with "
                    f"model.channels={self.model.channels}; set augment.{key}={off}"
                )
