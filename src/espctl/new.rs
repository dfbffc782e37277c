//! `espctl new`: a project that writes events, and what is added to it later.

mod addition;
mod declared;
mod formatting;
mod naming;
mod project;
mod type_text;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use crate::espctl::output;
use naming::{Field, Name};

#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "The project is a web service: commands come in over HTTP and become events, processors in SQL keep tables up to date,\n\
    queries read them. It has tests of its own and a README. The words below add to the project in the current folder.\n\n\
    Examples:\n  \
    espctl new shop && cd shop && cargo test\n  \
    espctl new event OrderPaid amount:u32 --aggregate order\n  \
    espctl new command PayOrder amount:u32 --aggregate order --event OrderPaid\n  \
    espctl new projector sales --events OrderPaid"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    addition: Option<Addition>,
    /// Name of the project and of its folder: small letters, digits and underscores
    #[arg(required = true)]
    name: Option<Name>,
    /// A folder with the source of espd, for the dependency of the project; otherwise the version of this program
    #[arg(long, value_name = "CHECKOUT")]
    espd_path: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Addition {
    /// Add an aggregate: a file in src/ with an event, a command and a test, and its route
    Aggregate {
        /// Its name, as that of its file: order
        name: Name,
    },
    /// Add an event to an aggregate
    Event {
        /// Its name: OrderPaid
        name: Name,
        /// Its fields, as name:Type; without a type String. A type that is not of Rust itself has its path: due:chrono::NaiveDate
        fields: Vec<Field>,
        /// Which aggregate, as its file in src/ is called
        #[arg(long)]
        aggregate: Name,
    },
    /// Add a command to an aggregate, and its route. Its event has the same fields, and is added if it is not there
    Command {
        /// Its name: PayOrder
        name: Name,
        /// Its fields, as name:Type; without a type String. A type that is not of Rust itself has its path: due:chrono::NaiveDate
        fields: Vec<Field>,
        /// Which aggregate, as its file in src/ is called
        #[arg(long)]
        aggregate: Name,
        /// The event that the command leads to
        #[arg(long)]
        event: Name,
    },
    /// Add a projector: a file in processors/ with a table
    Projector {
        /// Its name, which is also that of its table: sales
        name: Name,
        /// The types of events that it handles
        #[arg(long, required = true, value_delimiter = ',')]
        events: Vec<Name>,
    },
    /// Add a reactor: a file in processors/
    Reactor {
        /// Its name: receipts
        name: Name,
        /// The types of events that it handles
        #[arg(long, required = true, value_delimiter = ',')]
        events: Vec<Name>,
        /// The type of events that it emits
        #[arg(long)]
        emits: Name,
    },
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { addition, name, espd_path } = arguments;
    let here = std::env::current_dir().context("the current folder cannot be read")?;
    let done = match (addition, name) {
        (Some(addition), _) => add(&here, &addition)?,
        (None, Some(name)) => project::create(&here, &name, espd_path.as_deref())?,
        (None, None) => anyhow::bail!("say a name: espctl new shop"),
    };
    output::print(&done.join("\n"))
}

/// Adds to the project in a folder, and says what was written.
fn add(project: &Path, addition: &Addition) -> anyhow::Result<Vec<String>> {
    require_distinct(addition)?;
    match addition {
        Addition::Aggregate { name } => addition::aggregate(project, name),
        Addition::Event { name, fields, aggregate } => addition::event(project, name, fields, aggregate),
        Addition::Command { name, fields, aggregate, event } => {
            addition::command(project, name, fields, aggregate, event)
        }
        Addition::Projector { name, events } => addition::projector(project, name, events),
        Addition::Reactor { name, events, emits } => addition::reactor(project, name, events, emits),
    }
}

/// Refuses a field or an event that is given twice: it would be written twice.
fn require_distinct(addition: &Addition) -> anyhow::Result<()> {
    let (what, names): (_, Vec<String>) = match addition {
        Addition::Aggregate { .. } => return Ok(()),
        Addition::Event { fields, .. } | Addition::Command { fields, .. } => {
            ("field", fields.iter().map(|field| field.name.as_str().to_owned()).collect())
        }
        Addition::Projector { events, .. } | Addition::Reactor { events, .. } => {
            ("event", events.iter().map(Name::camel).collect())
        }
    };
    let twice = (1..names.len()).find(|place| names[..*place].contains(&names[*place]));
    twice.map_or(Ok(()), |place| anyhow::bail!("the {what} {} is given twice", names[place]))
}
