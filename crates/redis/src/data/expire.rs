//! Deadlines: set, asked for, removed.

use crate::data::Data;
use crate::error::{self, Outcome};
use crate::tx::Tx;

/// What an expire time counts, and from when.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    Milliseconds,
    UnixSeconds,
    UnixMilliseconds,
}

impl Unit {
    /// Returns the moment that an amount means, in milliseconds of the Unix epoch.
    fn resolve(self, amount: i64, now_ms: u64) -> Option<i64> {
        let now = i64::try_from(now_ms).unwrap_or(i64::MAX);
        match self {
            Unit::Seconds => amount.checked_mul(1_000).and_then(|ms| ms.checked_add(now)),
            Unit::Milliseconds => amount.checked_add(now),
            Unit::UnixSeconds => amount.checked_mul(1_000),
            Unit::UnixMilliseconds => Some(amount),
        }
    }
}

impl<T: Tx> Data<'_, T> {
    /// Returns the deadline that an expire time of this unit, at this argument, asks for.
    pub fn deadline(&self, expire: Option<(Unit, usize)>) -> Outcome<Option<u64>> {
        let Some((unit, index)) = expire else { return Ok(None) };
        let amount = self.int_arg(index)?;
        let deadline = unit.resolve(amount, self.tx.now_ms());
        match deadline.and_then(|deadline| u64::try_from(deadline).ok()) {
            Some(deadline) if amount > 0 => Ok(Some(deadline)),
            _ => Err(error::invalid_expire(self.call.command.name)),
        }
    }

    /// Sets a deadline.
    pub async fn expire(&mut self, unit: Unit) -> Outcome {
        let (mut nx, mut xx, mut gt, mut lt) = (false, false, false, false);
        for index in 3..self.args() {
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
        let Some(deadline) = unit.resolve(self.int_arg(2)?, self.tx.now_ms()) else {
            return Err(error::invalid_expire(self.call.command.name));
        };
        let key = self.key(1)?;
        let Some(found) = self.peek(key).await? else {
            self.reply().int(0);
            return Ok(());
        };
        // A deadline before 1970 is as due as one at 1970.
        let deadline = u64::try_from(deadline).unwrap_or(0);
        let refused = match found.meta.deadline_ms {
            None => xx || gt,
            Some(current) => nx || (gt && deadline <= current) || (lt && deadline >= current),
        };
        if !refused {
            self.put_deadline(key, &found, Some(deadline))?;
        }
        self.reply().int(i64::from(!refused));
        Ok(())
    }

    pub async fn persist(&mut self) -> Outcome {
        let key = self.key(1)?;
        let found = self.peek(key).await?.filter(|found| found.meta.deadline_ms.is_some());
        if let Some(found) = &found {
            self.put_deadline(key, found, None)?;
        }
        self.reply().int(i64::from(found.is_some()));
        Ok(())
    }

    /// Answers the time to live in units of `unit_ms`, rounded.
    pub async fn ttl(&mut self, unit_ms: u64) -> Outcome {
        let now = self.tx.now_ms();
        self.answer_deadline(|deadline| (deadline.saturating_sub(now) + unit_ms / 2) / unit_ms)
            .await
    }

    /// Answers the deadline in units of `unit_ms` since 1970, rounded.
    pub async fn expiretime(&mut self, unit_ms: u64) -> Outcome {
        self.answer_deadline(|deadline| deadline.saturating_add(unit_ms / 2) / unit_ms).await
    }

    async fn answer_deadline(&mut self, shown: impl FnOnce(u64) -> u64) -> Outcome {
        let key = self.key(1)?;
        let answer = match self.glimpse(key).await? {
            None => -2,
            Some(found) => match found.meta.deadline_ms {
                None => -1,
                Some(deadline) => i64::try_from(shown(deadline)).unwrap_or(i64::MAX),
            },
        };
        self.reply().int(answer);
        Ok(())
    }
}
