//! A panic in a data thread ends the process: a worker that lost a part of itself would look alive and serve nobody. The
//! keeper sees it die, keeps the listening sockets, and starts another.

/// Held by a thread or a task: dropped by a panic, it aborts; dropped otherwise, it does nothing.
#[derive(Debug)]
pub struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a data thread panicked; the process ends");
            std::process::abort();
        }
    }
}
