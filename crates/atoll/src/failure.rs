//! Why a command failed: one sentence for the person at the terminal, and an exit code.

use std::fmt;
use std::io;
use std::path::Path;

use atoll_lsm::Error;

/// A command's result.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Said on standard error; says what to do next. Exit code 1.
    Said(String),
    /// Standard output was closed by its reader (`atoll scan | head`): nothing to say, exit code 0.
    OutputClosed,
}

impl Failure {
    /// Makes a failure of a sentence without a full stop.
    pub(crate) fn new(sentence: impl Into<String>) -> Failure {
        // Causes from below may span lines; what we say is one.
        let sentence = sentence.into();
        Failure::Said(sentence.lines().map(str::trim).collect::<Vec<_>>().join(" "))
    }

    /// Makes a failure of the engine's error about the directory `data`, with what to do next
    /// where the engine cannot know it.
    pub(crate) fn of_data(data: &Path, error: Error) -> Failure {
        let dir = data.display();
        let next = match &error {
            Error::Corruption { .. } => format!(
                "; `atoll verify --data {dir}` shows how far it goes: restore a backup, or give up \
                 the damaged end of the log with `atoll repair --data {dir} --cut-log`"
            ),
            Error::Io { .. } => "; check the directory given with --data".to_owned(),
            Error::NoSpace(_) => "; make room on its disk".to_owned(),
            _ => String::new(),
        };
        Failure::new(format!("{error}{next}"))
    }

    /// Makes a failure of an error while writing to standard output.
    pub(crate) fn output(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::OutputClosed;
        }
        Failure::new(format!("standard output cannot be written: {error}; redirect it elsewhere"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Said(sentence) => f.write_str(sentence),
            Failure::OutputClosed => f.write_str("the reader of standard output is gone"),
        }
    }
}
