//! Keys, whatever they hold: existence, type, removal, and other names.

use std::collections::BTreeSet;

use crate::data::Data;
use crate::error::{self, CommandError, Outcome};
use crate::object::{Kind, Meta, Object};
use crate::store::DATABASES;
use crate::text;
use crate::tx::{Looked, Tx};

const SAME_OBJECT: CommandError = error::fixed("ERR source and destination objects are the same");

impl<T: Tx> Data<'_, T> {
    pub async fn exists(&mut self) -> Outcome {
        let mut count = 0;
        for key in self.keys(1)? {
            count += usize::from(self.glimpse(key).await?.is_some());
        }
        self.reply().count(count);
        Ok(())
    }

    pub async fn del(&mut self) -> Outcome {
        // All are read before the first is removed: a read that fails leaves nothing half done.
        let mut present = BTreeSet::new();
        for key in self.keys(1)? {
            if self.peek(key).await?.is_some() {
                present.insert(key);
            }
        }
        for key in &present {
            self.tx.remove(self.call.db, key);
        }
        self.reply().count(present.len());
        Ok(())
    }

    pub async fn touch(&mut self) -> Outcome {
        let mut count = 0;
        for key in self.keys(1)? {
            let found = self.peek(key).await?.is_some();
            // Also for a client that asked not to touch: this is the command to do it.
            let looked = if found { Looked::Read } else { Looked::Missed };
            self.tx.looked_up(self.call.db, key, looked);
            count += usize::from(found);
        }
        self.reply().count(count);
        Ok(())
    }

    pub async fn rename(&mut self, over: bool) -> Outcome {
        let (from, to) = (self.key(1)?, self.key(2)?);
        let Some(object) = self.peek(from).await? else {
            return Err(error::fixed("ERR no such key"));
        };
        let wanted = from != to && (over || self.peek(to).await?.is_none());
        if wanted {
            let db = self.call.db;
            self.duplicate(&object, (db, from), (db, to)).await?;
            self.tx.remove(db, from);
        }
        match over {
            true => self.reply().ok(),
            false => self.reply().int(i64::from(wanted)),
        }
        Ok(())
    }

    pub async fn copy(&mut self) -> Outcome {
        let (mut db, mut replace) = (self.call.db, false);
        let mut at = 3;
        while at < self.args() {
            if self.is(at, "REPLACE") {
                replace = true;
            } else if self.is(at, "DB") && at + 1 < self.args() {
                at += 1;
                db = self.db_arg(at)?;
            } else {
                return Err(error::SYNTAX);
            }
            at += 1;
        }
        let (from, to) = (self.key(1)?, self.key(2)?);
        if db == self.call.db && from == to {
            return Err(SAME_OBJECT);
        }
        let copied = self.copy_to((db, to), replace).await?;
        self.reply().int(i64::from(copied));
        Ok(())
    }

    pub async fn move_to_db(&mut self) -> Outcome {
        let db = self.db_arg(2)?;
        if db == self.call.db {
            return Err(SAME_OBJECT);
        }
        let key = self.key(1)?;
        let moved = self.copy_to((db, key), false).await?;
        if moved {
            self.tx.remove(self.call.db, key);
        }
        self.reply().int(i64::from(moved));
        Ok(())
    }

    /// Copies the key that is the first argument, if it is there, and if the target is not or may
    /// be replaced; returns whether it did.
    async fn copy_to(&mut self, (db, to): (usize, &[u8]), replace: bool) -> Outcome<bool> {
        let from = self.key(1)?;
        let Some(object) = self.peek(from).await? else { return Ok(false) };
        if !replace && self.peek_in(db, to).await?.is_some() {
            return Ok(false);
        }
        self.duplicate(&object, (self.call.db, from), (db, to)).await?;
        Ok(true)
    }

    /// Puts an object under another name; it keeps its age and its deadline.
    async fn duplicate(
        &mut self,
        object: &Object<T::Value>,
        from: (usize, &[u8]),
        to: (usize, &[u8]),
    ) -> Outcome {
        if object.meta.kind == Kind::Unknown {
            return Err(error::UNKNOWN_KIND);
        }
        let (db, key) = to;
        let claimed = self.tx.claim(db, key).await;
        claimed.map_err(|error| error::unreadable(&error))?;
        let fragments = text::Fragments::read(self.tx, object, from).await;
        let fragments = fragments.map_err(|error| error::unreadable(&error))?;
        let generation = object.meta.generation.map(|_| self.tx.new_generation());
        let updated_us = self.tx.epoch_us().max(object.meta.created_us);
        let meta = Meta { generation, updated_us, ..object.meta };
        self.put_in(db, key, &meta, object.payload());
        if let Some(generation) = generation {
            fragments.write(self.tx, to, generation);
        }
        Ok(())
    }

    /// Returns an argument as the number of a database.
    fn db_arg(&self, index: usize) -> Outcome<usize> {
        let db = self.int_arg(index)?;
        if i32::try_from(db).is_err() {
            return Err(error::NOT_AN_INT);
        }
        usize::try_from(db).ok().filter(|&db| db < DATABASES).ok_or(error::DB_OUT_OF_RANGE)
    }

    pub async fn type_of(&mut self) -> Outcome {
        let key = self.key(1)?;
        let name = match self.glimpse(key).await? {
            None => "none",
            Some(found) => match found.meta.kind {
                Kind::String => "string",
                Kind::Unknown => return Err(error::UNKNOWN_KIND),
            },
        };
        self.reply().simple(name);
        Ok(())
    }
}
