//! Which connection of two stays: a pure decision, taken by both sides to the same end.
//!
//! | what is connected | what comes | |
//! |---|---|---|
//! | nothing of this engine | anything | it stays |
//! | an older incarnation | a newer one | all connections of the older are closed: replaced |
//! | a newer incarnation | an older one | refused: replaced |
//! | the same incarnation of another process | | refused: one of the directories is a copy |
//! | the same process, another class | | both stay |
//! | the same process and class | dialled by the same side | the new one stays: the dialler has lost the old one |
//! | the same process and class | dialled by the other side | the one that the lower engine id dialled stays |
//!
//! The last line is what both sides say when both have dialled at once: they see the two connections in
//! different orders and keep the same one.

use std::net::SocketAddr;

use crate::id::{Class, EngineId};
use crate::refusal::Refusal;

/// What the decision needs to know of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) class: Class,
    pub(crate) incarnation: u64,
    /// Drawn by the peer's process.
    pub(crate) boot: u64,
    /// Whether this side dialled.
    pub(crate) dialled_here: bool,
    pub(crate) address: SocketAddr,
}

/// What becomes of the connections there are, for one that comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The new one stays; those of these classes are closed for the reason.
    Take(Vec<(Class, Refusal)>),
    /// The new one is refused.
    Refuse(Refusal),
}

/// Decides about a connection to `peer` that comes to `me`, beside those that are `live`.
pub(crate) fn judge(me: EngineId, peer: EngineId, live: &[Candidate], new: &Candidate) -> Verdict {
    let replaced = |old: u64, new: u64| Refusal::Replaced { engine: peer, old, new };
    let mut closed = Vec::new();
    for old in live {
        if old.incarnation > new.incarnation {
            return Verdict::Refuse(replaced(new.incarnation, old.incarnation));
        }
        if old.incarnation < new.incarnation {
            closed.push((old.class, replaced(old.incarnation, new.incarnation)));
        } else if old.boot != new.boot {
            return Verdict::Refuse(Refusal::Copied { engine: peer, connected: old.address });
        } else if old.class == new.class {
            let the_lower_dialled_new = new.dialled_here == (me < peer);
            if old.dialled_here != new.dialled_here && !the_lower_dialled_new {
                return Verdict::Refuse(Refusal::Redundant);
            }
            closed.push((old.class, Refusal::Redundant));
        }
    }
    Verdict::Take(closed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: EngineId = EngineId(1);
    const HIGH: EngineId = EngineId(2);

    fn candidate(class: Class, incarnation: u64, boot: u64, dialled_here: bool) -> Candidate {
        let address = "10.0.0.2:7380".parse().unwrap();
        Candidate { class, incarnation, boot, dialled_here, address }
    }

    #[test]
    fn the_first_connection_of_each_class_stays() {
        let raft = candidate(Class::Raft, 1, 7, true);
        let rpc = candidate(Class::Rpc, 1, 7, true);
        assert_eq!(judge(LOW, HIGH, &[], &raft), Verdict::Take(vec![]));
        assert_eq!(judge(LOW, HIGH, &[raft], &rpc), Verdict::Take(vec![]));
    }

    #[test]
    fn of_two_that_were_dialled_at_once_both_sides_keep_the_one_of_the_lower_id() {
        for first_is_ours in [true, false] {
            for (me, peer) in [(LOW, HIGH), (HIGH, LOW)] {
                let old = candidate(Class::Raft, 1, 7, first_is_ours);
                let new = candidate(Class::Raft, 1, 7, !first_is_ours);
                let dialler_of_new = if first_is_ours { peer } else { me };
                let expected = match dialler_of_new == LOW {
                    true => Verdict::Take(vec![(Class::Raft, Refusal::Redundant)]),
                    false => Verdict::Refuse(Refusal::Redundant),
                };
                assert_eq!(judge(me, peer, &[old], &new), expected, "{me} and {peer}");
            }
        }
    }

    #[test]
    fn who_dials_again_has_lost_the_old_connection() {
        for dialled_here in [true, false] {
            let conn = candidate(Class::Bulk, 1, 7, dialled_here);
            let expected = Verdict::Take(vec![(Class::Bulk, Refusal::Redundant)]);
            assert_eq!(judge(LOW, HIGH, &[conn], &conn), expected);
            assert_eq!(judge(HIGH, LOW, &[conn], &conn), expected);
        }
    }

    #[test]
    fn a_newer_incarnation_replaces_all_connections_of_an_older_one() {
        let old = [candidate(Class::Raft, 1, 7, true), candidate(Class::Rpc, 1, 7, false)];
        let new = candidate(Class::Bulk, 2, 8, false);
        let replaced = Refusal::Replaced { engine: HIGH, old: 1, new: 2 };
        assert_eq!(
            judge(LOW, HIGH, &old, &new),
            Verdict::Take(vec![(Class::Raft, replaced.clone()), (Class::Rpc, replaced.clone())])
        );
        assert_eq!(judge(LOW, HIGH, &[new], &old[0]), Verdict::Refuse(replaced));
    }

    #[test]
    fn another_process_of_the_same_incarnation_is_a_copy_on_any_class() {
        let old = candidate(Class::Raft, 1, 7, true);
        for class in Class::ALL {
            let refusal = Refusal::Copied { engine: HIGH, connected: old.address };
            let new = candidate(class, 1, 8, false);
            assert_eq!(judge(LOW, HIGH, &[old], &new), Verdict::Refuse(refusal));
        }
    }
}
