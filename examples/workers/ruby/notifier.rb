# Notifies the stakeholder of a todo when it is done: once, also if espd or this program is killed in between.

require_relative "espd_worker"

EspdWorker.run do |event, espd|
  todo_id, body = event.values_at("aggregate_id", "body")
  case event["type"]
  when "TodoAdded", "TodoAmended"
    # TodoCompleted says when, but neither what nor for whom.
    espd.upsert("open_todos", { "todo_id" => todo_id, **body.slice("title", "stakeholder_email") })
  when "TodoCompleted"
    todo = espd.read("open_todos", { "todo_id" => todo_id })
    if todo && todo["stakeholder_email"]
      espd.emit("StakeholderNotified", todo_id, { to: todo["stakeholder_email"], about: todo["title"] })
    end
    espd.delete("open_todos", { "todo_id" => todo_id })
  else
    espd.delete("open_todos", { "todo_id" => todo_id })
  end
end
