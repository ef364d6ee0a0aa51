//! Keys, whatever they hold: existence, deadlines, iteration, removal.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};

use crate::call::Call;
use crate::error::{self, Outcome};
use crate::glob;
use crate::layout;
use crate::session::MAX_OUTPUT;
use crate::store::{DATABASES, Store};

/// Bytes of keys after which a step of a scan ends, whatever its count.
const SCAN_BYTES: usize = 4 << 20;
/// Keys after which a step of a scan ends, whatever its count.
const SCAN_KEYS: usize = 1 << 20;

impl<S: Store> Call<'_, S> {
    pub async fn exists(&mut self) -> Outcome {
        let mut count = 0;
        for key in self.request.tail(1) {
            count += usize::from(self.lookup(key).await?.is_some());
        }
        self.reply().count(count);
        Ok(())
    }

    pub async fn del(&mut self) -> Outcome {
        // All are read before the first is removed: a read that fails leaves nothing half done.
        let mut present = BTreeSet::new();
        for key in self.request.tail(1) {
            if self.peek(key).await?.is_some() {
                present.insert(key);
            }
        }
        for key in &present {
            self.remove(key)?;
        }
        self.reply().count(present.len());
        Ok(())
    }

    pub async fn type_of(&mut self) -> Outcome {
        let name = match self.lookup(self.arg(1)).await? {
            Some(found) => {
                found.string()?;
                "string"
            }
            None => "none",
        };
        self.reply().simple(name);
        Ok(())
    }

    /// Answers the time to live in units of `unit_ms`, rounded.
    pub async fn ttl(&mut self, unit_ms: u64) -> Outcome {
        let now = self.executor.now_ms;
        let ttl = match self.lookup(self.arg(1)).await? {
            None => -2,
            Some(found) => match found.deadline_ms {
                None => -1,
                Some(deadline) => {
                    let units = (deadline.saturating_sub(now) + unit_ms / 2) / unit_ms;
                    i64::try_from(units).unwrap_or(i64::MAX)
                }
            },
        };
        self.reply().int(ttl);
        Ok(())
    }

    /// Sets a deadline given from now in units of `unit_ms`.
    pub async fn expire(&mut self, unit_ms: i64) -> Outcome {
        let (mut nx, mut xx, mut gt, mut lt) = (false, false, false, false);
        for index in 3..self.request.len() {
            match () {
                () if self.is(index, "NX") => nx = true,
                () if self.is(index, "XX") => xx = true,
                () if self.is(index, "GT") => gt = true,
                () if self.is(index, "LT") => lt = true,
                () => {
                    return Err(error::quoting(&[b"ERR Unsupported option ", self.arg(index)]));
                }
            }
        }
        if nx && (xx || gt || lt) {
            return Err(error::fixed(
                "ERR NX and XX, GT or LT options at the same time are not compatible",
            ));
        }
        if gt && lt {
            return Err(error::fixed("ERR GT and LT options at the same time are not compatible"));
        }
        let now = i64::try_from(self.executor.now_ms).unwrap_or(i64::MAX);
        let deadline = self.int_arg(2)?.checked_mul(unit_ms).and_then(|ms| ms.checked_add(now));
        let Some(deadline) = deadline else {
            return Err(error::invalid_expire(self.command.name));
        };
        let found = self.peek(self.arg(1)).await?;
        let Some(found) = found else {
            self.reply().int(0);
            return Ok(());
        };
        // A deadline before 1970 is as due as one at 1970.
        let deadline = u64::try_from(deadline).unwrap_or(0);
        let refused = match found.deadline_ms {
            None => xx || gt,
            Some(current) => nx || (gt && deadline <= current) || (lt && deadline >= current),
        };
        if !refused {
            self.restage(found.bytes, Some(deadline));
        }
        self.reply().int(i64::from(!refused));
        Ok(())
    }

    pub async fn persist(&mut self) -> Outcome {
        let found = self.peek(self.arg(1)).await?;
        let found = found.filter(|found| found.deadline_ms.is_some());
        let changed = found.is_some();
        if let Some(found) = found {
            self.restage(found.bytes, None);
        }
        self.reply().int(i64::from(changed));
        Ok(())
    }

    pub async fn keys(&mut self) -> Outcome {
        let pattern = self.arg(1);
        let (db, now) = (self.session.db, self.executor.now_ms);
        let mut keys = Vec::new();
        let mut bytes = 0;
        self.executor
            .visit(db, Bound::Unbounded, &mut |storage_key, deadline_ms| {
                let key = layout::user_key(storage_key);
                let live = deadline_ms.is_none_or(|deadline_ms| deadline_ms > now);
                if live && glob::matches(pattern, key) {
                    bytes += key.len();
                    keys.push(Box::<[u8]>::from(key));
                }
                // The reply would be too long for the connection's output in any case.
                if bytes > MAX_OUTPUT { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .await?;
        let mut reply = self.reply();
        reply.array(keys.len());
        for key in &keys {
            reply.bulk(key);
        }
        Ok(())
    }

    pub async fn scan(&mut self) -> Outcome {
        // No digits at all are the cursor 0, as for the `strtoul` that Redis reads them with.
        let text = if self.arg(1).is_empty() { b"0" } else { self.arg(1) };
        let cursor = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        let cursor: u64 = cursor.ok_or(error::INVALID_CURSOR)?;
        let (mut pattern, mut count, mut of_type) = (None, 10, true);
        let mut at = 2;
        while at < self.request.len() {
            if at + 1 == self.request.len() {
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

        let (db, now) = (self.session.db, self.executor.now_ms);
        let mut from = std::mem::take(&mut self.executor.key);
        let bound = self.executor.cursors.resume(cursor, db, &mut from).map(|()| &*from);
        let mut keys = Vec::new();
        let mut last = None;
        let (mut visited, mut bytes) = (0, 0);
        self.executor
            .visit(db, bound, &mut |storage_key, deadline_ms| {
                visited += 1;
                let key = layout::user_key(storage_key);
                let live = deadline_ms.is_none_or(|deadline_ms| deadline_ms > now);
                if live && of_type && pattern.is_none_or(|pattern| glob::matches(pattern, key)) {
                    bytes += key.len();
                    keys.push(Box::<[u8]>::from(key));
                }
                // The count is a wish: a reply stays short enough to be sent at all.
                if visited < count && bytes < SCAN_BYTES && keys.len() < SCAN_KEYS {
                    return ControlFlow::Continue(());
                }
                last = Some(Box::<[u8]>::from(storage_key));
                ControlFlow::Break(())
            })
            .await?;
        self.executor.key = from;
        let cursor = last.map_or(0, |last| self.executor.cursors.save(db, &last));
        let mut reply = self.session.reply();
        reply.array(2);
        reply.bulk(cursor.to_string().as_bytes());
        reply.array(keys.len());
        for key in &keys {
            reply.bulk(key);
        }
        Ok(())
    }

    pub async fn dbsize(&mut self) -> Outcome {
        let (keys, _) = self.count_keys(self.session.db).await?;
        self.reply().int(i64::try_from(keys).unwrap_or(i64::MAX));
        Ok(())
    }

    /// Counts a database's live keys, and those of them that have a deadline.
    pub async fn count_keys(&mut self, db: usize) -> Outcome<(u64, u64)> {
        let now = self.executor.now_ms;
        let (mut keys, mut expiring) = (0, 0);
        self.executor
            .visit(db, Bound::Unbounded, &mut |_, deadline_ms| {
                match deadline_ms {
                    None => keys += 1,
                    Some(deadline_ms) if deadline_ms > now => {
                        keys += 1;
                        expiring += 1;
                    }
                    Some(_) => {}
                }
                ControlFlow::Continue(())
            })
            .await?;
        Ok((keys, expiring))
    }

    pub fn flushdb(&mut self) -> Outcome {
        self.flush(self.session.db..self.session.db + 1)
    }

    pub fn flushall(&mut self) -> Outcome {
        self.flush(0..DATABASES)
    }

    /// Removes all keys of some databases. Both modes of Redis are the same here: a range removal.
    fn flush(&mut self, databases: std::ops::Range<usize>) -> Outcome {
        let known = self.request.len() == 1 || self.is(1, "ASYNC") || self.is(1, "SYNC");
        if !known || self.request.len() > 2 {
            return Err(error::SYNTAX);
        }
        for db in databases {
            self.executor.writes.clear(db);
        }
        self.executor.dependent = true;
        self.executor.counts.valid_until = None;
        self.reply().ok();
        Ok(())
    }
}
