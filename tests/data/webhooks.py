"""Checks signatures with the library of Standard Webhooks: one JSON object a line, {"secret", "headers", "body"} (base64)."""

import base64
import json
import sys

from standardwebhooks import Webhook, WebhookVerificationError

for line in sys.stdin:
    request = json.loads(line)
    try:
        Webhook(request["secret"]).verify(base64.b64decode(request["body"]), request["headers"])
        print("good", flush=True)
    except WebhookVerificationError as error:
        print(f"bad: {error}", flush=True)
