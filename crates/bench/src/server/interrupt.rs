//! Ctrl-C: the first one ends the run in order, a second one at once.
//!
//! Servers are in process groups of their own, which a terminal's signal does not reach: whoever
//! waits asks [`Interrupt::check`] now and then, fails, and what was started is stopped and removed
//! on the way out. After a second signal the kernel kills the servers (`exec.rs`); their directory
//! is left behind then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::Failure;

/// Whether the user wants an end of it.
#[derive(Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes over the signals that would end the process.
    pub fn on_signals() -> Result<Interrupt, Failure> {
        let interrupt = Interrupt::default();
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag unset, the second one set.
            flag::register_conditional_shutdown(signal, 130, Arc::clone(&interrupt.0))?;
            flag::register(signal, Arc::clone(&interrupt.0))?;
        }
        Ok(interrupt)
    }

    /// Returns one whose signal has come.
    #[cfg(test)]
    pub fn raised() -> Interrupt {
        Interrupt(Arc::new(AtomicBool::new(true)))
    }

    /// Fails once a signal has come.
    pub fn check(&self) -> Result<(), Failure> {
        match self.0.load(Ordering::Relaxed) {
            true => Err("interrupted; the servers are stopped and their data is removed".into()),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_fails_once_a_signal_has_come() {
        assert!(Interrupt::default().check().is_ok());
        assert!(Interrupt::raised().check().is_err());
    }
}
