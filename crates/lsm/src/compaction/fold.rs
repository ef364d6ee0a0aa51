//! What a compaction makes of merge operands.
//!
//! The operands of a key come newest first, then their base if these inputs have it. Readers of one
//! stripe see all of them or none, so they may be folded; across a snapshot they may not:
//!
//! ```text
//!   snapshot 50    60 Merge   44 Merge   31 Merge   12 Value
//!   stripes        [-- 1 --]  [------------- 0 ------------]
//!   written        60 Merge   44 Value
//! ```
//!
//! What is folded takes the sequence number of the newest record that went into it: a reader who saw
//! that one saw the others too. Only what dies together is folded (`crate::merge`), the oldest first:
//!
//! ```text
//!   operands, by deadline   d9 d9 d7 d7 | base d7      ->  one operand d9, one value d7
//!   operands, by deadline   d9 d7 d7 d9 | nothing      ->  operands d9 d7, one value d9
//!   operands, by deadline   -- -- d7 -- | not known    ->  operands -- d7 --
//! ```
//!
//! A base that stands in a value file is read when there is something to fold onto it, and not before. If
//! it cannot be read, pointer and operands stay as they are: who reads the key is told.
//!
//! A result above 1 MiB is written in chunks, whose sequence numbers lie below that of its head. They
//! must hide nothing, so they have to lie above what is older than the stripe and not below what was
//! folded; numbers derive from places in the log, where what makes a long value takes long, so there
//! is room. Where there is none the operands wait.

use crate::batch::{CHUNK_LEN, CHUNKED_ABOVE};
use crate::compaction::stream::{Fate, Survivors, deadline_of};
use crate::error::{Error, Result};
use crate::iter::Merge;
use crate::iter::scan::key_kind;
use crate::key::{Kind, SeqNo, Trailer};
use crate::keyspace::About;
use crate::merge::{Merger, OPERAND_LEN_MAX, Operand};
use crate::read::Chunked;
use crate::slice::Slice;
use crate::values::Mover;

/// Operands that are held at once, by number and bytes. What comes behind so many of one key is a
/// run of its own.
const RUN_OPERANDS_MAX: usize = 1 << 16;
const RUN_BYTES_MAX: usize = 8 << 20;

/// A record to be written; of one key they come newest first.
#[derive(Clone, Debug)]
pub(crate) struct Out {
    pub(crate) trailer: Trailer,
    pub(crate) bytes: Slice,
    /// It was put together here; others are as they were found.
    pub(crate) made: bool,
}

impl Out {
    fn found(input: &Merge) -> Out {
        Out { trailer: input.key().trailer, bytes: input.value_slice(), made: false }
    }

    fn made(seqno: SeqNo, kind: Kind, bytes: impl Into<Slice>) -> Out {
        Out { trailer: Trailer::new(seqno, kind), bytes: bytes.into(), made: true }
    }

    fn kind(&self) -> Kind {
        key_kind(self.trailer)
    }
}

/// What a run of operands is folded onto.
#[derive(Clone, Debug)]
pub(crate) enum Base {
    /// Older records that are not in these inputs, or that nothing can be folded onto: the latter, as
    /// they are.
    Unknown(Vec<Out>),
    /// Nothing. What says so, unless it is the bottom or a range tombstone.
    Absent(Option<Out>),
    /// A value that is alive and was not read yet.
    Unread { deadline: u64, records: Vec<Out> },
    /// A value that is alive.
    Value {
        value: Slice,
        /// 0 for none.
        deadline: u64,
        /// Its head and its chunks.
        records: Vec<Out>,
    },
}

impl Base {
    fn records(&self) -> Vec<Out> {
        match self {
            Base::Absent(None) => Vec::new(),
            Base::Unknown(records) => records.clone(),
            Base::Absent(Some(tombstone)) => vec![tombstone.clone()],
            Base::Value { records, .. } | Base::Unread { records, .. } => records.clone(),
        }
    }
}

/// A run of operands with all that decides what becomes of it.
pub(crate) struct Run {
    pub(crate) user_key: Vec<u8>,
    /// Newest first.
    operands: Vec<Operand>,
    base: Base,
    /// The lowest sequence number that a chunk may have.
    floor: SeqNo,
    /// Whether nothing older lies below, nor is seen by an older snapshot: no tombstone is needed.
    bottom: bool,
    /// Records of the inputs that it took.
    pub(crate) taken: usize,
}

