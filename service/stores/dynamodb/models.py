"""Loader of botocore's models that knows DynamoDB alone, and is quick.

botocore's own lists the folders of all 400 services before it loads a model of one, and
has Python's decoder make ordered dictionaries of the JSON. At each start of a process
these two take 0.04 s, longer than all else that is done for a client.
"""

from __future__ import annotations

import gzip
from typing import Any

import msgspec
from botocore.loaders import JSONFileLoader, Loader
from botocore.session import Session

__all__ = ["SERVICE", "load_quickly"]

SERVICE = "dynamodb"

_OPEN: dict[str, Any] = {".json": open, ".json.gz": gzip.open}


def load_quickly(session: Session) -> None:
    """Have a session make clients of DynamoDB, and of no other service, quickly."""
    paths = session.get_component("data_loader").search_paths
    loader = _Loader(paths, _Files(), include_default_search_paths=False)
    session.register_component("data_loader", loader)


class _Loader(Loader):
    def list_available_services(self, type_name: str) -> list[str]:
        return [SERVICE]


class _Files(JSONFileLoader):
    def load_file(self, file_path: str) -> Any:
        for ending, opened in _OPEN.items():
            try:
                with opened(file_path + ending, "rb") as file:
                    return msgspec.json.decode(file.read())
            except FileNotFoundError:
                continue
        return None
