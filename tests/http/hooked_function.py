"""The hooks of `tests.http.hooked` in a Lambda function of their own."""

from __future__ import annotations

import os

from service.lambda_entry import make_handler
from tests.http.hooked import handlers

handler = make_handler(handlers, os.environ)
