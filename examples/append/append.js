// Appends events from Node. It needs the package pg: npm install pg
//
//   DATABASE_URL=postgres://localhost/todos node append.js
const { randomUUID } = require("node:crypto");
const { setTimeout: sleep } = require("node:timers/promises");
const { Client } = require("pg");

class Store {
  constructor(url) {
    this.url = url;
  }

  // Appends events, all or none, and returns id and version of each, in the same order. Ids are strings, as they may
  // be beyond what a number of JavaScript holds.
  async append(...events) {
    // By its uuid an event is recognised when this has to be said again. So it is drawn before the first try.
    for (const event of events) event.uuid ??= randomUUID();
    const stored = await this.run("select id, version from espd.append($1)", JSON.stringify(events));
    await this.run("notify espd_events"); // after the commit; readers look once a second anyway
    return stored;
  }

  // The events of an aggregate: type, body, version.
  async read(aggregateId) {
    const columns = "type, body, version::int";
    return this.run(`select ${columns} from espd.events where aggregate_id = $1 order by version`, aggregateId);
  }

  // One statement in a transaction of its own, tried again where another try can help.
  async run(statement, ...values) {
    for (let attempt = 1; ; attempt++) {
      try {
        return (await (await this.connection()).query(statement, values)).rows;
      } catch (error) {
        if (attempt === 10 || !isTransient(error)) throw error;
        await sleep(Math.random() * 5 * 2 ** attempt);
      }
    }
  }

  async connection() {
    if (!this.client) {
      const client = new Client({ connectionString: this.url });
      client.on("error", () => {});
      client.on("end", () => (this.client = undefined));
      await client.connect();
      this.client = client;
    }
    return this.client;
  }
}

// No SQLSTATE: the connection is gone. Whether the events are stored is not known, and does not matter.
function isTransient(error) {
  const state = /^[0-9A-Z]{5}$/.test(error.code) ? error.code : "08000";
  return /^(08|40|57P)/.test(state);
}

// Loads an aggregate, decides and appends; where another writer was faster, it loads and decides again.
async function decide(store, aggregateId, decision) {
  for (;;) {
    const history = await store.read(aggregateId);
    const version = history.at(-1)?.version ?? 0;
    const expecting = (event, place) => ({ aggregate_id: aggregateId, expected_version: version + place, ...event });
    try {
      return await store.append(...(await decision(history)).map(expecting));
    } catch (error) {
      if (error.code !== "ES001") throw error;
    }
  }
}

// How the store refuses events: the SQLSTATE, and a JSON object that says what about.
async function refusal(store, ...events) {
  try {
    await store.append(...events);
  } catch (error) {
    return { state: error.code, detail: JSON.parse(error.detail) };
  }
  throw new Error("they are stored");
}

async function main() {
  const store = new Store(process.env.DATABASE_URL);
  const [todo, other] = [randomUUID(), randomUUID()];

  const added = { aggregate_id: todo, type: "TodoAdded", body: { title: "buy milk" }, expected_version: 0 };
  const [{ version }] = await store.append(added);
  console.log(`added: version ${version}`);

  // Another event that expects the aggregate to be new.
  const conflict = await refusal(store, { ...added, uuid: undefined });
  console.log(`${conflict.state}: expected ${conflict.detail.expected}, actual ${conflict.detail.actual}`);

  let decisions = 0;
  const [amended] = await decide(store, todo, async () => {
    decisions += 1;
    if (decisions === 1) {
      // Another writer comes between.
      await store.append({ aggregate_id: todo, type: "TodoAmended", body: { description: "two litres" } });
    }
    return [{ type: "TodoAmended", body: { title: "buy oat milk" } }];
  });
  console.log(`amended: version ${amended.version}, decided ${decisions} times`);

  const batch = [
    { aggregate_id: todo, type: "TodoCompleted", body: {} },
    { aggregate_id: other, type: "TodoAdded", body: { title: "call mum" }, metadata: { user: "jo" } },
  ];
  const stored = await store.append(...batch);
  const again = await store.append(...batch);
  const isSame = again.every(({ id }, place) => id === stored[place].id);
  console.log(isSame ? "repeated: the same positions" : "stored twice");

  const reused = await refusal(store, { ...batch[0], body: { late: true } });
  console.log(`${reused.state}: the uuid belongs to another event`);
  const valid = { ...added, uuid: undefined, expected_version: undefined };
  const invalid = await refusal(store, valid, { type: "TodoAdded" });
  console.log(`${invalid.state}: event ${invalid.detail.event}`);

  // The read model has what was just appended.
  const [waited] = await store.run("select espd.wait_for('outstanding_todos', $1, '10 seconds')", stored[1].id);
  const [row] = await store.run("select title from outstanding_todos where todo_id = $1", other);
  console.log(`read: ${waited.wait_for ? "True" : "False"} ${row.title}`);

  const reminder = JSON.stringify({ aggregate_id: other, type: "ReminderDue", body: {} });
  for (const wait of ["1 day", "2 days"]) {
    // The second one replaces the first one.
    await store.run("select * from espd.append_after($1, $2, $3)", wait, reminder, `todo-${other}`);
  }
  const [{ cancelled }] = await store.run("select espd.cancel_scheduled($1) as cancelled", `todo-${other}`);
  await store.run("select * from espd.append_after('0 seconds', $1, $2)", reminder, `todo-${other}`);
  console.log(`cancelled: ${cancelled ? "True" : "False"}`);
  await store.client.end();
}

main();
