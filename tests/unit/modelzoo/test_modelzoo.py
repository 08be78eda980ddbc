"""The MindSpore model zoo's YAML files in our terms: every key, every switch, every mistake."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from unmask.config.load import flatten, known_keys, load_config
from unmask.errors import ConfigError
from unmask.modelzoo.keys import TABLE, Command
from unmask.modelzoo.translate import Translation, find_config, load_modelzoo

FILES = Path(__file__).parents[3] / "config"
PRETRAIN, FINETUNE, SCRATCH, EVAL = (
    FILES / name for name in ("mae-vit-base-p16.yaml", "finetune-vit-base-p16.yaml", "vit-base-p16.yaml", "eval.yaml")
)
COMMANDS: dict[Path, Command] = {
    PRETRAIN: "pretrain",
    FINETUNE: "finetune",
    SCRATCH: "finetune",
    EVAL: "evaluate",
}
TORCH = ("--engine", "torch")
ALL = "--img_ids="
"""All images, not those of a list: the file names one that is not here."""

NAMED_IN_THE_DOCUMENTS = """
dataset_path data_path eval_path eval_interval eval_offset interpolation auto_augment crop_min mixup cutmix mixup_prob
switch_prob re_prop re_mode re_count label_smoothing dropout num_classes use_ckpt use_label_smooth label_smooth_factor
loss_name use_dynamic_loss_scale loss_scale use_ema ema_decay use_global_norm clip_gn_value beta1 beta2 weight_decay
layer_decay base_lr start_learning_rate end_learning_rate warmup_epochs save_ckpt_epochs prefix save_dir per_step_size
cb_size img_ids context.mode context.device_target context.device_id context.max_call_depth context.save_graphs
parallel.parallel_mode parallel.gradients_mean use_parallel model_config.encoder_layers model_config.encoder_num_heads
model_config.encoder_dim model_config.mlp_ratio encoder_layers encoder_num_heads encoder_dim decoder_layers
decoder_num_heads decoder_dim mlp_ratio masking_ratio norm_pixel_loss patch_size image_size epoch batch_size sink_mode
num_workers seed enable_modelarts output_path
"""


def translate(file: Path, *options: str) -> Translation:
    everything = [ALL] if file == PRETRAIN else []
    return load_modelzoo(file, [*everything, *options], COMMANDS[file])


def row(translation: Translation, key: str) -> str:
    """What became of a key."""
    return {spelled: becomes for spelled, _, becomes in translation.rows}[key]


def refusal(file: Path, *options: str, command: Command = "pretrain") -> str:
    with pytest.raises(ConfigError) as error:
        load_modelzoo(file, [ALL, *options], command)
    assert "\n" not in str(error.value)
    return str(error.value)


def written(folder: Path, **keys: Any) -> Path:
    file = folder / "flat.yaml"
    file.write_text(yaml.safe_dump(keys, sort_keys=False))
    return file


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK_ID", "RANK", "RANK_SIZE", "WORLD_SIZE", "MS_ROLE", "TORCHELASTIC_RUN_ID", "RANK_TABLE_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("file", COMMANDS, ids=lambda file: file.stem)
def test_a_file_loads_as_it_is_and_no_key_of_it_is_passed_over(file: Path) -> None:
    rows = translate(file).rows
    keys = list(flatten(yaml.safe_load(file.read_text())))
    assert [spelled for spelled, _, _ in rows if spelled != "engine"] == keys
    assert all(becomes for _, _, becomes in rows)


@pytest.mark.parametrize("key", NAMED_IN_THE_DOCUMENTS.split())
def test_every_documented_key_is_known(key: str, tmp_path: Path) -> None:
    """Alone in a file and without a value it changes nothing, and says so."""
    *group, name = key.split(".")
    file = written(tmp_path, **({group[0]: {name: None}} if group else {name: None}))
    translation = load_modelzoo(file, TORCH, "finetune")
    assert translation.settings == {"engine": "torch"}
    assert {spelled for spelled, _, _ in translation.rows} == {"engine", key}


def test_the_pretraining_of_64_cards_is_our_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK_SIZE", "64")
    config, recipe = translate(PRETRAIN, *TORCH).config, load_config("mae-vit-base")
    assert config.model == recipe.model
    assert config.optimizer == recipe.optimizer
    assert config.train.batch_size == recipe.train.batch_size == 64 * 64
    assert (config.train.epochs, config.train.precision, config.train.loss_scale) == (800, "fp16", "dynamic")
    assert config.data.crop_scale == recipe.data.crop_scale
    assert (config.data.train, config.data.workers) == ("/mnt/vision/ImageNet1K/CLS-LOC", 8)
    assert (config.seed, config.device, config.output) == (2022, "npu", "output/MaeFintuneViT-B-P16")


def test_fine_tuning_has_a_learning_rate_and_layer_decay() -> None:
    """The two that the model zoo's own code lost."""
    translation = translate(FINETUNE, *TORCH, "--use_parallel", "False")
    config = translation.config
    assert config.optimizer.base_lr == 5e-4
    assert config.optimizer.layer_decay == 0.75
    assert (config.init, config.model.num_classes) == ("mae-vit-base-p16.ckpt", 1001)
    assert (config.augment.label_smoothing, config.data.interpolation) == (0.1, "bicubic")
    assert (config.device, config.train.batch_size) == ("npu:0", 32)
    assert config.train.ema_decay is config.optimizer.clip_grad is None
    assert config.model.drop_path == 0.1
    assert row(translation, "dropout").startswith("-> model.drop_path=0.1; ")


