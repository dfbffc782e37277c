# Talks to espd as docs/worker-protocol.md says, so that a worker is one block: EspdWorker.run { |event, espd| … }

require "bigdecimal"
require "json"

# Numbers with a fraction are decimals, which keep their digits, and are written as numbers.
class BigDecimal
  def to_json(*) = to_s("F")
end

class EspdWorker
  attr_reader :actions

  def initialize
    @actions = []
  end

  # Sets these columns of the row with this key, or adds it.
  def upsert(table, row) = @actions << { upsert: table, row: row }

  # Deletes the rows that are equal in these columns.
  def delete(table, where) = @actions << { delete: table, where: where }

  # Emits an event: now, or later (at:, after:, key:).
  def emit(type, aggregate_id, body, **more)
    @actions << { emit: type, aggregate_id: aggregate_id, body: body, **more }
  end

  # Cancels what would be emitted later under this key.
  def cancel(key) = @actions << { cancel: key }

  # The row with this key as the events before have left it, or nil.
  def read(table, key)
    self.class.tell({ read: table, key: key }, flush: true)
    self.class.parse($stdin.gets)["row"]
  end

  # Bodies may be nested as deeply as they like.
  def self.parse(line) = JSON.parse(line, decimal_class: BigDecimal, max_nesting: false)

  def self.tell(message, flush: false)
    $stdout.write(JSON.generate(message, max_nesting: 0), "\n")
    $stdout.flush if flush
  end

  # Handles batch after batch, until espd has no more.
  def self.run(&handle)
    $stdin.set_encoding("UTF-8")
    $stdin.gets # hello
    tell({ ready: 1 }, flush: true)
    $stdin.each_line do |line|
      batch = parse(line)
      tell({ end: batch["batch"] }, flush: true) if batch["events"].all? { |event| handle_one(event, handle) }
    end
  end

  def self.handle_one(event, handle)
    espd = new
    handle.call(event, espd)
    tell({ done: event["id"], actions: espd.actions })
    true
  rescue StandardError => error
    detail = error.backtrace&.join("\n")
    tell({ failed: event["id"], error: "#{error.class}: #{error.message}", detail: detail }, flush: true)
    false
  end
end
