//! Ids of keyspaces: given once, and given back as space.
//!
//! ```text
//!   system keyspace    keyspaces/next             next id placed by slot      value u32
//!                      keyspaces/next-ordered     next ordered id             value u32
//!                      keyspaces/dropped/ID       nobody can name it any more; ID is u32, big-endian
//! ```
//!
//! Databases of Redis clients that are flushed and hashed keyspaces draw from the same counter: both
//! are placed by slot.
//!
//! # How space comes back
//! A drop leaves a row under `keyspaces/dropped/`. Once it lies below the horizon, no reader can ask
//! for anything in that keyspace any more, and no intent of it is left (both hold the horizon back).
//! Then every shard removes it by range, the row is marked, and when the mark lies below the horizon
//! too, seconds later, and nothing is left in any store, it is removed. In between the entries that
//! remove the range have long been logged; after a crash they are asked for again, and likewise if a
//! shard could not be asked, or its entry was refused for lack of room.

use atoll_env::sync::oneshot;
use atoll_kv::{Core, Program};
use atoll_mvcc::Value;
use atoll_mvcc::keys::{PARTS, Placement, SLOTTED};
use atoll_mvcc::request::{Isolation, Key, Span};
use atoll_txn::{Error, Oracle, ScanOptions, Shards, Transaction, Unavailable};

use crate::SYSTEM;

/// The classes of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Ordered keyspaces.
    Ordered,
    /// Keyspaces that are placed by slot.
    Slotted,
}

/// The first id that is given to anybody; those below are the system's.
pub const FIRST_ORDERED: u32 = 64;
/// The same, for keyspaces placed by slot: those below are the databases as they were at first.
pub const FIRST_SLOTTED: u32 = SLOTTED + 64;

const DROPPED: &[u8] = b"keyspaces/dropped/";
/// Value of a dropped keyspace whose removal was asked for.
const ASKED: &[u8] = &[1];
/// Most keyspaces that one look gives back.
const RECLAIM_MAX: usize = 64;

impl Class {
    fn counter(self) -> Key {
        let name: &[u8] = match self {
            Class::Ordered => b"keyspaces/next-ordered",
            Class::Slotted => b"keyspaces/next",
        };
        Placement::Ordered.key(SYSTEM, name)
    }

    fn first(self) -> u32 {
        match self {
            Class::Ordered => FIRST_ORDERED,
            Class::Slotted => FIRST_SLOTTED,
        }
    }

    fn end(self) -> u32 {
        match self {
            Class::Ordered => SLOTTED,
            // With the next bit an id names parts.
            Class::Slotted => SLOTTED | PARTS,
        }
    }
}

/// Draws an id that was never given before.
///
/// # Errors
/// Those of a transaction; all ids are used up, or the counter is damaged.
pub async fn draw<S: Shards, O: Oracle>(
    txn: &mut Transaction<S, O>,
    class: Class,
) -> Result<u32, Error> {
    let counter = class.counter();
    let id = match txn.get(&counter).await? {
        None => class.first(),
        // A counter that cannot be read must not begin anew: ids would be given twice.
        Some(bytes) => decode_id(&bytes).ok_or_else(|| {
            Error::Unavailable(Unavailable(
                "the counter of keyspace ids does not decode: verify the database".to_owned(),
            ))
        })?,
    };
    let id = id.max(class.first());
    if id >= class.end() {
        return Err(Error::TooLarge { what: "no id is left for a new keyspace".to_owned() });
    }
    let next = Value { deadline_ms: None, payload: &(id + 1).to_le_bytes() }.encode();
    txn.put(&counter, &next).await?;
    Ok(id)
}

fn decode_id(bytes: &[u8]) -> Option<u32> {
    let payload = Value::decode(bytes).ok()?.payload;
    Some(u32::from_le_bytes(payload.try_into().ok()?))
}