def test_fine_tuning_is_augmented_as_its_file_says() -> None:
    augment = translate(
        FINETUNE, *TORCH, "--mixup_prob", "0.9", "--switch_prob", "0.4", "--re_count", "2"
    ).config.augment
    assert (augment.policy, augment.mixup, augment.cutmix) == ("rand-m9-mstd0.5-inc1", 0.8, 1.0)
    assert (augment.mix_prob, augment.mix_switch_prob, augment.mix_mode) == (0.9, 0.4, "batch")
    assert (augment.erase_prob, augment.erase_mode, augment.erase_count) == (0.5, "pixel", 2)
    assert translate(SCRATCH, *TORCH).config.augment.erase_prob == 0.25
    jittered = translate(FINETUNE, *TORCH, "--color_jitter", "0.4", "--auto_augment", "original")
    assert jittered.config.augment.color_jitter == (0.4, 0.4, 0.4, 0)
    assert row(jittered, "auto_augment") == "-> augment.policy=original"


def test_from_scratch_averages_weights_and_decays_no_layers() -> None:
    translation = translate(SCRATCH, *TORCH)
    config = translation.config
    assert config.optimizer.layer_decay == 1
    assert "no layer is pretrained" in row(translation, "layer_decay")
    assert (config.train.ema_decay, config.train.loss_scale, config.init) == (0.9999, 1024, None)
    assert (config.optimizer.weight_decay, config.optimizer.beta2) == (0.3, 0.95)


def test_evaluation_takes_model_images_and_device_and_names_the_rest() -> None:
    translation = translate(EVAL, *TORCH)
    config = translation.config
    assert (config.init, config.data.val) == ("FinetuneViT-B-P16.ckpt", "/mnt/vision/ImageNet1K/CLS-LOC/val")
    assert (config.device, config.train.batch_size, config.data.interpolation) == ("npu:7", 256, "bilinear")
    assert row(translation, "weight_decay") == "without meaning here: evaluating trains nothing"
    assert "optimizer.weight_decay" not in translation.settings