impl Run {
    /// Takes the run that begins with the operand on which `input` stands; leaves `input` behind it.
    pub(crate) async fn take(
        input: &mut Merge,
        survivors: &mut Survivors<'_>,
        is_bottom: impl FnOnce(&[u8]) -> bool,
    ) -> Result<Run> {
        let user_key = input.key().user_key.to_vec();
        let stripe = survivors.stripe_of(input.key().trailer.seqno());
        let below = is_bottom(&user_key);
        let bottom = below && stripe == 0;
        let mut operands = Vec::new();
        let (mut bytes, mut taken) = (0, 1);
        let mut base = None;
        let mut take = |input: &Merge| {
            let operand = Operand::decode(input.key().trailer, input.value_slice());
            bytes += operand.bytes.len();
            operands.push(operand);
            operands.len() >= RUN_OPERANDS_MAX || bytes >= RUN_BYTES_MAX
        };
        let mut full = take(input);
        input.step().await?;
        while !full && input.valid() && input.key().user_key == user_key {
            let key = input.key();
            if survivors.stripe_of(key.trailer.seqno()) != stripe {
                break;
            }
            match survivors.fate(key, key_kind(key.trailer), input.value(), || below) {
                Fate::Fold => full = take(input),
                Fate::Drop => {}
                Fate::Bury => {
                    let tombstone = Out::made(key.trailer.seqno(), Kind::Tombstone, Vec::new());
                    base = Some(Base::Absent(Some(tombstone)));
                    input.step().await?;
                    break;
                }
                Fate::Keep => {
                    base = Some(take_base(input, &user_key).await?);
                    break;
                }
            }
            input.step().await?;
            taken += 1;
        }
        let base = base.unwrap_or_else(|| {
            let nothing = !full && (bottom || survivors.hides_older(&user_key, stripe));
            if nothing { Base::Absent(None) } else { Base::Unknown(Vec::new()) }
        });
        let records = base.records();
        taken += records.len();
        let last = records.last().map(|out| out.trailer.seqno());
        let last = last.or(operands.last().map(|operand| operand.seqno)).unwrap_or(0);
        let floor = survivors.floor_of(stripe).max(last);
        Ok(Run { user_key, operands, base, floor, bottom, taken })
    }

    /// Reads the base, if something can be folded onto it.
    pub(crate) async fn load(&mut self, about: Option<&About>, mover: &mut Mover<'_>) {
        let Base::Unread { deadline, records } = &self.base else { return };
        let answered = about.is_some_and(|about| about.operator.is_some());
        if !answered || self.operands.last().is_none_or(|oldest| oldest.deadline != *deadline) {
            return;
        }
        let (deadline, records) = (*deadline, records.clone());
        self.base = match whole_value(&self.user_key, &records, mover).await {
            Some(value) => Base::Value { value, deadline, records },
            // Not ours to judge: a read of it says what is wrong.
            None => Base::Unknown(records),
        };
    }

    /// Folds what can be folded; returns what is to be written. An operator that does not answer
    /// leaves all as it was, and `complain` is told.
    pub(crate) fn fold(&self, about: Option<&About>, complain: impl FnOnce(Error)) -> Vec<Out> {
        let merger = about.map(|about| Merger::of(about, &self.user_key));
        let folded = match merger {
            Some(Ok(merger)) => self.fold_by(&merger),
            // Missing is not failing: who opened the database without it knows.
            Some(Err(_)) | None => Ok(self.unfolded()),
        };
        folded.unwrap_or_else(|e| {
            complain(e);
            self.unfolded()
        })
    }

    fn unfolded(&self) -> Vec<Out> {
        let operands = self.operands.iter().map(out);
        operands.chain(self.base.records()).collect()
    }

