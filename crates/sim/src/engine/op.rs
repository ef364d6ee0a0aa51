//! What clients ask, what they are told, and how both look in RESP.
//!
//! An [`Op`] is one operation of the recorded history. It becomes one command or a whole MULTI; its
//! answer is read from as many replies. Keys of the families never meet:
//!
//! | family | keys | what it shows |
//! |---|---|---|
//! | register | `r:N` | commands of the fast lane on one key |
//! | counter | `c:N` | increments in flight: the leading edge |
//! | lists | `l:N` | transactions over shards, and single commands among them |
//! | bank | `b:N` | transfers by MULTI or WATCH, snapshots by MGET |
//! | counting | `n:N` in database 1 | exact counts |
//! | fleeting | `f:N` | deadlines: what has gone does not come back |

use std::fmt;

use atoll_checkers::linear::{CounterOp, RegisterOp, RegisterRet};
use atoll_checkers::list_append::{Micro, Reads, Txn};
use atoll_resp::Value;

/// Accounts of the bank.
pub const ACCOUNTS: u64 = 6;

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A command on a register.
    Register(u64, RegisterOp),
    /// Several registers set at once.
    SetMany(Vec<(u64, i64)>),
    /// Several registers read at once.
    GetMany(Vec<u64>),
    /// A command on a counter.
    Counter(u64, CounterOp),
    /// A transaction on lists; of one step it is a plain command.
    Lists(Txn),
    /// Moves money.
    Transfer {
        /// The account it is taken from.
        from: u64,
        /// The account it is given to.
        to: u64,
        /// How much.
        amount: i64,
    },
    /// Reads all accounts.
    Balances,
    /// Makes a counted key be there.
    Put(u64),
    /// Makes several counted keys be there, in one transaction.
    PutMany(Vec<u64>),
    /// Makes a counted key be gone.
    Remove(u64),
    /// Makes all counted keys be gone.
    Clear,
    /// Counts the counted keys.
    Count,
    /// Sets a key with a deadline so many milliseconds ahead.
    SetFleeting(u64, u64),
    /// The deadline of a key comes. Nobody asks for it: it is recorded beside the one above, and its
    /// outcome is never known.
    Vanish(u64),
    /// Reads a key with a deadline.
    GetFleeting(u64),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ret {
    /// Of a register, of a fleeting key.
    Register(RegisterRet),
    /// Of several registers.
    Many(Vec<Option<i64>>),
    /// Of a counter.
    Counter(i64),
    /// Of a transaction.
    Lists(Reads),
    /// It is done.
    Done,
    /// Of the bank.
    Balances(Vec<(u64, i64)>),
    /// A number of keys.
    Count(u64),
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It happened.
    Ok(Ret),
    /// It did not and never will.
    Refused,
    /// Nobody knows.
    Unknown,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Register(key, op) => write!(f, "r:{key} {op}"),
            Op::SetMany(pairs) => write!(f, "mset {pairs:?}"),
            Op::GetMany(keys) => write!(f, "mget {keys:?}"),
            Op::Counter(key, op) => write!(f, "c:{key} {op}"),
            Op::Lists(txn) => write!(f, "{txn}"),
            Op::Transfer { from, to, amount } => write!(f, "transfer {amount} from {from} to {to}"),
            Op::Balances => f.write_str("balances"),
            Op::Put(key) => write!(f, "put {key}"),
            Op::PutMany(keys) => write!(f, "put {keys:?}"),
            Op::Remove(key) => write!(f, "remove {key}"),
            Op::Clear => f.write_str("clear"),
            Op::Count => f.write_str("count"),
            Op::SetFleeting(key, ms) => write!(f, "f:{key} set for {ms} ms"),
            Op::Vanish(key) => write!(f, "f:{key} vanishes"),
            Op::GetFleeting(key) => write!(f, "f:{key} get"),
        }
    }
}

impl fmt::Display for Ret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Appends a command to `out`.
fn command(out: &mut Vec<u8>, args: &[&str]) -> usize {
    atoll_resp::request(out, args);
    1
}

