"""The todos that were done, as they were when they were done. A helper table keeps the open ones until then."""

from espd_worker import run

COLUMNS = ("title", "description", "due_date", "stakeholder_email")


def handle(event, espd):
    todo_id, body = event["aggregate_id"], event["body"]
    if event["type"] in ("TodoAdded", "TodoAmended"):
        known = {column: body[column] for column in COLUMNS if column in body}
        espd.upsert("incomplete_todos", todo_id=todo_id, **known)
        return
    if event["type"] == "TodoCompleted":
        todo = espd.read("incomplete_todos", todo_id=todo_id)
        if todo:
            espd.upsert("completed_todos", **todo, completed_on=body.get("completed_on"))
    espd.delete("incomplete_todos", todo_id=todo_id)


run(handle)
