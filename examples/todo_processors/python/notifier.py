"""Tells the stakeholder of a todo that it is done, once."""

from espd_worker import run


def handle(event, espd):
    todo_id, body = event["aggregate_id"], event["body"]
    if event["type"] in ("TodoAdded", "TodoAmended"):
        # TodoCompleted says nothing of the todo.
        known = {column: body[column] for column in ("title", "stakeholder_email") if column in body}
        espd.upsert("notifiable_todos", todo_id=todo_id, **known)
        return
    if event["type"] == "TodoCompleted":
        todo = espd.read("notifiable_todos", todo_id=todo_id)
        if todo and todo["stakeholder_email"] is not None:
            body = {"title": todo["title"], "stakeholder_email": todo["stakeholder_email"]}
            espd.emit("StakeholderNotifiedOfTodoCompletion", todo_id, body)
    espd.delete("notifiable_todos", todo_id=todo_id)


run(handle)
