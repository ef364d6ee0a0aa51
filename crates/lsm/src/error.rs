//! Errors, sorted by what the caller does next.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Cheap to clone, because every member of a commit group gets the same one.
#[derive(Clone, Debug)]
pub enum Error {
    /// The call was wrong: fix the input. Nothing was changed.
    InvalidInput(String),
    /// Stored bytes do not verify. Restore the file, copy the range from a replica, or repair;
    /// the answer is never a guess.
    Corruption {
        /// The file.
        file: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What was expected and what was found.
        what: String,
    },
    /// Something that the transaction read was changed before its commit: run it again. Nothing was
    /// changed.
    Conflict(String),
    /// The disk is full: the engine is read-only until space returns, then goes on by itself.
    NoSpace(String),
    /// The engine stopped, because a write to stable storage failed and nothing can be promised
    /// any more. Fix the cause and open again; what was acknowledged is there.
    Stopped(String),
    /// Another process has the directory open.
    Locked(PathBuf),
    /// The directory is not ours, or of a version this program does not read.
    Foreign {
        /// The directory or file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// An operation of the disk failed; this call failed, the engine goes on.
    Io {
        /// What was being done, with the path.
        context: String,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: Arc<io::Error>,
    },
}

impl Error {
    /// Names the file and offset of bytes that do not verify.
    pub fn corruption(file: &Path, offset: u64, what: impl Into<String>) -> Error {
        Error::Corruption { file: file.to_owned(), offset, what: what.into() }
    }

    /// Wraps an I/O error with what was being done to which file.
    pub fn io(doing: &str, path: &Path, source: io::Error) -> Error {
        if source.kind() == io::ErrorKind::StorageFull {
            return Error::NoSpace(format!("{doing} {}: no space left", path.display()));
        }
        let (context, path) = (format!("{doing} {}", path.display()), path.to_owned());
        Error::Io { context, path, source: Arc::new(source) }
    }

    /// Returns whether stored bytes did not verify.
    pub fn is_corruption(&self) -> bool {
        matches!(self, Error::Corruption { .. })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::InvalidInput(what) => f.write_str(what),
            Error::Corruption { file, offset, what } => {
                write!(f, "corruption in {} at offset {offset}: {what}", file.display())
            }
            Error::Conflict(what) => {
                write!(f, "the transaction conflicts with another: {what}; run it again")
            }
            Error::NoSpace(what) => write!(
                f,
                "the disk is full ({what}); writes are refused until space returns, reads go on"
            ),
            Error::Stopped(why) => write!(
                f,
                "the engine stopped: {why}; fix the cause and open it again, acknowledged writes \
                 are kept"
            ),
            Error::Locked(path) => write!(
                f,
                "{} is in use by another process; stop it or choose another directory",
                path.display()
            ),
            Error::Foreign { path, what } => write!(f, "{}: {what}", path.display()),
            Error::Io { context, source, .. } => write!(f, "{context}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source.as_ref()),
            _ => None,
        }
    }
}
