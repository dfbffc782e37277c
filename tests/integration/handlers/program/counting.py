"""A worker that counts events, in its memory and in a row, and misbehaves at one of them until it is told not to.

It knows the protocol by itself, so that it can break it. What it remembers is what the database says, if espd ends it
whenever that is not so: `place` is then 1, 2, 3 … without a gap or a double.
"""

import json
import os
import signal
import sys
import time

MODE, TABLE = sys.argv[1], sys.argv[2]
POISON = 500


def write(text):
    sys.stdout.write(text)
    sys.stdout.flush()


def say(message):
    write(json.dumps(message) + "\n")


def hear():
    line = sys.stdin.readline()
    return json.loads(line) if line else sys.exit(0)


def is_healed():
    return os.path.exists("healed")


def before_the_greeting():
    if MODE == "eager":
        say({"done": 1})
    elif MODE == "other_version":
        say({"ready": 2})
    elif MODE == "ready_twice":
        say({"ready": 1})
    elif MODE == "mute":
        time.sleep(600)
    elif MODE == "stillborn":
        print("no such module: todos", file=sys.stderr)
        sys.exit(1)


def misbehave(event, batch):
    """Does what it does instead of answering; returns the actions of an answer, if there is one after all."""
    number = event["id"]
    if MODE == "no_json":
        write("Traceback (most recent call last):\n")
    elif MODE == "endless_line":
        for _ in range(100):
            write("x" * (1 << 20))
    elif MODE == "no_text":
        sys.stdout.buffer.write(b"\xff\xfe\n")
        sys.stdout.flush()
    elif MODE == "half_a_line":
        write('{"done":%d,"acti' % number)
        sys.exit(0)
    elif MODE == "unknown_event":
        say({"done": number + 1_000_000})
    elif MODE == "out_of_order":
        say({"done": number + 1})
    elif MODE == "twice":
        say({"done": number - 1})
    elif MODE == "ends_early":
        say({"end": batch})
    elif MODE == "unknown_table":
        return [{"upsert": "nothing", "row": {"id": 1}}]
    elif MODE == "unknown_column":
        return [{"upsert": TABLE, "row": {"event_id": number, "nothing": 1}}]
    elif MODE == "bad_row":
        return [{"upsert": TABLE, "row": {"event_id": number, "place": -1}}]
    elif MODE == "bad_read":
        say({"read": TABLE, "key": {"event_id": "x"}})
    elif MODE == "emits":
        return [{"emit": "Undeclared", "aggregate_id": event["aggregate_id"], "body": {}}]
    elif MODE == "exits":
        sys.exit(0)
    elif MODE in ("crashes", "crashes_unflushed"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif MODE == "gives_up":
        say({"failed": number, "error": "no title", "detail": "at line 7"})
    elif MODE == "stuck":
        time.sleep(600)
    elif MODE == "chatters":
        while True:
            say({"log": "still thinking"})
            time.sleep(0.0005)
    elif MODE == "floods":
        for _ in range(4_000):
            os.write(2, b"w" * 4_999 + b"\n")
        sys.exit(3)
    elif MODE == "closes":
        os.close(1)
        time.sleep(600)
    elif MODE == "hoards":
        hoard = "x" * (200 << 20)
        time.sleep(600)
        return hoard
    time.sleep(600)


def main():
    before_the_greeting()
    hear()
    say({"ready": 1})
    if MODE == "never_reads" and not is_healed():
        time.sleep(600)
    total = None
    while True:
        batch = hear()
        for event in batch["events"]:
            if total is None:
                say({"read": TABLE + "_total", "key": {"id": 1}})
                row = hear()["row"]
                total = row["total"] if row else 0
            actions = [
                {"upsert": TABLE, "row": {"event_id": event["id"], "place": total + 1}},
                {"upsert": TABLE + "_total", "row": {"id": 1, "total": total + 1}},
            ]
            if event["body"]["n"] == POISON and MODE != "well" and not is_healed():
                actions = misbehave(event, batch["batch"])
            total += 1
            answer = json.dumps({"done": event["id"], "actions": actions}) + "\n"
            sys.stdout.write(answer)
            if MODE != "crashes_unflushed":
                sys.stdout.flush()
        say({"end": batch["batch"] + (MODE == "other_batch" and not is_healed())})


main()
