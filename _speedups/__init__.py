"""Hot functions: the compiled ones if the install has them, else the interpreted ones.

This module alone chooses, for all functions or none. Set SERVICE_NO_SPEEDUPS=1 to force
the interpreted side. This package imports nothing of `service` and refuses malformed
input with `ValueError`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .json_py import COMMANDS

NO_SPEEDUPS = bool(os.environ.get("SERVICE_NO_SPEEDUPS"))

if TYPE_CHECKING or NO_SPEEDUPS:
    from . import backoff_py as _backoff
    from . import delta_py as _delta
    from . import frames_py as _frames
    from . import json_py as _json
    from . import outbox_py as _outbox
    from . import rtt_py as _rtt
else:
    try:
        from . import backoff_c as _backoff
        from . import delta_c as _delta
        from . import frames_c as _frames
        from . import json_c as _json
        from . import outbox_c as _outbox
        from . import rtt_c as _rtt
    except ImportError:
        from . import backoff_py as _backoff
        from . import delta_py as _delta
        from . import frames_py as _frames
        from . import json_py as _json
        from . import outbox_py as _outbox
        from . import rtt_py as _rtt

COMPILED = _json.__name__.endswith("_c")

FlushQueue = _outbox.FlushQueue
FrameParser = _frames.FrameParser
FrameWriter = _frames.FrameWriter
OutboxCore = _outbox.OutboxCore
RttFilter = _rtt.RttFilter
SharedFrame = _frames.SharedFrame
SocketWriter = _frames.SocketWriter
SubscriptionCore = _outbox.SubscriptionCore
backoff = _backoff.backoff
backoff_full_jitter = _backoff.backoff_full_jitter
build_close = _frames.build_close
build_frame = _frames.build_frame
check = _json.check
deliver = _outbox.deliver
encode_publication = _json.encode_publication
encode_publication_push = _json.encode_publication_push
encode_push = _json.encode_push
fossil_delta = _delta.fossil_delta
quote = _json.quote
receive_now = _frames.receive_now
scan_array = _json.scan_array
scan_commands = _json.scan_commands
scan_object = _json.scan_object

__all__ = [
    "COMMANDS",
    "COMPILED",
    "NO_SPEEDUPS",
    "FlushQueue",
    "FrameParser",
    "FrameWriter",
    "OutboxCore",
    "RttFilter",
    "SharedFrame",
    "SocketWriter",
    "SubscriptionCore",
    "backoff",
    "backoff_full_jitter",
    "build_close",
    "build_frame",
    "check",
    "deliver",
    "encode_publication",
    "encode_publication_push",
    "encode_push",
    "fossil_delta",
    "quote",
    "scan_array",
    "scan_commands",
    "scan_object",
]
