"""Hot functions, compiled when the wheel has them and interpreted when not.

The one place that chooses. Set SERVICE_NO_SPEEDUPS=1 to force the interpreted side.
This package imports nothing of `service` and refuses malformed input with
`ValueError`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

NO_SPEEDUPS = bool(os.environ.get("SERVICE_NO_SPEEDUPS"))

if TYPE_CHECKING or NO_SPEEDUPS:
    from .json_py import (
        check,
        encode_publication,
        encode_push,
        quote,
        scan_array,
        scan_commands,
        scan_object,
    )
else:
    try:
        from .json_c import (
            check,
            encode_publication,
            encode_push,
            quote,
            scan_array,
            scan_commands,
            scan_object,
        )
    except ImportError:
        from .json_py import (
            check,
            encode_publication,
            encode_push,
            quote,
            scan_array,
            scan_commands,
            scan_object,
        )

COMPILED = scan_commands.__module__.endswith("_c")

__all__ = [
    "COMPILED",
    "NO_SPEEDUPS",
    "check",
    "encode_publication",
    "encode_push",
    "quote",
    "scan_array",
    "scan_commands",
    "scan_object",
]
