//! Jobs of shards that are led elsewhere: they are sent there, and their answers come back.
//!
//! ```text
//!   submit --> not led here, led by engine 2 in term 7
//!                |  question: shard, term 7, lane, command
//!                v
//!              engine 2 --> leads in term 7: a job like any other, its answer is the answer
//!                       --> does not: "moved", and nothing has happened: back to submit
//!              nothing  --> the outcome is not known, and nobody asks again
//! ```
//!
//! # At most once
//! A job that may write is sent again only after somebody has said that nothing has happened. A connection
//! that is lost says nothing, so the outcome is unknown. What only reads is asked for again.
//!
//! # Order
//! Jobs of a lane take effect in the order they came, whoever leads. They are sent in order, and carry the
//! term in which their leader leads: whoever refuses one of a term refuses all that come after it. What is
//! refused keeps its place: it is sent again once those before it have come back, and before everything
//! that is new, which waits as long as something of the lane is out under an older belief. That ends a
//! while after the next leader is known: what has not come back by then is unknown, and if it was kept, then
//! in front of everything that this leader does.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use atoll_encoding::{Reader, varint};
use atoll_env::sometimes;
use atoll_env::sync::timeout;
use atoll_lsm::Durability;
use atoll_mvcc::Epoch;
use atoll_mvcc::request::{Request, Response};
use atoll_shard::eval::Sight;
use atoll_shard::replica::engine_of;

use super::{StoreHost, refuse};
use crate::core::Inner;
use crate::group::{Answer, Away, Belief, Group, Job, Lane, Sent, Work};
use crate::peers::{self, Lost};
use crate::program::{Failure, Program};

/// How long an answer is waited for: longer than a leader without a majority needs to notice.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Between two tries when nobody knows of another leader yet.
const PAUSE: Duration = Duration::from_millis(10);
/// How long after a change of leaders its jobs may still come back.
const GRACE: Duration = Duration::from_millis(300);
/// How long a job goes round before it is refused.
const PATIENCE_MS: u64 = 5_000;

/// Where a shard is led.
pub(super) enum Led {
    /// Here, or it will be in a moment, or by somebody who is not known yet.
    Wait,
    /// Elsewhere.
    There(Belief),
    /// By nobody, for some time.
    Nowhere(String),
}

/// How a job came back.
enum Back<P: Program> {
    Answer(Answer<P>),
    /// Nothing has happened.
    Moved,
    /// Nothing has happened, and never will: it is longer than so many bytes.
    TooLong(usize),
    /// Nobody knows what has.
    Lost,
}

impl<P: Program> StoreHost<P> {
    /// Returns where a shard is led that has no leader here.
    pub(super) fn led(&self, core: &Inner<P>, group: &Group<P>) -> Led {
        if group.is_alone() {
            return Led::Wait;
        }
        match belief(group) {
            Some(belief) if belief.leader == group.replica => Led::Wait,
            Some(belief) => Led::There(belief),
            None => self.leaderless(core, group).map_or(Led::Wait, Led::Nowhere),
        }
    }

    /// Returns whether a job of a lane has to wait for others of it that are away.
    pub(super) fn is_behind_away(&self, group: &Group<P>, away: &Away<P>) -> bool {
        let now = belief(group);
        let older = |sent: &Sent<P>| sent.returned || Some(sent.belief) != now;
        !away.behind.is_empty() || away.out.values().any(older)
    }

    /// Sends a job to the leader of its shard.
    pub(super) fn send_away(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        mut job: Job<P>,
        belief: Belief,
    ) {
        let Some(cluster) = &core.shared.options.cluster else { return };
        if let Work::Reap { .. } = job.work {
            // Whoever leads the shard reaps; nobody waits.
            return;
        }
        sometimes!(true, "a job is sent to the leader elsewhere");
        let lane = job.lane;
        let question = self.question(core, group, &job, belief);
        let place = {
            let mut state = group.state.borrow_mut();
            // Numbers of the core: a job may go on to a shard that was split off.
            let (_, place) = *job.away.get_or_insert((core.monotonic_ms(), core.draw_place()));
            let sent = Sent { belief, job, returned: false };
            state.away.entry(lane).or_default().out.insert(place, sent);
            place
        };
        let asked = cluster.carrier.ask(engine_of(belief.leader), question);
        let (host, inner, group) = (self.clone(), core.clone(), group.clone());
        core.spawn("forward", async move {
            let answer = timeout(&*inner.env.clock, ANSWER_TIME, asked).await;
            let back = match answer {
                Ok(Ok(bytes)) => inner.read_answer(&bytes),
                Ok(Err(Lost::NotSent)) => Back::Moved,
                Ok(Err(Lost::TooLong(most))) => Back::TooLong(most),
                Ok(Err(Lost::Unknown)) | Err(_) => Back::Lost,
            };
            host.came_back(&inner, &group, lane, place, belief, back);
        });
    }

