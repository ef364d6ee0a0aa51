//! The proof: the leader under the seeded schedules that the transactions are proved with.
//!
//! ```text
//!   atoll_txn::proof   clients, coordinators that die, transactions, commands, network --> verdict
//!        |  requests, commands
//!   Cluster            a few Hosts and one applied state, as a store has it
//!        |
//!   Host               follows what the leader says (answer, wait, close first, read), as the owner
//!        |             of a shard does; entries are closed at random moments, applied one by one
//!   Leader, Eval       what is proved
//!        |
//!   Applied            obeys entries: versions, intents, records, fences, counts, expiry index
//! ```
//!
//! What makes life hard: entries stay in flight; a leader is lost with those that are not applied;
//! reads miss, so that evaluation is repeated in another state; shards are split; the horizon moves;
//! clients have several commands under way.
//!
//! Besides the verdict on the history every applied entry is checked: it carries what was evaluated
//! and nothing else, versions ascend, counts and the expiry index are exact.
//!
//! Each rule of the leader can be left out ([`crate::mutants`]); the test wants every one caught.

mod cluster;
mod host;
pub(crate) mod state;
mod tests;
