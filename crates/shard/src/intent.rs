//! Intents as the leader keeps them: all of a shard's are in memory, because every command has to
//! know whether one is in its way, and there are few: they live for as long as a commit takes.

use std::rc::Rc;

use atoll_encoding::{Malformed, Reader};
use atoll_mvcc::{Timestamp, TxnId, record};

use crate::edge::Presence;

/// A value whose transaction is not decided here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Whose it is.
    pub txn: TxnId,
    /// Where that transaction's record is. Its intents on one shard share it.
    pub primary: Rc<[u8]>,
    /// Lowest timestamp it can become a version at.
    pub min_commit_ts: Timestamp,
    /// The stored bytes, `None` to remove the key.
    pub value: Option<Rc<[u8]>>,
    /// What the key held when the intent was placed, and holds until it is resolved: nobody else
    /// can write it.
    pub before: Presence,
}

impl Intent {
    /// Appends the stored form without the value, which follows it.
    pub(crate) fn put_head(&self, out: &mut Vec<u8>) {
        let mut extra = [u8::from(self.before.exists); 9];
        let mut len = 1;
        if let Some(deadline) = self.before.deadline_ms {
            extra[1..].copy_from_slice(&deadline.to_le_bytes());
            len = extra.len();
        }
        let stored = record::Intent {
            txn: self.txn,
            primary: &self.primary,
            min_commit_ts: self.min_commit_ts,
            extra: &extra[..len],
            value: self.value.as_deref(),
        };
        stored.put_head(out);
    }

    /// Returns the stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put_head(&mut out);
        out.extend_from_slice(self.value.as_deref().unwrap_or_default());
        out
    }

    /// Reads a stored intent.
    ///
    /// # Errors
    /// The bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<Intent, Malformed> {
        let stored = record::Intent::decode(bytes)?;
        let mut extra = Reader::new(stored.extra);
        let exists = extra.u8("whether the key was there")? != 0;
        let deadline_ms = match extra.is_empty() {
            true => None,
            false => Some(extra.u64("the deadline that the key had")?),
        };
        Ok(Intent {
            txn: stored.txn,
            primary: Rc::from(stored.primary),
            min_commit_ts: stored.min_commit_ts,
            value: stored.value.map(Rc::from),
            before: Presence { exists, deadline_ms },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intents_round_trip() {
        for (value, exists, deadline_ms) in [
            (None, true, Some(5)),
            (Some(Rc::from(&b"v"[..])), false, None),
            (Some(Rc::from(&b""[..])), true, None),
        ] {
            let intent = Intent {
                txn: TxnId(7),
                primary: Rc::from(&b"p"[..]),
                min_commit_ts: Timestamp(99),
                value,
                before: Presence { exists, deadline_ms },
            };
            assert_eq!(Intent::decode(&intent.encode()), Ok(intent));
        }
    }
}
