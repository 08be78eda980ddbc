"""Pretrain as in the MindSpore model zoo: python pretrain.py --config_path=FILE [--key value ...]; docs/model-zoo.md"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))  # also where unmask is not installed, as on ModelArts

from unmask.cli import program

if __name__ == "__main__":  # loader processes import this file
    program(["pretrain", "--config_path=mae-vit-base-p16.yaml", *sys.argv[1:]])
