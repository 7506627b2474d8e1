"""Where runs and models are kept, who decided that, and why a store lets nobody in."""

import errno
import os
import re
import sqlite3

import mlflow
from mlflow.exceptions import MlflowException
from sqlalchemy import exc
from sqlalchemy.exc import SQLAlchemyError

from experiments.urls import masked, shown
from speaker.common.errors import UserError, first_line

TRACKING, REGISTRY = "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"
USERNAME, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
TOKEN = "MLFLOW_TRACKING_TOKEN"  # noqa: S105  # a name
# Answers of MLflow to what is wrong with a request, not with the store.
LASTING = (
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "NOT_IMPLEMENTED",
)
# Of databases.
PASSING = (
    exc.OperationalError, exc.InterfaceError, exc.TimeoutError, sqlite3.OperationalError,
)  # fmt: skip
LASTING_ERRNOS = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.EPIPE,
    errno.ELOOP,
)
LOCKED = "database is locked"  # as SQLite says it
UNAUTHENTICATED, FORBIDDEN = 401, 403  # as HTTP says it


def describe_places(uri: str, decided_by: str = "") -> str:
    """Return where runs go, and the registered models if elsewhere, with the variables and the
    login that decide it. `uri` is the tracking store's, which must be open.
    """
    text = f"Runs are kept in {shown(uri)}{_by(decided_by)}{_with(uri)}"
    if (registry := mlflow.get_registry_uri()) != uri:
        text += f", models in {shown(registry)}{_by(REGISTRY)}{_with(registry)}"
    return f"{text}."


def registry_shown(uri: str) -> str:
    """Return where the models of a tracking store are registered, fit to be shown."""
    registry = mlflow.get_registry_uri()
    return masked(registry) + _by(REGISTRY) * (registry != uri)


def decided_by(uri: str) -> str:
    """Return the variable that a tracking store's address comes from, if any. This holds until the
    store is opened: MLflow then sets the variable itself.
    """
    return TRACKING if os.environ.get(TRACKING) == uri else ""


def explain_opening(uri: str, decided_by: str, error: BaseException) -> str:
    """Return in a line why a tracking store could not be opened, and what to do."""
    store, check = (
        f"the tracking store {masked(uri)}{_by(decided_by)}",
        decided_by or "--tracking-uri",
    )
    if refusal := _refusal(uri, error):
        return f"{store} {refusal}"
    if uri.startswith("http") and _is_unreachable(error):
        return f"{store} does not answer: there is no server; start it, or check {check}"
    reason = _safe(first_line(error))
    step = "end what holds it" if LOCKED in reason else f"check {check}"
    return f"{store} does not answer ({reason}); {step}"


def will_pass(error: BaseException) -> bool:
    """Tell whether a failure of a store or disk may pass without anybody changing what was asked:
    one that is away, locked, overloaded or full, or lets nobody in for the time being.

    A UserError may where what caused it may.
    """
    if isinstance(error, UserError):
        return error.__cause__ is not None and will_pass(error.__cause__)
    error = _told_by_store(error)
    if isinstance(error, MlflowException):
        return error.error_code not in LASTING
    if isinstance(error, SQLAlchemyError | sqlite3.Error):
        return isinstance(error, PASSING)
    return isinstance(error, OSError) and error.errno not in LASTING_ERRNOS


def explain_failure(error: BaseException) -> str:
    """Return in a line what a store or disk said, when it failed in the middle of something."""
    error = _told_by_store(error)
    is_models = re.search("registered-models|model-versions", str(error))
    uri = mlflow.get_registry_uri() if is_models else mlflow.get_tracking_uri()
    place = registry_shown(mlflow.get_tracking_uri()) if is_models else masked(uri)
    if refusal := _refusal(uri, error):
        return f"{place} {refusal}"
    if isinstance(error, MlflowException) and uri.startswith("http") and _is_unreachable(error):
        return f"{place} does not answer: there is no server"
    return _safe(first_line(error))


def _told_by_store(error: BaseException) -> BaseException:
    """Return what a store itself said: Optuna wraps that in words about invalid data."""
    cause = error.__cause__
    return cause if isinstance(cause, SQLAlchemyError | OSError) else error


def _refusal(uri: str, error: BaseException) -> str:
    """Return in words how a server refuses a request for want of a login or a right; nothing where
    that is not what it says.
    """
    status = error.get_http_status_code() if isinstance(error, MlflowException) else 0
    login = _login(uri)
    if status == UNAUTHENTICATED and not login:
        return f"wants a login (401): set {USERNAME} and {PASSWORD}, or {TOKEN}"
    if status == UNAUTHENTICATED:
        return f"refuses {login} (401): check it"
    if status == FORBIDDEN:
        who = login or "requests without a login"
        return f"does not allow {who} to do this (403): use another login, or ask for the right"
    return ""


def _login(uri: str) -> str:
    """Return which login is sent to a store's server; nothing where none is."""
    if re.search("://[^/]*@", uri):
        return "the login in its address"
    if os.environ.get(USERNAME) and os.environ.get(PASSWORD):
        return f"the login of {USERNAME}"
    return f"the login of {TOKEN}" if os.environ.get(TOKEN) else ""


def _by(variable: str) -> str:
    return f" (by {variable})" if variable else ""


def _with(uri: str) -> str:
    login = _login(uri) if uri.startswith("http") else ""
    return f" with {login}" if login else ""


def _is_unreachable(error: BaseException) -> bool:
    """Tell whether a connection is what failed: MLflow raises its own error after that one."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return found is not None


def _safe(text: str) -> str:
    """Return a library's words without the password of an address in them."""
    return re.sub(r"://[^/@\s]*@", "://***@", text)
