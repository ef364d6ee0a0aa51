//! A cursor's view of a transaction: its own writes laid over what its snapshot sees.
//!
//! ```text
//!   snapshot     a   b   c   d   e   f        the cursor yields
//!   own writes       B       x       F G      a B c e F G
//!                    put   remove  put put
//! ```
//!
//! From each end the nearer of the two goes next; where both have a key the own write counts. What
//! was taken from the snapshot and not yielded yet waits at its end of the walk. When the snapshot's
//! two walks have met, what waits at the other end is still to come.
//!
//! What was walked over counts as read, gaps included, as far as the walk went and not further: a
//! transaction that takes the first key of a range does not mind what happens behind it.

use std::ops::Bound;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::iter::Direction;
use crate::merge::Operand;
use crate::mutants;
use crate::range::Guard;
use crate::read::Stored;
use crate::transaction::own::Own;
use crate::transaction::spans::behind;
use crate::transaction::validation::Reads;

/// Keys in a row that a removed range hides, after which the walk starts anew behind it.
const SKIP_AFTER: usize = 16;

/// What a transaction adds to a cursor.
pub(crate) struct Overlay {
    own: Arc<Own>,
    /// Where reads are noted, if they are to be validated.
    reads: Option<Arc<Mutex<Reads>>>,
    /// Taken from the snapshot and not dealt with yet, at the front and at the back.
    front: Option<Guard>,
    back: Option<Guard>,
    /// The last keys that were dealt with from either end.
    passed_front: Option<Vec<u8>>,
    passed_back: Option<Vec<u8>>,
    hidden_in_row: usize,
}

/// What to do with the key that comes next.
pub(crate) enum Next {
    /// It is the snapshot's.
    Theirs(Guard),
    /// It is the transaction's own.
    Own(Vec<u8>, Stored),
    /// It has to be put together first.
    Merge(OwnMerge),
    /// It is nothing; look again.
    Hidden,
    /// It is nothing, and so is all up to this key (the first behind, or the first of it): look
    /// again from there.
    HiddenUpTo(Vec<u8>),
    /// There is none.
    End,
}

/// A key into which the transaction has merged something.
pub(crate) struct OwnMerge {
    pub(crate) user_key: Vec<u8>,
    /// What it has put there before, if it is alive.
    pub(crate) own: Option<Stored>,
    /// What the snapshot has there, if the transaction has not written the key otherwise.
    pub(crate) theirs: Option<Guard>,
    /// Oldest first.
    pub(crate) operands: Vec<Operand>,
}

impl Overlay {
    pub(crate) fn new(own: Arc<Own>, reads: Option<Arc<Mutex<Reads>>>) -> Overlay {
        Overlay {
            own,
            reads,
            front: None,
            back: None,
            passed_front: None,
            passed_back: None,
            hidden_in_row: 0,
        }
    }

    /// Takes what waits at the end that `direction` starts at.
    pub(crate) fn take_waiting(&mut self, direction: Direction) -> Option<Guard> {
        match direction {
            Direction::Forward => self.front.take(),
            Direction::Backward => self.back.take(),
        }
    }

    /// Takes what waits at the other end: the snapshot has no more.
    pub(crate) fn take_last(&mut self, direction: Direction) -> Option<Guard> {
        match direction {
            Direction::Forward => self.back.take(),
            Direction::Backward => self.front.take(),
        }
    }

    /// Notes what a step over the snapshot has seen: from the edge of the range (as it is by now) to
    /// the key it found, or all of it.
    pub(crate) fn note(
        &self,
        direction: Direction,
        (start, end): (&[u8], &[u8]),
        found: Option<&[u8]>,
    ) {
        let Some(reads) = &self.reads else { return };
        match (direction, found) {
            (_, None) if mutants::is("empty-ranges-not-noted") => {}
            (_, None) => reads.lock().range(start, end),
            (Direction::Forward, Some(key)) => reads.lock().range(start, &behind(key)),
            (Direction::Backward, Some(key)) => reads.lock().range(key, end),
        }
    }

    /// Decides what comes next, given the snapshot's next key at that end. `bounds` are those of
    /// the whole walk.
    pub(crate) fn decide(
        &mut self,
        direction: Direction,
        bounds: (&[u8], &[u8]),
        theirs: Option<Guard>,
        now: u64,
    ) -> Next {
        let from = match &self.passed_front {
            Some(key) => Bound::Excluded(&key[..]),
            None => Bound::Included(bounds.0),
        };
        let to = match &self.passed_back {
            Some(key) => Bound::Excluded(&key[..]),
            None => Bound::Excluded(bounds.1),
        };
        let own = self.own.next((from, to), direction);
        let own = match (own, &theirs) {
            (Some((key, write)), Some(theirs)) => {
                let nearer = match direction {
                    Direction::Forward => key[..] <= *theirs.user_key(),
                    Direction::Backward => key[..] >= *theirs.user_key(),
                };
                nearer.then_some((key, write))
            }
            (own, _) => own,
        };
        if let Some((key, write)) = own {
            let (key, own) = (key.clone(), write.alive(now).cloned());
            let (on_theirs, operands) = (write.is_on_theirs(), write.operands().to_vec());
            // The same key of the snapshot is overwritten, or merged into.
            let (mut theirs, mut waiting) = (theirs, None);
            if theirs.as_ref().is_some_and(|theirs| *theirs.user_key() != key[..]) {
                waiting = theirs.take();
            }
            match direction {
                Direction::Forward => self.front = waiting,
                Direction::Backward => self.back = waiting,
            }
            self.pass(direction, key.clone());
            if operands.is_empty() {
                return own.map_or(Next::Hidden, |stored| Next::Own(key, stored));
            }
            let theirs = theirs.filter(|_| on_theirs);
            return Next::Merge(OwnMerge { user_key: key, own, theirs, operands });
        }
        let Some(theirs) = theirs else { return Next::End };
        let key = theirs.user_key().to_vec();
        let hidden = self.own.removed().containing(&key).map(|(start, end)| match direction {
            Direction::Forward => end.to_vec(),
            Direction::Backward => start.to_vec(),
        });
        self.pass(direction, key);
        let Some(edge) = hidden else {
            self.hidden_in_row = 0;
            return Next::Theirs(theirs);
        };
        self.hidden_in_row += 1;
        if self.hidden_in_row <= SKIP_AFTER {
            return Next::Hidden;
        }
        self.hidden_in_row = 0;
        Next::HiddenUpTo(edge)
    }

    fn pass(&mut self, direction: Direction, key: Vec<u8>) {
        match direction {
            Direction::Forward => self.passed_front = Some(key),
            Direction::Backward => self.passed_back = Some(key),
        }
    }
}
