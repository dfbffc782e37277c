# The calendar of the todos that are still to be done. Those without a due date are kept too, because an amendment may
# give them one and says nothing else.

require_relative "espd_worker"

COLUMNS = %w[title description due_date stakeholder_email].freeze

EspdWorker.run do |event, espd|
  todo_id, body = event.values_at("aggregate_id", "body")
  case event["type"]
  when "TodoAdded"
    espd.upsert("scheduled_todos", { "todo_id" => todo_id, **COLUMNS.to_h { |column| [column, body[column]] } })
  when "TodoAmended"
    # An amendment holds only what changes; a null in it takes a value away.
    espd.upsert("scheduled_todos", { "todo_id" => todo_id, **body.slice(*COLUMNS) })
  else
    espd.delete("scheduled_todos", { "todo_id" => todo_id })
  end
end
