"""Opens the MLflow store that runs are copied to, and says in one line why it cannot be used and what to do."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock

from registries.registry import UserError, nearest

SQLITE = "sqlite:///"
DEFAULT_STORE = SQLITE + "${output_dir}/mlflow.db"  # a store that moves with its output folder
LOCKED_SECONDS = 5.0
# For a server that does not answer, where MLflow would try for four minutes: what could not be sent is sent later.
LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
# A connection for each use: one that is kept open goes on writing into a file that was deleted.
NO_POOL = {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool"}
QUIET = {"mlflow": logging.WARNING, "alembic": logging.WARNING, "mlflow.store": logging.CRITICAL}


DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def address_errors(uri: str) -> list[str]:
    """What is wrong with the address of a store, as far as it can be seen without asking there."""
    scheme, separator, rest = uri.partition("://")
    plugins = {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}
    if uri == "databricks" or scheme in {"databricks", *plugins} or (not separator and uri.split(":")[0] in plugins):
        return []
    kind, schemes = scheme.partition("+")[0], ("http", "https", *DATABASES)
    if not separator or kind not in schemes:
        allowed = "sqlite:///<file>, http://<host>:<port>, or the address of another database"
        return [f"tracking.uri={uri} is no address of a store{nearest(kind, schemes)} It may be {allowed}"]
    if kind == "sqlite" and (not rest.startswith("/") or rest in ("/", "/:memory:")):
        return [f"tracking.uri={uri} names no file: write sqlite:///<file>"]
    try:
        host = kind == "sqlite" or (urlsplit(uri).hostname, urlsplit(uri).port)[0]
    except ValueError as error:
        return [f"tracking.uri={uri} is no address: {error}"]
    return [] if host or kind in DATABASES else [f"tracking.uri={uri} names no host: write http://<host>:<port>"]


@dataclass(frozen=True)
class Store:
    """An open store.

    Attributes:
        client: MLflow's client of it.
        experiment: the identity of the experiment that runs belong to.
        created: when the experiment was made: a store that was set up anew has another time.
    """

    client: Any
    experiment: str
    created: int


def portable(uri: str, output_dir: Path) -> str:
    """A store's address that holds after a change of the working directory, or of the output folder's place."""
    if uri == f"{SQLITE}{output_dir}/mlflow.db":
        return DEFAULT_STORE
    if uri.startswith(SQLITE) and not uri.startswith(f"{SQLITE}/"):
        return f"{_address(Path.cwd())}/{uri.removeprefix(SQLITE)}"
    return uri


def own_address(output_dir: Path) -> str:
    """The address of an output folder's own store."""
    return _address(output_dir.resolve() / "mlflow.db")


def open_store(uri: str, experiment: str, output_dir: Path) -> Store:
    """Open the store at a portable address; what is missing of it is set up.

    Raises:
        UserError: it cannot be used.
    """
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)  # what matters is told in our words
    for name, value in (LIMITS | (NO_POOL if uri.startswith("sqlite") else {})).items():
        os.environ.setdefault(name, value)
    with in_words(uri):
        if not uri.startswith(SQLITE):
            return _with_experiment(_client(uri), experiment, None)
        file = _sqlite_file(uri, output_dir)
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f"{file.name}.lock")):
            return _open_sqlite(file, experiment)


def _sqlite_file(uri: str, output_dir: Path) -> Path:
    """The file of an SQLite address, in which `%` and `?` have a meaning, unless they come from the output folder."""
    if uri == DEFAULT_STORE:
        return output_dir.resolve() / "mlflow.db"
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0]))


def _open_sqlite(file: Path, experiment: str) -> Store:
    if not file.exists() or not file.stat().st_size:
        _set_up(file)
    _require_database(file)
    try:
        client = _client(_address(file))
    except Exception as error:
        if "is locked" in str(error) or not _half_done(file):
            raise
        os.replace(file, file.with_name(f"{file.name}.half-done"))
        _set_up(file)
        client = _client(_address(file))
    return _with_experiment(client, experiment, (file.parent / "artifacts").as_uri())


def _client(address: str) -> Any:
    from mlflow import MlflowClient

    with _no_stray_folder(address):
        return MlflowClient(address)


