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
 5. rows wait as Python objects for the commit, which takes 0.2 ms a row and holds up all other calls
                                                 -> converted in AppendRows into a table in memory; a commit copies it
 6. DDL PARTITION BY RANGE_BUCKET is recorded as a DAY partition
                                                 -> recorded as rangePartitioning
 7. two servers can share one gRPC port (SO_REUSEPORT), each getting some of the calls
                                                 -> the second one fails to start
 8. DuckDB's extensions are downloaded           -> linked from their wheels into $HOME/.duckdb
 9. each call walks through all tables of all datasets, 3 ms each
                                                 -> one table is looked up by its name
10. a row goes through JSON on its way from protobuf to a dict, 0.1 ms each
                                                 -> flat messages are read field by field
11. each statement looks for pandas in all of sys.path
                                                 -> it is told that there is none
12. each statement walks several times through all columns and tables of all databases, 10 ms each
                                                 -> one table is looked up in the catalog that it stands in
It changes private functions of that one version, so it refuses to run with any other.
"""
import concurrent.futures
import contextlib
import datetime
import importlib.metadata
import itertools
import json
import logging
import math
import os
import pathlib
import sys
import threading
import uuid

VERSION = "0.3.2"
found = importlib.metadata.version("local-bigquery")
if found != VERSION:
    sys.exit(f"bq_serve: made for local-bigquery {VERSION}, found {found}")

import duckdb
import grpc
import sqlglot
from google.cloud.bigquery_storage_v1 import types
from google.protobuf.descriptor import FieldDescriptor
from sqlglot import exp

from local_bigquery import cli
from local_bigquery.catalog import ddl, tabledata, tables
from local_bigquery.engine import database
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
plain_decoder, plain_objects, plain_fetch = write._decoder, database.objects, database.fetch


def stream_of(name):
    if name not in write._streams and not name.endswith("/streams/_default"):
        raise StorageError(grpc.StatusCode.NOT_FOUND, f"Requested entity was not found. Entity: {name}")
    return plain_stream(name)


FLAT = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_BOOL,
        FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_STRING}


def decoder(request):
    descriptor = request.proto_rows.writer_schema.proto_descriptor
    if "arrow_rows" in request or not descriptor.name:
        return plain_decoder(request)
    message = write._message_class(descriptor)
    if any(f.is_repeated or f.cpp_type not in FLAT or f.type == f.TYPE_BYTES for f in message.DESCRIPTOR.fields):
        return plain_decoder(request)
    return lambda request, fields: list(flat_rows(message, request.proto_rows.rows.serialized_rows, fields))


def flat_rows(message, rows, fields):
    kinds = {f.name.casefold(): f.type for f in fields}
    names = {kind: [f.name for f in message.DESCRIPTOR.fields if kinds.get(f.name.casefold()) == kind]
             for kind in ("TIMESTAMP", "DATE", "FLOAT")}
    for row in rows:
        row = {field.name: value for field, value in message.FromString(row).ListFields()}
        for name in names["TIMESTAMP"]:
            if isinstance(row.get(name), int):
                row[name] = (write.EPOCH + datetime.timedelta(microseconds=row[name])).isoformat()
        for name in names["DATE"]:
            if isinstance(row.get(name), int):
                row[name] = (write.EPOCH.date() + datetime.timedelta(days=row[name])).isoformat()
        for name in names["FLOAT"]:
            if not math.isfinite(row.get(name, 0)):
                row[name] = str(row[name])
        yield row


def problems(fields, rows):
    known = {f.name.casefold() for f in fields}
    exact = {f.name for f in fields}
    required = [f.name for f in fields if f.mode == "REQUIRED"]
    documents = [f.name for f in fields if f.type == "JSON" and f.mode != "REPEATED"]
    for index, row in enumerate(rows):
        for key in row.keys() - exact:
            if key.casefold() not in known:
                yield index, f"The source object has fields unknown to BigQuery: root.{key}."
        for key in required:
            if row.get(key) is None:
                yield index, f"Field {key}: the required field is missing."
        for key in documents:
            if isinstance(row.get(key), str):
                try:
                    json.loads(row[key])
                except (ValueError, RecursionError) as error:
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
    if stream.type == write.Type.COMMITTED:
        return plain_append(stream, rows, offset)
    fields = tables.columns(*stream.table)
    if stream.type != write.Type.PENDING or not has_all_and_no_more(fields, rows):
        if bad := list(problems(fields, rows)):
            return fail_rows(response, bad)
    if stream.type != write.Type.PENDING:
        return plain_append(stream, rows, offset)
    try:
        stage(stream, rows)
    except duckdb.Error as error:
        if bad := list(problems(fields, rows)):
            return fail_rows(response, bad)
        return fail(response, grpc.StatusCode.INVALID_ARGUMENT, f"Rows are invalid: {error}")
    response = plain_append(stream, rows, offset)
    stream.rows = []  # they are in the stage
    return response


def has_all_and_no_more(fields, rows):
    """The quick look at rows of which none is wrong. Whether values convert is found when they are."""
    required = {f.name for f in fields if f.mode == "REQUIRED"}
    return set().union(*rows) <= {f.name for f in fields} and all(row.keys() >= required for row in rows)


def fail_rows(response, bad):
    fail(response, grpc.StatusCode.INVALID_ARGUMENT, f"Rows are invalid: {bad[0][1]}")
    response.row_errors = [
        types.RowError(index=i, code=types.RowError.RowErrorCode.FIELDS_ERROR, message=m) for i, m in bad[:100]
    ]
    return response


NESTED = ("list", "array", "struct", "map")


class Stage:
    """Rows of one stream, converted, in a table in memory with the columns that the stream's table had."""

    def __init__(self, cursor, table, columns):
        self.name, self.columns = database.quote("bq", "main", f"stage_{uuid.uuid4().hex}"), columns
        self.names = ", ".join(database.quote(column) for column, _ in columns)
        cursor.execute(f"CREATE TABLE {self.name} AS SELECT {self.names} FROM {table} LIMIT 0")
        # scalars as text, and cast: from_json itself makes null of what does not convert
        kinds = ", ".join(f"{database.quote(c)} {t if t.id in NESTED else 'VARCHAR'}" for c, t in columns)
        values = ", ".join(f"CAST({tabledata._select(database.quote(c), t)} AS {t})" for c, t in columns)
        self.shape = json.dumps([f"STRUCT({kinds})"])
        self.insert = f"INSERT INTO {self.name} SELECT {values} FROM (SELECT unnest(from_json($rows, $shape)) AS r)"

    def add(self, cursor, rows):
        cursor.execute(self.insert, {"rows": json.dumps(rows), "shape": self.shape})


