//! Strings as numbers.

use crate::data::Data;
use crate::decimal::{self, Number};
use crate::error::{self, CommandError, Outcome};
use crate::object::Meta;
use crate::tx::Tx;

const NOT_A_FLOAT: CommandError = error::fixed("ERR value is not a valid float");

impl<T: Tx> Data<'_, T> {
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
        let key = self.key(1)?;
        let found = self.peek_string(key).await?;
        let value = match &found {
            // The payload of a string in fragments is not its bytes; it is too long for a number.
            Some(object) if object.meta.generation.is_some() => return Err(error::NOT_AN_INTEGER),
            Some(object) => {
                let value = atoll_resp::number::parse_i64(object.payload());
                value.ok_or(error::NOT_AN_INTEGER)?
            }
            None => 0,
        };
        let sum = value.checked_add(amount).ok_or(error::OVERFLOW)?;
        let meta = self.edited(found.as_ref());
        self.put(key, &meta, itoa::Buffer::new().format(sum).as_bytes());
        self.reply().int(sum);
        Ok(())
    }

    pub async fn incrbyfloat(&mut self) -> Outcome {
        let key = self.key(1)?;
        let found = self.peek_string(key).await?;
        let value = match &found {
            Some(object) if object.meta.generation.is_some() => None,
            Some(object) => decimal::parse(object.payload()),
            None => decimal::parse(b"0"),
        };
        let value = value.ok_or(NOT_A_FLOAT)?;
        let amount = decimal::parse(self.arg(2)).ok_or(NOT_A_FLOAT)?;
        let sum = match (value, amount) {
            (Number::Finite(value), Number::Finite(amount)) => value.add(amount),
            _ => None,
        };
        let sum = sum.ok_or(error::fixed("ERR increment would produce NaN or Infinity"))?;
        let text = sum.to_text();
        let meta = self.edited(found.as_ref());
        self.put(key, &meta, text.as_bytes());
        self.reply().bulk(text.as_bytes());
        Ok(())
    }

    /// Returns the metadata of a string that was changed: its deadline stays.
    pub fn edited(&self, found: Option<&crate::object::Object<T::Value>>) -> Meta {
        let deadline_ms = found.and_then(|object| object.meta.deadline_ms);
        Meta { deadline_ms, ..self.successor(found) }
    }
}
