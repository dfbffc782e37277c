// Talks to espd as docs/worker-protocol.md says, so that a worker is one function: run(async (event, espd) => …)

import { once } from "node:events";
import { createInterface } from "node:readline";

const lines = createInterface({ input: process.stdin, crlfDelay: Infinity })[Symbol.asyncIterator]();

/** The next message, or undefined when espd has no more. */
async function hear() {
  const { value, done } = await lines.next();
  return done ? undefined : parse(value);
}

/** Whether a message is written in which numbers are marked. */
let marking = false;

/**
 * A number that a JavaScript number would round. It is passed on as a number with all its digits; to calculate with it is an error.
 * `new Exact("12345678901234567890.12")` makes one.
 */
export class Exact {
  constructor(digits) {
    if (!NUMBER.test(digits)) throw new TypeError(`${digits} is no number of JSON`);
    this.digits = String(digits);
  }
  toJSON() { return marking ? `\0${this.digits}\0` : this.digits; }
  toString() { return this.digits; }
  valueOf() { throw new RangeError(`${this.digits} is no JavaScript number: use its digits`); }
}

/** A number of JSON. */
const NUMBER = /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?$/;

/** A message as JSON, where each Exact is a number. It is marked with NUL characters, which no text of PostgreSQL has. */
function encode(message) {
  marking = true;
  try {
    const text = JSON.stringify(message);
    return text.includes("\\u0000") ? text.replace(/"\\u0000([-+.\deE]+)\\u0000"/g, "$1") : text;
  } finally {
    marking = false;
  }
}

/** Numbers, and where strings begin, in which no number is looked for. */
const TOKENS = /"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

const isKept = (digits) => String(Number(digits)) === digits.replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");

/** Where the string ends that begins at `start`. It may have millions of characters, at which a regular expression gives up. */
function endOfString(text, start) {
  for (let end = start; ; ) {
    end = text.indexOf('"', end + 1);
    if (end < 0) return text.length;
    let escapes = end;
    while (text[escapes - 1] === "\\") escapes--;
    if ((end - escapes) % 2 === 0) return end + 1;
  }
}

/** Parses a message. A number that would be rounded becomes an Exact. */
function parse(text) {
  let [marked, kept] = ["", 0];
  TOKENS.lastIndex = 0;
  for (let token; (token = TOKENS.exec(text)); ) {
    if (token[0] === '"') {
      TOKENS.lastIndex = endOfString(text, token.index);
    } else if (!isKept(token[0])) {
      marked += `${text.slice(kept, token.index)}{"\\u0000exact":"${token[0]}"}`;
      kept = TOKENS.lastIndex;
    }
  }
  return kept === 0 ? JSON.parse(text) : unmark(JSON.parse(marked + text.slice(kept)));
}

/** Puts an Exact in the place of every number that was marked; not by recursion, because bodies may be nested deeply. */
function unmark(message) {
  const holders = [message];
  for (const holder of holders) {
    for (const [key, value] of Object.entries(holder)) {
      const digits = value?.["\0exact"];
      if (digits !== undefined) holder[key] = new Exact(digits);
      else if (typeof value === "object" && value !== null) holders.push(value);
    }
  }
  return message;
}

/** Writes messages, which are JSON, and waits where the pipe is full. */
async function say(messages) {
  if (!process.stdout.write(messages.map((message) => message + "\n").join(""))) await once(process.stdout, "drain");
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
    await say([...this.answers.splice(0), encode({ read: table, key })]);
    return (await hear()).row;
  }
}

/** Handles batch after batch, until espd has no more. */
export async function run(handle) {
  await hear(); // hello
  await say(['{"ready":1}']);
  for (let message = await hear(); message; message = await hear()) {
    const answers = [];
    answers.push(await handleAll(message, handle, answers));
    await say(answers);
  }
}

async function handleAll({ batch, events }, handle, answers) {
  for (const event of events) {
    const [espd, { id }] = [new Espd(answers), event];
    try {
      await handle(event, espd);
      // An id may have more digits than a number, and is written as one all the same.
      answers.push(`{"done":${id},"actions":${encode(espd.actions)}}`);
    } catch (error) {
      const said = JSON.stringify({ error: String(error), detail: error?.stack });
      return `{"failed":${id},${said.slice(1)}`;
    }
  }
  return JSON.stringify({ end: batch });
}
