//! The proxy behind `proxyd`: its [`config`], and what can be seen of it ([`observe`]).

#![forbid(unsafe_code)]

pub mod config;
pub mod observe;
