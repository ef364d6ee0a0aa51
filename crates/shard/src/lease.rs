//! Leases: until when a leader may answer reads by itself.
//!
//! A leader that was cut off does not know whether another one was elected meanwhile. If it asked a
//! majority before each read it would always know; a lease lets one question stand for many reads.
//!
//! ```text
//!   leader                                         follower
//!     |----- append or heartbeat, sent at 100 ------->|   votes for nobody else for an election
//!     |<----------- reply to what was sent at 100 ----|   timeout from now, which is after 100
//!     |
//!   a majority has confirmed 100: until 100 + the lease nobody else can have been elected
//! ```
//!
//! *Sent* is the leader's own monotonic clock at the moment of sending, in microseconds. Followers do
//! not understand it, they send back the newest one they have had of this leader in this term
//! ([`Heard`]). So clocks need not agree; what they must do is run at about the same rate: the lease is
//! by a margin shorter than the shortest time in which a follower lets ten ticks pass.
//!
//! # Invariants
//! - Two leases of a group never overlap. A majority that would elect another leader shares a member
//!   with the one that confirmed, and that member refuses its vote until the lease is over; after a
//!   restart, when it has forgotten, it votes for nobody for as long ([`settle_ticks`]).
//! - A leader that gives its leadership away has given up its lease before it says so
//!   ([`Lease::begin`] with the present moment, if it stays leader after all).
//! - The clock is read *after* what is to be answered was read. A process that was stopped in between
//!   finds its lease expired, whatever it looked at before.
//!
//! *Rejected:* the library's lease, which is only its last look at who was active: a leader that is cut
//! off trusts it for up to two election timeouts, while followers elect another one after the first.
//!
//! [`settle_ticks`]: crate::consensus::Config::settle_ticks

use std::collections::BTreeMap;

use crate::consensus::Members;
use crate::mutants;

/// How long a lease is, in microseconds, for elections after ten ticks of 50 ms. A follower that has
/// just begun a tick when it hears from its leader lets 450 ms pass; of these a fifth is left to clocks
/// that run at different rates.
pub const LENGTH_US: u64 = 350_000;

/// The lease of a replica that leads.
#[derive(Clone, Debug, Default)]
pub struct Lease {
    /// What was sent before does not count: before this leadership, or before it was nearly given
    /// away.
    floor: u64,
    /// When something was last sent.
    last: u64,
    /// The newest sending that each of the others has confirmed.
    confirmed: BTreeMap<u64, u64>,
    /// The lease ends here; 0 without one.
    until: u64,
}

impl Lease {
    /// Begins a leadership, or goes on with one after it was not given away. There is no lease until
    /// something that is sent from now on is confirmed.
    pub fn begin(&mut self, now: u64) {
        *self = Lease { floor: now, last: now, ..Lease::default() };
    }

    /// Ends the lease: the replica does not lead any more, or is about to give it away.
    pub fn end(&mut self) {
        *self = Lease { floor: u64::MAX, ..Lease::default() };
    }

    /// Returns what goes with something that is sent now.
    pub fn sends(&mut self, now: u64) -> u64 {
        self.last = self.last.max(now);
        now
    }

    /// Hears that a replica has confirmed what was sent at a moment. One at which nothing was, or too
    /// early, counts for nothing.
    pub fn confirm(&mut self, replica: u64, sent: u64, members: &Members, me: u64) {
        if sent < self.floor || sent > self.last {
            return;
        }
        let confirmed = self.confirmed.entry(replica).or_default();
        *confirmed = sent.max(*confirmed);
        self.measure(members, me);
    }

    /// Measures the lease anew, for it depends on who votes.
    pub fn measure(&mut self, members: &Members, me: u64) {
        let of = |voters: &[u64]| {
            let mut sent: Vec<Option<u64>> = voters
                .iter()
                .map(|voter| match *voter == me {
                    true => Some(u64::MAX),
                    false => self.confirmed.get(voter).copied(),
                })
                .collect();
            sent.sort_unstable_by(|a, b| b.cmp(a));
            // What a majority has confirmed, or something later.
            sent.get(voters.len() / 2).copied().unwrap_or(Some(u64::MAX))
        };
        let since = of(&members.voters).min(of(&members.outgoing));
        let since = since.filter(|since| self.floor != u64::MAX && *since >= self.floor);
        self.until = since.map_or(0, |since| since.saturating_add(LENGTH_US));
    }

    /// Returns whether the lease holds. Ask after the read that depends on it.
    pub fn holds(&self, now: u64) -> bool {
        now < self.until()
    }

    /// Returns when it ends, 0 if there is none.
    pub fn until(&self) -> u64 {
        if mutants::is("read-without-lease") && self.until > 0 { u64::MAX } else { self.until }
    }
}