    fn fold_by(&self, merger: &Merger<'_>) -> Result<Vec<Out>> {
        let operands: Vec<&Operand> = self.operands.iter().rev().collect();
        let mut rest = &operands[..];
        let mut base = self.base.clone();
        loop {
            let (existing, deadline) = match &base {
                Base::Unknown(_) | Base::Unread { .. } => break,
                Base::Absent(_) => (None, rest.first().map_or(0, |oldest| oldest.deadline)),
                Base::Value { value, deadline, .. } => (Some(&value[..]), *deadline),
            };
            let together = rest.iter().take_while(|operand| operand.deadline == deadline).count();
            let (run, behind) = rest.split_at(together);
            let Some(newest) = run.last() else { break };
            let bytes: Vec<&[u8]> = run.iter().map(|operand| &operand.bytes[..]).collect();
            base = match merger.full(existing, &bytes)? {
                Some(value) => match value_records(newest.seqno, deadline, &value, self.floor) {
                    Some(records) => Base::Value { value: Slice::from(value), deadline, records },
                    None => break,
                },
                None if self.bottom => Base::Absent(None),
                None => Base::Absent(Some(Out::made(newest.seqno, Kind::Tombstone, Vec::new()))),
            };
            rest = behind;
        }
        let mut left: Vec<Operand> = Vec::new();
        for operand in rest {
            let last = left.last_mut().filter(|last| last.deadline == operand.deadline);
            let both = match &last {
                Some(last) => merger.partial(&last.bytes, &operand.bytes)?,
                None => None,
            };
            match (last, both) {
                (Some(last), Some(bytes)) => {
                    last.seqno = operand.seqno;
                    last.bytes = Slice::from(bytes);
                }
                _ => left.push((*operand).clone()),
            }
        }
        Ok(left.iter().rev().map(out).chain(base.records()).collect())
    }
}

fn out(operand: &Operand) -> Out {
    debug_assert!(operand.bytes.len() <= OPERAND_LEN_MAX, "writers and `partial` see to it");
    Out::made(operand.seqno, Kind::Merge, operand.encode())
}

/// Takes the value, or the tombstone, on which `input` stands; leaves `input` behind it.
async fn take_base(input: &mut Merge, user_key: &[u8]) -> Result<Base> {
    let head = Out::found(input);
    input.step().await?;
    let kind = head.kind();
    match kind {
        Kind::Tombstone => return Ok(Base::Absent(Some(head))),
        Kind::Value | Kind::ExpiringValue | Kind::ChunkedValue => {}
        _ => return Ok(Base::Unknown(vec![head])),
    }
    let deadline = match kind {
        Kind::Value => 0,
        _ => deadline_of(&head.bytes).unwrap_or(0),
    };
    let mut records = vec![head];
    while kind == Kind::ChunkedValue && input.valid() && input.key().user_key == user_key {
        let chunk = Out::found(input);
        if chunk.kind() != Kind::Chunk {
            break;
        }
        records.push(chunk);
        input.step().await?;
    }
    Ok(Base::Unread { deadline, records })
}

/// Returns the value whose head and chunks these records are; `None` if it cannot be read.
async fn whole_value(user_key: &[u8], records: &[Out], mover: &mut Mover<'_>) -> Option<Slice> {
    let (head, chunks) = records.split_first()?;
    if head.kind() != Kind::ChunkedValue {
        return mover.value(user_key, head.trailer, &head.bytes).await;
    }
    let len = Chunked::decode(&head.bytes)?.len;
    let mut value = Vec::new();
    for chunk in chunks {
        value.extend_from_slice(&mover.value(user_key, chunk.trailer, &chunk.bytes).await?);
    }
    (value.len() == len).then(|| Slice::from(value))
}

