//! Strings: values as bytes, and as integers when they look like one.

use std::rc::Rc;

use crate::call::{Bytes, Call, MAX_STRING};
use crate::error::{self, Outcome};
use crate::layout;
use crate::session::MAX_OUTPUT;
use crate::store::Store;

/// The options of SET and GETEX.
#[derive(Default)]
struct Options {
    nx: bool,
    xx: bool,
    get: bool,
    keep_ttl: bool,
    persist: bool,
    /// The unit of the expire time and the index of its argument.
    expire: Option<(Unit, usize)>,
}

/// What an expire time counts, and from when.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Milliseconds,
    UnixSeconds,
    UnixMilliseconds,
}

impl<S: Store> Call<'_, S> {
    pub async fn get(&mut self) -> Outcome {
        match self.lookup(self.arg(1)).await? {
            Some(found) => self.reply().bulk(found.string()?),
            None => self.reply().null(),
        }
        Ok(())
    }

    pub async fn strlen(&mut self) -> Outcome {
        let found = self.lookup(self.arg(1)).await?;
        let len = match &found {
            Some(found) => found.string()?.len(),
            None => 0,
        };
        self.reply().count(len);
        Ok(())
    }

    pub async fn mget(&mut self) -> Outcome {
        self.session.reply().array(self.request.len() - 1);
        for key in self.request.tail(1) {
            match self.lookup(key).await? {
                Some(found) => self.reply().bulk(found.string()?),
                None => self.reply().null(),
            }
            if self.session.output.len() > MAX_OUTPUT {
                break;
            }
        }
        Ok(())
    }

    pub async fn set(&mut self) -> Outcome {
        let options = self.options(3, true)?;
        let (key, value) = (self.arg(1), self.arg(2));
        self.check(key, value.len())?;
        let mut deadline_ms = self.deadline(options.expire)?;
        let mut old = None;
        if options.get {
            old = self.lookup(key).await?;
        } else if options.nx || options.xx || options.keep_ttl {
            old = self.peek(key).await?;
        }
        if options.keep_ttl {
            deadline_ms = old.as_ref().and_then(|old| old.deadline_ms);
        }
        let wanted = if options.nx { old.is_none() } else { !options.xx || old.is_some() };
        if options.get {
            match &old {
                Some(old) => self.reply().bulk(old.string()?),
                None => self.reply().null(),
            }
        } else if wanted {
            self.reply().ok();
        } else {
            self.reply().null();
        }
        if wanted { self.put(key, value, deadline_ms) } else { Ok(()) }
    }

    /// Sets a value with an expire time, which has the option's unit in SET.
    pub fn setex(&mut self, unit: Unit) -> Outcome {
        let (key, value) = (self.arg(1), self.arg(3));
        self.check(key, value.len())?;
        let deadline_ms = self.deadline(Some((unit, 2)))?;
        self.put(key, value, deadline_ms)?;
        self.reply().ok();
        Ok(())
    }

    pub async fn setnx(&mut self) -> Outcome {
        let (key, value) = (self.arg(1), self.arg(2));
        self.check(key, value.len())?;
        let wanted = self.peek(key).await?.is_none();
        if wanted {
            self.put(key, value, None)?;
        }
        self.reply().int(i64::from(wanted));
        Ok(())
    }

    pub fn mset(&mut self) -> Outcome {
        if self.request.len().is_multiple_of(2) {
            return Err(error::wrong_arity(self.command.name));
        }
        // All are checked before the first is staged: the command takes effect wholly or not.
        for pair in (1..self.request.len()).step_by(2) {
            self.check(self.arg(pair), self.arg(pair + 1).len())?;
        }
        for pair in (1..self.request.len()).step_by(2) {
            self.put(self.arg(pair), self.arg(pair + 1), None)?;
        }
        self.reply().ok();
        Ok(())
    }

    pub async fn getdel(&mut self) -> Outcome {
        let key = self.arg(1);
        match self.lookup(key).await? {
            Some(found) => {
                self.reply().bulk(found.string()?);
                self.remove(key)
            }
            None => {
                self.reply().null();
                Ok(())
            }
        }
    }

    pub async fn getex(&mut self) -> Outcome {
        let options = self.options(2, false)?;
        let Some(found) = self.lookup(self.arg(1)).await? else {
            self.reply().null();
            return Ok(());
        };
        // Read after the key, as Redis does: of a key that is absent no time is wrong.
        let deadline_ms = self.deadline(options.expire)?;
        self.reply().bulk(found.string()?);
        if deadline_ms.is_some() || (options.persist && found.deadline_ms.is_some()) {
            self.restage(found.bytes, deadline_ms);
        }
        Ok(())
    }

    pub async fn append(&mut self) -> Outcome {
        let (key, tail) = (self.arg(1), self.arg(2));
        let Some(found) = self.peek(key).await? else {
            self.put(key, tail, None)?;
            self.reply().count(tail.len());
            return Ok(());
        };
        let len = found.string()?.len() + tail.len();
        if len > MAX_STRING {
            return Err(error::TOO_LONG);
        }
        let mut record = match found.bytes {
            Bytes::Stored(value) => Rc::new(value.to_vec()),
            Bytes::Staged(shared) => {
                // Given up before it is taken, so that a chain of appends in one turn extends
                // one buffer instead of copying it each time.
                drop(shared);
                let executor = &mut *self.executor;
                let taken = executor.writes.take_record(self.session.db, &executor.key);
                taken.unwrap_or_default()
            }
        };
        Rc::make_mut(&mut record).extend_from_slice(tail);
        self.stage(record, found.deadline_ms);
        self.reply().count(len);
        Ok(())
    }

    pub async fn incrby(&mut self) -> Outcome {
        let amount = self.int_arg(2)?;
        self.add(Some(amount)).await
    }

    pub async fn decrby(&mut self) -> Outcome {
        // Its negative does not exist, and Redis says so before it looks at the value.
        let amount = self.int_arg(2)?.checked_neg();
        self.add(amount).await
    }

    /// Adds to an integer value; `None` is an amount that cannot be added to anything.
    pub async fn add(&mut self, amount: Option<i64>) -> Outcome {
        let amount = amount.ok_or(error::DECREMENT_OVERFLOW)?;
        let key = self.arg(1);
        let found = self.peek(key).await?;
        let (value, deadline_ms) = match &found {
            Some(found) => {
                let value = atoll_resp::number::parse_i64(found.string()?);
                (value.ok_or(error::NOT_AN_INTEGER)?, found.deadline_ms)
            }
            None => (0, None),
        };
        let sum = value.checked_add(amount).ok_or(error::OVERFLOW)?;
        let text = itoa::Buffer::new().format(sum).to_owned();
        let record = Rc::new(layout::string_record(text.as_bytes()));
        self.stage(record, deadline_ms);
        self.reply().int(sum);
        Ok(())
    }

    /// Stages the record that was just read, with another deadline.
    pub fn restage(&mut self, bytes: Bytes<S::Value>, deadline_ms: Option<u64>) {
        let record = match bytes {
            Bytes::Stored(value) => Rc::new(value.to_vec()),
            Bytes::Staged(record) => record,
        };
        self.stage(record, deadline_ms);
    }

    /// Parses options from argument `first` on; some belong to SET alone, one to GETEX.
    fn options(&self, first: usize, is_set: bool) -> Outcome<Options> {
        let mut options = Options::default();
        let mut at = first;
        while at < self.request.len() {
            let unit = [
                ("EX", Unit::Seconds),
                ("PX", Unit::Milliseconds),
                ("EXAT", Unit::UnixSeconds),
                ("PXAT", Unit::UnixMilliseconds),
            ];
            let unit = unit.iter().find(|(word, _)| self.is(at, word)).map(|&(_, unit)| unit);
            if let Some(unit) = unit {
                let other = options.expire.is_some_and(|(before, _)| before != unit);
                let last = at + 1 == self.request.len();
                if other || last || options.keep_ttl || options.persist {
                    return Err(error::SYNTAX);
                }
                options.expire = Some((unit, at + 1));
                at += 1;
            } else if is_set && self.is(at, "NX") && !options.xx {
                options.nx = true;
            } else if is_set && self.is(at, "XX") && !options.nx {
                options.xx = true;
            } else if is_set && self.is(at, "GET") {
                options.get = true;
            } else if is_set && self.is(at, "KEEPTTL") && options.expire.is_none() {
                options.keep_ttl = true;
            } else if !is_set && self.is(at, "PERSIST") && options.expire.is_none() {
                options.persist = true;
            } else {
                return Err(error::SYNTAX);
            }
            at += 1;
        }
        Ok(options)
    }

    /// Returns the deadline that an expire time of this unit, at this argument, asks for.
    fn deadline(&self, expire: Option<(Unit, usize)>) -> Outcome<Option<u64>> {
        let Some((unit, index)) = expire else { return Ok(None) };
        let amount = self.int_arg(index)?;
        let now = i64::try_from(self.executor.now_ms).unwrap_or(i64::MAX);
        let deadline = match unit {
            Unit::Seconds => amount.checked_mul(1_000).and_then(|ms| ms.checked_add(now)),
            Unit::Milliseconds => amount.checked_add(now),
            Unit::UnixSeconds => amount.checked_mul(1_000),
            Unit::UnixMilliseconds => Some(amount),
        };
        match deadline.and_then(|deadline| u64::try_from(deadline).ok()) {
            Some(deadline) if amount > 0 => Ok(Some(deadline)),
            _ => Err(error::invalid_expire(self.command.name)),
        }
    }
}