    fn question(&self, core: &Inner<P>, group: &Group<P>, job: &Job<P>, belief: Belief) -> Vec<u8> {
        let mut question = vec![peers::FORWARD];
        let engine = engine_of(group.replica).0;
        for value in [group.id.0, belief.term, u64::from(engine)] {
            varint::put(&mut question, value);
        }
        question.push(match job.durability {
            Durability::Synced => 0,
            Durability::Interval => 1,
            Durability::Buffered => 2,
        });
        question.push(u8::from(job.lane.is_some()));
        varint::put(&mut question, job.lane.unwrap_or(0));
        match &job.work {
            Work::Call(call) => {
                question.push(peers::CALL);
                core.program.encode_call(call, &mut question);
            }
            Work::Request(request) => {
                question.push(peers::REQUEST);
                request.encode(&mut question);
            }
            // Only whoever leads a shard reaps.
            Work::Reap { .. } => question.push(0),
        }
        question
    }

    fn came_back(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        lane: Option<Lane>,
        place: u64,
        belief: Belief,
        back: Back<P>,
    ) {
        let answered = {
            let mut state = group.state.borrow_mut();
            let Some(away) = state.away.get_mut(&lane) else { return };
            // It may have been given up, or sent once more since.
            let Some(sent) = away.out.get_mut(&place).filter(|sent| sent.belief == belief) else {
                return;
            };
            let again = match &back {
                Back::Answer(_) | Back::TooLong(_) => false,
                Back::Moved => true,
                Back::Lost => core.only_reads(&sent.job.work),
            };
            if again {
                sometimes!(true, "a job comes back from an engine that does not lead");
                sent.returned = true;
                None
            } else {
                away.out.remove(&place)
            }
        };
        if let Some(Sent { job, .. }) = answered {
            let answer = match back {
                Back::Answer(answer) => answer,
                Back::TooLong(most) => {
                    let why = format!(
                        "what is written is longer than the {most} bytes that engines send each other at \
                         once; write it in parts"
                    );
                    refuse(core, &job, &Failure::TooLarge(why))
                }
                Back::Moved | Back::Lost => unknown(core, &job),
            };
            core.deliver(job.reply_to, answer);
        }
        self.tend_away(core, group, lane);
    }

    /// Goes on with a lane that has jobs away: those that came back go first, in their order, then what
    /// waits behind them.
    pub(super) fn tend_away(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        lane: Option<Lane>,
    ) {
        loop {
            let now = belief(group);
            let mut state = group.state.borrow_mut();
            let Some(away) = state.away.get_mut(&lane) else { return };
            match next_returned(away, lane) {
                Some((place, belief)) if Some(belief) != now => {
                    let sent = away.out.remove(&place);
                    drop(state);
                    if let Some(sent) = sent {
                        self.once_more(core, group, sent.job);
                    }
                    continue;
                }
                // Nobody has told this replica yet who leads.
                Some(_) => return self.look_again(core, group, lane, away, PAUSE),
                None if away.out.values().any(|s| Some(s.belief) != now || s.returned) => {
                    return self.look_again(core, group, lane, away, GRACE);
                }
                None => {}
            }
            let behind = std::mem::take(&mut away.behind);
            if away.out.is_empty() && !away.looks_again {
                state.away.remove(&lane);
            }
            drop(state);
            return self.release_behind(core, group, lane, behind);
        }
    }

    /// Looks after a lane again in a while.
    fn look_again(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        lane: Option<Lane>,
        away: &mut Away<P>,
        pause: Duration,
    ) {
        if std::mem::replace(&mut away.looks_again, true) {
            return;
        }
        let then = belief(group);
        let (host, inner, group) = (self.clone(), core.clone(), group.clone());
        core.spawn("look again", async move {
            inner.env.clock.sleep(pause).await;
            let (mut again, mut given_up) = (Vec::new(), Vec::new());
            {
                let now = belief(&group);
                let mut state = group.state.borrow_mut();
                let Some(away) = state.away.get_mut(&lane) else { return };
                away.looks_again = false;
                if pause == GRACE && now == then && now.is_some() {
                    // The next leader has been known for long enough.
                    let late = |sent: &Sent<P>| Some(sent.belief) != now && !sent.returned;
                    let places: Vec<u64> =
                        away.out.iter().filter(|(_, s)| late(s)).map(|(place, _)| *place).collect();
                    given_up
                        .extend(places.iter().filter_map(|p| away.out.remove(p)).map(|s| s.job));
                }
                // Who did not lead a moment ago may not have heard yet that it does, or this replica that
                // somebody else does: they are asked once more although nothing else is known.
                while let Some((place, _)) = next_returned(away, lane) {
                    again.extend(away.out.remove(&place).map(|sent| sent.job));
                }
            }
            for job in given_up {
                if inner.only_reads(&job.work) {
                    host.once_more(&inner, &group, job);
                } else {
                    sometimes!(true, "a job is given up that a former leader has");
                    let answer = unknown(&inner, &job);
                    inner.deliver(job.reply_to, answer);
                }
            }
            for job in again {
                host.once_more(&inner, &group, job);
            }
            host.tend_away(&inner, &group, lane);
        });
    }

