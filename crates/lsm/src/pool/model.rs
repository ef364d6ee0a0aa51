//! Holding, evicting and reusing a frame under the model checker: every interleaving of the threads
//! below, and every value that the memory model lets a load see. `cargo xtask loom` runs it.
//!
//! The frame is a cell that the checker watches: bytes that are read while somebody fills them are
//! an error, whatever their value.

use loom::cell::UnsafeCell;
use loom::sync::{Arc, Mutex};
use loom::thread;

use super::pins::Pins;

/// A cache of one frame: a list of free frames under a lock, an index under another.
struct Model {
    pins: Pins,
    bytes: UnsafeCell<u64>,
    /// Whether the frame is free.
    free: Mutex<bool>,
    /// What the index says lies in the frame; it holds the frame while it says so.
    index: Mutex<Option<u64>>,
}

// SAFETY: what is under test is that `bytes` is written by one holder and read by holders only.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    fn release(&self) {
        if self.pins.release() {
            // SAFETY: the last holder has the frame for itself.
            self.bytes.with_mut(|bytes| unsafe { *bytes = 0 });
            let was_free = std::mem::replace(&mut *self.free.lock().unwrap(), true);
            assert!(!was_free, "given back twice");
        }
    }

    fn insert(&self, key: u64) {
        if !std::mem::replace(&mut *self.free.lock().unwrap(), false) {
            return;
        }
        self.pins.start();
        // SAFETY: a frame that was free has one holder, this one.
        self.bytes.with_mut(|bytes| unsafe { *bytes = key });
        self.pins.add();
        let before = self.index.lock().unwrap().replace(key);
        assert!(before.is_none(), "the frame was free and the index said otherwise");
        self.release();
    }

    fn get(&self) {
        let index = self.index.lock().unwrap();
        let Some(key) = *index else { return };
        self.pins.add();
        drop(index);
        // SAFETY: a holder reads.
        let found = self.bytes.with(|bytes| unsafe { *bytes });
        assert_eq!(found, key, "the frame was reused under its holder");
        self.release();
    }

    fn evict(&self) {
        let evicted = self.index.lock().unwrap().take();
        if evicted.is_some() {
            self.release();
        }
    }
}

#[test]
fn a_frame_is_reused_only_after_its_last_holder() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let model = Arc::new(Model {
            pins: Pins::one(),
            bytes: UnsafeCell::new(1),
            free: Mutex::new(false),
            index: Mutex::new(Some(1)),
        });
        let reader = {
            let m = model.clone();
            thread::spawn(move || {
                m.get();
                m.get();
            })
        };
        let writer = {
            let m = model.clone();
            thread::spawn(move || {
                m.evict();
                m.insert(2);
            })
        };
        model.get();
        reader.join().unwrap();
        writer.join().unwrap();
        model.evict();
        assert!(*model.free.lock().unwrap(), "nobody holds it, so it is free");
    });
}
