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
//! [`always_same!`](crate::always_same) is the other kind: facts that whoever states them must state alike,
//! such as what the entry of an index and a term holds. Every replica that applies it says so, and
//! so does one that applies it again after a crash; the first contradiction is kept for the harness.
//!
//! Probes exist with the cargo feature `probes`. Without it nothing of them is even computed.
//! (FoundationDB's TEST macro, Antithesis's "sometimes assertions".)

use std::cell::RefCell;
use std::collections::BTreeMap;

/// What a fact is about: a group, a place in it, and its term.
pub type Subject = [u64; 3];

#[derive(Default)]
struct Facts {
    known: BTreeMap<(&'static str, Subject), u64>,
    /// How often a known one was stated again.
    confirmed: u64,
    contradiction: Option<String>,
}

thread_local! {
    static REACHED: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
    static FACTS: RefCell<Facts> = RefCell::default();
}

/// States a fact by its hash.
pub fn state(what: &'static str, subject: Subject, hash: u64) {
    FACTS.with_borrow_mut(|facts| {
        let first = *facts.known.entry((what, subject)).or_insert(hash);
        facts.confirmed += 1;
        if first != hash && facts.contradiction.is_none() {
            let text = format!("{what} {subject:?}: {first:016x} before, {hash:016x} now");
            facts.contradiction = Some(text);
        }
    });
}

/// Forgets this thread's facts. Returns how often one was stated that was known, or the first that
/// contradicted one.
pub fn take_facts() -> Result<u64, String> {
    let facts = FACTS.take();
    match facts.contradiction {
        None => Ok(facts.confirmed - facts.known.len() as u64),
        Some(what) => Err(what),
    }
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

/// States a fact that must be the same whenever it is stated, in a simulated world: what it is about
/// and its hash.
#[cfg(feature = "probes")]
#[macro_export]
macro_rules! always_same {
    ($what:literal, $subject:expr, $hash:expr) => {
        $crate::probe::state($what, $subject, $hash);
    };
}

/// States a fact that must always be the same: nothing, in this build.
#[cfg(not(feature = "probes"))]
#[macro_export]
macro_rules! always_same {
    ($what:literal, $subject:expr, $hash:expr) => {
        if false {
            let _: (&str, $crate::probe::Subject, u64) = ($what, $subject, $hash);
        }
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_fact_that_changes_is_told_once_taken() {
        super::state("entry", [1, 2, 3], 7);
        super::state("entry", [1, 2, 4], 8);
        super::state("entry", [1, 2, 3], 7);
        assert_eq!(super::take_facts(), Ok(1));
        super::state("entry", [1, 2, 3], 9);
        super::state("entry", [1, 2, 3], 7);
        let told = super::take_facts().unwrap_err();
        assert!(told.starts_with("entry [1, 2, 3]: "), "{told}");
        assert_eq!(super::take_facts(), Ok(0));
    }

    #[test]
    fn what_is_reached_is_counted_once_taken() {
        super::note("here");
        super::note("here");
        assert_eq!(super::take(), [("here", 2)].into());
        assert!(super::take().is_empty());
    }
}
