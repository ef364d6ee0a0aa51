//! Commands on databases as wholes: iteration, counts, flushing.
//!
//! Functions on [`Keyspaces`], as the commands on named keys are on a transaction. SCAN's cursors
//! belong to the server, because a cursor means the same to every core and shard.

use std::ops::{Bound, ControlFlow};

use atoll_resp::ReplyWriter;
use parking_lot::Mutex;

use crate::cursors::Cursors;
use crate::data::DataCall;
use crate::error::{self, Outcome};
use crate::glob;
use crate::layout::{self, SLOTS};
use crate::session::MAX_OUTPUT;
use crate::store::DATABASES;
use crate::table::{Class, Id};
use crate::tx::Keyspaces;

/// Bytes of keys after which a step of a scan ends, whatever its count.
const SCAN_BYTES: usize = 4 << 20;
/// Keys after which a step of a scan ends, whatever its count.
const SCAN_KEYS: usize = 1 << 20;
/// Keys of a database up to which RANDOMKEY looks at all of them.
const FEW_KEYS: usize = 1024;

/// Executes a command. Appends its reply to `out`, or returns the error that replaces whatever was
/// appended.
///
/// # Errors
/// What the client is told instead of a reply. Nothing was changed then.
pub async fn run<K: Keyspaces>(
    call: &DataCall<'_>,
    keyspaces: &mut K,
    cursors: &Mutex<Cursors>,
    out: &mut Vec<u8>,
) -> Outcome {
    debug_assert_eq!(call.command.class, Class::Keyspace);
    let mut command = Keyspace { call, keyspaces, out };
    match call.command.id {
        Id::Dbsize => command.dbsize().await,
        Id::Flushall => command.flush(0..DATABASES),
        Id::Flushdb => command.flush(call.db..call.db + 1),
        Id::Keys => command.keys().await,
        Id::Randomkey => command.randomkey().await,
        Id::Scan => command.scan(cursors).await,
        Id::Swapdb => command.swapdb(),
        _ => Err(error::MISROUTED),
    }
}

/// A command under way.
struct Keyspace<'c, K> {
    call: &'c DataCall<'c>,
    keyspaces: &'c mut K,
    out: &'c mut Vec<u8>,
}

