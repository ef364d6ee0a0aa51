//! The applied state as a command sees it: what of the tree is in memory, at once.
//!
//! A read is polled once. If it cannot end without the disk, it is kept, and the command is
//! interrupted; when the read has ended its result is remembered and the command runs again. What
//! is remembered counts only as long as nothing was applied meanwhile. A command that was
//! interrupted many times (its blocks push each other out of the pool) reads in place, on the core's
//! thread: slow, but it ends.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use atoll_lsm::driven::{Direction, Tree};
use atoll_lsm::{Error, Slice};
use atoll_mvcc::Timestamp;
use atoll_mvcc::keys::tree;
use atoll_mvcc::request::{Key, Span};
use atoll_shard::leader::{Base, Found, Miss};

/// Interruptions of one command after which its reads block.
const PATIENCE: u32 = 8;

/// A read that was answered.
enum Known {
    Version { key: Key, at: Timestamp, found: Option<Found<Slice>> },
    Changed { span: Span, after: Timestamp, key: Option<Key> },
}

/// What a command has read so far.
#[derive(Default)]
pub(crate) struct Reads {
    /// Number of entries applied when it was read.
    applied: u64,
    known: Vec<Known>,
    /// The read that interrupted the command.
    pending: Option<Wanted>,
    interruptions: u32,
    /// A read that failed.
    pub(crate) failure: Option<Error>,
    /// The moment that was to be looked at is not known any more: look at what is there now.
    pub(crate) newest: bool,
}

enum Wanted {
    Version { key: Key, at: Timestamp },
    Changed { span: Span, after: Timestamp },
}

impl Reads {
    /// Starts an attempt; forgets what may not be true any more.
    pub(crate) fn begin(&mut self, applied: u64) {
        if self.applied != applied {
            self.applied = applied;
            self.known.clear();
        }
    }

    /// Does the read that interrupted the command.
    pub(crate) async fn catch_up(&mut self, tree: &Tree) {
        let Some(wanted) = self.pending.take() else { return };
        self.interruptions += 1;
        let known = match wanted {
            Wanted::Version { key, at } => {
                read_version(tree, &key, at).await.map(|found| Known::Version { key, at, found })
            }
            Wanted::Changed { span, after } => {
                let key = read_changed(tree, &span, after).await;
                key.map(|key| Known::Changed { span, after, key })
            }
        };
        match known {
            Ok(known) => self.known.push(known),
            Err(failure) => self.failure = Some(failure),
        }
    }
}

async fn read_version(
    tree: &Tree,
    key: &[u8],
    at: Timestamp,
) -> Result<Option<Found<Slice>>, Error> {
    let mut name = Vec::with_capacity(1 + key.len());
    tree::data(&mut name, key);
    let found = tree.get_version(&name, at.0).await?;
    Ok(found.map(|version| Found { ts: Timestamp(version.stamp), value: version.value }))
}

async fn read_changed(tree: &Tree, span: &Span, after: Timestamp) -> Result<Option<Key>, Error> {
    let (mut start, mut end) = (Vec::new(), Vec::new());
    tree::data(&mut start, &span.start);
    tree::data(&mut end, &span.end);
    let mut cursor = tree.scan_all_versions(&start, &end, u64::MAX, Direction::Forward);
    while let Some(row) = cursor.next().await? {
        if row.stamp() > after.0 {
            return Ok(Some(row.key()[1..].to_vec()));
        }
    }
    Ok(None)
}

/// The applied state for one attempt at a command.
pub(crate) struct TreeBase<'a> {
    tree: &'a Tree,
    reads: &'a mut Reads,
    /// A buffer for tree keys.
    name: &'a mut Vec<u8>,
}

impl<'a> TreeBase<'a> {
    pub(crate) fn new(tree: &'a Tree, reads: &'a mut Reads, name: &'a mut Vec<u8>) -> TreeBase<'a> {
        TreeBase { tree, reads, name }
    }

    /// Polls a read once, or to its end if the command was patient enough.
    fn poll<T>(
        interruptions: u32,
        read: impl Future<Output = Result<T, Error>>,
    ) -> Poll<Result<T, Error>> {
        let mut read = pin!(read);
        if interruptions >= PATIENCE {
            return Poll::Ready(atoll_env::block_on(read));
        }
        read.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }
}

impl Base for TreeBase<'_> {
    type Value = Slice;

    fn version(&mut self, key: &[u8], at: Timestamp) -> Result<Option<Found<Slice>>, Miss> {
        for known in &self.reads.known {
            if let Known::Version { key: of, at: when, found } = known
                && of == key
                && *when == at
            {
                return Ok(found.clone());
            }
        }
        tree::data(self.name, key);
        let read = self.tree.get_version(self.name, at.0);
        match TreeBase::poll(self.reads.interruptions, read) {
            Poll::Ready(Ok(found)) => {
                let found = found.map(|v| Found { ts: Timestamp(v.stamp), value: v.value });
                Ok(found)
            }
            Poll::Ready(Err(failure)) => {
                self.reads.failure = Some(failure);
                Err(Miss)
            }
            Poll::Pending => {
                self.reads.pending = Some(Wanted::Version { key: key.to_vec(), at });
                Err(Miss)
            }
        }
    }

    fn changed(&mut self, span: &Span, after: Timestamp) -> Result<Option<Key>, Miss> {
        for known in &self.reads.known {
            if let Known::Changed { span: of, after: since, key } = known
                && of == span
                && *since == after
            {
                return Ok(key.clone());
            }
        }
        let read = read_changed(self.tree, span, after);
        match TreeBase::poll(self.reads.interruptions, read) {
            Poll::Ready(Ok(key)) => Ok(key),
            Poll::Ready(Err(failure)) => {
                self.reads.failure = Some(failure);
                Err(Miss)
            }
            Poll::Pending => {
                self.reads.pending = Some(Wanted::Changed { span: span.clone(), after });
                Err(Miss)
            }
        }
    }
}
