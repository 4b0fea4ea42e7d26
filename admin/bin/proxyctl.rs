//! The operator's tool: asks a running proxyd over its admin socket.

use std::process::ExitCode;

fn main() -> ExitCode {
    admin::ctl::main(std::env::args_os())
}