/// Notes that nobody can name a keyspace any more once the transaction has committed.
///
/// # Errors
/// Those of a transaction.
pub async fn give_back<S: Shards, O: Oracle>(
    txn: &mut Transaction<S, O>,
    id: u32,
) -> Result<(), Error> {
    txn.put(&dropped_name(id), &Value { deadline_ms: None, payload: b"" }.encode()).await
}

fn dropped_name(id: u32) -> Key {
    let mut name = DROPPED.to_vec();
    name.extend_from_slice(&id.to_be_bytes());
    Placement::Ordered.key(SYSTEM, &name)
}

/// Has what dropped keyspaces held removed, once no reader can ask for it. Returns how many are done
/// with. To be called from time to time, on one core.
///
/// # Errors
/// Those of a transaction; what was not done is done by a later call.
pub async fn reclaim<P: Program>(core: &Core<P>) -> Result<usize, Error> {
    let prefix = Placement::Ordered.key(SYSTEM, DROPPED);
    let mut end = prefix.clone();
    end.extend_from_slice(&[0xff; 5]);
    let span = Span { start: prefix.clone(), end };
    let horizon = core.horizon();
    let mut txn = core.begin(Isolation::Snapshot);
    let page = txn.scan(span, ScanOptions { limit: RECLAIM_MAX, reverse: false }).await?;
    let mut reclaimed = 0;
    for (name, _) in &page.rows {
        let Some(id) = name.get(prefix.len()..).and_then(|id| id.try_into().ok()) else { continue };
        let keyspace = u32::from_be_bytes(id);
        let Some((value, Some(since))) = txn.get_version(name).await? else { continue };
        if since >= horizon {
            continue;
        }
        // Asked for twice, because what a crash undid between the two would be forgotten otherwise.
        let is_asked = Value::decode(&value).is_ok_and(|value| value.payload == ASKED);
        let is_gone = ask_all(core, keyspace).await?;
        if is_asked && !is_gone {
            continue;
        }
        core.coordinator()
            .run(Isolation::Serializable, async |txn| {
                if is_asked {
                    return txn.delete(name).await;
                }
                txn.put(name, &Value { deadline_ms: None, payload: ASKED }.encode()).await
            })
            .await?;
        reclaimed += usize::from(is_asked);
    }
    Ok(reclaimed)
}

/// Has every shard remove a keyspace. Returns whether nothing of it was left before, and every shard
/// was asked.
async fn ask_all<P: Program>(core: &Core<P>, keyspace: u32) -> Result<bool, Error> {
    let mut receivers = Vec::with_capacity(core.cores());
    for index in 0..core.cores() {
        let (sender, receiver) = oneshot::channel();
        core.on_core(index, move |core| {
            let own = core.clone();
            let asking = async move {
                let is_gone = own.holds_nothing_of(keyspace).await;
                let _ = sender.send(is_gone.map(|is_gone| own.drop_keyspace(keyspace) && is_gone));
            };
            core.env().tasks.spawn_local("drop keyspace", Box::pin(asking));
        });
        receivers.push(receiver);
    }
    core.flush();
    let mut all = true;
    for receiver in receivers {
        let unavailable = |why: String| Error::Unavailable(Unavailable(why));
        let asked = receiver.await.map_err(|_| unavailable("the engine stops".to_owned()))?;
        all &= asked.map_err(|error| unavailable(error.to_string()))?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classes_of_ids_do_not_meet_and_parts_stay_free() {
        assert!(Class::Ordered.end() <= Class::Slotted.first());
        assert_eq!((Class::Slotted.end() - 1) & PARTS, 0);
        const { assert!(SYSTEM < FIRST_ORDERED) };
    }

    #[test]
    fn a_counter_that_is_none_is_not_taken_for_one() {
        let value = |payload: &[u8]| Value { deadline_ms: None, payload }.encode();
        assert_eq!(decode_id(&value(&77u32.to_le_bytes())), Some(77));
        for bad in [value(b"abc"), value(b"12345"), vec![9, 0, 0, 0, 0], Vec::new()] {
            assert_eq!(decode_id(&bad), None);
        }
    }
}