impl<'c, K: Keyspaces> Keyspace<'c, K> {
    fn arg(&self, index: usize) -> &'c [u8] {
        self.call.request.get(index).unwrap_or(&[])
    }

    fn is(&self, index: usize, word: &str) -> bool {
        self.arg(index).eq_ignore_ascii_case(word.as_bytes())
    }

    fn int_arg(&self, index: usize) -> Outcome<i64> {
        atoll_resp::number::parse_i64(self.arg(index)).ok_or(error::NOT_AN_INTEGER)
    }

    fn reply(&mut self) -> ReplyWriter<'_> {
        ReplyWriter::new(self.out, self.call.protocol)
    }

    async fn keys(&mut self) -> Outcome {
        let pattern = self.arg(1);
        let now = self.keyspaces.now_ms();
        let mut keys = Vec::new();
        let mut bytes = 0;
        let mut visitor = |storage_key: &[u8], deadline_ms: Option<u64>| {
            let key = layout::user_key(storage_key);
            if is_live(deadline_ms, now) && glob::matches(pattern, key) {
                bytes += key.len();
                keys.push(Box::<[u8]>::from(key));
            }
            // The reply would be too long for the connection's output in any case.
            if bytes > MAX_OUTPUT { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let visited = self.keyspaces.visit(self.call.db, Bound::Unbounded, &mut visitor).await;
        visited.map_err(|error| error::unreadable(&error))?;
        let mut reply = self.reply();
        reply.array(keys.len());
        keys.iter().for_each(|key| reply.bulk(key));
        Ok(())
    }

    async fn scan(&mut self, cursors: &Mutex<Cursors>) -> Outcome {
        // No digits at all are the cursor 0, as for the `strtoul` that Redis reads them with.
        let text = if self.arg(1).is_empty() { b"0" } else { self.arg(1) };
        let cursor = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        let cursor: u64 = cursor.ok_or(error::INVALID_CURSOR)?;
        let (mut pattern, mut count, mut of_type) = (None, 10, true);
        let mut at = 2;
        while at < self.call.request.len() {
            if at + 1 == self.call.request.len() {
                return Err(error::SYNTAX);
            }
            if self.is(at, "COUNT") {
                let value = self.int_arg(at + 1)?;
                count = usize::try_from(value).ok().filter(|&n| n > 0).ok_or(error::SYNTAX)?;
            } else if self.is(at, "MATCH") {
                pattern = Some(self.arg(at + 1)).filter(|pattern| *pattern != b"*");
            } else if self.is(at, "TYPE") {
                of_type = self.is(at + 1, "string");
            } else {
                return Err(error::SYNTAX);
            }
            at += 2;
        }

        let (db, now) = (self.call.db, self.keyspaces.now_ms());
        let mut from = Vec::new();
        let bound = cursors.lock().resume(cursor, db, &mut from).map(|()| &*from);
        let mut keys = Vec::new();
        let mut last = None;
        let (mut visited, mut bytes) = (0, 0);
        let mut visitor = |storage_key: &[u8], deadline_ms: Option<u64>| {
            visited += 1;
            let key = layout::user_key(storage_key);
            let matches = |pattern| glob::matches(pattern, key);
            if is_live(deadline_ms, now) && of_type && pattern.is_none_or(matches) {
                bytes += key.len();
                keys.push(Box::<[u8]>::from(key));
            }
            // The count is a wish: a reply stays short enough to be sent at all.
            if visited < count && bytes < SCAN_BYTES && keys.len() < SCAN_KEYS {
                return ControlFlow::Continue(());
            }
            last = Some(Box::<[u8]>::from(storage_key));
            ControlFlow::Break(())
        };
        let scanned = self.keyspaces.visit(db, bound, &mut visitor).await;
        scanned.map_err(|error| error::unreadable(&error))?;
        let cursor = last.map_or(0, |last| cursors.lock().save(db, &last));
        let mut reply = self.reply();
        reply.array(2);
        reply.bulk(cursor.to_string().as_bytes());
        reply.array(keys.len());
        keys.iter().for_each(|key| reply.bulk(key));
        Ok(())
    }

    async fn dbsize(&mut self) -> Outcome {
        let counts = self.keyspaces.count(self.call.db).await;
        let counts = counts.map_err(|error| error::unreadable(&error))?;
        self.reply().int(i64::try_from(counts.keys).unwrap_or(i64::MAX));
        Ok(())
    }

    /// Removes all keys of some databases. Both modes of Redis are the same here: a range removal.
    fn flush(&mut self, databases: std::ops::Range<usize>) -> Outcome {
        let args = self.call.request.len();
        if args > 2 || (args == 2 && !self.is(1, "ASYNC") && !self.is(1, "SYNC")) {
            return Err(error::SYNTAX);
        }
        for db in databases {
            self.keyspaces.flush(db);
        }
        self.reply().ok();
        Ok(())
    }

    /// Exchanges two databases.
    fn swapdb(&mut self) -> Outcome {
        let index = |at: usize, error| {
            let index = atoll_resp::number::parse_i64(self.arg(at));
            index.filter(|&index| i32::try_from(index).is_ok()).ok_or(error)
        };
        let first = index(1, error::fixed("ERR invalid first DB index"))?;
        let second = index(2, error::fixed("ERR invalid second DB index"))?;
        let within = |index: i64| usize::try_from(index).ok().filter(|&db| db < DATABASES);
        let (Some(first), Some(second)) = (within(first), within(second)) else {
            return Err(error::DB_OUT_OF_RANGE);
        };
        if first != second {
            self.keyspaces.swap(first, second);
        }
        self.reply().ok();
        Ok(())
    }

    /// Picks a key: any with the same chance if they are few, else one of a random slot, so that
    /// keys that share theirs with many are a little less likely.
    async fn randomkey(&mut self) -> Outcome {
        let (few, complete) = self.some_keys(Bound::Unbounded, None).await?;
        let picked = if complete {
            self.pick(few)
        } else {
            // The first slot with a key after a random one, or the first of all.
            let start = self.keyspaces.random_below(u64::from(SLOTS)) as u16;
            let mut next = Vec::new();
            for from in [start, 0] {
                if next.is_empty() {
                    let from = from.to_be_bytes();
                    next = self.some_keys(Bound::Included(&from), Some(1)).await?.0;
                }
            }
            let slot = next.first().map_or(0, |key| layout::slot(key));
            let from = slot.to_be_bytes();
            let (mut keys, _) = self.some_keys(Bound::Included(&from), None).await?;
            keys.retain(|key| layout::slot(key) == slot);
            self.pick(keys)
        };
        match picked {
            Some(key) => self.reply().bulk(&key),
            None => self.reply().null(),
        }
        Ok(())
    }

    fn pick(&mut self, mut keys: Vec<Box<[u8]>>) -> Option<Box<[u8]>> {
        if keys.is_empty() {
            return None;
        }
        let index = self.keyspaces.random_below(keys.len() as u64) as usize;
        Some(keys.swap_remove(index))
    }

    /// Returns up to `limit` (or [`FEW_KEYS`]) live keys from a storage key on, and whether these
    /// are all.
    async fn some_keys(
        &mut self,
        from: Bound<&[u8]>,
        limit: Option<usize>,
    ) -> Outcome<(Vec<Box<[u8]>>, bool)> {
        let now = self.keyspaces.now_ms();
        let limit = limit.unwrap_or(FEW_KEYS);
        let mut keys = Vec::new();
        let mut complete = true;
        let mut visitor = |storage_key: &[u8], deadline_ms: Option<u64>| {
            if is_live(deadline_ms, now) {
                if keys.len() == limit {
                    complete = false;
                    return ControlFlow::Break(());
                }
                keys.push(Box::<[u8]>::from(layout::user_key(storage_key)));
            }
            ControlFlow::Continue(())
        };
        let visited = self.keyspaces.visit(self.call.db, from, &mut visitor).await;
        visited.map_err(|error| error::unreadable(&error))?;
        Ok((keys, complete))
    }
}

fn is_live(deadline_ms: Option<u64>, now_ms: u64) -> bool {
    deadline_ms.is_none_or(|deadline_ms| deadline_ms > now_ms)
}
