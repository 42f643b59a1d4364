"""Botocore's models, as `load_quickly` has them loaded."""

from __future__ import annotations

import json
import os

import pytest
from botocore.session import Session

from service.stores.dynamodb.models import SERVICE, load_quickly

MODELS = ("service-2", "endpoint-rule-set-1", "paginators-1")
DATA = ("endpoints", "partitions", "sdk-default-configuration", "_retry")


def loader(*, quick):
    session = Session()
    if quick:
        load_quickly(session)
    return session.get_component("data_loader")


def test_models_are_those_that_botocore_loads():
    quick, own = loader(quick=True), loader(quick=False)
    for name in MODELS:
        found = quick.load_service_model(SERVICE, name)
        assert found == own.load_service_model(SERVICE, name), name
        assert list(found) == list(own.load_service_model(SERVICE, name))
    for name in DATA:
        assert quick.load_data(name) == own.load_data(name), name


def test_folders_of_other_services_are_not_listed(monkeypatch):
    listed = []
    own = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or own(path))
    quick = loader(quick=True)
    quick.load_service_model(SERVICE, "service-2")
    assert {os.path.basename(path) for path in listed} == {SERVICE}


def test_models_of_ones_own_are_found(monkeypatch, tmp_path):
    """Botocore reads them from AWS_DATA_PATH."""
    folder = tmp_path / SERVICE / "2099-01-01"
    folder.mkdir(parents=True)
    (folder / "service-2.json").write_text(json.dumps({"metadata": {"own": "ä"}}))
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    found = loader(quick=True).load_service_model(SERVICE, "service-2")
    assert found == {"metadata": {"own": "ä"}}


def test_what_is_not_there_is_told():
    session = Session()
    load_quickly(session)
    with pytest.raises(Exception, match="Unknown service: 's3'"):
        session.create_client("s3", region_name="us-east-1")
