//! What stands between espd and its databases: URLs, hosts, TLS, poolers, policies.

mod failover;
mod poolers;
mod row_security;
mod two_ways;
mod urls;
