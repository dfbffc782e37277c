//! Emits an event for each todo that is done and has a stakeholder, so that the stakeholder can be notified. Each todo leads
//! to one such event, however often the program is killed.

use async_trait::async_trait;
use espd::native::{
    Delivery, EventType, HandlerError, OnFailure, Reactor, ReactorContext, Registration, Start,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::events::{Fields, TodoAbandoned, TodoAdded, TodoAmended, TodoCompleted};

/// The event that the notifier emits: somebody has to be told that this todo is done.
#[derive(Serialize, Deserialize)]
pub(crate) struct Notified {
    title: String,
    stakeholder_email: String,
}

impl EventType for Notified {
    const NAME: &'static str = "StakeholderNotifiedOfTodoCompletion";
}

/// Keeps the title and the stakeholder of each open todo in a table, because `TodoCompleted` has neither.
pub(crate) struct Notifier;

impl Notifier {
    /// Starts with the first event of the store, because todos that are open now may have been added long ago. A todo that cannot
    /// be handled is set aside, and the notifications of others go on.
    pub(crate) fn registration() -> Registration {
        Registration::reactor("todo_completed_notifier")
            .handles::<TodoAdded>()
            .handles::<TodoAmended>()
            .handles::<TodoCompleted>()
            .handles::<TodoAbandoned>()
            .emits::<Notified>()
            .start(Start::Beginning)
            .max_attempts(10)
            .on_failure(OnFailure::Park)
            .table(
                "notifiable_todos",
                "todo_id uuid primary key, title text not null, stakeholder_email text",
            )
    }
}

#[async_trait]
impl Reactor for Notifier {
    async fn react(
        &mut self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        if let Some(TodoAdded(todo)) = event.read()? {
            return remember(event, &todo, context).await;
        }
        if let Some(TodoAmended(changes)) = event.read()? {
            return amend(event, &changes, context).await;
        }
        let known = forget(event, context).await?;
        if let (Some(TodoCompleted { .. }), Some((title, Some(stakeholder_email)))) = (event.read()?, known) {
            context.emit(&event.aggregate_id, &Notified { title, stakeholder_email })?;
        }
        Ok(())
    }
}

async fn remember(
    event: &Delivery,
    todo: &Fields,
    context: &mut ReactorContext<'_>,
) -> Result<(), HandlerError> {
    let text = |name: &str| todo.get(name).and_then(Value::as_str);
    sqlx::query("insert into notifiable_todos (todo_id, title, stakeholder_email) values ($1, $2, $3)")
        .bind(&event.aggregate_id)
        .bind(text("title"))
        .bind(text("stakeholder_email"))
        .execute(context.connection().await?)
        .await?;
    Ok(())
}

async fn amend(
    event: &Delivery,
    changes: &Fields,
    context: &mut ReactorContext<'_>,
) -> Result<(), HandlerError> {
    sqlx::query(
        "update notifiable_todos set
           title             = case when $2 ? 'title' then $2->>'title' else title end,
           stakeholder_email = case when $2 ? 'stakeholder_email' then $2->>'stakeholder_email' else stakeholder_email end
         where todo_id = $1",
    )
    .bind(&event.aggregate_id)
    .bind(sqlx::types::Json(changes))
    .execute(context.connection().await?)
    .await?;
    Ok(())
}

/// Removes a todo that is done or given up. Returns its title and stakeholder.
async fn forget(
    event: &Delivery,
    context: &mut ReactorContext<'_>,
) -> Result<Option<(String, Option<String>)>, HandlerError> {
    let delete = "delete from notifiable_todos where todo_id = $1 returning title, stakeholder_email";
    let query = sqlx::query_as(delete).bind(&event.aggregate_id);
    Ok(query.fetch_optional(context.connection().await?).await?)
}
