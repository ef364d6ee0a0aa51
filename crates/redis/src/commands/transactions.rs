//! The session's part of transactions: MULTI, DISCARD, UNWATCH. WATCH and EXEC read keys, so they
//! are the executor's.

use crate::commands::SessionCall;
use crate::error::{Outcome, fixed};
use crate::unit::Queue;

impl SessionCall<'_> {
    pub fn multi(&mut self) -> Outcome {
        if self.session.queue.is_some() {
            return Err(fixed("ERR MULTI calls can not be nested"));
        }
        self.session.queue = Some(Queue::default());
        self.reply().ok();
        Ok(())
    }

    /// Forgets the queue; the executor has forgotten the watched keys.
    pub fn discard(&mut self) -> Outcome {
        if self.session.queue.take().is_none() {
            return Err(fixed("ERR DISCARD without MULTI"));
        }
        self.reply().ok();
        Ok(())
    }

    /// The executor has forgotten the watched keys.
    pub fn unwatch(&mut self) -> Outcome {
        self.reply().ok();
        Ok(())
    }
}
