//! Writing a file from front to end in large pieces.
//!
//! Appending fills memory and never waits; the owner writes out when a piece is complete, which bounds
//! the memory. Whatever writes large immutable files, tables or values, does it through here: a file
//! counts once [`Pieces::finish`] has synced it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_env::disk::IoClass;
use atoll_env::{File, IoBuf, IoTag};

use crate::error::{Error, Result};

/// Bytes of one write to the file.
const PIECE: usize = 256 << 10;
/// Bytes that are written before the kernel is told to begin with them: what a sync has to do at the end
/// is done at once, and every other sync of the disk waits behind it.
const WRITE_BACK: u64 = 1 << 20;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Table,
    Values,
    /// Values that were in another file before.
    MovedValues,
}

impl Subject {
    fn write_site(self) -> &'static str {
        match self {
            Subject::Table => "table write",
            Subject::Values => "value write",
            Subject::MovedValues => "value move",
        }
    }

    fn sync_site(self) -> &'static str {
        match self {
            Subject::Table => "table sync",
            Subject::Values => "value sync",
            Subject::MovedValues => "moved value sync",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Subject::Table => "table",
            Subject::Values | Subject::MovedValues => "value file",
        }
    }
}

/// The file as a stream of pieces.
pub(crate) struct Pieces {
    file: Arc<dyn File>,
    path: PathBuf,
    subject: Subject,
    class: IoClass,
    /// The piece being filled.
    open: IoBuf,
    /// Complete pieces, in order.
    full: VecDeque<IoBuf>,
    /// Offset of the first byte that was not written.
    written: u64,
    /// Memory of a written piece, to be filled again.
    spare: Option<IoBuf>,
    /// A write failed or was dropped before its end.
    broken: bool,
}

impl Pieces {
    pub(crate) fn new(
        file: Arc<dyn File>,
        path: &Path,
        subject: Subject,
        class: IoClass,
    ) -> Pieces {
        Pieces {
            file,
            path: path.to_owned(),
            subject,
            class,
            open: IoBuf::new(),
            full: VecDeque::new(),
            written: 0,
            spare: None,
            broken: false,
        }
    }

    /// Returns the offset of the byte appended next.
    pub(crate) fn end(&self) -> u64 {
        self.written + (self.full.len() * PIECE + self.open.len()) as u64
    }

    /// Returns whether a piece is complete and waits in memory to be written.
    pub(crate) fn is_full(&self) -> bool {
        !self.full.is_empty()
    }

    /// Appends bytes: fills memory only.
    pub(crate) fn append(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(PIECE - self.open.len()));
            self.open.extend_from_slice(now);
            bytes = rest;
            if self.open.len() == PIECE {
                let next = self.spare.take().unwrap_or_default();
                self.full.push_back(std::mem::replace(&mut self.open, next));
            }
        }
    }

    /// Writes the complete pieces.
    pub(crate) async fn write_out(&mut self) -> Result<()> {
        while let Some(piece) = self.full.pop_front() {
            self.write(piece).await?;
        }
        Ok(())
    }

    async fn write(&mut self, piece: IoBuf) -> Result<()> {
        if std::mem::replace(&mut self.broken, true) {
            return Err(Error::InvalidInput(format!(
                "an earlier write to {} failed; remove the file and write the {} again",
                self.path.display(),
                self.subject.name()
            )));
        }
        let len = piece.len() as u64;
        let tag = IoTag::new(self.class, self.subject.write_site());
        let written = self.file.write_at(tag, self.written, piece).await;
        let mut piece = written.map_err(|e| self.failure("writing", e))?;
        self.broken = false;
        let before = self.written;
        self.written += len;
        let (from, to) = (before / WRITE_BACK * WRITE_BACK, self.written / WRITE_BACK * WRITE_BACK);
        if from < to {
            self.file.start_write_back(tag, from..to);
        }
        piece.clear();
        self.spare = Some(piece);
        Ok(())
    }

    /// Writes what is left and syncs.
    pub(crate) async fn finish(&mut self) -> Result<()> {
        self.write_out().await?;
        let last = std::mem::take(&mut self.open);
        self.write(last).await?;
        let synced = self.file.sync(IoTag::new(self.class, self.subject.sync_site())).await;
        synced.map_err(|e| self.failure("syncing", e))
    }

    fn failure(&self, doing: &str, e: std::io::Error) -> Error {
        Error::io(&format!("{doing} {}", self.subject.name()), &self.path, e)
    }
}
