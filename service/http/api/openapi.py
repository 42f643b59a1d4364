"""``GET /api/openapi.json``: the API as an OpenAPI 3.1 document.

It is made from the table of methods; the same structs validate requests. Paths that are
no methods are described where they are served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import falcon
import falcon.asgi
import msgspec

from service.auth.api_keys import Scope
from service.core.errors import BAD_REQUEST, INTERNAL, PERMISSION_DENIED
from service.http.api.calls import Method, status_of
from service.http.api.context import ErrorObject

__all__ = ["Description", "OpenApi"]

_REFERENCE = "#/components/schemas/{name}"
_TRANSPORT = "In the transport error mode: "

_SCOPES = {
    Scope.PUBLISH: "The key must grant publishing in the channel's namespace.",
    Scope.READ: "The key must grant reading.",
    Scope.ADMINISTER: "The key must grant administering.",
    Scope.ANY: "Each command needs the scope that it needs outside a batch.",
}


class Description(NamedTuple):
    """What is in the document beside the methods.

    Attributes:
        paths: Path items.
        schemas: What they refer to.
        schemes: Of security.
    """

    paths: Mapping[str, Any]
    schemas: Mapping[str, Any]
    schemes: Mapping[str, Any]


class OpenApi:
    """The Falcon resource of the document, which is made once.

    Args:
        methods: The methods that are served.
        more: What is served beside them.
    """

    def __init__(
        self, methods: Sequence[Method], more: Description | None = None
    ) -> None:
        document = _document(methods)
        if more is not None:
            components = document["components"]
            document["paths"].update(more.paths)
            components["schemas"].update(more.schemas)
            components["securitySchemes"].update(more.schemes)
        self._text = msgspec.json.encode(document)

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Answer with the document; it holds no secret, so no key is needed."""
        resp.content_type = falcon.MEDIA_JSON
        resp.data = self._text


def _document(methods: Sequence[Method]) -> dict[str, Any]:
    """Return the description of *methods*."""
    types: list[type[msgspec.Struct]] = [ErrorObject]
    for method in methods:
        types += [method.request, method.result]
    _, schemas = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    _describe_payloads(schemas)
    _describe_batch(schemas, methods)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Steadwire server API",
            "version": "1",
            "description": "Compatible with the Centrifugo HTTP server API.",
        },
        "security": [{"header": []}, {"authorization": []}, {"query": []}],
        "paths": {
            f"/api/{method.name}": {"post": _operation(method)} for method in methods
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "authorization": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "The word apikey, a space, and the key.",
                },
                "query": {"type": "apiKey", "in": "query", "name": "api_key"},
            },
        },
    }


def _operation(method: Method) -> dict[str, Any]:
    result = _schema(method.result)
    if method.wrapped:
        result = _member("result", result)
    error = _schema(ErrorObject)
    content = {"oneOf": [result, _member("error", error)]}
    responses = {"200": _answer("The result, or an error.", content)}
    refusals: dict[int, list[str]] = {}
    for refusal in (INTERNAL, BAD_REQUEST, PERMISSION_DENIED, *method.errors):
        text = f"{refusal.code} {refusal.message}"
        refusals.setdefault(status_of(refusal), []).append(text)
    for status, texts in sorted(refusals.items()):
        text = _TRANSPORT + ", ".join(texts) + "."
        if status == 400:
            text = f"The body is not a JSON object. {text}"
        responses[str(status)] = _answer(text, error)
    # Bodies of two kinds: it is described without a schema.
    responses["429"] = {
        "description": "Too many wrong keys came from this address. "
        + responses.get("429", {"description": ""})["description"],
        "headers": {
            "Retry-After": {
                "description": "With wrong keys: the seconds until they are looked at.",
                "schema": {"type": "integer"},
            }
        },
    }
    responses["401"] = {"description": "The key is missing or wrong."}
    responses["413"] = {
        "description": "The body is too large; it is not read to the end."
    }
    return {
        "operationId": method.name,
        "summary": method.summary,
        "description": _SCOPES[method.scope],
        "parameters": [
            {
                "name": "X-Centrifugo-Error-Mode",
                "in": "header",
                "description": "transport shows errors as HTTP statuses.",
                "schema": {"type": "string"},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _schema(method.request)}},
        },
        "responses": dict(sorted(responses.items())),
    }


def _describe_payloads(schemas: dict[str, Any]) -> None:
    """Say that a publication needs a payload, in one of two fields."""
    for name in ("PublishRequest", "BroadcastRequest"):
        if name in schemas:
            either = [{"required": ["data"]}, {"required": ["b64data"]}]
            schemas[name]["anyOf"] = either


def _describe_batch(schemas: dict[str, Any], methods: Sequence[Method]) -> None:
    """Describe the commands that a batch may hold."""
    request = schemas.get("BatchRequest")
    if request is None:
        return
    wrapped = [method for method in methods if method.wrapped]
    request["properties"]["commands"]["items"] = {
        "oneOf": [_member(each.name, _schema(each.request)) for each in wrapped]
    }
    schemas["BatchResult"]["properties"]["replies"]["items"] = {
        "oneOf": [
            *[_member(each.name, _schema(each.result)) for each in wrapped],
            _member("error", _schema(ErrorObject)),
        ]
    }


def _schema(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": _REFERENCE.format(name=struct.__name__)}


def _member(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: schema},
        "required": [name],
        "additionalProperties": False,
    }


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": schema}},
    }
