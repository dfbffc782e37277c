// The todos that were done, as they were when they were done. TodoCompleted says when, but not what: the rest is
// collected in a helper table until then.

import { run } from "./espd_worker.mjs";

const COLUMNS = ["title", "description", "due_date", "stakeholder_email"];

await run(async ({ type, aggregate_id: todo_id, body }, espd) => {
  switch (type) {
    case "TodoAdded":
      espd.upsert("incomplete_todos", { todo_id, ...pick((column) => body[column] ?? null) });
      break;
    case "TodoAmended":
      // An amendment holds only what changes; a null in it takes a value away.
      espd.upsert("incomplete_todos", { todo_id, ...pick((column) => body[column]) });
      break;
    case "TodoCompleted": {
      const todo = await espd.read("incomplete_todos", { todo_id });
      if (todo) espd.upsert("completed_todos", { ...todo, completed_on: body.completed_on ?? null });
      espd.delete("incomplete_todos", { todo_id });
      break;
    }
    default:
      espd.delete("incomplete_todos", { todo_id });
  }
});

/** The columns with these values; JSON leaves out what is undefined. */
function pick(value) {
  return Object.fromEntries(COLUMNS.map((column) => [column, value(column)]));
}