@pytest.mark.parametrize(
    ("options", "setting", "value"),
    [
        (["--use_ema", "True"], "train.ema_decay", 0.9999),
        (["--use_ema=True", "--ema_decay=0.99"], "train.ema_decay", 0.99),
        (["--use_global_norm", "True"], "optimizer.clip_grad", 1.0),
        (["--use_global_norm", "true", "--clip_gn_value", "3"], "optimizer.clip_grad", 3),
        (["--use_dynamic_loss_scale", "False"], "train.loss_scale", 1024),
        (["--use_dynamic_loss_scale", "False", "--loss_scale", "8"], "train.loss_scale", 8),
        (["--norm_pixel_loss", "False"], "objective.norm_pix_loss", False),
        (["--masking_ratio", "0.6"], "objective.mask_ratio", 0.6),
        (["--image_size", "[64, 96]"], "model.image_size", [64, 96]),
        (["--per_step_size", "50"], "train.log_every", 50),
        (["--use_ckpt", "mae.ckpt"], "init", "mae.ckpt"),
        (["--interpolation", "NEAREST"], "data.interpolation", "nearest"),
        (["--interpolation", "AREA"], "data.interpolation", "box"),
        (["--interpolation", "PILCUBIC"], "data.interpolation", "bicubic"),
        (["--interpolation", "LINEAR"], "data.interpolation", "bilinear"),
        (["--save_ckpt_epochs", "20"], "train.checkpoint_every", 20),
        (["--prefix", "mine", "--save_dir", "there"], "output", "there/mine"),
        (["--device_target", "CPU"], "device", "cpu"),
        (["--device_target", "CPU"], "train.precision", "fp32"),
        (["--device_target", "GPU", "--device_id", "3"], "device", "cuda:3"),
        (["--context.device_target", "gpu"], "device", "cuda:0"),
        (["--device_target", "CPU", "--device", "cuda"], "device", "cuda"),
        (["--mode", "PYNATIVE_MODE"], "train.compile", False),
        (["--context.mode=1"], "train.compile", False),
        (["--engine", "mindspore"], "train.compile", True),
        (["--engine", "mindspore", "--use_parallel", "True"], "device", "ascend:0"),
        (["--start_learning_rate", "3e-4"], "optimizer.base_lr", 3e-4 * 256 / 64),
        (["--start_learning_rate", "3e-4", "--train.batch_size", "256"], "optimizer.base_lr", 3e-4),
        (["--end_learning_rate", "1e-6"], "optimizer.min_lr", "1e-6"),
        (["--train.precision", "bf16"], "train.precision", "bf16"),
        (["--dataset_path", "photos"], "data.train", "photos"),
    ],
)
def test_what_an_option_sets(options: list[str], setting: str, value: object) -> None:
    translation = translate(PRETRAIN, "--use_parallel=False", *TORCH, *options)
    assert translation.settings[setting] == value


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ([], 0.2),
        (["--loss_name", "ce_smooth"], 0.3),
        (["--loss_name", "ce_smooth", "--use_label_smooth", "0"], 0.0),
    ],
)
def test_which_of_two_smoothings_counts(options: list[str], value: float) -> None:
    both = ["--label_smoothing", "0.2", "--label_smooth_factor", "0.3"]
    assert translate(FINETUNE, *both, *options).config.augment.label_smoothing == value


