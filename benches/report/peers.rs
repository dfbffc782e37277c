//! Figures of other frameworks, which were measured once and are not measured again beside ours.

use serde::Deserialize;

const KNOWN: &str = include_str!("../peers.json");

#[derive(Debug, Deserialize)]
pub(crate) struct Peers {
    /// When and where.
    pub(crate) source: String,
    pub(crate) figures: Vec<Peer>,
}

/// A figure that one of ours is compared with.
#[derive(Debug, Deserialize)]
pub(crate) struct Peer {
    pub(crate) bench: String,
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) who: String,
    pub(crate) figure: f64,
}

pub(crate) fn known() -> anyhow::Result<Peers> {
    Ok(serde_json::from_str(KNOWN)?)
}
