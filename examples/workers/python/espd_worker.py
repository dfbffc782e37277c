"""Talks to espd as docs/worker-protocol.md says, so that a worker is one function: handle(event, espd)."""

import json
import re
import sys
import traceback
from decimal import Decimal


class Espd:
    """What may be done about the event at hand. It is done when the event is, together with its position."""

    def __init__(self):
        self.actions = []

    def upsert(self, table, **row):
        """Sets these columns of the row with this key, or adds it."""
        self.actions.append({"upsert": table, "row": row})

    def delete(self, table, **where):
        """Deletes the rows that are equal in these columns."""
        self.actions.append({"delete": table, "where": where})

    def emit(self, event_type, aggregate_id, body, **more):
        """Emits an event: now, or later (at=, after=, key=)."""
        self.actions.append({"emit": event_type, "aggregate_id": aggregate_id, "body": body, **more})

    def cancel(self, key):
        """Cancels what would be emitted later under this key."""
        self.actions.append({"cancel": key})

    def read(self, table, **key):
        """The row with this key as the events before have left it, or None."""
        send({"read": table, "key": key}, flush=True)
        return decode(sys.stdin.readline())["row"]


# Bodies may be nested deeply, and integers have thousands of digits.
sys.setrecursionlimit(20_000)
if hasattr(sys, "set_int_max_str_digits"):
    sys.set_int_max_str_digits(0)


def decode(line):
    """A message; numbers with a fraction keep all their digits."""
    return json.loads(line, parse_float=Decimal)


def encode(message):
    """A message as JSON, where each Decimal is a number with the digits that it has."""
    text = ENCODER.encode(message)
    return MARKED.sub(r"\1", text) if "\\u0000" in text else text


def mark(value):
    """Marks a number with NUL characters, which no text of PostgreSQL has."""
    if isinstance(value, Decimal) and value.is_finite():
        return f"\0{value}\0"
    raise TypeError(f"{value!r} cannot be written as JSON")


# Made once: it takes longer than what is made with it.
ENCODER = json.JSONEncoder(default=mark, separators=(",", ":"))
MARKED = re.compile(r'"\\u0000([^"]*)\\u0000"')


def send(message, flush=False):
    write(encode(message), flush)


def write(line, flush=False):
    sys.stdout.write(line + "\n")
    if flush:
        sys.stdout.flush()


def run(handle):
    """Handles batch after batch, until espd has no more."""
    json.loads(sys.stdin.readline())  # hello
    send({"ready": 1}, flush=True)
    for line in sys.stdin:
        batch = decode(line)
        for event in batch["events"]:
            espd = Espd()
            try:
                handle(event, espd)
                answer = encode({"done": event["id"], "actions": espd.actions})
            except Exception as error:
                detail = traceback.format_exc()
                send({"failed": event["id"], "error": f"{type(error).__name__}: {error}", "detail": detail}, flush=True)
                break
            write(answer)
        else:
            send({"end": batch["batch"]}, flush=True)
