//! The tools with which threads share memory, or the model checker's in their place.
//!
//! Modules whose orders of steps are checked (`cargo xtask loom`) take atomics and locks from here. The
//! checker's stand in only for their own tests in a build with its flag; everywhere else these are the
//! usual ones, under their usual names.
//!
//! A check that cannot fail proves nothing, so a test may leave one rule out: an order of memory that is
//! asked for by [`order`], or a step of [`crate::mutants`].

#[cfg(not(all(test, atoll_loom)))]
mod chosen {
    pub(crate) use std::sync::atomic;

    pub(crate) use parking_lot::{Mutex, RwLock};

    /// Returns `needed`; the name is for the model checker.
    #[inline(always)]
    pub(crate) fn order(_name: &str, needed: atomic::Ordering) -> atomic::Ordering {
        needed
    }
}

#[cfg(all(test, atoll_loom))]
mod chosen {
    use std::cell::Cell;
    use std::process::Command;
    use std::sync::OnceLock;

    pub(crate) use loom::sync::atomic;
    use loom::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    /// Names the rule that a process leaves out from its start.
    const VARIABLE: &str = "ATOLL_LEFT_OUT";

    std::thread_local! {
        /// The checker's threads all run on that of their test.
        static LEFT_OUT: Cell<&'static str> = const { Cell::new("") };
    }

    /// Checks `story` in all orders, with up to `preemptions` preemptions of its threads.
    pub(crate) fn check(preemptions: usize, story: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(story);
    }

    /// Leaves the rule `name` out, until the test ends.
    pub(crate) fn leave_out(name: &'static str) {
        LEFT_OUT.set(name);
    }

    /// Returns whether the rule `name` is left out.
    pub(crate) fn is_left_out(name: &str) -> bool {
        static ALL_ALONG: OnceLock<Option<String>> = OnceLock::new();
        let all_along = ALL_ALONG.get_or_init(|| std::env::var(VARIABLE).ok());
        LEFT_OUT.get() == name || all_along.as_deref() == Some(name)
    }

    /// Runs the test `name` without the rule `rule` in a process of its own, and returns what it says if
    /// it fails. For what locks when it is dropped: then a failure ends the process.
    pub(crate) fn failure_without(rule: &str, name: &str) -> Option<String> {
        let program = std::env::current_exe().unwrap();
        let child = Command::new(program)
            .args(["--exact", name, "--nocapture"])
            .env(VARIABLE, rule)
            .output();
        let child = child.unwrap();
        let said = [child.stdout, child.stderr].concat();
        (!child.status.success()).then(|| String::from_utf8_lossy(&said).into_owned())
    }

    /// Returns `needed`, or no order at all if that rule is left out.
    pub(crate) fn order(name: &str, needed: atomic::Ordering) -> atomic::Ordering {
        if is_left_out(name) { atomic::Ordering::Relaxed } else { needed }
    }

    /// The checker's lock with the usual one's interface.
    #[derive(Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Mutex<T> {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }

    /// The checker's lock with the usual one's interface.
    pub(crate) struct RwLock<T>(loom::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> RwLock<T> {
            RwLock(loom::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap()
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap()
        }
    }
}

pub(crate) use chosen::*;
