//! Reading a key whose newest record is an operand: down to the base, across all sources.
//!
//! ```text
//!   active memtable   92 Merge                   taken
//!   sealed memtable   81 Merge                   taken
//!   L0                -- range tombstone at 50   what is older than 50 is hidden
//!   L1                60 Merge  40 Value         60 taken; 40 is hidden: no base
//! ```
//!
//! Sources are asked newest first by the same point reads that find a value, filters included; only
//! where one answers with an operand is it walked, since others of the key are its neighbours.

use std::sync::Arc;

use atoll_encoding::hash::hash64;

use super::{Operand, merged};
use crate::error::Result;
use crate::iter::scan::{is_dead, key_kind};
use crate::iter::{Advance, Direction};
use crate::key::{InternalKey, Kind, SeqNo};
use crate::keyspace::About;
use crate::read::Stored;
use crate::store::Store;
use crate::tables::Tables;
use crate::view::View;

/// The records that make a merged value.
struct Gathered {
    /// Newest first.
    operands: Vec<Operand>,
    /// The record they are folded onto, which may have expired.
    base: Option<Stored>,
}

impl View {
    /// Collects the operands of `user_key` that `snapshot` sees, and their base.
    async fn gather(
        &self,
        tables: &Arc<Tables>,
        user_key: &[u8],
        snapshot: SeqNo,
    ) -> Result<Gathered> {
        let hash = hash64(user_key);
        let mut gathered = Gathered { operands: Vec::new(), base: None };
        // The newest range tombstone over the key in the sources passed so far.
        let mut covering = 0;
        let mut newest = snapshot;
        for place in self.places(user_key) {
            covering = covering.max(place.covering(tables, user_key, snapshot).await?);
            let Some(hit) = place.newest(tables, user_key, hash, newest).await? else { continue };
            let mut source = place.source(tables).await?;
            source.seek(InternalKey::new(user_key, hit.trailer)).await?;
            while source.valid() && source.key().user_key == user_key {
                let trailer = source.key().trailer;
                if covering > trailer.seqno() {
                    return Ok(gathered);
                }
                if key_kind(trailer) != Kind::Merge {
                    let value = source.value_slice();
                    gathered.base = Some(Stored { trailer, value });
                    return Ok(gathered);
                }
                gathered.operands.push(Operand::decode(trailer, source.value_slice()));
                let Some(next) = trailer.seqno().checked_sub(1) else { return Ok(gathered) };
                newest = next;
                if source.advance(Direction::Forward) == Advance::NeedsBlock {
                    source.load().await?;
                }
            }
        }
        Ok(gathered)
    }
}

impl Store {
    /// Returns what `snapshot` sees at time `now` of a key whose newest record is an operand.
    pub(crate) async fn merged(
        &self,
        view: &View,
        about: &About,
        user_key: &[u8],
        snapshot: SeqNo,
        now: u64,
    ) -> Result<Option<Stored>> {
        let Gathered { mut operands, base } = view.gather(&self.tables, user_key, snapshot).await?;
        operands.reverse();
        let base = base.filter(|base| !is_dead(key_kind(base.trailer), &base.value, now));
        if !operands.iter().any(|operand| operand.is_alive(now)) {
            return Ok(base);
        }
        let base = match base {
            Some(base) => Some(self.complete(view, user_key, base).await?),
            None => None,
        };
        Ok(merged(about, user_key, base, &operands, now)?.map(Stored::of))
    }
}