/// Returns the records of a value with the sequence number `seqno`, or `None` if its chunks would
/// come to lie below `floor`.
fn value_records(seqno: SeqNo, deadline: u64, value: &[u8], floor: SeqNo) -> Option<Vec<Out>> {
    if value.len() <= CHUNKED_ABOVE {
        let (kind, stored) = match deadline {
            0 => (Kind::Value, value.to_vec()),
            _ => (Kind::ExpiringValue, [&deadline.to_le_bytes()[..], value].concat()),
        };
        return Some(vec![Out::made(seqno, kind, stored)]);
    }
    let chunks = value.chunks(CHUNK_LEN);
    let lowest = seqno.checked_sub(chunks.len() as u64)?;
    if lowest < floor {
        return None;
    }
    let mut head = deadline.to_le_bytes().to_vec();
    head.extend_from_slice(&(value.len() as u64).to_le_bytes());
    head.extend_from_slice(&(chunks.len() as u32).to_le_bytes());
    let mut records = vec![Out::made(seqno, Kind::ChunkedValue, head)];
    let numbered = chunks.zip((lowest..seqno).rev());
    records.extend(numbered.map(|(chunk, seqno)| Out::made(seqno, Kind::Chunk, chunk.to_vec())));
    Some(records)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::merge::{MergeOperator, Refusal};
    use crate::options::KeyspaceOptions;

    /// Joins words; is asked by them to refuse (`!`), to panic (`#`) or to remove (`0`).
    struct Words;

    impl MergeOperator for Words {
        fn name(&self) -> &str {
            "words"
        }

        fn full_merge(
            &self,
            _key: &[u8],
            existing: Option<&[u8]>,
            operands: &[&[u8]],
        ) -> Result<Option<Vec<u8>>, Refusal> {
            let mut all = existing.map(<[u8]>::to_vec);
            for operand in operands {
                match *operand {
                    b"!" => return Err("no".into()),
                    b"#" => panic!("asked to"),
                    b"0" => all = None,
                    word => all.get_or_insert_default().extend_from_slice(word),
                }
            }
            Ok(all)
        }

        fn partial_merge(&self, _key: &[u8], left: &[u8], right: &[u8]) -> Option<Vec<u8>> {
            let words = |w: &[u8]| w.iter().all(u8::is_ascii_lowercase);
            (words(left) && words(right)).then(|| [left, right].concat())
        }
    }

    fn about(operator: Option<Arc<dyn MergeOperator>>) -> About {
        let merge_operator = Some("words".to_owned());
        let options = KeyspaceOptions { merge_operator, ..KeyspaceOptions::default() };
        let dropped = AtomicBool::new(false);
        About { id: 1, name: "ks".to_owned(), options, dropped, operator, filter: None }
    }

    fn seqno_and(text: &str) -> (SeqNo, &str) {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        (text[..digits].parse().unwrap(), &text[digits..])
    }

    fn word_and_deadline(text: &str) -> (&str, u64) {
        text.split_once('~').map_or((text, 0), |(word, deadline)| (word, deadline.parse().unwrap()))
    }

    /// Reads operands like `60+a` and `44+b~9` (deadline 9), newest first, and behind `|` what lies
    /// beneath: `31=v`, `31=v~9`, `31x` (tombstone), `?` (not known), `.` (nothing), `_` (the bottom).
    fn run(text: &str, floor: SeqNo) -> Run {
        let (operands, base) = text.split_once('|').unwrap();
        let operands: Vec<Operand> = operands
            .split_whitespace()
            .map(|operand| {
                let (seqno, rest) = seqno_and(operand);
                let (word, deadline) = word_and_deadline(rest.strip_prefix('+').unwrap());
                Operand { seqno, deadline, bytes: Slice::from(word.as_bytes()) }
            })
            .collect();
        let base = base.trim();
        let bottom = base == "_";
        let base = match base {
            "?" => Base::Unknown(Vec::new()),
            "." | "_" => Base::Absent(None),
            _ => match seqno_and(base) {
                (seqno, "x") => Base::Absent(Some(Out::made(seqno, Kind::Tombstone, Vec::new()))),
                (seqno, rest) => {
                    let (word, deadline) = word_and_deadline(rest.strip_prefix('=').unwrap());
                    let records = value_records(seqno, deadline, word.as_bytes(), 0).unwrap();
                    Base::Value { value: Slice::from(word.as_bytes()), deadline, records }
                }
            },
        };
        Run { user_key: b"\0\0\0\x01k".to_vec(), operands, base, floor, bottom, taken: 0 }
    }

    fn print(records: &[Out]) -> String {
        let print = |Out { trailer, bytes: value, .. }: &Out| {
            let seqno = trailer.seqno();
            let until = |deadline: u64| match deadline {
                0 => String::new(),
                deadline => format!("~{deadline}"),
            };
            match key_kind(*trailer) {
                Kind::Merge => {
                    let operand = Operand::decode(*trailer, value.clone());
                    let word = String::from_utf8_lossy(&operand.bytes).into_owned();
                    format!("{seqno}+{word}{}", until(operand.deadline))
                }
                Kind::Value => format!("{seqno}={}", String::from_utf8_lossy(value)),
                Kind::ExpiringValue => {
                    let deadline = deadline_of(value).unwrap_or(0);
                    format!("{seqno}={}{}", String::from_utf8_lossy(&value[8..]), until(deadline))
                }
                Kind::Tombstone => format!("{seqno}x"),
                kind => format!("{seqno}{kind:?}({})", value.len()),
            }
        };
        records.iter().map(print).collect::<Vec<_>>().join(" ")
    }

    fn folded(text: &str) -> String {
        let about = about(Some(Arc::new(Words)));
        print(&run(text, 0).fold(Some(&about), |e| panic!("{e}")))
    }

    #[test]
    fn operands_become_a_value_where_their_base_is_known() {
        assert_eq!(folded("60+c 44+b | 31=a"), "60=abc");
        assert_eq!(folded("60+c 44+b | 31x"), "60=bc");
        assert_eq!(folded("60+c 44+b | ."), "60=bc");
        assert_eq!(folded("60+c 44+b | _"), "60=bc");
    }

    #[test]
    fn operands_become_one_where_their_base_is_not_known() {
        assert_eq!(folded("60+c 44+b 31+a | ?"), "60+abc");
        assert_eq!(folded("60+c 44+0 31+a | ?"), "60+c 44+0 31+a", "there is no such operand");
    }

    #[test]
    fn only_what_dies_together_is_folded() {
        assert_eq!(folded("60+d~9 50+c~9 44+b~7 40+a~7 | 31=v~7"), "60+cd~9 44=vab~7");
        assert_eq!(folded("60+d~9 50+c~7 44+b~7 40+a~9 | ."), "60+d~9 50+bc~7 40=a~9");
        assert_eq!(folded("60+d 50+c 44+b~7 40+a | ?"), "60+cd 44+b~7 40+a");
        assert_eq!(folded("60+b 50+a | 31=v~7"), "60+ab 31=v~7");
        assert_eq!(folded("60+b~9 50+a~9 | 31=v"), "60+ab~9 31=v");
    }

    #[test]
    fn an_operator_may_remove_the_key() {
        assert_eq!(folded("60+0 44+b | 31=a"), "60x", "something older may lie below");
        assert_eq!(folded("60+0 44+b | _"), "");
        assert_eq!(folded("60+c~9 50+0 | 31=a"), "60=c~9", "and what comes after it begins anew");
    }

    #[test]
    fn an_operator_that_does_not_answer_leaves_all_as_it_was() {
        let about_words = about(Some(Arc::new(Words)));
        for text in ["60+! 44+b | 31=a", "60+b 44+# | 31=a", "60+b 44+! 40+a | 31x", "60+! | _"] {
            let mut complaints = Vec::new();
            let out = run(text, 0).fold(Some(&about_words), |e| complaints.push(e.to_string()));
            let as_it_was = text.replace(" |", "").replace(" _", "");
            assert_eq!(print(&out), as_it_was);
            assert!(complaints[0].contains("'words' of keyspace 'ks'"), "{complaints:?}");
            assert!(complaints[0].contains(if text.contains('#') { "asked to" } else { "no" }));
        }
        for about in [Some(about(None)), None] {
            let out = run("60+b 44+a | 31=v", 0).fold(about.as_ref(), |e| panic!("{e}"));
            assert_eq!(print(&out), "60+b 44+a 31=v");
        }
    }

    #[test]
    fn a_long_result_is_cut_into_chunks_that_hide_nothing() {
        let long = "x".repeat(CHUNKED_ABOVE);
        let text = format!("1000+cc 500+bb | 100={long}");
        let about = about(Some(Arc::new(Words)));
        let out = run(&text, 100).fold(Some(&about), |e| panic!("{e}"));
        let chunk = CHUNK_LEN;
        assert_eq!(
            print(&out),
            format!(
                "1000ChunkedValue(20) 999Chunk({chunk}) 998Chunk({chunk}) 997Chunk({chunk}) \
                     996Chunk({chunk}) 995Chunk(4)"
            )
        );
        let out = run(&text, 996).fold(Some(&about), |e| panic!("{e}"));
        assert!(print(&out).starts_with("1000+bbcc 100=xxx"), "no room: the operands wait");
    }
}
