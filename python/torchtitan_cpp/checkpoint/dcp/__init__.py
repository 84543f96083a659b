"""Folders of ``torch.distributed.checkpoint``, with the names that torchtitan uses.

``writing.py`` and ``metadata.py`` write them, ``foreign.py`` reads those of other
programs and ``settings.py`` compares what they trained with. What is read of a pickle
goes through the allow-lists in ``unpickling.py``.
"""

from __future__ import annotations

from torchtitan_cpp.checkpoint.dcp.boxes import DcpBoxReader
from torchtitan_cpp.checkpoint.dcp.foreign import check_blobs, is_foreign, read_foreign
from torchtitan_cpp.checkpoint.dcp.metadata import METADATA_NAME, write_metadata
from torchtitan_cpp.checkpoint.dcp.writing import report_settings, write_dcp_shard

__all__ = [
    "METADATA_NAME",
    "DcpBoxReader",
    "check_blobs",
    "is_foreign",
    "read_foreign",
    "report_settings",
    "write_dcp_shard",
    "write_metadata",
]