/// What a follower has had of its leader.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heard {
    term: u64,
    leader: u64,
    sent: u64,
}

impl Heard {
    /// Notes when a message was sent that was accepted.
    pub fn note(&mut self, term: u64, leader: u64, sent: u64) {
        if (term, leader) != (self.term, self.leader) {
            if term < self.term {
                return;
            }
            *self = Heard { term, leader, sent: 0 };
        }
        self.sent = self.sent.max(sent);
    }

    /// Returns what goes with an answer to a leader: the newest sending of its term, 0 if there is none.
    pub fn confirms(&self, term: u64, leader: u64) -> u64 {
        if (term, leader) == (self.term, self.leader) { self.sent } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Members {
        Members::of_voters([1, 2, 3])
    }

    fn leading(now: u64) -> Lease {
        let mut lease = Lease::default();
        lease.begin(now);
        lease
    }

    #[test]
    fn one_of_two_followers_is_enough_and_the_lease_counts_from_the_sending() {
        let mut lease = leading(1_000);
        assert!(!lease.holds(1_000), "nothing is confirmed");
        let sent = lease.sends(2_000);
        lease.confirm(3, sent, &three(), 1);
        // However late the answer came.
        assert!(lease.holds(2_000 + LENGTH_US - 1));
        assert!(!lease.holds(2_000 + LENGTH_US));
    }

    #[test]
    fn five_need_two_followers_and_the_older_of_them_counts() {
        let five = Members::of_voters([1, 2, 3, 4, 5]);
        let mut lease = leading(0);
        lease.sends(900);
        lease.confirm(2, 900, &five, 1);
        assert!(!lease.holds(901), "two of five are no majority");
        lease.confirm(3, 500, &five, 1);
        assert_eq!(lease.until(), 500 + LENGTH_US);
        lease.confirm(4, 700, &five, 1);
        assert_eq!(lease.until(), 700 + LENGTH_US);
    }

    #[test]
    fn what_was_sent_too_early_or_never_counts_for_nothing() {
        let mut lease = leading(1_000);
        lease.sends(1_200);
        lease.confirm(2, 999, &three(), 1);
        lease.confirm(2, 1_201, &three(), 1);
        lease.confirm(2, u64::MAX, &three(), 1);
        assert_eq!(lease.until(), 0);
        lease.confirm(2, 1_200, &three(), 1);
        lease.confirm(2, 1_100, &three(), 1);
        assert_eq!(lease.until(), 1_200 + LENGTH_US, "answers that overtake each other");
    }

    #[test]
    fn a_leadership_that_is_being_given_away_has_no_lease_and_earns_it_again() {
        let mut lease = leading(0);
        lease.sends(100);
        lease.confirm(2, 100, &three(), 1);
        assert!(lease.holds(200));
        lease.end();
        assert!(!lease.holds(200));
        lease.confirm(3, 100, &three(), 1);
        lease.measure(&three(), 1);
        assert!(!lease.holds(200), "an answer to what was sent before");
        lease.begin(300);
        lease.confirm(3, 100, &three(), 1);
        assert!(!lease.holds(301));
        lease.sends(310);
        lease.confirm(3, 310, &three(), 1);
        assert!(lease.holds(320));
    }

    #[test]
    fn in_a_joint_state_both_majorities_have_to_confirm() {
        let mut joint = Members::of_voters([1, 4, 5]);
        joint.outgoing = vec![1, 2, 3];
        let mut lease = leading(0);
        lease.sends(50);
        lease.confirm(2, 50, &joint, 1);
        assert!(!lease.holds(60));
        lease.confirm(5, 40, &joint, 1);
        assert_eq!(lease.until(), 40 + LENGTH_US);
        lease.measure(&Members::of_voters([1, 2, 3, 4, 5]), 1);
        assert_eq!(lease.until(), 40 + LENGTH_US, "2 and 5 and itself are three of five");
    }

    #[test]
    fn a_replica_that_votes_alone_has_a_lease_as_long_as_it_leads() {
        let mut lease = leading(7);
        lease.measure(&Members::of_voters([1]), 1);
        assert!(lease.holds(u64::MAX - 1));
        lease.end();
        lease.measure(&Members::of_voters([1]), 1);
        assert!(!lease.holds(8));
    }

    #[test]
    fn a_follower_confirms_to_a_leader_only_what_it_had_from_it_in_its_term() {
        let mut heard = Heard::default();
        heard.note(4, 1, 100);
        heard.note(4, 1, 90);
        assert_eq!(heard.confirms(4, 1), 100);
        assert_eq!(heard.confirms(5, 1), 0, "the same leader, elected again");
        heard.note(5, 2, 7);
        heard.note(4, 1, 200);
        assert_eq!((heard.confirms(4, 1), heard.confirms(5, 2)), (0, 7));
    }
}
