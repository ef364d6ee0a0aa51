//! The throttle: how fast background work may use the disk, and who of it goes first.
//!
//! ```text
//!   log, reads ──────────────────────────────────────────────► disk
//!   flush ───────────────────── takes tokens, never waits ───► disk
//!   level 0 > deep > collection > scrub ── wait for tokens ──► disk
//!                                             ▲
//!                rate: fixed, or moved by how long urgent work takes
//! ```
//!
//! One token bucket in bytes serves all background classes, so that what one leaves another may
//! have. Whoever waits is served in the order of the classes, and within one in the order of arrival;
//! one that has waited for [`PATIENCE`] goes first whatever its class, so that nothing starves. The
//! bucket may be overdrawn by one operation: a large one is paid for afterwards instead of waiting
//! for a bucket as large as itself.
//!
//! The rate of [`Limit::Auto`] follows urgent work: a window in which background work made it more
//! than [`HARM`] times as slow as it is without any lowers the rate by a fifth, one in which background work had to
//! wait and did no harm raises it by a tenth. (RocksDB tunes by how often its bucket is drained,
//! which finds out what compaction wants and not what it costs.)
//!
//! A plain state machine: time is handed in. The simulator has no bandwidth and uses none.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::disk::IoClass;
use crate::time::Instant;

/// How long somebody waits at most behind more urgent classes.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// How many times as slow urgent work may become by background work.
pub const HARM: u64 = 2;

/// What the bucket holds when it is full, as time.
const BURST: Duration = Duration::from_millis(50);
/// How far the flush may overdraw it, as time.
const DEBT_MAX: Duration = Duration::from_secs(1);
/// After this time the rate is looked at again.
const WINDOW: Duration = Duration::from_millis(100);
/// A window with fewer urgent operations says nothing.
const ENOUGH: u64 = 8;
/// Where [`Limit::Auto`] starts, and its bounds, in bytes a second.
const AUTO_START: u64 = 64 << 20;
const AUTO_MIN: u64 = 8 << 20;
const AUTO_MAX: u64 = 4 << 30;

/// How the ceiling is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    /// There is none.
    #[default]
    None,
    /// So many bytes a second.
    Fixed(u64),
    /// As fast as urgent work bears.
    Auto,
}

/// One who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    class: IoClass,
    number: u64,
}

/// An answer to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The operation may go; it is paid for.
    Go,
    /// Ask again after this time.
    Wait(Duration),
}

struct Waiter {
    bytes: u64,
    since: Instant,
}

/// What happened since the rate was looked at.
#[derive(Default)]
struct Window {
    began: Instant,
    urgent: u64,
    urgent_time: Duration,
    background_bytes: u64,
    waited: bool,
}

/// The state of the throttle.
pub struct Throttle {
    auto: bool,
    rate: u64,
    /// Bytes; below zero is debt.
    tokens: i64,
    refilled: Instant,
    waiting: BTreeMap<Ticket, Waiter>,
    /// When one went ahead without tokens, because it had waited for too long.
    indulged: Option<Instant>,
    next: u64,
    window: Window,
    /// How long an urgent operation takes without background work.
    quiet: Option<Duration>,
}

impl Throttle {
    /// Returns a throttle, or `None` if there is to be no ceiling.
    pub fn new(limit: Limit, now: Instant) -> Option<Throttle> {
        let (auto, rate) = match limit {
            Limit::None => return None,
            Limit::Fixed(rate) => (false, rate.max(1)),
            Limit::Auto => (true, AUTO_START),
        };
        Some(Throttle {
            auto,
            rate,
            tokens: amount(rate, BURST),
            refilled: now,
            waiting: BTreeMap::new(),
            indulged: None,
            next: 0,
            window: Window { began: now, ..Window::default() },
            quiet: None,
        })
    }

    /// Returns the ceiling now, in bytes a second.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// Returns whether the times of urgent operations are of use.
    pub fn listens(&self) -> bool {
        self.auto
    }

    /// An operation comes; one that need not wait gets no ticket.
    pub fn arrive(&mut self, now: Instant, class: IoClass, bytes: u64) -> Option<Ticket> {
        if class < IoClass::Flush {
            return None;
        }
        self.refill(now);
        if class == IoClass::Flush {
            self.pay(bytes);
            self.tokens = self.tokens.max(-amount(self.rate, DEBT_MAX));
            return None;
        }
        if self.waiting.is_empty() && self.tokens > 0 {
            self.pay(bytes);
            return None;
        }
        self.window.waited = true;
        self.next += 1;
        let ticket = Ticket { class, number: self.next };
        self.waiting.insert(ticket, Waiter { bytes, since: now });
        Some(ticket)
    }

