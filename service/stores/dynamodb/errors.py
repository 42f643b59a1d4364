"""Errors of calls to DynamoDB, and the classification of botocore's.

    StoreUnavailable              not reached in time, or refused by the service
    ├── OutcomeUnknown            and it may have been done, or may be done yet
    └── NoTable                   the table does not exist
    StoreBusy
    └── Throttled                 the table takes no more at present
    ConditionFailed               the condition does not hold; carries the item
    TransactionCancelled          a condition of it does not hold; carries the reasons

The subclasses of `StoreError` may reach a publisher as they are. The last two are
answers, which the caller expects and acts on. A plain `StoreError` says that the
request itself cannot be done, however often it is repeated. No error of botocore
leaves `client`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
)
from botocore.parsers import ResponseParserError

from service.core.errors import SteadwireError, StoreBusy, StoreUnavailable

__all__ = [
    "ConditionFailed",
    "Failure",
    "Item",
    "NoTable",
    "OutcomeUnknown",
    "Reason",
    "Throttled",
    "TransactionCancelled",
    "classify",
]

Item = dict[str, dict[str, Any]]
"""An item in DynamoDB's form: ``{"n": {"N": "1"}}``."""


class OutcomeUnknown(StoreUnavailable):
    """No answer came in time: the call was done, was not, or will be."""


class NoTable(StoreUnavailable):
    """The table that was to be described does not exist."""


class Throttled(StoreBusy):
    """The table was throttled until the deadline; nothing was done."""


class ConditionFailed(SteadwireError):
    """The condition of a write does not hold; nothing was written.

    Attributes:
        item: The stored item, if the request asked for it and it exists.
        repeated: An earlier attempt of this call had no answer, so this very write,
            done before, may be what makes the condition fail.
    """

    def __init__(self, item: Item | None, *, repeated: bool) -> None:
        super().__init__("the condition does not hold")
        self.item = item
        self.repeated = repeated


class Reason(NamedTuple):
    """Why one action of a transaction was not done.

    Attributes:
        code: ``ConditionalCheckFailed``, ``TransactionConflict``, …, or ``None`` (the
            text) for an action that did not fail.
        item: The stored item, if the action asked for it and it exists.
    """

    code: str
    item: Item | None


class TransactionCancelled(SteadwireError):
    """A condition of a transaction does not hold; none of it was written.

    Attributes:
        reasons: One for each action, in their order.
    """

    def __init__(self, reasons: tuple[Reason, ...]) -> None:
        super().__init__("the transaction was cancelled")
        self.reasons = reasons

    def failed(self, index: int) -> bool:
        """Return whether the condition of action *index* does not hold."""
        return self.reasons[index].code == "ConditionalCheckFailed"


Kind = Literal["answer", "contention", "throttle", "transport", "refused", "invalid"]


class Failure(NamedTuple):
    """One failed attempt, classified.

    Attributes:
        kind: ``answer``: a result, not to be repeated as it is; ``contention``: another
            call was writing the same item, repeat soon; ``throttle``: repeat later;
            ``transport``: not reached, or failed inside DynamoDB, repeat; ``refused``:
            the table or the permission is missing; ``invalid``: this request can never
            be done.
        unknown: The attempt may have been done nevertheless.
        text: A few words, without anything that a request contained.
        error: For ``answer``: the exception to raise.
    """

    kind: Kind
    unknown: bool
    text: str
    error: ConditionFailed | TransactionCancelled | NoTable | None = None


_THROTTLED = {
    "LimitExceededException",
    "ProvisionedThroughputExceeded",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "ThrottlingError",
    "ThrottlingException",
}
_CONTENDED = {"TransactionConflict", "TransactionConflictException"}
_REFUSED = {
    "AccessDeniedException",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "NotAuthorized",
    "ResourceNotFoundException",
    "UnrecognizedClientException",
}
_UNREACHABLE = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)
_WORDS = {  # of what a first start meets
    "EndpointConnectionError": "EndpointConnectionError: nobody answers there; see "
    "dynamodb.endpoint and dynamodb.region",
    "NoCredentialsError": "NoCredentialsError: there are no AWS credentials",
}
_UNANSWERED = (ReadTimeoutError, ConnectionClosedError, ResponseParserError)


def classify(error: BaseException, *, repeated: bool) -> Failure | None:
    """Return what *error* of an attempt means; None if botocore did not raise it."""
    if isinstance(error, ClientError):
        return _answered(error, repeated=repeated)
    name = type(error).__name__
    name = _WORDS.get(name, name)
    if isinstance(error, _UNREACHABLE):
        return Failure("refused", False, name)
    if isinstance(error, _UNANSWERED):
        return Failure("transport", True, name)
    if isinstance(error, ConnectionError):  # before anything was sent
        return Failure("transport", False, name)
    if isinstance(error, HTTPClientError):
        return Failure("transport", True, name)
    if isinstance(error, BotoCoreError):  # parameters it will not even send
        return Failure("invalid", False, name)
    return None


def _answered(error: ClientError, *, repeated: bool) -> Failure:
    response: dict[str, Any] = dict(error.response)
    code = str(response.get("Error", {}).get("Code", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "ConditionalCheckFailedException":
        failed = ConditionFailed(response.get("Item"), repeated=repeated)
        return Failure("answer", False, code, failed)
    if code == "TransactionCanceledException":
        return _cancelled(response)
    if code in _CONTENDED:
        return Failure("contention", False, code)
    if code == "TransactionInProgressException":  # an earlier attempt of this call
        return Failure("contention", True, code)
    if code in _THROTTLED:
        return Failure("throttle", False, code)
    if code == "ResourceNotFoundException" and _is_description(error):
        return Failure("answer", False, code, NoTable("the table does not exist"))
    if code in _REFUSED:
        return Failure("refused", False, code)
    if status >= 500:
        return Failure("transport", True, code)
    return Failure("invalid", False, code)


def _is_description(error: ClientError) -> bool:
    return error.operation_name.startswith("Describe")


def _cancelled(response: dict[str, Any]) -> Failure:
    reasons = tuple(
        Reason(str(reason.get("Code", "None")), reason.get("Item"))
        for reason in response.get("CancellationReasons", ())
    )
    codes = {reason.code for reason in reasons} - {"None"}
    text = ", ".join(sorted(codes))
    if "ConditionalCheckFailed" in codes:
        return Failure("answer", False, text, TransactionCancelled(reasons))
    if codes and codes <= _CONTENDED | _THROTTLED:
        kind: Kind = "contention" if codes <= _CONTENDED else "throttle"
        return Failure(kind, False, text)
    return Failure("invalid", False, text)
