//! A rotten byte after a crash: the answer is `Corruption`, or it does not matter.
//!
//! A power cut alone cannot tell a log that checks what was durable from one that takes every
//! damaged frame for a torn tail. So in a copy of what some crashes left, one bit that was stored
//! is inverted. The engine may refuse, naming a file, or give the content it would have given; of
//! the log it may also give a shorter prefix, if no surviving frame proves that the missing ones
//! were durable ([`Oracle::floor_despite_rot`]): their loss cannot be told from a torn tail.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use atoll_env::Instant;
use atoll_env::random::Prng;
use atoll_env::sim::{DiskSnapshot, Outcome, Sim};

use crate::check::Trouble;
use crate::life::{PATH, Setting, live};
use crate::oracle::Oracle;
use crate::script::Tuning;

/// What a crash left, and what it should be.
pub struct Copy {
    pub(crate) seed: u64,
    pub(crate) disk: DiskSnapshot,
    pub(crate) tuning: Tuning,
    pub(crate) oracle: Oracle,
    pub(crate) life: u64,
    pub(crate) now: Instant,
}

/// What the engine made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It refused.
    Refused,
    /// Nothing was different.
    Unaffected,
    /// The log ended earlier, and nobody can know better.
    Shorter,
}

/// Inverts a bit in `copy`, of which `survived` entries would be found, and opens it.
///
/// # Errors
/// The answers were wrong.
pub fn try_one(copy: Copy, survived: usize, prng: &mut Prng) -> Result<Verdict, Trouble> {
    let sim = Sim::new(copy.seed);
    let node = sim.node("db");
    let disk = node.disk();
    disk.restore(&copy.disk);
    // Deadlines pass as they would have.
    sim.advance(Duration::from_nanos(copy.now.0));
    let files: Vec<String> = disk
        .files()
        .into_iter()
        .filter(|f| f.contains(PATH) && !f.ends_with("LOCK") && !f.ends_with(".spare"))
        .collect();
    let logs: Vec<String> = files.iter().filter(|f| f.ends_with(".log")).cloned().collect();
    let victims = if prng.chance(0.7) { &logs } else { &files };
    let Some(path) = prng.choose(victims) else { return Ok(Verdict::Unaffected) };
    let bytes = disk.read_file(path).unwrap_or_default();
    let used: Vec<u64> =
        (0..bytes.len()).filter(|at| bytes[*at] != 0).map(|at| at as u64).collect();
    let Some(&offset) = prng.choose(&used) else { return Ok(Verdict::Unaffected) };
    disk.corrupt(path, offset, prng.below(8) as u32);

    let floor = copy.oracle.floor_despite_rot(survived);
    let setting = Setting {
        env: node.env(),
        tuning: copy.tuning,
        oracle: Rc::new(RefCell::new(copy.oracle)),
        floor,
        number: copy.life,
        prng: prng.fork("life"),
    };
    let about = |trouble: Trouble| {
        let place = format!("with a bit inverted in {path} at offset {offset}");
        Err(Trouble::Wrong(format!("{place} ({PATH}): {trouble}")))
    };
    match sim.try_block_on(&node, live(setting, None, Rc::default())) {
        Err(deadlock) => about(Trouble::Wrong(deadlock.to_string())),
        Ok(Outcome::Crashed) => about(Trouble::Wrong("the node crashed by itself".to_owned())),
        Ok(Outcome::Done(Ok(found))) if found == survived => Ok(Verdict::Unaffected),
        Ok(Outcome::Done(Ok(_))) => Ok(Verdict::Shorter),
        Ok(Outcome::Done(Err(trouble))) if trouble.is_refusal() => Ok(Verdict::Refused),
        Ok(Outcome::Done(Err(trouble))) => about(trouble),
    }
}
