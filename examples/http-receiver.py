#!/usr/bin/env python3
"""A sample receiver for walcast's HTTP sink. Python's standard library is all it needs.

    WEBHOOK_SECRETS=whsec_… examples/http-receiver.py [--port 8090] [--database events.db]

It checks the signature of each request as Standard Webhooks defines it, takes each event once however often it comes, keeps it in
SQLite, and answers only after that. Events, arrays and lines are taken, plain or by gzip.

    GET /         counts: {"events": …, "requests": …, "repeats": …, "refused": …}; the last three since its start
    GET /events   every event that it has, a line each: what `walcast verify` reads (HTTP_VERIFY_URL)

?history=UUID and ?content=UUID: the events of one history, of one content, in both.
"""

import argparse
import base64
import contextlib
import hashlib
import hmac
import json
import os
import sqlite3
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

TOLERANCE_SECONDS = 300
BODY_BYTES_MAX = 16 << 20


class Refused(Exception):
    """A request that is answered with a status of its own."""

    def __init__(self, status, why):
        super().__init__(why)
        self.status = status


def keys_of(secrets):
    """Each secret's key; several while one takes the other's place."""
    return [base64.b64decode(secret.removeprefix("whsec_")) for secret in secrets.replace(",", " ").split()]


def payload_of(body, encoding):
    """The body before it was compressed: that is what is signed. Never more than a request may have."""
    if encoding == "identity":
        return body
    if encoding != "gzip":
        raise Refused(415, "gzip or nothing")
    try:
        gzip = zlib.decompressobj(wbits=31)
        payload = gzip.decompress(body, BODY_BYTES_MAX)
    except zlib.error as error:
        raise Refused(400, "no gzip") from error
    if not gzip.eof:
        raise Refused(413, "too large, or cut off")
    return payload


def check_signature(keys, headers, body, now):
    """Nobody else has sent this, and nobody has kept it to send it later."""
    identifier, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not timestamp.isdigit() or abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        raise Refused(401, "the timestamp is too far from now")
    signed = f"{identifier}.{timestamp}.".encode() + body
    wanted = ["v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in keys]
    given = headers.get("webhook-signature", "").split()
    if not any(hmac.compare_digest(one, other) for one in wanted for other in given):
        raise Refused(401, "no signature fits")


def records_of(body):
    """The events as texts: one, an array, or a line each."""
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = [json.loads(line) for line in body.splitlines() if line.strip()]
    return parsed if isinstance(parsed, list) else [parsed]


def narrowed_by(query):
    """The end of a SELECT for what an address asks for, and its values."""
    asked = parse_qs(query)
    found = {column: asked[name][0] for name, column in (("history", "history"), ("content", "content_id")) if name in asked}
    return "".join(f" AND {column} = ?" for column in found), list(found.values())


class Store:
    """What came, each event once, and how often something came."""

    def __init__(self, path):
        self.lock = threading.Lock()
        self.connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute(
            "CREATE TABLE IF NOT EXISTS event (number INTEGER PRIMARY KEY, history TEXT, commit_lsn TEXT, ordinal INTEGER,"
            " content_id TEXT, record TEXT, UNIQUE (history, commit_lsn, ordinal))"
        )
        self.connection.execute("CREATE INDEX IF NOT EXISTS event_of_content ON event (content_id)")
        self.counts = {"requests": 0, "repeats": 0, "refused": 0}

    def take(self, history, records):
        """All of a request or nothing; an event is told by its history id, its commit and its place in that."""
        insert = "INSERT OR IGNORE INTO event (history, commit_lsn, ordinal, content_id, record) VALUES (?, ?, ?, ?, ?)"
        rows = [(history, one["commit_lsn"], one["ordinal"], one.get("content_id"), json.dumps(one)) for one in records]
        with self.lock:
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                taken = self.connection.executemany(insert, rows).rowcount
                self.connection.execute("COMMIT")
            except BaseException:
                self.connection.execute("ROLLBACK")
                raise
            self.counts["requests"] += 1
            self.counts["repeats"] += len(rows) - taken

    def refuse(self):
        with self.lock:
            self.counts["refused"] += 1

    def count(self, narrowed, values):
        with self.lock:
            events = self.connection.execute(f"SELECT count(*) FROM event WHERE true{narrowed}", values).fetchone()[0]
            return {"events": events} | self.counts

    def page(self, narrowed, values, after):
        """Some events in the order in which they came."""
        # by another index all would be sorted for each page
        select = f"SELECT number, record FROM event NOT INDEXED WHERE number > ?{narrowed} ORDER BY number LIMIT 1000"
        with self.lock:
            return self.connection.execute(select, [after, *values]).fetchall()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer's head and body are two packets
    keys, store = [], None

    def do_POST(self):  # noqa: N802
        try:
            self.take()
            self.answer(204)
        except Refused as refused:
            self.store.refuse()
            self.answer(refused.status, str(refused).encode())

    def take(self):
        length = int(self.headers.get("content-length", 0))
        if length > BODY_BYTES_MAX:
            self.close_connection = True
            raise Refused(413, "too large")
        body = payload_of(self.rfile.read(length), self.headers.get("content-encoding", "identity"))
        if self.keys:
            check_signature(self.keys, self.headers, body, time.time())  # before anything is made of the body
        history = self.headers.get("webhook-id", "").split(":")[0]
        try:
            self.store.take(history, records_of(body))
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(400, "not what walcast posts") from error

    def do_GET(self):  # noqa: N802
        url = urlsplit(self.path)
        narrowed, values = narrowed_by(url.query)
        if url.path == "/":
            return self.answer(200, json.dumps(self.store.count(narrowed, values)).encode(), "application/json")
        if url.path != "/events":
            return self.answer(404)
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson")
        self.send_header("connection", "close")
        self.end_headers()
        after = 0
        while rows := self.store.page(narrowed, values, after):
            self.wfile.write("".join(f"{record}\n" for _, record in rows).encode())
            after = rows[-1][0]

    def do_OPTIONS(self):  # noqa: N802
        self.answer(204)

    def answer(self, status, body=b"", content_type="text/plain"):
        self.send_response(status)
        if status != 204:
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Requests are counted and not told: an address may hold a token."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--database", default=":memory:")
    arguments = parser.parse_args()
    Handler.keys = keys_of(os.environ.get("WEBHOOK_SECRETS", ""))
    Handler.store = Store(arguments.database)
    server = ThreadingHTTPServer((arguments.host, arguments.port), Handler)
    print(f"http://{arguments.host}:{server.server_port}/", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
