//! The simulator's campaigns: does the storage engine keep its promises when the power goes, and does
//! a whole server keep its own under random faults ([`engine`])?
//!
//! # Crash tests of the storage engine
//! ```text
//!   seed --> script --> a database in the simulator --> power cut at disk operation n
//!              |             |                               |
//!              |             v                               v
//!              +-------> oracle <---- scan, get, ... ---- opened again (and cut again)
//! ```
//!
//! A *history* ([`script`]) is a seeded list of what several writers do at once to a database with
//! tiny, random options, so that group commit forms groups and a hundred disk operations see log
//! rotation, segment reuse, flushes, compactions and manifest replacements. It runs in the
//! simulator of `atoll_env`, first to its end, and then once for every operation that can change
//! the disk: there the power goes before, in the middle of, or after the operation ([`point`]).
//! Long histories, with levels that have grown, are cut at a share of points of each site.
//!
//! What the cut leaves is drawn too: everything (only the process died), nothing that was not
//! synced, or each unsynced sector, length and name on its own, some torn. Then the database is
//! opened again; in half of the cases the power goes once or twice more during that, in a third the
//! database leads a further life, and in a tenth a copy of the disk gets a rotten byte ([`rot`]).
//!
//! # What is checked
//! The [`oracle`] stands outside the engine and knows the order in which writes were submitted,
//! which is the order of the log. After an opening the content must equal the state after one
//! prefix of them: none that was promised is missing, none has a hole before it, no batch is
//! half there, and nothing that was overwritten, deleted, cleared, dropped or expired comes back.
//! The promise depends on what happened:
//!
//! | ended by | must be there |
//! |---|---|
//! | close | everything |
//! | dropping the handles, death of the process | everything that was answered, in any mode |
//! | power cut | up to the last answer in `synced` mode, the last finished sync, flush, compaction or close, and what was answered in `interval` mode well before |
//! | a rotten byte | as much as surviving frames prove; or a refusal that names the file |
//!
//! Forward and backward scans, point reads, multi-reads, range and prefix scans and the list of
//! keyspaces must agree on that state ([`check`]). While a history runs, snapshots must show a
//! prefix too, and keep showing it. Errors of the engine, panics, deadlocks and lives that do not
//! end in ten minutes of virtual time are violations.
//!
//! A key submitted and never answered may be there or not. That the engine commits in the order of
//! submission is used and so tested, though its API does not promise it to concurrent callers.
//!
//! # Seeds
//! ```text
//!   campaign seed --(number)--> history seed --+--> script, options
//!                                              +--> schedule, latencies (the simulator's seed)
//!                                              +--(point)--> timing, what the cut leaves, nested
//!                                                            cuts, rot, what checks look at
//! ```
//! A failure names a history and a point (`0x930e831e8f28642c:39`), which is all it takes:
//! `cargo run --release -p atoll-sim -- crash --replay 0x930e831e8f28642c:39 --trace` prints the
//! script and every operation. Every point has a trace hash; their sum, the *digest*, is equal for
//! equal runs in different processes. A seed means the same only for the same code: what a failure
//! taught is kept as a named script in tests/stories.rs.
//!
//! # Sites
//! Crashes are counted by the site of the operation ([`atoll_env::IoTag`]). A run reports a table
//! and fails if one of [`campaign::REQUIRED_SITES`] had less than a hundredth of the crashes: a
//! site that is hardly reached is not tested, whatever the number of points.
//!
//! # Mutants
//! With the feature `mutants` a rule of the engine can be left out (`--mutant NAME`, the names are
//! in `atoll_lsm::mutants`); the command then succeeds only if that is noticed. A harness that
//! finds nothing wrong with an engine that acknowledges before it syncs proves nothing.

pub mod campaign;
pub mod check;
pub mod engine;
pub mod life;
pub mod model;
pub mod oracle;
pub mod point;
pub mod rot;
pub mod script;