impl Op {
    /// Appends the commands of the operation; returns how many replies they get.
    pub fn encode(&self, out: &mut Vec<u8>) -> usize {
        match self {
            Op::Register(key, op) => {
                let key = format!("r:{key}");
                match op {
                    RegisterOp::Get => command(out, &["GET", &key]),
                    RegisterOp::Set(value) => command(out, &["SET", &key, &value.to_string()]),
                    RegisterOp::Delete => command(out, &["DEL", &key]),
                    RegisterOp::GetSet(value) => {
                        command(out, &["SET", &key, &value.to_string(), "GET"])
                    }
                    RegisterOp::SetIfAbsent(value) => {
                        command(out, &["SET", &key, &value.to_string(), "NX"])
                    }
                    RegisterOp::Add(by) => command(out, &["INCRBY", &key, &by.to_string()]),
                    RegisterOp::CompareAndSet { new, .. } => {
                        // The key is watched, and was read since.
                        command(out, &["MULTI"]);
                        command(out, &["SET", &key, &new.to_string()]);
                        command(out, &["EXEC"]);
                        3
                    }
                }
            }
            Op::SetMany(pairs) => {
                let mut args = vec!["MSET".to_owned()];
                args.extend(pairs.iter().flat_map(|(k, v)| [format!("r:{k}"), v.to_string()]));
                atoll_resp::request(out, &args);
                1
            }
            Op::GetMany(keys) => {
                let mut args = vec!["MGET".to_owned()];
                args.extend(keys.iter().map(|key| format!("r:{key}")));
                atoll_resp::request(out, &args);
                1
            }
            Op::Counter(key, CounterOp::Add(by)) => {
                command(out, &["INCRBY", &format!("c:{key}"), &by.to_string()])
            }
            Op::Counter(key, CounterOp::Get) => command(out, &["GET", &format!("c:{key}")]),
            Op::Lists(Txn(micros)) => {
                if micros.len() > 1 {
                    command(out, &["MULTI"]);
                }
                for micro in micros {
                    match micro {
                        Micro::Append { key, value } => {
                            command(out, &["APPEND", &format!("l:{key}"), &format!("{value},")])
                        }
                        Micro::Read { key } => command(out, &["GET", &format!("l:{key}")]),
                    };
                }
                if micros.len() > 1 {
                    command(out, &["EXEC"]);
                    micros.len() + 2
                } else {
                    1
                }
            }
            Op::Transfer { from, to, amount } => {
                command(out, &["MULTI"]);
                command(out, &["DECRBY", &format!("b:{from}"), &amount.to_string()]);
                command(out, &["INCRBY", &format!("b:{to}"), &amount.to_string()]);
                command(out, &["EXEC"]);
                4
            }
            Op::Balances => {
                let mut args = vec!["MGET".to_owned()];
                args.extend((0..ACCOUNTS).map(|account| format!("b:{account}")));
                atoll_resp::request(out, &args);
                1
            }
            Op::Put(key) => command(out, &["SET", &format!("n:{key}"), "here"]),
            Op::PutMany(keys) => {
                let mut args = vec!["MSET".to_owned()];
                args.extend(keys.iter().flat_map(|key| [format!("n:{key}"), "here".to_owned()]));
                atoll_resp::request(out, &args);
                1
            }
            Op::Remove(key) => command(out, &["DEL", &format!("n:{key}")]),
            Op::Clear => command(out, &["FLUSHDB"]),
            Op::Count => command(out, &["DBSIZE"]),
            Op::SetFleeting(key, ms) => {
                command(out, &["SET", &format!("f:{key}"), "1", "PX", &ms.to_string()])
            }
            Op::Vanish(_) => 0,
            Op::GetFleeting(key) => command(out, &["GET", &format!("f:{key}")]),
        }
    }

