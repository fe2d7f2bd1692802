"""Stands in for BigQuery's Storage Write API where speed is measured: checks offsets, counts rows, keeps none.

Listens on a free port of 127.0.0.1, whose number it prints. Its CPU is on this machine, unlike BigQuery's own.
"""

import concurrent.futures
import uuid

import grpc
from google.cloud.bigquery_storage_v1 import types
from google.protobuf import timestamp_pb2

SERVICE = "google.cloud.bigquery.storage.v1.BigQueryWrite"
REQUEST_BYTES_MAX = 10 << 20
Appended = types.AppendRowsResponse.pb()

rows_of = {}  # stream -> how many rows it has


def create(request, _):
    name = f"{request.parent}/streams/{uuid.uuid4()}"
    rows_of[name] = 0
    return types.WriteStream.pb()(name=name)


def append(requests, context):
    stream = None
    for request in requests:
        stream = request.write_stream or stream
        if stream not in rows_of:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no stream {stream}")
        if request.offset.value != rows_of[stream]:
            context.abort(grpc.StatusCode.OUT_OF_RANGE, f"offset {request.offset.value}, the stream has {rows_of[stream]} rows")
        rows_of[stream] += len(request.proto_rows.rows.serialized_rows)
        yield Appended(append_result=Appended.AppendResult(offset=request.offset))


def finalize(request, context):
    if request.name not in rows_of:
        context.abort(grpc.StatusCode.NOT_FOUND, f"no stream {request.name}")
    return types.FinalizeWriteStreamResponse.pb()(row_count=rows_of[request.name])


def commit(request, context):
    for name in request.write_streams:
        if rows_of.pop(name, None) is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no stream {name}")
    now = timestamp_pb2.Timestamp()
    now.GetCurrentTime()
    return types.BatchCommitWriteStreamsResponse.pb()(commit_time=now)


def handler(kind, function, request):
    return kind(function, request_deserializer=request.pb().FromString, response_serializer=lambda message: message.SerializeToString())


def serve():
    unary, both = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", REQUEST_BYTES_MAX)])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {
        "CreateWriteStream": handler(unary, create, types.CreateWriteStreamRequest),
        "AppendRows": handler(both, append, types.AppendRowsRequest),
        "FinalizeWriteStream": handler(unary, finalize, types.FinalizeWriteStreamRequest),
        "BatchCommitWriteStreams": handler(unary, commit, types.BatchCommitWriteStreamsRequest),
    })])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    serve()
