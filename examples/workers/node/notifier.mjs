// Notifies the stakeholder of a todo when it is done: once, also if espd or this program is killed in between.

import { run } from "./espd_worker.mjs";

await run(async ({ type, aggregate_id: todo_id, body }, espd) => {
  switch (type) {
    case "TodoAdded":
    case "TodoAmended":
      // TodoCompleted says when, but neither what nor for whom.
      espd.upsert("open_todos", { todo_id, title: body.title, stakeholder_email: body.stakeholder_email });
      break;
    case "TodoCompleted": {
      const todo = await espd.read("open_todos", { todo_id });
      if (todo?.stakeholder_email) {
        espd.emit("StakeholderNotified", todo_id, { to: todo.stakeholder_email, about: todo.title });
      }
      espd.delete("open_todos", { todo_id });
      break;
    }
    default:
      espd.delete("open_todos", { todo_id });
  }
});
