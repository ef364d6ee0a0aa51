//! Waiting between attempts: longer each time, never in step with others, and not for ever.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use atoll_env::{Clock, Env, Instant, Random};

use crate::error::Unavailable;

/// Time and chance, as far as waiting needs them. Cheap to clone.
#[derive(Clone)]
pub struct Pace {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
}

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pace")
    }
}

impl Pace {
    /// Returns the pace of an environment.
    pub fn new(env: &Env) -> Pace {
        Pace { clock: env.clock.clone(), random: env.random.clone() }
    }

    /// Returns a back-off that starts at `first`, doubles up to `most` and gives up after `limit`.
    pub(crate) fn backoff(&self, first: Duration, most: Duration, limit: Duration) -> Backoff<'_> {
        let deadline = self.clock.now().after(limit);
        Backoff { pace: self, step: first, most, deadline }
    }

    /// Waits for about `duration`: between half of it and the whole.
    pub(crate) async fn about(&self, duration: Duration) {
        let half = duration / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        let part = (u128::from(self.random.next_u64()) * u128::from(nanos)) >> 64;
        self.clock.sleep(half + Duration::from_nanos(part as u64)).await;
    }
}

/// A series of waits.
pub(crate) struct Backoff<'a> {
    pub(crate) pace: &'a Pace,
    step: Duration,
    most: Duration,
    deadline: Instant,
}

impl Backoff<'_> {
    /// Returns whether the time allowed has passed.
    pub(crate) fn is_over(&self) -> bool {
        self.pace.clock.now() >= self.deadline
    }

    /// Waits before the next attempt, because of `why`.
    ///
    /// # Errors
    /// The time allowed has passed.
    pub(crate) async fn pause(&mut self, why: &str) -> Result<(), Unavailable> {
        if self.is_over() {
            return Err(Unavailable(why.to_owned()));
        }
        self.pace.about(self.step).await;
        self.step = (self.step * 2).min(self.most);
        Ok(())
    }
}
