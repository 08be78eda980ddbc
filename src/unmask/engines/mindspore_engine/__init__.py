"""The MindSpore engine: CPU and Ascend."""

import os

os.environ.setdefault("GLOG_v", "3")  # errors only; read when MindSpore is imported
