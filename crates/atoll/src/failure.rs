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
            Error::Corruption { file, .. } => {
                let last_resort = match last_resort(file) {
                    Some((what, flag)) => {
                        format!(", or give up {what} with `atoll repair --data {dir} {flag}`")
                    }
                    None => String::new(),
                };
                format!(
                    "; `atoll verify --data {dir}` shows how far it goes: restore a \
                     backup{last_resort}"
                )
            }
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

/// Returns what can be given up when a file is damaged, and the flag of `atoll repair` that does it:
/// nothing makes up for what says whose the directory is and which tables count.
fn last_resort(file: &Path) -> Option<(&'static str, &'static str)> {
    // A segment that is missing is reported by its name or by its folder's.
    let of_log = file.extension().is_some_and(|ext| ext == "log") || file.ends_with("log");
    if of_log {
        return Some(("the damaged end of the log", "--cut-log"));
    }
    match file.extension()?.to_str()? {
        "sst" => Some(("the tables that do not verify", "--drop-corrupt-tables")),
        "val" => Some(("the values of a missing file", "--drop-lost-values")),
        _ => None,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_repair_can_mend_is_offered_to_it() {
        for (file, flag) in [
            ("d/store-0/log/0000000001.log", Some("--cut-log")),
            ("d/store-0/log", Some("--cut-log")),
            ("d/store-0/tables/00000007.sst", Some("--drop-corrupt-tables")),
            ("d/ATOLL", None),
            ("d/store-0/CURRENT", None),
            ("d/store-0/manifest-000001", None),
        ] {
            let error = Error::corruption(Path::new(file), 0, "it does not verify");
            let said = Failure::of_data(Path::new("d"), error).to_string();
            assert!(said.contains("restore a backup"), "{said}");
            match flag {
                Some(flag) => assert!(said.ends_with(&format!("{flag}`")), "{said}"),
                None => assert!(!said.contains("atoll repair"), "{said}"),
            }
        }
    }
}
