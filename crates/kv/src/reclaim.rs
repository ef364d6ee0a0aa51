//! Reclaiming: what notes say is dead is removed, once nobody can ask for it any more.
//!
//! ```text
//!   a command drops what took many keys     removes one key, writes one note     (one entry)
//!   the horizon passes the note             no reader sees what was before it
//!   this                                    range delete, note removed           (one entry)
//!   compaction                              gives back the space
//! ```
//!
//! A note is an ordinary key beside what it is about, so it is as durable as the removal that made it
//! necessary, and a crash at any moment leaves either the note or nothing to do. What a note means is
//! the layer above's business: it says which range a note is about.

use atoll_lsm::Error;
use atoll_lsm::driven::Direction;
use atoll_mvcc::keys::{Placement, tree};
use atoll_mvcc::request::{Key, Span};
use atoll_mvcc::{Epoch, Timestamp};

use crate::core::Core;
use crate::program::Program;

/// Notes of a shard that are worked off in one entry, and old intents looked after at a time.
const BATCH: usize = 256;

impl<P: Program> Core<P> {
    /// Has removed what the notes in a keyspace by slot are about, in this core's shards. Returns
    /// how many notes were worked off.
    ///
    /// # Errors
    /// A store cannot be read.
    pub async fn reclaim(
        &self,
        notes: u32,
        about: impl Fn(&[u8]) -> Option<Span>,
    ) -> Result<usize, Error> {
        self.resolve_old_intents().await;
        let mut worked_off = 0;
        for (host, group) in self.0.all_groups() {
            let horizon = host.tree.horizon();
            let Some(span) = ({
                let state = group.state.borrow();
                state.descriptor.range.span(notes, Placement::Slots)
            }) else {
                continue;
            };
            let (mut start, mut end) = (Vec::new(), Vec::new());
            tree::data(&mut start, &span.start);
            tree::data(&mut end, &span.end);
            let mut due: Vec<(Key, Span)> = Vec::new();
            let mut cursor = host.tree.scan_versions(&start, &end, u64::MAX, Direction::Forward);
            while due.len() < BATCH
                && let Some(row) = cursor.next().await?
            {
                let note = &row.key()[1..];
                if row.stamp() <= horizon
                    && let Some(span) = about(note)
                {
                    due.push((note.to_vec(), span));
                }
            }
            self.refresh();
            let now = self.now();
            let mut state = group.state.borrow_mut();
            let state = &mut *state;
            // Without a leader, or while the shard is split, it waits for the next time.
            let Some(leader) = state.leader.as_mut().filter(|_| !state.frozen) else { continue };
            let removed = due.iter().filter(|(note, span)| leader.remove_dead(note, span, now));
            worked_off += removed.count();
            host.relist(&group, state);
        }
        Ok(worked_off)
    }

    /// Finds out what became of transactions whose intents are as old as versions get. Their
    /// coordinators are gone, and nobody may ever meet these keys; the horizon stays below them
    /// until somebody does.
    async fn resolve_old_intents(&self) {
        let retention = self.0.shared.options.retention_us;
        let past = Timestamp::commit_at(Epoch(self.0.time.known().0.saturating_sub(retention)));
        for (_, group) in self.0.all_groups() {
            let obstacles = {
                let state = group.state.borrow();
                let leader = state.leader.as_ref();
                leader.map(|leader| leader.intents_below(past, BATCH)).unwrap_or_default()
            };
            for obstacle in &obstacles {
                // What fails now is tried again the next time.
                let _ = self.0.resolve(std::slice::from_ref(obstacle)).await;
            }
        }
    }
}