    /// Brings a job to wherever its shard is led by now, unless it has gone round for too long.
    fn once_more(self: &Rc<Self>, core: &Rc<Inner<P>>, group: &Rc<Group<P>>, mut job: Job<P>) {
        let since = job.away.map_or(0, |(since, _)| since);
        if core.monotonic_ms().saturating_sub(since) > PATIENCE_MS {
            let why = Failure::Unavailable(self.why_leaderless(group));
            let answer = refuse(core, &job, &why);
            core.deliver(job.reply_to, answer);
            return;
        }
        job.returned = true;
        // Not to the group: the shard may have been split meanwhile.
        core.refresh();
        if let Some((job, answer)) = core.route(job) {
            core.deliver(job.reply_to, answer);
        }
    }

    fn release_behind(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        lane: Option<Lane>,
        mut behind: VecDeque<Job<P>>,
    ) {
        while let Some(job) = behind.pop_front() {
            if let Some((job, answer)) = core.route(job) {
                core.deliver(job.reply_to, answer);
            }
            let mut state = group.state.borrow_mut();
            if let Some(away) = state.away.get_mut(&lane)
                && self.is_behind_away(group, away)
            {
                away.behind.extend(behind.drain(..));
                return;
            }
        }
    }

    /// Sends what waits for a leader to the one that is known now.
    pub(super) fn drain_away(self: &Rc<Self>, core: &Rc<Inner<P>>, group: &Rc<Group<P>>) {
        let waiting = std::mem::take(&mut group.state.borrow_mut().queue);
        for mut job in waiting {
            // They are in order, and before everything that comes.
            job.returned = true;
            self.submit_and_deliver(core, group, job);
        }
        self.tend_all_away(core, group);
    }

    /// Goes on with all lanes that have jobs away: somebody else leads.
    pub(super) fn tend_all_away(self: &Rc<Self>, core: &Rc<Inner<P>>, group: &Rc<Group<P>>) {
        let lanes: Vec<Option<Lane>> = group.state.borrow().away.keys().copied().collect();
        for lane in lanes {
            self.tend_away(core, group, lane);
        }
    }
}

/// Returns the job of a lane that is to be tried again next. Without a lane there is no order, and nobody
/// waits behind anybody.
fn next_returned<P: Program>(away: &Away<P>, lane: Option<Lane>) -> Option<(u64, Belief)> {
    let (place, sent) = match lane {
        Some(_) => away.out.first_key_value().filter(|(_, sent)| sent.returned),
        None => away.out.iter().find(|(_, sent)| sent.returned),
    }?;
    Some((*place, sent.belief))
}

/// Returns who leads a shard, as its replica here knows.
fn belief<P: Program>(group: &Group<P>) -> Option<Belief> {
    let consensus = group.consensus.borrow();
    let leader = consensus.leader()?;
    Some(Belief { leader, term: consensus.term() })
}

impl<P: Program> Inner<P> {
    fn read_answer(&self, bytes: &[u8]) -> Back<P> {
        let mut reader = Reader::new(bytes);
        let Ok(known) = reader.varint("an epoch") else { return Back::Lost };
        let bytes = &bytes[reader.offset()..];
        self.time.learn_of(Epoch(known));
        let answer = match bytes.split_first() {
            Some((&peers::REPLY, rest)) => self.program.decode_reply(rest).map(Answer::Reply),
            Some((&peers::RESPONSE, rest)) => {
                Response::decode(rest).map(Answer::Response).map_err(|e| e.to_string())
            }
            Some((&peers::MOVED, [])) => return Back::Moved,
            // Whoever does not understand has done something, for all that is known.
            _ => return Back::Lost,
        };
        answer.map_or(Back::Lost, Back::Answer)
    }

    /// Returns whether work can be done twice without anybody noticing.
    fn only_reads(&self, work: &Work<P>) -> bool {
        match work {
            Work::Call(call) => self.program.sight(call) != Sight::Edge,
            Work::Request(request) => matches!(
                request,
                Request::Get { .. }
                    | Request::Scan { .. }
                    | Request::Status { .. }
                    | Request::Waits { .. }
                    | Request::Heartbeat { .. }
            ),
            Work::Reap { .. } => true,
        }
    }
}

fn unknown<P: Program>(core: &Inner<P>, job: &Job<P>) -> Answer<P> {
    sometimes!(true, "nobody knows what became of a job that was sent away");
    refuse(core, job, &Failure::Unknown)
}