@pytest.mark.parametrize("variable", ["RANK_SIZE", "WORLD_SIZE"])
def test_batch_size_is_that_of_one_card(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert translate(PRETRAIN, *TORCH).config.train.batch_size == 64
    assert row(translate(PRETRAIN), "use_parallel") == "one process: neither msrun nor torchrun started it"
    monkeypatch.setenv(variable, "8")
    assert translate(PRETRAIN, *TORCH).config.train.batch_size == 512
    assert row(translate(PRETRAIN), "use_parallel") == "8 processes with batch_size images each"
    assert translate(PRETRAIN, *TORCH, "--use_parallel", "False").config.train.batch_size == 64


def test_the_engine_is_mindspore_where_it_is_installed_and_the_table_says_why() -> None:
    translation = translate(PRETRAIN)
    engine = "mindspore" if find_spec("mindspore") else "torch"
    assert translation.config.engine == engine
    assert row(translation, "engine").startswith(f"-> engine={engine}, ")
    assert translate(PRETRAIN, "--device_target", "GPU").config.engine == "torch"
    assert translate(PRETRAIN, *TORCH).config.engine == "torch"


def test_without_parallel_there_is_no_parallel_mode_to_refuse() -> None:
    options = ("--use_parallel", "False", "--parallel_mode", "AUTO_PARALLEL", "--gradients_mean", "False")
    assert translate(PRETRAIN, *TORCH, *options).alone
    assert not translate(PRETRAIN, *TORCH).alone


def test_what_differs_from_the_model_zoo_stands_beside_what_is_set() -> None:
    translation = translate(PRETRAIN, *TORCH, "--per_step_size", "50", "--use_ckpt", "mae.ckpt")
    assert row(translation, "per_step_size").startswith(
        "-> train.log_every=50; evaluations and checkpoints count whole"
    )
    assert row(translation, "use_ckpt").startswith("-> init=mae.ckpt; weights alone")
    assert row(translate(EVAL, *TORCH), "dropout") == "without meaning here: evaluating trains nothing"
    assert row(translate(PRETRAIN, *TORCH, "--dropout", "0.1"), "dropout") == "without meaning here: MAE trains without"


@pytest.mark.parametrize(
    ("img_ids", "train"),
    [
        ("half.json", "{data}/half.json"),
        ("lists/half.json", "{data}/lists/half.json#root={data}"),
        ("{elsewhere}/half.json", "{elsewhere}/half.json#root={data}"),
    ],
)
def test_img_ids_and_what_it_lists_are_relative_to_data_path(img_ids: str, train: str, tmp_path: Path) -> None:
    folders = {"data": str(tmp_path / "data"), "elsewhere": str(tmp_path / "elsewhere")}
    listed = tmp_path / "data" / img_ids.format(**folders)
    listed.parent.mkdir(parents=True)
    listed.write_text("[]")
    options = ["--data_path", folders["data"], "--img_ids", img_ids.format(**folders)]
    translation = translate(PRETRAIN, *TORCH, *options)
    expected = train.format(**folders)
    assert translation.config.data.train == expected
    assert row(translation, "data_path") == row(translation, "img_ids") == f"-> data.train={expected}"
    assert translate(FINETUNE, *TORCH, *options).config.data.train == folders["data"]


def test_the_list_that_a_file_names_must_be_there() -> None:
    with pytest.raises(ConfigError, match=r"mae-vit-base-p16.yaml:\d+: img_ids: there is no /mnt/.*/tot_ids.json;"):
        load_modelzoo(PRETRAIN, TORCH, "pretrain")


@pytest.mark.parametrize("name", ["eval", "eval.yaml", "config/eval.yaml", "eval.yml", "../config/eval.yaml"])
def test_a_file_of_the_model_zoo_is_found_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name).samefile(EVAL)
    assert {path.stem for path in COMMANDS} == {path.stem for path in EVAL.parent.glob("*.yaml")}
    (tmp_path / "eval.yaml").write_text("seed: 3\n")
    assert find_config("eval.yaml") == Path("eval.yaml")
    with pytest.raises(ConfigError, match=r"there is no evil\.yaml, did you mean eval"):
        find_config("evil.yaml")
    assert not find_config(tmp_path / "configs" / "eval.yaml").exists()