def _with_experiment(client: Any, name: str, artifacts: str | None) -> Store:
    """The store with its experiment of that name, which is made where it is missing."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        experiment = client.get_experiment(client.create_experiment(name, artifacts))
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"tracking.experiment={name} was deleted from the store: restore it (MLFLOW_TRACKING_URI="
            f"'{client.tracking_uri}' mlflow experiments restore --experiment-id {experiment.experiment_id}), or take "
            "another name (tracking.experiment=...)"
        )
    return Store(client, experiment.experiment_id, experiment.creation_time)


def _address(file: Path) -> str:
    """The SQLAlchemy address of a file, which is read with `?` as the end of the path and `%` as an escape."""
    return SQLITE + str(file).replace("%", "%25").replace("?", "%3F")


@contextmanager
def _no_stray_folder(address: str) -> Iterator[None]:
    """Without the folder that MLflow makes for the address of a file as it is spelt, `%25` and all."""
    folder = Path(address.removeprefix(SQLITE)).parent
    stray = address.startswith(SQLITE) and "%" in str(folder) and not folder.exists()
    try:
        yield
    finally:
        if stray and folder.exists():
            with suppress(OSError):  # the next one up is in use
                os.removedirs(folder)


def _set_up(file: Path) -> None:
    """Make the tables of a new store beside its place, and move it there when it is whole: a full disk or a kill in the
    midst would leave a store that nothing can use."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    partial = file.with_name(f"{file.name}.partial")
    places = [file.with_name(f"{name}{end}") for name in (partial.name, file.name) for end in ("-journal", "-wal")]
    for left in (partial, *places):  # by a set-up that was killed; a journal would be applied to the new file
        left.unlink(missing_ok=True)
    try:
        with _no_stray_folder(_address(partial)):
            SqlAlchemyStore(_address(partial), str(file.parent / "artifacts")).engine.dispose()
        os.replace(partial, file)
    finally:
        SqlAlchemyStore._engine_map.pop(_address(partial), None)
        partial.unlink(missing_ok=True)


def _require_database(file: Path) -> None:
    """Raise sqlite3.Error unless the file is a database that can be written to; MLflow would try for minutes."""
    with closing(_connect(file)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.rollback()


def _half_done(file: Path) -> bool:
    """Whether a store is what a set-up that broke off left: tables of MLflow's alone, and no run in them."""
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase

    with closing(_connect(file)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        runs = database.execute("SELECT count(*) FROM runs").fetchone()[0] if "runs" in tables else 0
    mlflow = {*Base.metadata.tables, *InitialBase.metadata.tables, "sqlite_sequence"}
    return not runs and all(name in mlflow or "alembic_" in name for name in tables)


def _connect(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True, timeout=LOCKED_SECONDS)


@contextmanager
def in_words(uri: str) -> Iterator[None]:
    """Raise what goes wrong with a store as a UserError of one line, with what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of MLflow, SQLAlchemy, sqlite3, requests or the file system
        raise UserError(f"tracking.uri={uri}: {_reason(error)}") from error


REMEDIES = {
    "is locked": "the store is locked by another program",
    "not a database": "this file is no database: name another, or move it away so that a new store is set up",
    "malformed": "the store is damaged: move it away, and a new one is set up at the next start",
    "no such table": "the store has lost its tables: move it away, and a new one is set up at the next start",
    "disk is full": "its disk is full: free some space",
    "No space left": "its disk is full: free some space",
    "readonly database": "the store cannot be written to: change its permissions, or set tracking.uri",
    "unable to open": "the store's file cannot be opened: see to its folder, or set tracking.uri",
    "Connection refused": "no answer (connection refused): start the server, or set tracking.uri",
    "timed out": "no answer in time: see to the server, or set tracking.uri",
    "out-of-date database schema": "the store is of another version of MLflow: run `mlflow db upgrade` on it",
}


def _reason(error: BaseException) -> str:
    """What is wrong, in our words where it is known; else the error's first line."""
    text = " ".join(str(error).split())
    for sign, words in REMEDIES.items():
        if sign in text:
            return words
    cause = re.sub(r"^API request to .*? failed with exception ", "no answer: ", text)
    return f"{cause[:300] or type(error).__name__}; see to the store, or set tracking.uri (tracking=none for none)"
