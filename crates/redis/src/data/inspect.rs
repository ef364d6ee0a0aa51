//! What is known about a key beside its value: OBJECT and MEMORY USAGE.

use crate::data::Data;
use crate::error::{self, Outcome};
use crate::object::{EPOCH_START_US, Kind, Object};
use crate::text;
use crate::tx::Tx;

/// Longest string that Redis keeps in one piece with its header.
const EMBEDDED_MAX: usize = 44;
/// Integers below it are shared in Redis.
const SHARED_INTEGERS: i64 = 10_000;
/// What the shared ones answer as their number of references.
const SHARED_REFERENCES: i64 = i32::MAX as i64;

impl<T: Tx> Data<'_, T> {
    /// Reads the key of an OBJECT command; answers null if it is not there.
    async fn inspect(&mut self) -> Outcome<Option<Object<T::Value>>> {
        let found = self.peek(self.key(2)?).await?;
        if found.is_none() {
            self.reply().null();
        }
        Ok(found)
    }

    pub async fn object_encoding(&mut self) -> Outcome {
        let Some(object) = self.inspect().await? else { return Ok(()) };
        let encoding: &[u8] = match integer(&object) {
            Some(_) => b"int",
            None if text::len(&object) <= EMBEDDED_MAX => b"embstr",
            None => b"raw",
        };
        self.reply().bulk(encoding);
        Ok(())
    }

    pub async fn object_refcount(&mut self) -> Outcome {
        let Some(object) = self.inspect().await? else { return Ok(()) };
        let shared = integer(&object).is_some_and(|value| (0..SHARED_INTEGERS).contains(&value));
        self.reply().int(if shared { SHARED_REFERENCES } else { 1 });
        Ok(())
    }

    pub async fn object_freq(&mut self) -> Outcome {
        if self.inspect().await?.is_none() {
            return Ok(());
        }
        Err(error::fixed(
            "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please \
             note that when switching between policies at runtime LRU and LFU data will take some \
             time to adjust.",
        ))
    }

    pub async fn object_idletime(&mut self) -> Outcome {
        let Some(object) = self.inspect().await? else { return Ok(()) };
        let facts = self.tx.facts(self.call.db, self.arg(2));
        let last_us = object.meta.updated_us.max(facts.read_us.unwrap_or(0));
        let idle_us = self.tx.epoch_us().saturating_sub(last_us);
        self.reply().int((idle_us / 1_000_000) as i64);
        Ok(())
    }

    /// Answers the whole metadata record. Times are in microseconds of the Unix epoch.
    pub async fn object_meta(&mut self) -> Outcome {
        let Some(object) = self.inspect().await? else { return Ok(()) };
        let facts = self.tx.facts(self.call.db, self.arg(2));
        let meta = object.meta;
        let known = |time_us: u64| (time_us > 0).then_some(time_us);
        let ttl_ms = meta.deadline_ms.map(|ms| ms.saturating_sub(self.tx.now_ms()));
        let kind = match meta.kind {
            Kind::String => "string",
            Kind::Unknown => "unknown",
        };
        let len = text::len(&object);
        let mut reply = self.reply();
        let unix = |time_us: u64| i64::try_from(time_us + EPOCH_START_US).unwrap_or(i64::MAX);
        reply.map(9);
        reply.bulk(b"type");
        reply.bulk(kind.as_bytes());
        for (name, time_us) in [
            ("created", known(meta.created_us)),
            ("updated", known(meta.updated_us)),
            ("read", facts.read_us),
            ("committed", known(meta.updated_us).filter(|_| !facts.pending)),
        ] {
            reply.bulk(name.as_bytes());
            match time_us {
                Some(time_us) => reply.int(unix(time_us)),
                None => reply.null(),
            }
        }
        reply.bulk(b"tier");
        reply.bulk(b"local");
        for (name, number) in [("ttl", ttl_ms), ("generation", meta.generation)] {
            reply.bulk(name.as_bytes());
            match number {
                Some(number) => reply.int(i64::try_from(number).unwrap_or(i64::MAX)),
                None => reply.null(),
            }
        }
        reply.bulk(b"counts");
        reply.map(1);
        reply.bulk(b"length");
        reply.count(len);
        Ok(())
    }

    /// Answers how many bytes a key and its records take, uncompressed.
    pub async fn memory_usage(&mut self) -> Outcome {
        for at in (3..self.args()).step_by(2) {
            if !self.is(at, "SAMPLES") || at + 1 == self.args() {
                return Err(error::SYNTAX);
            }
            if self.int_arg(at + 1)? < 0 {
                return Err(error::SYNTAX);
            }
        }
        let key = self.key(2)?;
        match self.peek(key).await? {
            None => self.reply().null(),
            Some(object) => {
                let fragments = match object.meta.generation {
                    Some(_) => text::len(&object),
                    None => 0,
                };
                self.reply().count(key.len() + object.record_len() + fragments);
            }
        }
        Ok(())
    }
}

/// Returns the integer that a string is, if it is one.
fn integer<V: std::ops::Deref<Target = [u8]>>(object: &Object<V>) -> Option<i64> {
    match object.meta.generation {
        Some(_) => None,
        None => atoll_resp::number::parse_i64(object.payload()),
    }
}
