//! Clients of real services through the proxy, over upgrades and kills, on the connections they began with: PostgreSQL,
//! MariaDB, Redis, SSH and SFTP, MQTT. Each test is skipped, loudly, where the programs are not installed.
//!
//! Five upgrades and three kills each; with `PROXYD_LONG=1` fifty and twenty.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../harness/mod.rs"]
mod harness;

mod journey;
mod mariadb;
mod mqtt;
mod postgres;
mod redis;
mod ssh;
