//! Strings as bytes: set, get, append, and parts of them.

use std::ops::Range;

use crate::data::expire::Unit;
use crate::data::{Data, check_edited_len, check_len};
use crate::error::{self, Outcome};
use crate::object::{Kind, Meta};
use crate::session::MAX_OUTPUT;
use crate::text::{self, Editor};
use crate::tx::Tx;

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

impl<T: Tx> Data<'_, T> {
    pub async fn get(&mut self) -> Outcome {
        // The most frequent command, so it goes without the helpers of the others.
        let key = self.key(1)?;
        let read = self.tx.get(self.call.db, key).await;
        let found = read.map_err(|error| error::unreadable(&error))?;
        self.note(key, found.is_some());
        match &found {
            None => self.reply().null(),
            Some(object) if object.meta.kind != Kind::String => return Err(error::UNKNOWN_KIND),
            Some(object) if object.meta.generation.is_none() => {
                self.reply().bulk(object.payload());
            }
            Some(object) => self.reply_string(key, object).await?,
        }
        Ok(())
    }

    pub async fn strlen(&mut self) -> Outcome {
        let found = self.lookup_string(self.key(1)?).await?;
        self.reply().count(found.as_ref().map_or(0, text::len));
        Ok(())
    }

    pub async fn mget(&mut self) -> Outcome {
        let keys = self.keys(1)?;
        let count = self.args() - 1;
        self.reply().array(count);
        for key in keys {
            let found = self.lookup_string(key).await?;
            self.reply_optional(key, &found).await?;
            if self.out.len() > MAX_OUTPUT {
                break;
            }
        }
        Ok(())
    }

    pub async fn set(&mut self) -> Outcome {
        let options = self.options(3, true)?;
        let (key, value) = (self.key(1)?, self.arg(2));
        check_len(value.len())?;
        let deadline_ms = self.deadline(options.expire)?;
        if !(options.get || options.nx || options.xx || options.keep_ttl) {
            let meta = self.claim(key).await?;
            self.put(key, &Meta { deadline_ms, ..meta }, value);
            self.reply().ok();
            return Ok(());
        }
        let old = match options.get {
            true => self.lookup_string(key).await?,
            false => self.peek(key).await?,
        };
        let wanted = if options.nx { old.is_none() } else { !options.xx || old.is_some() };
        if options.get {
            self.reply_optional(key, &old).await?;
        } else if wanted {
            self.reply().ok();
        } else {
            self.reply().null();
        }
        if wanted {
            let kept_ms = old.as_ref().and_then(|old| old.meta.deadline_ms);
            let deadline_ms = if options.keep_ttl { kept_ms } else { deadline_ms };
            let meta = self.successor(old.as_ref());
            self.put(key, &Meta { deadline_ms, ..meta }, value);
        }
        Ok(())
    }

    /// Sets a value with an expire time, which has the option's unit in SET.
    pub async fn setex(&mut self, unit: Unit) -> Outcome {
        let (key, value) = (self.key(1)?, self.arg(3));
        check_len(value.len())?;
        let deadline_ms = self.deadline(Some((unit, 2)))?;
        let meta = self.claim(key).await?;
        self.put(key, &Meta { deadline_ms, ..meta }, value);
        self.reply().ok();
        Ok(())
    }

    pub async fn setnx(&mut self) -> Outcome {
        let (key, value) = (self.key(1)?, self.arg(2));
        check_len(value.len())?;
        let wanted = self.peek(key).await?.is_none();
        if wanted {
            self.put(key, &self.successor(None), value);
        }
        self.reply().int(i64::from(wanted));
        Ok(())
    }

    pub async fn mset(&mut self) -> Outcome {
        // All are checked and claimed before the first is written: it takes effect wholly or not.
        let pairs = self.pairs()?;
        let mut metas = Vec::with_capacity(pairs.len() / 2);
        for pair in pairs.clone().step_by(2) {
            let (key, value) = (self.key(pair)?, self.arg(pair + 1));
            check_len(value.len())?;
            metas.push(self.claim(key).await?);
        }
        for (pair, meta) in pairs.step_by(2).zip(metas) {
            self.put(self.arg(pair), &meta, self.arg(pair + 1));
        }
        self.reply().ok();
        Ok(())
    }

    /// Returns the arguments of a command that takes pairs, or the error of an odd number of them.
    fn pairs(&self) -> Outcome<Range<usize>> {
        if self.args().is_multiple_of(2) {
            return Err(error::wrong_arity(self.call.command.name));
        }
        Ok(1..self.args())
    }

    pub async fn msetnx(&mut self) -> Outcome {
        let mut absent = true;
        for pair in self.pairs()?.step_by(2) {
            let (key, value) = (self.key(pair)?, self.arg(pair + 1));
            check_len(value.len())?;
            absent &= self.peek(key).await?.is_none();
        }
        if absent {
            let meta = self.successor(None);
            for pair in self.pairs()?.step_by(2) {
                self.put(self.arg(pair), &meta, self.arg(pair + 1));
            }
        }
        self.reply().int(i64::from(absent));
        Ok(())
    }

    pub async fn getset(&mut self) -> Outcome {
        let (key, value) = (self.key(1)?, self.arg(2));
        check_len(value.len())?;
        let old = self.lookup_string(key).await?;
        self.reply_optional(key, &old).await?;
        self.put(key, &self.successor(old.as_ref()), value);
        Ok(())
    }

    pub async fn getdel(&mut self) -> Outcome {
        let key = self.key(1)?;
        let found = self.lookup_string(key).await?;
        self.reply_optional(key, &found).await?;
        if found.is_some() {
            self.tx.remove(self.call.db, key);
        }
        Ok(())
    }

    pub async fn getex(&mut self) -> Outcome {
        let options = self.options(2, false)?;
        let key = self.key(1)?;
        let found = self.lookup_string(key).await?;
        let Some(object) = &found else {
            self.reply().null();
            return Ok(());
        };
        // Read after the key, as Redis does: of a key that is absent no time is wrong.
        let deadline_ms = self.deadline(options.expire)?;
        self.reply_string(key, object).await?;
        if deadline_ms.is_some() || (options.persist && object.meta.deadline_ms.is_some()) {
            self.put_deadline(key, object, deadline_ms)?;
        }
        Ok(())
    }

    pub async fn append(&mut self) -> Outcome {
        let (key, tail) = (self.key(1)?, self.arg(2));
        let found = self.peek_string(key).await?;
        let Some(object) = &found else {
            check_len(tail.len())?;
            self.put(key, &self.successor(None), tail);
            self.reply().count(tail.len());
            return Ok(());
        };
        let len = text::len(object);
        check_edited_len(len + tail.len())?;
        self.edit(key, found.as_ref(), len, tail).await?;
        self.reply().count(len + tail.len());
        Ok(())
    }

    pub async fn setrange(&mut self) -> Outcome {
        let offset = self.int_arg(2)?;
        let Ok(offset) = usize::try_from(offset) else {
            return Err(error::fixed("ERR offset is out of range"));
        };
        let (key, value) = (self.key(1)?, self.arg(3));
        let found = self.peek_string(key).await?;
        let len = found.as_ref().map_or(0, text::len);
        // Nothing to write changes nothing, and creates nothing.
        if value.is_empty() {
            self.reply().count(len);
            return Ok(());
        }
        check_edited_len(offset.saturating_add(value.len()))?;
        self.edit(key, found.as_ref(), offset, value).await?;
        self.reply().count(len.max(offset + value.len()));
        Ok(())
    }

    /// Writes bytes into a string at an offset; zeros fill the gap there may be before them.
    async fn edit(
        &mut self,
        key: &[u8],
        found: Option<&crate::object::Object<T::Value>>,
        offset: usize,
        bytes: &[u8],
    ) -> Outcome {
        let meta = self.edited(found);
        let place = (self.call.db, key);
        let mut editor = Editor::open(self.tx, found, meta, offset + bytes.len());
        let written = editor.write(self.tx, place, offset, bytes).await;
        written.map_err(|error| error::unreadable(&error))?;
        editor.finish(self.tx, self.call.db, key);
        Ok(())
    }

    pub async fn getrange(&mut self) -> Outcome {
        let (start, end) = (self.int_arg(2)?, self.int_arg(3)?);
        let key = self.key(1)?;
        let found = self.lookup_string(key).await?;
        let range = found.as_ref().map_or(0..0, |object| clip(start, end, text::len(object)));
        match &found {
            Some(object) if !range.is_empty() => self.reply_range(key, object, range).await,
            _ => {
                self.reply().bulk(b"");
                Ok(())
            }
        }
    }

    /// Parses options from argument `first` on; some belong to SET alone, one to GETEX.
    fn options(&self, first: usize, is_set: bool) -> Outcome<Options> {
        let mut options = Options::default();
        let mut at = first;
        while at < self.args() {
            let unit = [
                ("EX", Unit::Seconds),
                ("PX", Unit::Milliseconds),
                ("EXAT", Unit::UnixSeconds),
                ("PXAT", Unit::UnixMilliseconds),
            ];
            let unit = unit.iter().find(|(word, _)| self.is(at, word)).map(|&(_, unit)| unit);
            if let Some(unit) = unit {
                let other = options.expire.is_some_and(|(before, _)| before != unit);
                let last = at + 1 == self.args();
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
}

/// Returns the part of a string of this length from `start` to `end`, both included, negative ones
/// counted from its end.
pub(crate) fn clip(start: i64, end: i64, len: usize) -> Range<usize> {
    // Lengths are below 2^30.
    let signed_len = len as i64;
    if start < 0 && end < 0 && start > end {
        return 0..0;
    }
    let from_end = |index: i64| if index < 0 { (signed_len + index).max(0) } else { index };
    let (start, end) = (from_end(start), from_end(end).min(signed_len - 1));
    if start > end || len == 0 { 0..0 } else { start as usize..end as usize + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_clipped_as_redis_clips_them() {
        for (start, end, len, expected) in [
            (0, -1, 5, 0..5),
            (-3, -1, 5, 2..5),
            (1, 2, 5, 1..3),
            (3, 100, 5, 3..5),
            (-100, 1, 5, 0..2),
            (4, 3, 5, 0..0),
            (5, 9, 5, 0..0),
            (0, -100, 5, 0..1),
            (-1, -100, 5, 0..0),
            (0, -1, 0, 0..0),
            (i64::MIN, i64::MAX, 5, 0..5),
            (i64::MAX, i64::MIN, 5, 0..0),
        ] {
            assert_eq!(clip(start, end, len), expected, "{start} {end} {len}");
        }
    }
}
