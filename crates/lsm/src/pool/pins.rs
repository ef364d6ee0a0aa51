//! The count of those who hold a frame.
//!
//! A frame begins with one holder. Whoever holds it may make another; none can be made of nothing, so a
//! count that has come to zero stays there, and the one who brought it there has the frame for himself.
//! The cache is a holder like any other: eviction is the release of its hold.

#[cfg(not(all(test, atoll_loom)))]
use std::sync::atomic::{AtomicU32, Ordering, fence};

#[cfg(all(test, atoll_loom))]
use loom::sync::atomic::{AtomicU32, Ordering, fence};

/// A count of holders. All zero bytes are a count of none.
pub(super) struct Pins(AtomicU32);

impl Pins {
    /// Returns a count of one.
    #[cfg(all(test, atoll_loom))]
    pub(super) fn one() -> Pins {
        Pins(AtomicU32::new(1))
    }

    /// Counts the first holder of a frame that has none.
    pub(super) fn start(&self) {
        // Who takes a frame has synchronised with who gave it back, by the allocator's lock.
        self.0.store(1, Ordering::Relaxed);
    }

    /// Counts one more; the caller is a holder.
    #[inline]
    pub(super) fn add(&self) {
        // Relaxed: the new holder learns of the frame by other means, which order what they must.
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        if before > u32::MAX / 2 {
            // Two thousand million handles that nobody drops. A count that wraps would free the frame
            // under them.
            std::process::abort();
        }
    }

    /// Counts one less. Returns whether the caller was the last, and may now do with the frame what he
    /// likes: everything that others did with it has happened.
    #[inline]
    #[must_use]
    pub(super) fn release(&self) -> bool {
        if self.0.fetch_sub(1, Ordering::Release) != 1 {
            return false;
        }
        fence(Ordering::Acquire);
        true
    }
}
