//! The server's log: lines on standard error about what goes on in the engine.
//!
//! The disk says what it was not granted, and the stores what fails, in lines that begin with
//! `atoll:`. A line that says the same as the one before is left out: a flush that fails for lack of
//! space is tried each second.

use std::fmt::Display;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use atoll_lsm::{
    BackgroundError, CompactionBegun, CompactionEnded, CorruptionFound, Error, EventListener,
    FlushBegun, FlushEnded, WriteDelayed, WriteStalled,
};
use serde::Deserialize;

/// How much is told.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    /// Nothing of the stores.
    Off,
    /// What somebody has to do something about.
    #[default]
    Warn,
    /// Flushes, compactions and slowed-down writers as well.
    Debug,
}

/// Where lines go.
type Sink = Box<dyn Fn(&str) + Send + Sync>;

/// Tells the events of stores.
pub(crate) struct Log {
    level: LogLevel,
    last: Mutex<String>,
    sink: Sink,
}

impl Log {
    /// Returns the log on standard error.
    pub(crate) fn new(level: LogLevel) -> Log {
        Log::to(level, Box::new(|line| eprintln!("{line}")))
    }

    fn to(level: LogLevel, sink: Sink) -> Log {
        Log { level, last: Mutex::default(), sink }
    }

    fn tell(&self, level: LogLevel, store: &Path, what: &dyn Display) {
        if level > self.level {
            return;
        }
        let name = match level {
            LogLevel::Debug => "debug",
            _ => "warn",
        };
        let line = format!("atoll: {name}: {}: {what}", store.display());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != line {
            (self.sink)(&line);
            *last = line;
        }
    }

    fn warn(&self, store: &Path, what: &dyn Display) {
        self.tell(LogLevel::Warn, store, what);
    }

    fn debug(&self, store: &Path, what: &dyn Display) {
        self.tell(LogLevel::Debug, store, what);
    }
}

impl EventListener for Log {
    fn background_error(&self, store: &Path, event: &BackgroundError) {
        self.warn(store, event);
    }

    fn callback_failed(&self, store: &Path, why: &Error) {
        self.warn(store, why);
    }

    fn read_only_entered(&self, store: &Path, why: &Error) {
        self.warn(store, why);
    }

    fn read_only_left(&self, store: &Path) {
        self.warn(store, &"there is space again: writes are accepted");
    }

    fn stopped(&self, store: &Path, why: &Error) {
        self.warn(store, why);
    }

    fn corruption_found(&self, store: &Path, event: &CorruptionFound) {
        self.warn(store, event);
    }

    fn events_lost(&self, store: &Path, count: u64) {
        self.warn(store, &format_args!("{count} events were not told: standard error is too slow"));
    }

    fn flush_begun(&self, store: &Path, event: &FlushBegun) {
        self.debug(store, event);
    }

    fn flush_ended(&self, store: &Path, event: &FlushEnded) {
        self.debug(store, event);
    }

    fn compaction_begun(&self, store: &Path, event: &CompactionBegun) {
        self.debug(store, event);
    }

    fn compaction_ended(&self, store: &Path, event: &CompactionEnded) {
        self.debug(store, event);
    }

    fn write_delayed(&self, store: &Path, event: &WriteDelayed) {
        self.debug(store, event);
    }

    fn write_delay_ended(&self, store: &Path) {
        self.debug(store, &"writes are not slowed down any more");
    }

    fn write_stalled(&self, store: &Path, event: &WriteStalled) {
        self.debug(store, event);
    }

    fn write_stall_ended(&self, store: &Path, waited: Duration) {
        self.debug(store, &format_args!("writes waited {waited:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_level_tells_its_own_lines_and_says_the_same_once() {
        for (level, expected) in [(LogLevel::Off, 0), (LogLevel::Warn, 2), (LogLevel::Debug, 3)] {
            let lines: Arc<Mutex<Vec<String>>> = Arc::default();
            let told = lines.clone();
            let log = Log::to(level, Box::new(move |line| told.lock().unwrap().push(line.into())));
            let store = Path::new("data/store-0");
            let full = Error::NoSpace("writing a table".to_owned());
            for _ in 0..3 {
                let error = full.clone();
                log.background_error(store, &BackgroundError { chore: "flush", error });
            }
            log.write_delay_ended(store);
            log.read_only_left(store);
            let lines = lines.lock().unwrap();
            assert_eq!(lines.len(), expected, "{level:?}: {lines:?}");
            assert!(
                lines.iter().all(|line| line.starts_with("atoll: ") && line.contains("store-0"))
            );
        }
    }
}
