//! Settings of the watcher.

use std::time::Duration;

/// How the watcher watches.
#[derive(Debug, Clone)]
pub struct WatcherSettings {
    /// Interval between looks while events arrive. Default: 1 ms.
    pub shortest_interval: Duration,
    /// Longest interval while events arrive faster than looks. Default: 40 ms.
    pub busy_interval: Duration,
    /// Longest interval while a writer holds the horizon back. Default: 25 ms.
    pub held_interval: Duration,
    /// Longest interval while nothing happens. An event without a notification is noticed that late. Default: 1 s.
    pub idle_interval: Duration,
    /// How long nothing must have happened until looks are five times as rare, in a store whose writers ring. Default: 30 s.
    pub quiet_after: Duration,
    /// How long the server may take to accept a connection or to answer, before the connection is
    /// thrown away. Default: 5 s.
    pub answer_timeout: Duration,
    /// Longest delay before connecting again. Default: 2 s.
    pub reconnect_delay_max: Duration,
    /// Whether to listen for notifications. Switch it off behind a transaction pooler, where
    /// listening looks as if it worked. Default: true.
    pub listen: bool,
    /// Whether only what outlives a crash of the server counts as settled: where positions are kept on
    /// another server. Default: false.
    pub durable_only: bool,
    /// After how long a writer that holds the horizon back is named in [`Horizon::held_by`](crate::store::horizon::Horizon).
    /// Default: 1 s.
    pub name_after: Duration,
    /// After how long such a writer is named in the log, again at twice the interval each time. Default: 5 s.
    pub warn_after: Duration,
}

impl Default for WatcherSettings {
    fn default() -> Self {
        Self {
            shortest_interval: Duration::from_millis(1),
            busy_interval: Duration::from_millis(40),
            held_interval: Duration::from_millis(25),
            idle_interval: Duration::from_secs(1),
            quiet_after: Duration::from_secs(30),
            answer_timeout: Duration::from_secs(5),
            reconnect_delay_max: Duration::from_secs(2),
            listen: true,
            durable_only: false,
            name_after: Duration::from_secs(1),
            warn_after: Duration::from_secs(5),
        }
    }
}
