"""The MindSpore engine: CPU and Ascend."""

import os

from unmask.engines.base import EngineKind

os.environ.setdefault("GLOG_v", "3")  # errors only; read when MindSpore is imported

MINDSPORE = EngineKind(
    package="mindspore",
    install="unmask[mindspore]",
    create="unmask.engines.mindspore_engine.engine:MindSporeEngine",
    connect="unmask.engines.mindspore_engine.parallel:connect",
    devices="unmask.engines.mindspore_engine.device:devices",
    precision="unmask.engines.mindspore_engine.device:fast_precision",
    exports={".mindir": "unmask.engines.mindspore_engine.export:write_mindir"},
)
