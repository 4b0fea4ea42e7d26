//! The proxy behind `proxyd`. Read [`config`] first, then the path of a byte: [`listener`], [`pool`], [`session`]; then
//! who runs it: [`worker`] and, above all generations, [`keeper`]. What can be seen of it is in [`observe`].

#![forbid(unsafe_code)]

pub mod config;
pub mod demo;
pub mod keeper;
pub mod listener;
pub mod observe;
pub mod pool;
pub mod session;
pub mod version;
pub mod worker;
