//! The findings of the doctor, examined at most once in ten seconds.
//!
//! An examination asks both databases a few dozen questions, on connections of its own. So one runs at a time, and
//! requests that come during it or soon after it get its findings as well.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::answer::ApiError;
use crate::config::Config;
use crate::operations::doctor::{self, Finding};

/// For how long findings are given again.
const VALIDITY: Duration = Duration::from_secs(10);

/// How long an examination waits for a connection.
const CONNECT_TIME: Duration = Duration::from_secs(3);

/// How long an examination may take.
const EXAMINATION_TIME: Duration = Duration::from_secs(30);

/// What the doctor has found. The field names are an interface: `docs/admin.md` lists them.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Examination {
    /// When the examination began.
    examined_at: DateTime<Utc>,
    findings: Vec<Finding>,
    #[serde(skip)]
    ended: Instant,
}

/// The last examination. The lock is held during an examination.
#[derive(Debug, Default)]
pub(super) struct Doctor {
    last: Arc<Mutex<Option<Examination>>>,
}

impl Doctor {
    /// The findings of the last [`VALIDITY`], or else of a new examination.
    ///
    /// # Errors
    /// The examination did not end in time.
    pub(super) async fn examine(&self, config: Arc<Config>) -> Result<Examination, ApiError> {
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some(recent) = last.as_ref().filter(|last| last.ended.elapsed() < VALIDITY) {
            return Ok(recent.clone());
        }
        // A task, so that an examination that takes longer than this request serves the next one.
        let examining = tokio::spawn(async move {
            let examined_at = Utc::now();
            let examined =
                timeout(EXAMINATION_TIME, doctor::examine(&config, "espd admin", CONNECT_TIME)).await;
            let findings = examined.ok()?;
            let examination = Examination { examined_at, findings, ended: Instant::now() };
            *last = Some(examination.clone());
            Some(examination)
        });
        let examination = examining.await.ok().flatten();
        examination.ok_or_else(|| ApiError::unavailable("the examination did not end in time"))
    }
}