    /// One who waits asks.
    pub fn ask(&mut self, now: Instant, ticket: Ticket) -> Answer {
        self.refill(now);
        let Some(first) = self.first(now) else { return Answer::Go };
        // What urgent flushes leave may be nothing for ever.
        let is_due = self.waiting.get(&ticket).is_some_and(|w| now.since(w.since) >= PATIENCE)
            && self.indulged.is_none_or(|at| now.since(at) >= PATIENCE);
        if first == ticket && (self.tokens > 0 || is_due) {
            if self.tokens <= 0 {
                self.indulged = Some(now);
            }
            if let Some(waiter) = self.waiting.remove(&ticket) {
                self.pay(waiter.bytes);
            }
            return Answer::Go;
        }
        self.window.waited = true;
        let before = self.waiting.range(..ticket).map(|(_, waiter)| waiter.bytes).sum::<u64>();
        let missing = i64::try_from(before).unwrap_or(i64::MAX).saturating_sub(self.tokens).max(1);
        let wait = Duration::from_secs_f64(missing as f64 / self.rate as f64);
        // Others come and go: nobody sleeps long on an estimate.
        Answer::Wait(wait.clamp(Duration::from_millis(1), Duration::from_millis(100)))
    }

    /// One who waited is gone without having gone ahead.
    pub fn leave(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
    }

    /// A log write or a read took so long.
    pub fn urgent(&mut self, now: Instant, took: Duration) {
        self.window.urgent += 1;
        self.window.urgent_time += took;
        self.refill(now);
    }

    /// Returns whose turn it is.
    fn first(&self, now: Instant) -> Option<Ticket> {
        let overdue = self.waiting.iter().filter(|(_, w)| now.since(w.since) >= PATIENCE);
        let oldest = overdue.min_by_key(|(ticket, _)| ticket.number).map(|(ticket, _)| *ticket);
        oldest.or_else(|| self.waiting.keys().next().copied())
    }

    fn pay(&mut self, bytes: u64) {
        self.window.background_bytes += bytes;
        self.tokens = self.tokens.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    fn refill(&mut self, now: Instant) {
        let earned = amount(self.rate, now.since(self.refilled));
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(earned).min(amount(self.rate, BURST).max(1));
            self.refilled = now;
        }
        if self.auto && now.since(self.window.began) >= WINDOW {
            let window =
                std::mem::replace(&mut self.window, Window { began: now, ..Window::default() });
            self.tune(&window);
        }
    }

    fn tune(&mut self, window: &Window) {
        let mean = (window.urgent >= ENOUGH)
            .then(|| window.urgent_time / u32::try_from(window.urgent).unwrap_or(u32::MAX));
        if window.background_bytes == 0 {
            // One that waits has paid for the last of its work, and that may still be under way.
            if let (Some(mean), false) = (mean, window.waited) {
                self.quiet = Some(self.quiet.map_or(mean, |quiet| (quiet * 15 + mean) / 16));
            }
            return;
        }
        let harmed = match (mean, self.quiet) {
            (Some(mean), Some(quiet)) => mean > quiet * HARM as u32,
            _ => false,
        };
        if harmed {
            self.rate = (self.rate / 5 * 4).max(AUTO_MIN);
        } else if window.waited {
            self.rate = (self.rate / 10 * 11).min(AUTO_MAX);
        }
    }
}

