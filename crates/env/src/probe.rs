//! Probes: did a test ever get there?
//!
//! A run of the simulator that finds nothing wrong may have found nothing at all. [`sometimes!`](crate::sometimes)
//! marks states that are rare and matter (a transaction was recovered by somebody else, a turn was
//! refused for lack of room); a campaign of seeds prints how often each was reached, and one that
//! was never reached is not tested.
//!
//! ```
//! # let recovered = true;
//! atoll_env::sometimes!(recovered, "a stranger's transaction is recovered");
//! ```
//!
//! Probes exist with the cargo feature `probes`. Without it the condition is not even kept.
//! (FoundationDB's TEST macro, Antithesis's "sometimes assertions".)

use std::cell::RefCell;
use std::collections::BTreeMap;

thread_local! {
    static REACHED: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// Notes that this thread has reached a state.
pub fn note(what: &'static str) {
    REACHED.with_borrow_mut(|reached| *reached.entry(what).or_default() += 1);
}

/// Takes what this thread has reached since the last call, with how often.
pub fn take() -> BTreeMap<&'static str, u64> {
    REACHED.take()
}

/// Notes a state that a campaign of the simulator should reach, if the condition holds.
#[cfg(feature = "probes")]
#[macro_export]
macro_rules! sometimes {
    ($condition:expr, $what:literal) => {
        if $condition {
            $crate::probe::note($what);
        }
    };
}

/// Notes a state that a campaign of the simulator should reach: nothing, in this build.
#[cfg(not(feature = "probes"))]
#[macro_export]
macro_rules! sometimes {
    ($condition:expr, $what:literal) => {
        if false {
            let _: (bool, &str) = ($condition, $what);
        }
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_reached_is_counted_once_taken() {
        super::note("here");
        super::note("here");
        assert_eq!(super::take(), [("here", 2)].into());
        assert!(super::take().is_empty());
    }
}
