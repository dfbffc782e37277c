"""The todos that are still to be done: one row from TodoAdded until TodoCompleted or TodoAbandoned."""

from espd_worker import run

COLUMNS = ["title", "description", "due_date", "stakeholder_email"]


def handle(event, espd):
    todo_id, body = event["aggregate_id"], event["body"]
    if event["type"] == "TodoAdded":
        espd.upsert("outstanding_todos", todo_id=todo_id, **{column: body.get(column) for column in COLUMNS})
    elif event["type"] == "TodoAmended":
        # An amendment holds only what changes; a null in it takes a value away.
        changes = {column: body[column] for column in COLUMNS if column in body}
        espd.upsert("outstanding_todos", todo_id=todo_id, **changes)
    else:
        espd.delete("outstanding_todos", todo_id=todo_id)


run(handle)
