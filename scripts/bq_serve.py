#!/usr/bin/env python3
"""Runs local-bigquery 0.3.2 with the gaps that matter to Storage Write API code closed.

Plain local-bigquery 0.3.2 does these things, each seen here; this launcher changes them:
 1. gRPC requests over 4 MiB are refused         -> BQ_MAX_REQUEST_BYTES (10 MiB)
 2. a PENDING commit that holds a bad row loses the rows and still answers success
                                                 -> rows checked in AppendRows, and a commit that fails says so
 3. BatchCommit of a committed stream says INVALID_STREAM_STATE, the same name twice in one call
    and two calls at once insert twice, an unknown stream says INVALID_ARGUMENT
                                                 -> STREAM_ALREADY_COMMITTED, once, STREAM_NOT_FOUND / NOT_FOUND
 4. offset errors carry no details               -> google.cloud.bigquery.storage.v1.StorageError is attached
 5. rows of committed streams stay in memory     -> dropped
 6. DDL PARTITION BY RANGE_BUCKET is recorded as a DAY partition
                                                 -> recorded as rangePartitioning
 7. two servers can share one gRPC port (SO_REUSEPORT), each getting some of the calls
                                                 -> the second one fails to start
 8. DuckDB's extensions are downloaded           -> linked from their wheels into $HOME/.duckdb
It changes private functions of that one version, so it refuses to run with any other.
"""
import concurrent.futures
import importlib.metadata
import json
import logging
import os
import pathlib
import sys
import threading

VERSION = "0.3.2"
found = importlib.metadata.version("local-bigquery")
if found != VERSION:
    sys.exit(f"bq_serve: made for local-bigquery {VERSION}, found {found}")

import duckdb
import grpc
import sqlglot
from google.cloud.bigquery_storage_v1 import types
from sqlglot import exp

from local_bigquery import cli
from local_bigquery.catalog import ddl, tables
from local_bigquery.grpc import server, write
from local_bigquery.grpc.read import StorageError

MAX_REQUEST = int(os.environ.get("BQ_MAX_REQUEST_BYTES", 10 * 1024 * 1024))
Code = types.StorageError.StorageErrorCode
log = logging.getLogger("bq_serve")


def start(host, port):
    s = grpc.server(
        concurrent.futures.ThreadPoolExecutor(max_workers=16),
        options=[("grpc.max_receive_message_length", MAX_REQUEST + 1024), ("grpc.so_reuseport", 0)],
    )
    s.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(n, h) for n, h in server.SERVICES.items()])
    port = s.add_insecure_port(f"{host}:{port}")
    s.start()
    return s, port


def storage_error(code, entity, message):
    return types.StorageError(code=code, entity=entity, error_message=message)


def fail(response, status, message, code=None):
    response.error = write._status(status, message)
    if code is not None:
        pb = types.AppendRowsResponse.pb(response)
        pb.error.details.add().Pack(types.StorageError.pb(storage_error(code, response.write_stream, message)))
    return response


plain_stream, plain_append, plain_partitioning = write._stream, write._append, ddl._partitioning


def stream_of(name):
    if name not in write._streams and not name.endswith("/streams/_default"):
        raise StorageError(grpc.StatusCode.NOT_FOUND, f"Requested entity was not found. Entity: {name}")
    return plain_stream(name)


def problems(fields, rows):
    known = {f.name.casefold(): f for f in fields}
    required = [f.name for f in fields if f.mode == "REQUIRED"]
    documents = [f.name for f in fields if f.type == "JSON" and f.mode != "REPEATED"]
    for index, row in enumerate(rows):
        for key in row:
            if key.casefold() not in known:
                yield index, f"The source object has fields unknown to BigQuery: root.{key}."
        for key in required:
            if row.get(key) is None:
                yield index, f"Field {key}: the required field is missing."
        for key in documents:
            if isinstance(row.get(key), str):
                try:
                    json.loads(row[key])
                except ValueError as error:
                    yield index, f"Field {key}: invalid JSON: {error}"


