# Appends events from Python. It needs psycopg 3: pip install psycopg, or Debian's python3-psycopg.
#
#   DATABASE_URL=postgres://localhost/todos python3 append.py
import itertools
import json
import os
import random
import time
from datetime import timedelta
from uuid import uuid4

import psycopg
from psycopg.types.json import Jsonb


class Store:
    def __init__(self, url):
        self.url, self.connection = url, None

    def append(self, *events):
        """Appends events, all or none, and returns id and version of each, in the same order."""
        # By its uuid an event is recognised when this has to be said again. So it is drawn before the first try.
        for event in events:
            event.setdefault("uuid", str(uuid4()))
        stored = self.run("select id, version from espd.append(%s)", Jsonb(list(events)))
        self.run("notify espd_events")  # after the commit; readers look once a second anyway
        return stored

    def read(self, aggregate_id):
        """The events of an aggregate: type, body, version."""
        columns = "type, body, version"
        return self.run(f"select {columns} from espd.events where aggregate_id = %s order by version", aggregate_id)

    def run(self, statement, *arguments):
        """One statement in a transaction of its own, tried again where another try can help."""
        for attempt in itertools.count(1):
            try:
                if self.connection is None or self.connection.closed:
                    self.connection = psycopg.connect(self.url, autocommit=True)
                cursor = self.connection.execute(statement, arguments)
                return cursor.fetchall() if cursor.description else []
            except psycopg.Error as error:
                if attempt == 10 or not is_transient(error):
                    raise
                time.sleep(random.uniform(0, 0.005 * 2**attempt))


def is_transient(error):
    # No SQLSTATE: the connection is gone. Whether the events are stored is not known, and does not matter.
    state = error.sqlstate or "08000"
    return state.startswith(("08", "40", "57P"))


def decide(store, aggregate_id, decision):
    """Loads an aggregate, decides and appends; where another writer was faster, it loads and decides again."""
    while True:
        history = store.read(aggregate_id)
        version = history[-1][2] if history else 0
        events = [
            {"aggregate_id": aggregate_id, "expected_version": version + place, **event}
            for place, event in enumerate(decision(history))
        ]
        try:
            return store.append(*events)
        except psycopg.Error as error:
            if error.sqlstate != "ES001":
                raise


def refusal(store, *events):
    """How the store refuses events: the SQLSTATE, and a JSON object that says what about."""
    try:
        store.append(*events)
    except psycopg.Error as error:
        return error.sqlstate, json.loads(error.diag.message_detail)
    raise AssertionError("they are stored")


store = Store(os.environ["DATABASE_URL"])
todo, other = str(uuid4()), str(uuid4())

added = {"aggregate_id": todo, "type": "TodoAdded", "body": {"title": "buy milk"}, "expected_version": 0}
[(first, version)] = store.append(added)
print(f"added: version {version}")

# Another event that expects the aggregate to be new.
state, detail = refusal(store, {**added, "uuid": str(uuid4())})
print(f"{state}: expected {detail['expected']}, actual {detail['actual']}")

decisions = 0


def amend(history):
    global decisions
    decisions += 1
    if decisions == 1:  # another writer comes between
        store.append({"aggregate_id": todo, "type": "TodoAmended", "body": {"description": "two litres"}})
    return [{"type": "TodoAmended", "body": {"title": "buy oat milk"}}]


[(_, version)] = decide(store, todo, amend)
print(f"amended: version {version}, decided {decisions} times")

batch = [
    {"aggregate_id": todo, "type": "TodoCompleted", "body": {}},
    {"aggregate_id": other, "type": "TodoAdded", "body": {"title": "call mum"}, "metadata": {"user": "jo"}},
]
stored = store.append(*batch)
print("repeated: the same positions" if store.append(*batch) == stored else "stored twice")

state, detail = refusal(store, {**batch[0], "body": {"late": True}})
print(f"{state}: the uuid belongs to another event")
state, detail = refusal(store, {**added, "uuid": str(uuid4()), "expected_version": None}, {"type": "TodoAdded"})
print(f"{state}: event {detail['event']}")

# The read model has what was just appended.
[(reached,)] = store.run("select espd.wait_for('outstanding_todos', %s, '10 seconds')", stored[1][0])
[(title,)] = store.run("select title from outstanding_todos where todo_id = %s", other)
print(f"read: {reached} {title}")

reminder = {"aggregate_id": other, "type": "ReminderDue", "body": {}}
for wait in (timedelta(days=1), timedelta(days=2)):  # the second one replaces the first one
    store.run("select * from espd.append_after(%s, %s, %s)", wait, Jsonb(reminder), f"todo-{other}")
[(cancelled,)] = store.run("select espd.cancel_scheduled(%s)", f"todo-{other}")
store.run("select * from espd.append_after('0 seconds', %s, %s)", Jsonb(reminder), f"todo-{other}")
print(f"cancelled: {cancelled}")
