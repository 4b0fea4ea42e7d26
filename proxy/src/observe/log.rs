//! Log lines on stderr, written by a thread of their own: a stuck terminal or pipe loses lines (counted), never time.

use std::io;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;

use crate::config::{LogFormat, LogLevel};

/// Keeps the writer alive; what is queued is written when it is dropped.
#[derive(Debug)]
pub struct Log {
    _writer: WorkerGuard,
    dropped: ErrorCounter,
}

impl Log {
    /// Lines that were not written because nobody read them.
    pub fn dropped(&self) -> ErrorCounter {
        self.dropped.clone()
    }
}

/// Lines waiting for the writer; about 1 MiB of text.
const QUEUE: usize = 8192;

pub fn start(level: LogLevel, format: LogFormat) -> Log {
    let (writer, guard) = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(QUEUE).finish(io::stderr());
    let dropped = writer.error_counter();
    subscribe(level, format, writer);
    Log { _writer: guard, dropped }
}

fn subscribe(level: LogLevel, format: LogFormat, writer: NonBlocking) {
    let lines =
        tracing_subscriber::fmt().with_max_level(filter(level)).with_writer(writer).with_target(false).with_ansi(false);
    // A second start in one process (tests) keeps the first subscriber.
    let _ = match format {
        LogFormat::Text => tracing::subscriber::set_global_default(lines.finish()),
        LogFormat::Json => tracing::subscriber::set_global_default(lines.json().flatten_event(true).finish()),
    };
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
