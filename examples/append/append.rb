# Appends events from Ruby. It needs the gem pg: gem install pg, or Debian's ruby-pg.
#
#   DATABASE_URL=postgres://localhost/todos ruby append.rb
require "json"
require "pg"
require "securerandom"

class Store
  def initialize(url)
    @url = url
  end

  # Appends events, all or none, and returns id and version of each, in the same order.
  def append(*events)
    # By its uuid an event is recognised when this has to be said again. So it is drawn before the first try.
    events.each { |event| event[:uuid] ||= SecureRandom.uuid }
    stored = run("select id, version from espd.append($1)", JSON.generate(events))
    run("notify espd_events") # after the commit; readers look once a second anyway
    stored.map { |id, version| [id.to_i, version.to_i] }
  end

  # The events of an aggregate: type, body, version.
  def read(aggregate_id)
    rows = run("select type, body, version from espd.events where aggregate_id = $1 order by version", aggregate_id)
    rows.map { |type, body, version| [type, JSON.parse(body), version.to_i] }
  end

  # One statement in a transaction of its own, tried again where another try can help.
  def run(statement, *arguments)
    attempt = 0
    begin
      attempt += 1
      @connection ||= PG.connect(@url)
      @connection.exec_params(statement, arguments).values
    rescue PG::Error => error
      raise if attempt == 10 || !transient?(error)
      @connection = nil unless sqlstate(error).start_with?("40")
      sleep(rand * 0.005 * 2**attempt)
      retry
    end
  end

  # No SQLSTATE: the connection is gone. Whether the events are stored is not known, and does not matter.
  def transient?(error)
    sqlstate(error).start_with?("08", "40", "57P")
  end
end

def sqlstate(error)
  error.result&.error_field(PG::PG_DIAG_SQLSTATE) || "08000"
end

# Loads an aggregate, decides and appends; where another writer was faster, it loads and decides again.
def decide(store, aggregate_id)
  history = store.read(aggregate_id)
  version = history.empty? ? 0 : history.last[2]
  events = yield(history).each_with_index.map do |event, place|
    { aggregate_id: aggregate_id, expected_version: version + place, **event }
  end
  store.append(*events)
rescue PG::Error => error
  sqlstate(error) == "ES001" ? retry : raise
end

# How the store refuses events: the SQLSTATE, and a JSON object that says what about.
def refusal(store, *events)
  store.append(*events)
  abort "they are stored"
rescue PG::Error => error
  [sqlstate(error), JSON.parse(error.result.error_field(PG::PG_DIAG_MESSAGE_DETAIL))]
end

store = Store.new(ENV.fetch("DATABASE_URL"))
todo, other = SecureRandom.uuid, SecureRandom.uuid

added = { aggregate_id: todo, type: "TodoAdded", body: { title: "buy milk" }, expected_version: 0 }
_, version = store.append(added).first
puts "added: version #{version}"

# Another event that expects the aggregate to be new.
state, detail = refusal(store, added.merge(uuid: nil))
puts "#{state}: expected #{detail["expected"]}, actual #{detail["actual"]}"

decisions = 0
amended = decide(store, todo) do
  decisions += 1
  if decisions == 1 # another writer comes between
    store.append({ aggregate_id: todo, type: "TodoAmended", body: { description: "two litres" } })
  end
  [{ type: "TodoAmended", body: { title: "buy oat milk" } }]
end
puts "amended: version #{amended[0][1]}, decided #{decisions} times"

batch = [
  { aggregate_id: todo, type: "TodoCompleted", body: {} },
  { aggregate_id: other, type: "TodoAdded", body: { title: "call mum" }, metadata: { user: "jo" } },
]
stored = store.append(*batch)
puts store.append(*batch) == stored ? "repeated: the same positions" : "stored twice"

state, = refusal(store, batch[0].merge(body: { late: true }))
puts "#{state}: the uuid belongs to another event"
state, detail = refusal(store, added.merge(uuid: nil, expected_version: nil), { type: "TodoAdded" })
puts "#{state}: event #{detail["event"]}"

# The read model has what was just appended.
reached = store.run("select espd.wait_for('outstanding_todos', $1, '10 seconds')", stored[1][0])[0][0] == "t"
title = store.run("select title from outstanding_todos where todo_id = $1", other)[0][0]
puts "read: #{reached.to_s.capitalize} #{title}"

reminder = JSON.generate({ aggregate_id: other, type: "ReminderDue", body: {} })
["1 day", "2 days"].each do |wait| # the second one replaces the first one
  store.run("select * from espd.append_after($1, $2, $3)", wait, reminder, "todo-#{other}")
end
cancelled = store.run("select espd.cancel_scheduled($1)", "todo-#{other}")[0][0] == "t"
store.run("select * from espd.append_after('0 seconds', $1, $2)", reminder, "todo-#{other}")
puts "cancelled: #{cancelled.to_s.capitalize}"
