//! The commands, by group. Each is a method of [`Call`](crate::call::Call) that reads its
//! arguments, reads and stages records, and writes its reply or returns its error; the arity is
//! checked before.

mod connection;
mod keys;
mod server;
pub(crate) mod strings;
