"""Notifies the stakeholder of a todo when it is done: once, also if espd or this program is killed in between."""

from espd_worker import run


def handle(event, espd):
    todo_id, body = event["aggregate_id"], event["body"]
    if event["type"] in ("TodoAdded", "TodoAmended"):
        # TodoCompleted says when, but neither what nor for whom.
        known = {column: body[column] for column in ("title", "stakeholder_email") if column in body}
        espd.upsert("open_todos", todo_id=todo_id, **known)
    elif event["type"] == "TodoCompleted":
        todo = espd.read("open_todos", todo_id=todo_id)
        if todo and todo["stakeholder_email"]:
            espd.emit("StakeholderNotified", todo_id, {"to": todo["stakeholder_email"], "about": todo["title"]})
        espd.delete("open_todos", todo_id=todo_id)
    else:
        espd.delete("open_todos", todo_id=todo_id)


run(handle)