def test_a_key_of_ours_wins_and_the_table_shows_what_it_replaced() -> None:
    translation = translate(PRETRAIN, "--train.epochs", "3", *TORCH)
    assert translation.config.train.epochs == 3
    assert row(translation, "epoch") == "-> train.epochs=800 (replaced: 3)"
    assert row(translation, "train.epochs") == "-> train.epochs=3"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--epochs", "3"], ["command line: epochs: unknown key", "epoch?"]),
        (["--context.devise_target", "CPU"], ["context.devise_target: unknown key", "device_target?"]),
        (["--task", "finetune"], ["task: unknown key"]),
        (["--epoch"], ["--epoch has no value"]),
        (["--epoch", "--seed", "1"], ["--epoch has no value"]),
        (["epoch=3"], ["'epoch=3' is not of the form --key value"]),
        (["--epoch", "many"], ["command line: epoch: train.epochs: ", "'many'"]),
        (["--use_ema", "maybe"], ["command line: use_ema: must be True or False, not 'maybe'"]),
        (["--device_target", "TPU"], ["command line: device_target: must be Ascend, GPU or CPU, not 'TPU'"]),
        (["--mode", "2"], ["command line: mode: must be GRAPH_MODE or PYNATIVE_MODE"]),
        (["--interpolation", "SLERP"], ["interpolation: data.interpolation: ", "'slerp'"]),
        (["--loss_name", "l1"], ["command line: loss_name: must be one of soft_ce"]),
        (["--start_learning_rate", "high"], ["start_learning_rate: must be a number, not 'high'"]),
        (["--checkpoint_path", "mae.ckpt"], ["command line: checkpoint_path: unknown key, did you mean use_ckpt?"]),
        (["--parallel.parallel_mode", "AUTO_PARALLEL"], ["parallel_mode: must be DATA_PARALLEL, not 'AUTO_PARALLEL'"]),
        (["--parallel_mode=semi_auto_parallel"], ["parallel_mode: must be DATA_PARALLEL, not 'semi_auto_parallel'"]),
        (["--gradients_mean", "False"], ["command line: gradients_mean: must be True: gradients are averaged"]),
        (["--img_ids", "none.json"], ["command line: img_ids: there is no /mnt/", "none.json", "--img_ids="]),
        (["--img_ids", "none.json", "--data_path="], ["command line: img_ids: needs data_path"]),
        (["--engine", "jax"], ["command line: engine: 'jax' is no engine; there are torch, mindspore"]),
        (["--auto_augment", "augmix-m3"], ["augment: policy='augmix-m3': AugMix is not supported; take rand-m9"]),
        (["--re_mode", "noise"], ["command line: re_mode: augment.erase_mode: ", "'pixel'"]),
        (["--masking_ratio", "1"], ["command line: masking_ratio: objective.mask_ratio", "less than 1"]),
    ],
)
def test_a_mistake_on_the_command_line_is_named_in_one_line(options: list[str], parts: list[str]) -> None:
    message = refusal(PRETRAIN, *options)
    assert all(part in message for part in parts), message


def test_a_mistake_in_a_file_is_answered_with_its_line(tmp_path: Path) -> None:
    file = written(tmp_path, epoch=3, context={"mode": 0, "devise_id": 1})
    assert f"{file}:4: context.devise_id: unknown key, did you mean device_id?" in refusal(file)
    file = written(tmp_path, encoder_dim=32, model_config={"encoder_dim": 64})
    assert f"{file}:3: model_config.encoder_dim is set a second time, after encoder_dim" in refusal(file)
    file = written(tmp_path, data_path="a", dataset_path="b")
    assert f"{file}:2: dataset_path is set a second time, after data_path" in refusal(file)
    file = written(tmp_path, epoch=3, beta1="fast")
    assert f"{file}:2: beta1: optimizer.beta1: " in refusal(file)
    file = written(tmp_path, start_learning_rate=1)
    assert f"{file}:1: start_learning_rate: needs batch_size" in refusal(file)
    assert "none.yaml cannot be read" in refusal(tmp_path / "none.yaml")


@pytest.mark.parametrize("key", TABLE)
def test_a_misspelt_key_is_refused_with_the_right_one(key: str, tmp_path: Path) -> None:
    wrong = f"{key[:-1]}q{key[-1]}"
    message = refusal(written(tmp_path, seed=1, **{wrong: 1}))
    assert message.startswith(f"{tmp_path}/flat.yaml:2: {wrong}: unknown key, did you mean ")


def test_an_empty_group_is_no_key(tmp_path: Path) -> None:
    assert load_modelzoo(written(tmp_path, parallel=None, seed=3), TORCH, "pretrain").config.seed == 3


def test_no_key_of_ours_is_shadowed_but_the_seed() -> None:
    assert set(TABLE) & set(known_keys()) == {"seed"}