stages = {}  # stream name -> its stages: one, and one more for each time its table has got another column


def stage(stream, rows):
    table = tables.name(*stream.table)
    with database.cursor() as cursor:
        there = cursor.sql(f"SELECT * FROM {table} LIMIT 0")
        columns = list(zip(there.columns, there.types))
        of_stream = stages.setdefault(stream.name, [])
        if not of_stream or of_stream[-1].columns != columns:
            of_stream.append(Stage(cursor, table, columns))
        of_stream[-1].add(cursor, as_named(there.columns, rows))


def as_named(columns, rows):
    """The rows with their columns' names as the table has them: BigQuery does not look at the case."""
    exact = set(columns)
    if all(row.keys() <= exact for row in rows):
        return rows
    names = {column.casefold(): column for column in columns}
    return [{names[key.casefold()]: value for key, value in row.items()} for row in rows]


def insert(group):
    """All or nothing, so that the streams of a table become visible together."""
    table = tables.name(*group[0].table)
    done = [stages.pop(stream.name, []) for stream in group]
    with database.cursor() as cursor:
        try:
            cursor.execute("BEGIN")
            for one in itertools.chain(*done):
                cursor.execute(f"INSERT INTO {table} ({one.names}) SELECT {one.names} FROM {one.name}")
            cursor.execute("COMMIT")
        except duckdb.Error as error:
            with contextlib.suppress(duckdb.Error):
                cursor.execute("ROLLBACK")
            for stream, of_stream in zip(group, done):
                stages[stream.name] = of_stream
            message = f"emulator: commit rejected: {error}"
            log.error(message)
            raise StorageError(grpc.StatusCode.INVALID_ARGUMENT, message) from None
        for one in itertools.chain(*done):
            cursor.execute(f"DROP TABLE {one.name}")


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
    for group in by_table.values():
        insert(group)
        for stream in group:
            stream.committed = now
    return types.BatchCommitWriteStreamsResponse(commit_time=now)


def partitioning(node):
    text = node.this.sql("bigquery").replace("bq.main.", "")  # the parser has its own macro of that name
    if text.upper().startswith("RANGE_BUCKET"):
        plain = sqlglot.parse_one(f"CREATE TABLE t (c INT64) PARTITION BY {text}", dialect="bigquery")
        node = plain.find(exp.PartitionedByProperty)
    return plain_partitioning(node)


def objects(project, dataset, table=None):
    if table is None:
        return plain_objects(project, dataset, table)
    if project not in database._attached:  # what a query has given
        try:
            (count,), = plain_fetch(f"SELECT count(*) FROM {database.quote(project, dataset, table)}")
        except duckdb.CatalogException:
            return []
        return [(table, "TABLE", count)]
    lake = database.quote(f"__ducklake_metadata_{project}")
    there = f"JOIN {lake}.ducklake_schema AS s USING (schema_id) WHERE s.schema_name = $1 AND s.end_snapshot IS NULL"
    return plain_fetch(
        f"""SELECT table_name, 'TABLE', coalesce(record_count, 0) FROM {lake}.ducklake_table AS t
              LEFT JOIN {lake}.ducklake_table_stats USING (table_id) {there} AND table_name = $2 AND t.end_snapshot IS NULL
            UNION ALL SELECT view_name, 'VIEW', 0 FROM {lake}.ducklake_view AS v {there} AND view_name = $2 AND v.end_snapshot IS NULL""",
        [dataset, table])


def fetch(sql, params=None):
    """Of the questions about columns there are two: which are required, and whether there is this one."""
    if "FROM duckdb_columns()" not in sql or params[0] not in database._attached:
        return plain_fetch(sql, params)
    project, *names = params
    lake = database.quote(f"__ducklake_metadata_{project}")
    asked = "column_name = $3" if len(names) > 2 else "NOT nulls_allowed"
    return plain_fetch(
        f"""SELECT column_name FROM {lake}.ducklake_column AS c
              JOIN {lake}.ducklake_table AS t USING (table_id) JOIN {lake}.ducklake_schema AS s USING (schema_id)
            WHERE s.schema_name = $1 AND t.table_name = $2 AND {asked} AND parent_column IS NULL
              AND s.end_snapshot IS NULL AND t.end_snapshot IS NULL AND c.end_snapshot IS NULL""",
        names)


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
write._decoder, database.objects, database.fetch = decoder, objects, fetch
sys.modules["pandas"] = None
server.SERVICES["google.cloud.bigquery.storage.v1.BigQueryWrite"]["BatchCommitWriteStreams"] = server._unary(
    commit, types.BatchCommitWriteStreamsRequest, types.BatchCommitWriteStreamsResponse
)

if __name__ == "__main__":
    link_extensions()
    cli.main()
