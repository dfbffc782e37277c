// Talks to espd as docs/worker-protocol.md says, so that a worker is one function: run(async (event, espd) => …)

import { once } from "node:events";
import { createInterface } from "node:readline";

const lines = createInterface({ input: process.stdin, crlfDelay: Infinity })[Symbol.asyncIterator]();

/** The next message, or undefined when espd has no more. */
async function hear() {
  const { value, done } = await lines.next();
  return done ? undefined : parse(value);
}

/** A number that a JavaScript number would round. It is passed on with all its digits; to calculate with it is an error. */
export class Exact {
  constructor(digits) { this.digits = digits; }
  toJSON() { return this.digits; }
  toString() { return this.digits; }
  valueOf() { throw new RangeError(`${this.digits} is no JavaScript number: use its digits`); }
}

/** Strings, so that no number is looked for in them, and numbers. */
const TOKENS = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

/** Parses a message. A number that would be rounded becomes an Exact. */
function parse(text) {
  const isKept = (token) => token[0] === '"' || String(Number(token)) === token.replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
  const marked = text.replace(TOKENS, (token) => (isKept(token) ? token : `{"\\u0000exact":"${token}"}`));
  return JSON.parse(marked, (_, value) => (value?.["\0exact"] === undefined ? value : new Exact(value["\0exact"])));
}

/** Writes messages, and waits where the pipe is full. */
async function say(messages) {
  const text = messages.map((message) => JSON.stringify(message) + "\n").join("");
  if (!process.stdout.write(text)) await once(process.stdout, "drain");
}

/** What may be done about the event at hand. It is done when the event is, together with its position. */
class Espd {
  actions = [];
  constructor(answers) { this.answers = answers; }
  /** Sets these columns of the row with this key, or adds it. */
  upsert(table, row) { this.actions.push({ upsert: table, row }); }
  /** Deletes the rows that are equal in these columns. */
  delete(table, where) { this.actions.push({ delete: table, where }); }
  /** Emits an event: now, or later (at, after, key). */
  emit(type, aggregateId, body, more = {}) {
    this.actions.push({ emit: type, aggregate_id: aggregateId, body, ...more });
  }
  /** Cancels what would be emitted later under this key. */
  cancel(key) { this.actions.push({ cancel: key }); }
  /** The row with this key as the events before have left it, or null. */
  async read(table, key) {
    await say([...this.answers.splice(0), { read: table, key }]);
    return (await hear()).row;
  }
}

/** Handles batch after batch, until espd has no more. */
export async function run(handle) {
  await hear(); // hello
  await say([{ ready: 1 }]);
  for (let message = await hear(); message; message = await hear()) {
    const answers = [];
    answers.push(await handleAll(message, handle, answers));
    await say(answers);
  }
}

async function handleAll({ batch, events }, handle, answers) {
  for (const event of events) {
    const espd = new Espd(answers);
    try {
      await handle(event, espd);
    } catch (error) {
      return { failed: event.id, error: String(error), detail: error?.stack };
    }
    answers.push({ done: event.id, actions: espd.actions });
  }
  return { end: batch };
}
