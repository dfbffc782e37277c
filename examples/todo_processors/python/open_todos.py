"""A table of the todos that are still to be done, named on the command line."""

import sys

from espd_worker import run

TABLE = sys.argv[1]
COLUMNS = ("title", "description", "due_date", "stakeholder_email")


def handle(event, espd):
    todo_id, body = event["aggregate_id"], event["body"]
    if event["type"] in ("TodoAdded", "TodoAmended"):
        # An amendment holds only what changes; a null in it takes a value away.
        espd.upsert(TABLE, todo_id=todo_id, **{column: body[column] for column in COLUMNS if column in body})
    else:
        espd.delete(TABLE, todo_id=todo_id)


run(handle)
