"""The reference of benches/command_worker.rs: reads the lines that the worker was given, and writes the changes that it wrote."""

import json
import sys
import time

COLUMNS = ["title", "description", "due_date", "stakeholder_email"]

handled = 0
begun = time.perf_counter()
for line in sys.stdin:
    for event in json.loads(line).get("events", ()):
        row = {"todo_id": event["aggregate_id"]}
        body = event["body"]
        if event["type"] == "TodoAdded":
            row.update((column, body.get(column)) for column in COLUMNS)
            action = {"upsert": "worker_todos", "row": row}
        elif event["type"] == "TodoAmended":
            row.update((column, body[column]) for column in COLUMNS if column in body)
            action = {"upsert": "worker_todos", "row": row}
        else:
            action = {"delete": "worker_todos", "where": row}
        sys.stdout.write(json.dumps({"done": event["id"], "actions": [action]}) + "\n")
        handled += 1
print(handled / (time.perf_counter() - begun), file=sys.stderr)