    /// Reads the operation's end from its replies.
    ///
    /// # Errors
    /// A reply of a kind that the command never has.
    pub fn decode(&self, replies: &[Value]) -> Result<End, String> {
        let wrong = || format!("{self} was answered with {replies:?}");
        let last = replies.last().ok_or_else(wrong)?;
        if let Value::Error(text) = last {
            return Ok(if text.starts_with(b"UNKNOWN ") { End::Unknown } else { refused(text)? });
        }
        let register = |ret| Ok(End::Ok(Ret::Register(ret)));
        match (self, last) {
            (Op::Register(_, RegisterOp::Get), value) => {
                register(RegisterRet::Value(number_or_none(value).ok_or_else(wrong)?))
            }
            (Op::Register(_, RegisterOp::Set(_)), Value::Simple(_)) => register(RegisterRet::Done),
            (Op::Register(_, RegisterOp::Delete), Value::Int(n)) => {
                register(RegisterRet::Applied(*n == 1))
            }
            (Op::Register(_, RegisterOp::GetSet(_)), value) => {
                register(RegisterRet::Value(number_or_none(value).ok_or_else(wrong)?))
            }
            (Op::Register(_, RegisterOp::SetIfAbsent(_)), Value::Simple(_)) => {
                register(RegisterRet::Applied(true))
            }
            (Op::Register(_, RegisterOp::SetIfAbsent(_)), Value::Null) => {
                register(RegisterRet::Applied(false))
            }
            (Op::Register(_, RegisterOp::Add(_)), Value::Int(n)) => {
                register(RegisterRet::Number(*n))
            }
            (Op::Register(_, RegisterOp::CompareAndSet { .. }), Value::Array(_)) => {
                register(RegisterRet::Applied(true))
            }
            // It changed since it was watched; it may have changed back, so nothing is learned.
            (Op::Register(_, RegisterOp::CompareAndSet { .. }), Value::Null) => Ok(End::Refused),
            (Op::SetMany(_), Value::Simple(_)) => Ok(End::Ok(Ret::Done)),
            (Op::GetMany(keys), Value::Array(values)) if keys.len() == values.len() => {
                let values: Option<Vec<_>> = values.iter().map(number_or_none).collect();
                Ok(End::Ok(Ret::Many(values.ok_or_else(wrong)?)))
            }
            (Op::Counter(_, CounterOp::Add(_)), Value::Int(n)) => Ok(End::Ok(Ret::Counter(*n))),
            (Op::Counter(_, CounterOp::Get), value) => {
                let number = number_or_none(value).ok_or_else(wrong)?;
                Ok(End::Ok(Ret::Counter(number.unwrap_or(0))))
            }
            (Op::Lists(txn), last) => {
                let of_steps = match last {
                    Value::Array(of_steps) if txn.0.len() > 1 => of_steps.as_slice(),
                    _ if txn.0.len() == 1 => std::slice::from_ref(last),
                    _ => return Err(wrong()),
                };
                if of_steps.len() != txn.0.len() {
                    return Err(wrong());
                }
                let mut lists = Vec::new();
                for (micro, reply) in txn.0.iter().zip(of_steps) {
                    match (micro, reply) {
                        (Micro::Append { .. }, Value::Int(_)) => {}
                        (Micro::Read { .. }, value) => lists.push(list(value).ok_or_else(wrong)?),
                        _ => return Err(wrong()),
                    }
                }
                Ok(End::Ok(Ret::Lists(Reads(lists))))
            }
            (Op::Transfer { .. }, Value::Array(sums)) if sums.len() == 2 => Ok(End::Ok(Ret::Done)),
            (Op::Balances, Value::Array(values)) => {
                let balances = (0..).zip(values).map(|(account, value)| {
                    number_or_none(value).map(|balance| (account, balance.unwrap_or(0)))
                });
                let balances: Option<Vec<_>> = balances.collect();
                Ok(End::Ok(Ret::Balances(balances.ok_or_else(wrong)?)))
            }
            (Op::Put(_) | Op::PutMany(_) | Op::Clear, Value::Simple(_))
            | (Op::Remove(_), Value::Int(_)) => Ok(End::Ok(Ret::Done)),
            (Op::Count, Value::Int(n)) => {
                Ok(End::Ok(Ret::Count(u64::try_from(*n).map_err(|_| wrong())?)))
            }
            (Op::SetFleeting(..), Value::Simple(_)) => register(RegisterRet::Done),
            (Op::GetFleeting(_), value) => {
                register(RegisterRet::Value(number_or_none(value).ok_or_else(wrong)?))
            }
            _ => Err(wrong()),
        }
    }
}

/// Sorts an error that says that nothing has happened.
fn refused(text: &[u8]) -> Result<End, String> {
    // MISCONF: writes are not taken. EXECABORT: a queued command was refused. TRYAGAIN, BUSY and
    // OOM are not among the expected ones: this server never asks for a retry.
    const EXPECTED: [&[u8]; 4] = [b"MISCONF ", b"EXECABORT ", b"LOADING ", b"ERR the server"];
    if EXPECTED.iter().any(|start| text.starts_with(start)) {
        return Ok(End::Refused);
    }
    Err(format!("an error that no client expects: {}", text.escape_ascii()))
}

/// Reads a number, or that there is none.
fn number_or_none(value: &Value) -> Option<Option<i64>> {
    match value {
        Value::Null => Some(None),
        Value::Bulk(text) => std::str::from_utf8(text).ok()?.parse().ok().map(Some),
        _ => None,
    }
}

/// Reads a list of numbers, each followed by a comma.
fn list(value: &Value) -> Option<Vec<u64>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::Bulk(text) => {
            let text = std::str::from_utf8(text).ok()?;
            text.split_terminator(',').map(|number| number.parse().ok()).collect()
        }
        _ => None,
    }
}
