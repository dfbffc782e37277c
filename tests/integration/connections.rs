//! What stands between espd and its databases: URLs, hosts, TLS, poolers, policies.

mod poolers;
mod row_security;
mod two_ways;
mod urls;
