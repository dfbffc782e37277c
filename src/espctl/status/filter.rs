//! Which processors `espctl status` shows.

use clap::Args;
use clap::builder::PossibleValuesParser;
use glob::Pattern;

use crate::operations::status::{ProcessorState, ProcessorStatus};

/// Chooses processors. All criteria have to be met.
#[derive(Args)]
pub(super) struct Filter {
    /// Only these processors
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Only those in one of these states
    #[arg(long, value_name = "STATE", value_delimiter = ',',
          value_parser = PossibleValuesParser::new(ProcessorState::ALL.map(ProcessorState::as_str)))]
    state: Vec<String>,
    /// Only those whose name contains this text, or matches it if it has a `*`
    #[arg(long, value_name = "TEXT", value_parser = parse_pattern)]
    name: Option<Pattern>,
}

fn parse_pattern(text: &str) -> Result<Pattern, glob::PatternError> {
    if text.contains('*') {
        Pattern::new(text)
    } else {
        Pattern::new(&format!("*{}*", Pattern::escape(text)))
    }
}

impl Filter {
    /// Refuses a name that no processor has: it is probably mistyped.
    pub(super) fn require_known(&self, all: &[ProcessorStatus]) -> anyhow::Result<()> {
        let unknown = self.names.iter().find(|name| !all.iter().any(|status| status.name == **name));
        let Some(unknown) = unknown else { return Ok(()) };
        let mut known: Vec<&str> = all.iter().map(|status| status.name.as_str()).collect();
        known.dedup();
        let others =
            if known.is_empty() { String::new() } else { format!("; there are {}", known.join(", ")) };
        anyhow::bail!(
            "no processor {unknown}: it is not declared, and it has never run on this database{others}"
        );
    }

    /// The processors that meet all criteria.
    pub(super) fn apply(&self, mut statuses: Vec<ProcessorStatus>) -> Vec<ProcessorStatus> {
        statuses.retain(|status| self.is_met(status));
        statuses
    }

    fn is_met(&self, status: &ProcessorStatus) -> bool {
        let state = status.state.as_str();
        (self.names.is_empty() || self.names.contains(&status.name))
            && (self.state.is_empty() || self.state.iter().any(|wanted| wanted == state))
            && self.name.as_ref().is_none_or(|pattern| pattern.matches(&status.name))
    }
}