def append(stream, rows, offset):
    response = types.AppendRowsResponse(write_stream=stream.name)
    if stream.finalized:
        return fail(response, grpc.StatusCode.INVALID_ARGUMENT, "Stream is finalized", Code.STREAM_FINALIZED)
    if offset is not None and stream.name.endswith("/_default"):
        return fail(response, grpc.StatusCode.INVALID_ARGUMENT, "The default stream takes no offset")
    if offset is not None and offset < stream.count:
        return fail(response, grpc.StatusCode.ALREADY_EXISTS,
                    f"The offset is within stream, expected offset {stream.count}, received {offset}", Code.OFFSET_ALREADY_EXISTS)
    if offset is not None and offset > stream.count:
        return fail(response, grpc.StatusCode.OUT_OF_RANGE,
                    f"The offset is beyond stream, expected offset {stream.count}, received {offset}", Code.OFFSET_OUT_OF_RANGE)
    if stream.type != write.Type.COMMITTED:
        if bad := list(problems(tables.columns(*stream.table), rows)):
            fail(response, grpc.StatusCode.INVALID_ARGUMENT, f"Rows are invalid: {bad[0][1]}")
            response.row_errors = [
                types.RowError(index=i, code=types.RowError.RowErrorCode.FIELDS_ERROR, message=m) for i, m in bad[:100]
            ]
            return response
    return plain_append(stream, rows, offset)


# a client that died in its commit comes back and commits again while the first one is still at work
committing = threading.Lock()


def commit(request):
    with committing:
        return commit_alone(request)


def commit_alone(request):
    streams, errors = [], []
    for name in dict.fromkeys(request.write_streams):
        stream = write._streams.get(name)
        if stream is None:
            errors.append(storage_error(Code.STREAM_NOT_FOUND, name, "Stream is not found"))
        elif stream.type != write.Type.PENDING:
            errors.append(storage_error(Code.INVALID_STREAM_TYPE, name, "Only a PENDING stream can be committed"))
        elif stream.committed:
            errors.append(storage_error(Code.STREAM_ALREADY_COMMITTED, name, "Stream is already committed"))
        elif not stream.finalized:
            errors.append(storage_error(Code.INVALID_STREAM_STATE, name, "Stream is not finalized"))
        else:
            streams.append(stream)
    if errors:
        return types.BatchCommitWriteStreamsResponse(stream_errors=errors)
    by_table = {}
    for stream in streams:
        by_table.setdefault(stream.table, []).append(stream)
    now = write._now()
    for group in by_table.values():  # one INSERT for a table, so its streams become visible together
        rejected = write._insert(group[0], [row for stream in group for row in stream.rows])
        if rejected:
            message = f"emulator: commit rejected {len(rejected)} rows, the table may hold part of them; first: {rejected[0]}"
            log.error(message)
            raise StorageError(grpc.StatusCode.INVALID_ARGUMENT, message)
        for stream in group:
            stream.committed, stream.rows = now, []
    return types.BatchCommitWriteStreamsResponse(commit_time=now)


def partitioning(node):
    text = node.this.sql("bigquery").replace("bq.main.", "")  # the parser has its own macro of that name
    if text.upper().startswith("RANGE_BUCKET"):
        plain = sqlglot.parse_one(f"CREATE TABLE t (c INT64) PARTITION BY {text}", dialect="bigquery")
        node = plain.find(exp.PartitionedByProperty)
    return plain_partitioning(node)


def link_extensions():
    (version, platform), = duckdb.sql("SELECT library_version, platform FROM pragma_version(), pragma_platform()").fetchall()
    to = pathlib.Path.home() / ".duckdb" / "extensions" / version / platform
    to.mkdir(parents=True, exist_ok=True)
    for name in ("ducklake", "icu", "spatial"):
        wheel = pathlib.Path(list(importlib.import_module(f"duckdb_extension_{name}").__path__)[0])
        link = to / f"{name}.duckdb_extension"
        link.unlink(missing_ok=True)
        link.symlink_to(wheel / "extensions" / version / link.name)


server.start = start
write._stream, write._append, ddl._partitioning = stream_of, append, partitioning
server.SERVICES["google.cloud.bigquery.storage.v1.BigQueryWrite"]["BatchCommitWriteStreams"] = server._unary(
    commit, types.BatchCommitWriteStreamsRequest, types.BatchCommitWriteStreamsResponse
)

if __name__ == "__main__":
    link_extensions()
    cli.main()