/// Returns what a rate gives in a time, in bytes.
fn amount(rate: u64, time: Duration) -> i64 {
    i64::try_from(u128::from(rate) * time.as_nanos() / 1_000_000_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    /// Lets one operation of a class through and returns when, asking as it is told to.
    fn admitted(throttle: &mut Throttle, from_ms: u64, class: IoClass, bytes: u64) -> u64 {
        let mut now = at(from_ms);
        let Some(ticket) = throttle.arrive(now, class, bytes) else { return from_ms };
        loop {
            match throttle.ask(now, ticket) {
                Answer::Go => return now.0 / 1_000_000,
                Answer::Wait(wait) => now = now.after(wait),
            }
        }
    }

    #[test]
    fn without_a_limit_there_is_no_throttle() {
        assert!(Throttle::new(Limit::None, at(0)).is_none());
    }

    #[test]
    fn background_work_gets_its_rate_and_urgent_work_never_waits() {
        let mut throttle = Throttle::new(Limit::Fixed(10 * MIB), at(0)).unwrap();
        let mut now = 0;
        for _ in 0..100 {
            assert_eq!(throttle.arrive(at(now), IoClass::Log, MIB), None);
            assert_eq!(throttle.arrive(at(now), IoClass::Read, MIB), None);
            now = admitted(&mut throttle, now, IoClass::Compaction, MIB);
        }
        // A hundred of a mebibyte at ten a second, the last of them on credit.
        assert!((9_700..=10_000).contains(&now), "{now}");
    }

    #[test]
    fn the_flush_does_not_wait_but_compaction_pays_for_it() {
        let mut throttle = Throttle::new(Limit::Fixed(10 * MIB), at(0)).unwrap();
        for _ in 0..50 {
            assert_eq!(throttle.arrive(at(0), IoClass::Flush, MIB), None);
        }
        // Five seconds' worth was flushed; one of them is owed.
        let now = admitted(&mut throttle, 0, IoClass::Level0, MIB);
        assert!((1_000..1_100).contains(&now), "{now}");
    }

    #[test]
    fn those_who_wait_go_by_class_and_then_by_arrival() {
        let mut throttle = Throttle::new(Limit::Fixed(10 * MIB), at(0)).unwrap();
        assert_eq!(throttle.arrive(at(0), IoClass::Scrub, MIB), None, "the bucket is full");
        let classes = [
            IoClass::Scrub,
            IoClass::Compaction,
            IoClass::Collection,
            IoClass::Level0,
            IoClass::Compaction,
        ];
        let tickets = classes.map(|class| throttle.arrive(at(0), class, MIB).unwrap());
        let mut order = Vec::new();
        let mut left: Vec<usize> = (0..classes.len()).collect();
        for ms in 0..900 {
            left.retain(|&n| {
                let goes = throttle.ask(at(ms), tickets[n]) == Answer::Go;
                if goes {
                    order.push(n);
                }
                !goes
            });
        }
        assert_eq!(order, [3, 1, 4, 2, 0]);
    }

    #[test]
    fn nobody_starves_and_who_leaves_is_not_waited_for() {
        let mut throttle = Throttle::new(Limit::Fixed(10 * MIB), at(0)).unwrap();
        assert_eq!(throttle.arrive(at(0), IoClass::Scrub, MIB), None);
        let scrub = throttle.arrive(at(0), IoClass::Scrub, MIB).unwrap();
        let gone = throttle.arrive(at(0), IoClass::Level0, 100 * MIB).unwrap();
        assert!(matches!(throttle.ask(at(200), scrub), Answer::Wait(_)));
        throttle.leave(gone);
        assert_eq!(throttle.ask(at(200), scrub), Answer::Go);
        // Level 0 comes without end.
        let scrub = throttle.arrive(at(200), IoClass::Scrub, MIB).unwrap();
        let mut served = None;
        let mut level0 = throttle.arrive(at(200), IoClass::Level0, MIB).unwrap();
        for ms in 200..3_000 {
            if throttle.ask(at(ms), level0) == Answer::Go {
                level0 = throttle.arrive(at(ms), IoClass::Level0, MIB).unwrap();
            }
            if throttle.ask(at(ms), scrub) == Answer::Go {
                served = Some(ms);
                break;
            }
        }
        assert!(served.is_some_and(|ms| (1_200..1_400).contains(&ms)), "{served:?}");
    }

    #[test]
    fn the_rate_falls_while_urgent_work_suffers_and_rises_while_it_does_not() {
        let mut throttle = Throttle::new(Limit::Auto, at(0)).unwrap();
        let us = Duration::from_micros;
        let mut now = 0;
        let mut windows = |throttle: &mut Throttle, count: u64, took, background: bool| {
            for ms in now..now + count * 100 {
                throttle.urgent(at(ms), took);
                if background && throttle.waiting.is_empty() {
                    throttle.arrive(at(ms), IoClass::Compaction, MIB);
                }
                if let Some(&ticket) = throttle.waiting.keys().next() {
                    throttle.ask(at(ms), ticket);
                }
            }
            now += count * 100;
        };
        windows(&mut throttle, 10, us(100), false);
        assert_eq!(throttle.rate(), AUTO_START, "nothing asked for more");
        windows(&mut throttle, 10, us(150), true);
        let risen = throttle.rate();
        assert!(risen > AUTO_START * 3 / 2, "{risen}");
        windows(&mut throttle, 5, us(500), true);
        let fallen = throttle.rate();
        assert!(fallen < risen / 2, "{fallen}");
        windows(&mut throttle, 100, us(500), true);
        assert_eq!(throttle.rate(), AUTO_MIN);
        // What is slow without background work is nobody's fault.
        windows(&mut throttle, 100, us(500), false);
        windows(&mut throttle, 10, us(500), true);
        assert!(throttle.rate() > AUTO_MIN);
    }
}
